//! EdgePool: nodes that accept mail.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::common::{ClusterRef, Condition, Template};

/// A pool of nodes at the edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "EdgePool",
        namespaced,
        status = "EdgePoolStatus",
        derive = "PartialEq",
        shortname = "ep",
        category = "postroad",
        doc = "Nodes of a RelayCluster that accept mail by SMTP.",
        scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
        printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
        printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
        printcolumn(name = "Ready-Pods", type_ = "integer", json_path = ".status.readyReplicas"),
        printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        validation = crate::schema::short_name_rule()
    ),
    schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.listeners) && self.listeners.size() > 0", "message": "listeners is needed: name at least one, like {name: smtp, protocol: SMTP, port: 25}"}, {"rule": "!has(self.listeners) || self.listeners.all(a, self.listeners.exists_one(b, a.port == b.port))", "message": "two listeners have the same port"}, {"rule": "!has(self.listeners) || self.listeners.all(a, self.listeners.exists_one(b, (has(a.containerPort) ? a.containerPort : (a.port < 1024 ? a.port + 2500 : a.port)) == (has(b.containerPort) ? b.containerPort : (b.port < 1024 ? b.port + 2500 : b.port))))", "message": "two listeners have the same port of the pod, which is `port`, or `port` + 2500 below 1024: write another containerPort"}, {"rule": "!has(self.listeners) || self.listeners.all(a, a.protocol == 'Submissions' || self.listeners.all(b, b.protocol == 'Submissions' || (has(a.tls) && has(a.tls.mode) ? a.tls.mode : 'Optional') == (has(b.tls) && has(b.tls.mode) ? b.tls.mode : 'Optional')))", "message": "STARTTLS is the same on all listeners of a pool: write one tls.mode, or make another EdgePool"}, {"rule": "!has(self.listeners) || self.listeners.all(a, a.protocol != 'Submissions' && !(has(a.tls) && has(a.tls.mode) && a.tls.mode == 'Required')) || self.listeners.exists(a, has(a.tls) && has(a.tls.secretNames) && a.tls.secretNames.size() > 0)", "message": "a listener that takes mail under TLS only needs a certificate: write tls.secretNames"}, {"rule": "self.service.type == 'LoadBalancer' || (!has(self.service.loadBalancerClass) && self.service.loadBalancerSourceRanges.size() == 0)", "message": "loadBalancerClass and loadBalancerSourceRanges need `type: LoadBalancer`"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgePoolSpec {
    /// The cluster that it belongs to.
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [crate::schema::cluster_ref_rule()])))]
    pub cluster_ref: ClusterRef,
    /// Nodes.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 500)))]
    pub replicas: i32,
    /// Ports that mail is accepted on. Needed on Kubernetes; elsewhere the program's flags say where it listens.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 8)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))
    )]
    pub listeners: Vec<Listener>,
    /// The Service in front of the pool.
    pub service: Service,
    /// Name in the banner and in EHLO's answer. Absent: `<pool>-edge.<namespace>.svc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::host_name"))]
    pub hostname: Option<String>,
    /// Who gets the mail to `Postmaster`, and to `postmaster@` the hostname, which every mail server must take (RFC 5321
    /// section 4.5.1). Absent: it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::address"))]
    pub postmaster: Option<String>,
    /// How long a client is kept waiting for the greeting, seconds; one that talks in this time is no mail server and is
    /// refused. 0: nobody waits, and nobody is refused for that.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 60)))]
    pub greeting_pause_seconds: u32,
    /// Bounds for each node of the pool.
    pub limits: EdgeLimits,
    /// How long a leaving node waits for its SMTP sessions, seconds.
    #[cfg_attr(feature = "kube", schemars(range(min = 5, max = 3600)))]
    pub drain_seconds: u32,
    /// What pods get beyond what they need; each field replaces the cluster's.
    pub template: Template,
}

impl EdgePoolSpec {
    /// Clients come with their own addresses, by which networks are recognised.
    pub fn source_address_is_reliable(&self) -> bool {
        self.service.type_ == ServiceType::ClusterIP
            || self.service.external_traffic_policy == TrafficPolicy::Local
    }
}

impl Default for EdgePoolSpec {
    fn default() -> EdgePoolSpec {
        EdgePoolSpec {
            cluster_ref: ClusterRef::default(),
            replicas: 2,
            listeners: Vec::new(),
            service: Service::default(),
            hostname: None,
            postmaster: None,
            greeting_pause_seconds: 0,
            limits: EdgeLimits::default(),
            drain_seconds: 60,
            template: Template::default(),
        }
    }
}

/// A port that mail is accepted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.tls) || !has(self.tls.mode) || (self.tls.mode == 'Implicit') == (self.protocol == 'Submissions')", "message": "TLS from the first octet (Implicit) is what Submissions means, and only it"}, {"rule": "has(self.containerPort) || self.port >= 1024 || self.port + 2500 <= 65535", "message": "write containerPort"}, {"rule": "self.name != 'admin' && (has(self.containerPort) ? self.containerPort : (self.port < 1024 ? self.port + 2500 : self.port)) != 9090", "message": "the name admin and the pod's port 9090 are those of health and metrics"}]))
)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name of the port.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 15), regex(pattern = "^[a-z][a-z0-9-]{0,14}$"))
    )]
    pub name: String,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// Port of the Service.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
    /// Port of the pod. Absent: `port`, or `port` + 2500 below 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1024, max = 65535)))]
    pub container_port: Option<u16>,
    /// Encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
}

