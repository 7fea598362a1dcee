//! RelayCluster: what holds for a whole cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::common::{Condition, LocalRef, Retention, Template};

/// What holds for a whole cluster: who may declare what, how names are resolved, when mail is tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "RelayCluster",
        namespaced,
        status = "RelayClusterStatus",
        derive = "PartialEq",
        shortname = "rc",
        category = "postroad",
        doc = "One mail relay: its certificates, keys and policies. Pools and domains refer to it by clusterRef.",
        printcolumn(name = "Edge", type_ = "string", json_path = ".status.edge", description = "edge nodes ready/desired"),
        printcolumn(name = "Queue", type_ = "string", json_path = ".status.queue", description = "queue nodes ready/desired"),
        printcolumn(name = "Delivery", type_ = "string", json_path = ".status.delivery", description = "delivery nodes ready/desired"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
        printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        validation = crate::schema::short_name_rule()
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayClusterSpec {
    /// Image of all nodes. Absent: the one that the operator was told with `--node-image` when it first saw the cluster, so
    /// that a new operator alone replaces no pod.
    #[cfg_attr(feature = "kube", schemars(length(max = 512)))]
    pub image: Option<String>,
    /// Secrets that the image is pulled with.
    #[cfg_attr(feature = "kube", schemars(length(max = 8)))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// The operator only writes status, and renews the certificates between nodes, which would end and cut them off from one
    /// another. All else waits, a changed `deletionPolicy` too.
    pub paused: bool,
    /// What pods of every pool get beyond what they need.
    pub template: Template,
    /// Certificates between nodes.
    #[serde(rename = "internalTLS")]
    pub internal_tls: InternalTls,
    /// Who may declare what.
    pub access: Access,
    /// How names are resolved.
    pub dns: Dns,
    /// When deferred mail is tried again.
    pub retry: RetrySpec,
    /// Whether the operator restricts who reaches which pod.
    pub network_policy: Switch,
    /// What becomes of the CA and the sealing key when the RelayCluster is deleted, and of made DKIM keys when their
    /// RelayDomain is. It may be changed at any time and counts for those that are there too.
    pub deletion_policy: Retention,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum Switch {
    /// On.
    #[default]
    Enabled,
    /// Off.
    Disabled,
}

/// Certificates between nodes: mutual TLS with a CA of the cluster's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "self.caDays >= 4 * self.leafDays", "message": "the CA must live at least four times as long as leaves: raise caDays or lower leafDays"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct InternalTls {
    /// Life of the CA, days.
    #[cfg_attr(feature = "kube", schemars(range(min = 30, max = 3650)))]
    pub ca_days: u32,
    /// Life of a node's certificate, days; it is renewed at two thirds.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 90)))]
    pub leaf_days: u32,
}

impl Default for InternalTls {
    fn default() -> InternalTls {
        InternalTls {
            ca_days: 365,
            leaf_days: 30,
        }
    }
}

/// Who may declare what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Access {
    /// Namespaces whose RelayDomains count.
    pub allowed_namespaces: AllowedNamespaces,
    /// Whether a claim to a domain needs the TXT record `_postroad-challenge.<domain>`. Absent: `Trust` when only the
    /// cluster's own namespace counts, else `DNS`.
    pub domain_ownership: Option<DomainOwnership>,
    /// Every network of a RelayDomain must lie inside one of these, never /0. A declared RelayCluster with an empty list
    /// allows none.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 64), inner(length(max = 49))),
        schemars(extend("x-kubernetes-validations" = [crate::schema::networks_rule()]))
    )]
    pub networks: Vec<String>,
}

impl Access {
    /// What is asked for, or what the admitted namespaces call for.
    pub fn ownership(&self) -> DomainOwnership {
        let usual = match self.allowed_namespaces.from {
            NamespacesFrom::Same => DomainOwnership::Trust,
            NamespacesFrom::All | NamespacesFrom::Selector => DomainOwnership::DNS,
        };
        self.domain_ownership.unwrap_or(usual)
    }
}

/// Namespaces whose RelayDomains count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "(self.from == 'Selector') == has(self.selector)", "message": "selector is written exactly with `from: Selector`"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedNamespaces {
    /// Which ones.
    pub from: NamespacesFrom,
    /// By their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Which namespaces are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum NamespacesFrom {
    /// The RelayCluster's own.
    #[default]
    Same,
    /// Every namespace.
    All,
    /// Those whose labels match `selector`.
    Selector,
}

