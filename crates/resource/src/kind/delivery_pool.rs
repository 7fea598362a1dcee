//! DeliveryPool: nodes that deliver mail.

use serde::{Deserialize, Serialize};

use super::common::{ClusterRef, Condition, Template};

/// A pool of delivery nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "DeliveryPool",
        namespaced,
        status = "DeliveryPoolStatus",
        derive = "PartialEq",
        shortname = "dp",
        category = "postroad",
        doc = "Nodes of a RelayCluster that deliver mail to the next hop.",
        scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
        printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
        printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
        printcolumn(name = "Ready-Pods", type_ = "integer", json_path = ".status.readyReplicas"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        validation = crate::schema::short_name_rule()
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct DeliveryPoolSpec {
    /// The cluster that it belongs to.
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [crate::schema::cluster_ref_rule()])))]
    pub cluster_ref: ClusterRef,
    /// Nodes.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 500)))]
    pub replicas: i32,
    /// How mail leaves.
    pub egress: Egress,
    /// Bounds for each node of the pool.
    pub limits: DeliveryLimits,
    /// How long a peer is waited for.
    pub timeouts: Timeouts,
    /// How long a leaving node waits for its transactions, seconds.
    #[cfg_attr(feature = "kube", schemars(range(min = 10, max = 1800)))]
    pub drain_seconds: u32,
    /// What pods get beyond what they need; each field replaces the cluster's.
    pub template: Template,
}

impl Default for DeliveryPoolSpec {
    fn default() -> DeliveryPoolSpec {
        DeliveryPoolSpec {
            cluster_ref: ClusterRef::default(),
            replicas: 2,
            egress: Egress::default(),
            limits: DeliveryLimits::default(),
            timeouts: Timeouts::default(),
            drain_seconds: 120,
            template: Template::default(),
        }
    }
}

/// How mail leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Egress {
    /// Name in EHLO. Absent: the pod's.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::host_name"))]
    pub hostname: Option<String>,
    /// All mail that has no inbound target goes to this host instead of by MX.
    pub smart_host: Option<SmartHost>,
}

/// A relay that takes all our outbound mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SmartHost {
    /// Host name or IP address.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub host: String,
    /// TCP port; 587 when absent (RFC 6409).
    #[serde(default = "submission_port")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
    /// Whether mail goes there under TLS.
    #[serde(default)]
    pub tls: SmartHostTls,
}

/// Whether mail goes to a smart host under TLS. Without credentials for it nothing secret travels but the mail, so what
/// any other server gets is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum SmartHostTls {
    /// By STARTTLS where it is offered, without a look at the certificate; else in clear.
    #[default]
    Opportunistic,
    /// Only by STARTTLS, and only to a server whose certificate is that of its host, of a known CA.
    Required,
    /// As required, but TLS begins with the connection (RFC 8314).
    Implicit,
}

/// Bounds for each delivery node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct DeliveryLimits {
    /// Open connections in all.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 10000)))]
    pub connections: u32,
    /// Open connections to one destination's servers.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 10000)))]
    pub connections_per_site: u32,
    /// Messages before a connection is closed.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 10000)))]
    pub messages_per_connection: u32,
}

impl Default for DeliveryLimits {
    fn default() -> DeliveryLimits {
        DeliveryLimits {
            connections: 500,
            connections_per_site: 20,
            messages_per_connection: 100,
        }
    }
}

/// How long a peer is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// For the TCP connection, seconds.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 300)))]
    pub connect_seconds: u32,
    /// For greeting and replies, seconds (RFC 5321 section 4.5.3.2: five minutes).
    #[cfg_attr(feature = "kube", schemars(range(min = 10, max = 3600)))]
    pub reply_seconds: u32,
    /// For the reply to the final dot, seconds (RFC 5321 section 4.5.3.2.6: at least ten minutes).
    #[cfg_attr(feature = "kube", schemars(range(min = 600, max = 3600)))]
    pub final_reply_seconds: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect_seconds: 30,
            reply_seconds: 300,
            final_reply_seconds: 600,
        }
    }
}

/// What the operator saw of a delivery pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct DeliveryPoolStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Accepted, Programmed.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
    /// Pods.
    pub replicas: i32,
    /// Those that are ready.
    pub ready_replicas: i32,
    /// Those that are as the spec says.
    pub updated_replicas: i32,
    /// Chooses the pods, as the scale subresource wants it.
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub selector: String,
}

fn submission_port() -> u16 {
    587
}