/// Ports below this one are kept by the system for privileged processes.
const PRIVILEGED_BELOW: u16 = 1024;
/// What a privileged port is raised by to be a pod's port: 25 becomes 2525.
const PORT_RAISE: u16 = 2500;

impl Listener {
    /// Port of the pod.
    pub fn container_port(&self) -> u16 {
        let usual = match self.port < PRIVILEGED_BELOW {
            true => self.port + PORT_RAISE,
            false => self.port,
        };
        self.container_port.unwrap_or(usual)
    }

    /// Encryption, as written or as the protocol means it.
    pub fn tls_mode(&self) -> TlsMode {
        let usual = match self.protocol {
            ListenerProtocol::Submissions => TlsMode::Implicit,
            ListenerProtocol::SMTP | ListenerProtocol::Submission => TlsMode::Optional,
        };
        self.tls.as_ref().and_then(|tls| tls.mode).unwrap_or(usual)
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ListenerProtocol {
    /// Between mail servers (RFC 5321).
    SMTP,
    /// From mail clients (RFC 6409).
    Submission,
    /// From mail clients, TLS from the first octet (RFC 8314).
    Submissions,
}

/// Encryption on a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// When. Absent: `Implicit` for Submissions, else `Optional`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// Secrets of type kubernetes.io/tls, chosen by SNI; the first is the default. All listeners of a pool share theirs. A pool
    /// without any offers no STARTTLS, and the condition CertificatesReady says what is missing.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16), inner(length(min = 1, max = 253)))
    )]
    pub secret_names: Vec<String>,
}

/// When a port is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum TlsMode {
    /// Never.
    Disabled,
    /// When the client asks by STARTTLS.
    Optional,
    /// Mail is taken after STARTTLS only. On a public port 25 this breaks RFC 3207 section 4: for private ports.
    Required,
    /// From the first octet.
    Implicit,
}

/// The Service in front of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// `Local` keeps the client's address, by which networks are recognised. Not written for ClusterIP.
    pub external_traffic_policy: TrafficPolicy,
    /// Passed on to the Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub load_balancer_class: Option<String>,
    /// Annotations of the Service.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::labels"))]
    pub annotations: BTreeMap<String, String>,
    /// Networks that the load balancer lets in.
    #[cfg_attr(feature = "kube", schemars(length(max = 64), inner(length(max = 49))))]
    pub load_balancer_source_ranges: Vec<String>,
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ServiceType {
    /// Inside the Kubernetes cluster only.
    #[default]
    ClusterIP,
    /// On a port of every Kubernetes node.
    NodePort,
    /// Behind a load balancer.
    LoadBalancer,
}

/// Where a Service sends what comes from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum TrafficPolicy {
    /// To pods of the same Kubernetes node, with the client's address.
    #[default]
    Local,
    /// To any pod, with the Kubernetes node's address: the pool then recognises no network.
    Cluster,
}

/// Bounds for each node at the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeLimits {
    /// SMTP sessions at once.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 100000)))]
    pub connections: u32,
    /// SMTP sessions at once from one client address (an IPv6 client counts by its /64).
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 100000)))]
    pub connections_per_source: u32,
    /// Largest message, a Kubernetes quantity in octets, 64Ki to 128Mi (RFC 1870).
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 32)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "isQuantity(self) && quantity(self).compareTo(quantity('64Ki')) >= 0 && quantity(self).compareTo(quantity('128Mi')) <= 0", "message": "messageSize is a quantity from 64Ki to 128Mi"}]))
    )]
    pub message_size: String,
    /// Recipients a message (RFC 5321 section 4.5.3.1.8 asks for at least 100).
    #[cfg_attr(feature = "kube", schemars(range(min = 100, max = 10000)))]
    pub recipients: u32,
}

impl Default for EdgeLimits {
    fn default() -> EdgeLimits {
        EdgeLimits {
            connections: 1000,
            connections_per_source: 50,
            message_size: "50Mi".into(),
            recipients: 1000,
        }
    }
}

/// What the operator saw of an edge pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EdgePoolStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Accepted, Programmed, CertificatesReady, SourceAddressReliable.
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
    /// Where the pool is reached.
    #[cfg_attr(feature = "kube", schemars(length(max = 16), inner(length(max = 253))))]
    pub addresses: Vec<String>,
    /// The listeners.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 8)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))
    )]
    pub listeners: Vec<ListenerStatus>,
}

/// What the operator saw of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    #[cfg_attr(feature = "kube", schemars(length(max = 15)))]
    pub name: String,
    /// When the first of its certificates ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub certificate_not_after: Option<String>,
}