/// Chooses by labels; all requirements must hold. An empty one chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::labels"))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LabelRequirement {
    /// The label.
    #[cfg_attr(feature = "kube", schemars(length(max = 317)))]
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// With what; empty for `Exists` and `DoesNotExist`.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 32), inner(length(max = 63))))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum LabelOperator {
    /// Its value is one of these.
    In,
    /// It is absent, or its value none of these.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// The labels are chosen.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let named = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        let expressed = |one: &LabelRequirement| {
            let found = labels.get(&one.key);
            match one.operator {
                LabelOperator::In => found.is_some_and(|value| one.values.contains(value)),
                LabelOperator::NotIn => !found.is_some_and(|value| one.values.contains(value)),
                LabelOperator::Exists => found.is_some(),
                LabelOperator::DoesNotExist => found.is_none(),
            }
        };
        self.match_labels.iter().all(named) && self.match_expressions.iter().all(expressed)
    }
}

/// What a claim to a domain needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DomainOwnership {
    /// Nothing: who may declare is trusted.
    Trust,
    /// A TXT record `_postroad-challenge.<domain>`, for inbound and outbound alike.
    DNS,
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Dns {
    /// `ip` or `ip:port`; empty: as the system's resolv.conf says.
    #[cfg_attr(feature = "kube", schemars(length(max = 8), inner(length(max = 53))))]
    pub resolvers: Vec<String>,
    /// Where a DKIM record must have been seen before its key signs.
    pub key_check: KeyCheck,
}

/// Where a DKIM record must have been seen before its key signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum KeyCheck {
    /// At all authoritative servers of the domain.
    #[default]
    Authoritative,
    /// At the resolvers.
    Resolver,
    /// Nowhere: for closed networks.
    None,
}

/// When deferred mail is tried again: first, then doubling up to max, each with ±10 % of chance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "self.maxSeconds >= self.firstSeconds", "message": "maxSeconds must be at least firstSeconds"}, {"rule": "self.delayNoticeAfterHours <= self.giveUpAfterHours", "message": "delayNoticeAfterHours must be at most giveUpAfterHours; 0 sends no notice"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct RetrySpec {
    /// Wait after the first deferral, seconds.
    #[cfg_attr(feature = "kube", schemars(range(min = 30, max = 3600)))]
    pub first_seconds: u32,
    /// The longest wait, seconds; at least `firstSeconds`.
    #[cfg_attr(feature = "kube", schemars(range(min = 30, max = 86400)))]
    pub max_seconds: u32,
    /// Age at which mail is returned, hours. RFC 5321 section 4.5.4.1 asks for four to five days.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 720)))]
    pub give_up_after_hours: u32,
    /// Age at which the sender is told of the delay, hours, at most `giveUpAfterHours`; 0: never.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 720)))]
    pub delay_notice_after_hours: u32,
}

impl Default for RetrySpec {
    fn default() -> RetrySpec {
        RetrySpec {
            first_seconds: 300,
            max_seconds: 14_400,
            give_up_after_hours: 120,
            delay_notice_after_hours: 4,
        }
    }
}

/// What the operator saw of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RelayClusterStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, CertificateAuthorityReady, ConfigSynced, Programmed.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
    /// Image of the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 512)))]
    pub image: Option<String>,
    /// Id of the queue that was made for this cluster.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 36)))]
    pub cluster_id: Option<String>,
    /// Revision of the configuration that the queue holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_revision: Option<i64>,
    /// How many nodes have that revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<ProgrammedNodes>,
    /// Edge nodes, `ready/desired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 23)))]
    pub edge: Option<String>,
    /// Queue nodes, `ready/desired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 23)))]
    pub queue: Option<String>,
    /// Delivery nodes, `ready/desired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 23)))]
    pub delivery: Option<String>,
    /// When the CA's certificate ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub ca_not_after: Option<String>,
}

/// How many nodes have acknowledged the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ProgrammedNodes {
    /// Nodes that have the newest revision.
    pub programmed: i32,
    /// Ready nodes.
    pub total: i32,
}
