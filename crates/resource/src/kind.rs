//! The resources with their defaults, field by field.
//!
//! All defaults of Postroad's resources stand in this file. A field whose function does not exist yet is not here, so
//! that writing it is an error and not a wish that nobody hears. Durations are integers with the unit in the name.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The one API version that is understood.
pub const API_VERSION: &str = "postroad.dev/v1alpha1";
/// Namespace of a resource that names none; namespaces are tenants.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Class of mail whose RelayDomain names none, and of all inbound mail.
pub const DEFAULT_CLASS: &str = "default";

/// Name and namespace. The other fields are Kubernetes' own and pass unread, so that the output of
/// `kubectl get -o yaml` can be used as it is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Metadata {
    /// A DNS label, unique for kind and namespace.
    pub name: String,
    /// The tenant; [`DEFAULT_NAMESPACE`] when absent.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// A domain that mail is relayed for: inbound (mail *to* it), outbound (mail *from* it), or both.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RelayDomain {
    /// The cluster that it belongs to. Read on Kubernetes only.
    #[serde(default)]
    pub cluster_ref: Option<IgnoredAny>,
    /// The domain. Unicode is taken to its A-label form (RFC 5890); at most 253 octets. Unique in a cluster.
    pub domain: String,
    /// Mail to the domain is accepted.
    #[serde(default)]
    pub inbound: Option<InboundSpec>,
    /// Mail from the domain is accepted, from the networks named.
    #[serde(default)]
    pub outbound: Option<OutboundSpec>,
}

/// Mail to the domain.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundSpec {
    /// Where accepted mail goes, at most 16; empty: by the domain's MX records.
    #[serde(default)]
    pub targets: Vec<TargetSpec>,
}

/// A mail server behind this relay.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TargetSpec {
    /// Host name or IP address.
    #[serde(default)]
    pub host: Option<String>,
    /// A Service. Understood on Kubernetes only; elsewhere an error that names `host`.
    #[serde(default)]
    pub service_ref: Option<IgnoredAny>,
    /// TCP port.
    #[serde(default = "smtp_port")]
    pub port: u16,
}

/// Mail from the domain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutboundSpec {
    /// The class of this mail: a DNS label. Delivery pools choose by it.
    #[serde(default = "default_class")]
    pub class: String,
    /// Client networks that may send from the domain without AUTH, as CIDR, at most 32, never /0.
    #[serde(default)]
    pub networks: Vec<String>,
}

/// What holds for a whole cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RelayCluster {
    /// Who may declare what.
    pub access: Access,
    /// How names are resolved.
    pub dns: Dns,
    /// When deferred mail is tried again.
    pub retry: RetrySpec,
}

/// Who may declare what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Access {
    /// Every network of a RelayDomain must lie inside one of these, at most 64, never /0. A declared RelayCluster with an
    /// empty list allows none.
    pub networks: Vec<String>,
}

/// How names are resolved.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Dns {
    /// `ip` or `ip:port`, at most 8; empty: as the system's resolv.conf says.
    pub resolvers: Vec<String>,
}

/// When deferred mail is tried again: first, then doubling up to max, each with ±10 % of chance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RetrySpec {
    /// Wait after the first deferral, seconds, 30 to 3600.
    pub first_seconds: u32,
    /// The longest wait, seconds, from `firstSeconds` to 86400.
    pub max_seconds: u32,
    /// Age at which mail is returned, hours, 1 to 720. RFC 5321 section 4.5.4.1 asks for four to five days.
    pub give_up_after_hours: u32,
    /// Age at which the sender is told of the delay, hours, at most `giveUpAfterHours`; 0: never.
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

/// A pool of nodes at the edge.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EdgePool {
    /// The cluster that it belongs to. Read on Kubernetes only.
    pub cluster_ref: Option<IgnoredAny>,
    /// Bounds for each node of the pool.
    pub limits: EdgeLimits,
    /// How long a leaving node waits for its SMTP sessions, seconds, 5 to 3600.
    pub drain_seconds: u32,
}

impl Default for EdgePool {
    fn default() -> EdgePool {
        EdgePool {
            cluster_ref: None,
            limits: EdgeLimits::default(),
            drain_seconds: 60,
        }
    }
}

/// Bounds for each node at the edge.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EdgeLimits {
    /// SMTP sessions at once, 1 to 100000.
    pub connections: u32,
    /// SMTP sessions at once from one client address (an IPv6 client counts by its /64), 1 to 100000.
    pub connections_per_source: u32,
    /// Largest message, a Kubernetes quantity in octets, 64Ki to 1Gi (RFC 1870).
    pub message_size: String,
    /// Recipients a message, 100 to 10000 (RFC 5321 section 4.5.3.1.8 asks for at least 100).
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

/// A pool of delivery nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DeliveryPool {
    /// The cluster that it belongs to. Read on Kubernetes only.
    pub cluster_ref: Option<IgnoredAny>,
    /// How mail leaves.
    pub egress: Egress,
    /// Bounds for each node of the pool.
    pub limits: DeliveryLimits,
    /// How long a peer is waited for.
    pub timeouts: Timeouts,
    /// How long a leaving node waits for its transactions, seconds, 10 to 1800.
    pub drain_seconds: u32,
}

impl Default for DeliveryPool {
    fn default() -> DeliveryPool {
        DeliveryPool {
            cluster_ref: None,
            egress: Egress::default(),
            limits: DeliveryLimits::default(),
            timeouts: Timeouts::default(),
            drain_seconds: 120,
        }
    }
}

/// How mail leaves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Egress {
    /// All mail that has no inbound target goes to this host instead of by MX.
    pub smart_host: Option<SmartHost>,
}

/// A relay that takes all our outbound mail.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SmartHost {
    /// Host name or IP address.
    pub host: String,
    /// TCP port; 587 when absent (RFC 6409).
    #[serde(default = "submission_port")]
    pub port: u16,
}

/// Bounds for each delivery node; 1 to 10000 each.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DeliveryLimits {
    /// Open connections in all.
    pub connections: u32,
    /// Open connections to one destination's servers.
    pub connections_per_site: u32,
    /// Messages before a connection is closed.
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
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Timeouts {
    /// For the TCP connection, seconds, 1 to 300.
    pub connect_seconds: u32,
    /// For greeting and replies, seconds, 10 to 3600 (RFC 5321 section 4.5.3.2: five minutes).
    pub reply_seconds: u32,
    /// For the reply to the final dot, seconds, 600 to 3600 (RFC 5321 section 4.5.3.2.6: at least ten minutes).
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

fn smtp_port() -> u16 {
    25
}

fn submission_port() -> u16 {
    587
}

fn default_class() -> String {
    DEFAULT_CLASS.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_section_and_an_empty_one_have_the_same_defaults() {
        let absent: EdgePool = serde_json::from_str("{}").expect("all fields have defaults");
        let empty: EdgePool =
            serde_json::from_str(r#"{"limits": {}}"#).expect("all fields have defaults");
        assert_eq!(absent.limits.connections, empty.limits.connections);
        assert_eq!(absent.limits.message_size, "50Mi");
        assert_eq!(absent.drain_seconds, 60);
    }
}
