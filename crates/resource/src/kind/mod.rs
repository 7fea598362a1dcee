//! The resources with their defaults, field by field: one file for each kind, and what they share.
//!
//! All defaults of Postroad's resources stand in these files. A field whose function does not exist yet is not here, so
//! that writing it is an error and not a wish that nobody hears. Durations are integers with the unit in the name.
//! The same types are read from files and, with the feature `kube`, are Kubernetes' custom resources.

#![cfg_attr(
    feature = "kube",
    allow(
        clippy::duplicated_attributes,
        reason = "columns of one type are columns of their own"
    )
)]

mod common;
mod delivery_pool;
mod dkim_key;
mod edge_pool;
mod queue_pool;
mod relay_cluster;
mod relay_domain;

pub use common::{
    API_VERSION, ClusterRef, Condition, ConditionStatus, DEFAULT_CLASS, DEFAULT_CLUSTER,
    DEFAULT_NAMESPACE, LocalRef, Retention, Template,
};
#[cfg(feature = "kube")]
pub use delivery_pool::DeliveryPool;
pub use delivery_pool::{
    DeliveryLimits, DeliveryPoolSpec, DeliveryPoolStatus, Egress, SmartHost, SmartHostTls, Timeouts,
};
#[cfg(feature = "kube")]
pub use dkim_key::DkimKey;
pub use dkim_key::{DkimKeySpec, DkimKeyStatus, KeyPhase, KeyRecord, KeySource};
#[cfg(feature = "kube")]
pub use edge_pool::EdgePool;
pub use edge_pool::{
    EdgeLimits, EdgePoolSpec, EdgePoolStatus, Listener, ListenerProtocol, ListenerStatus,
    ListenerTls, Service, ServiceType, TlsMode, TrafficPolicy,
};
#[cfg(feature = "kube")]
pub use queue_pool::QueuePool;
pub use queue_pool::{
    Groups, Member, MemberState, Operation, OperationType, QueuePoolSpec, QueuePoolStatus, Storage,
};
#[cfg(feature = "kube")]
pub use relay_cluster::RelayCluster;
pub use relay_cluster::{
    Access, AllowedNamespaces, Dns, DomainOwnership, InternalTls, KeyCheck, LabelOperator,
    LabelRequirement, LabelSelector, NamespacesFrom, ProgrammedNodes, RelayClusterSpec,
    RelayClusterStatus, RetrySpec, Switch,
};
#[cfg(feature = "kube")]
pub use relay_domain::RelayDomain;
pub use relay_domain::{
    DkimAlgorithm, DkimMode, DkimSpec, DnsPurpose, DnsRecord, DnsState, ImportedKey, InboundSpec,
    OnMissingKey, OutboundSpec, RelayDomainSpec, RelayDomainStatus, TargetSpec, TargetTls,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_section_and_an_empty_one_have_the_same_defaults() {
        let absent: EdgePoolSpec = serde_json::from_str("{}").expect("all fields have defaults");
        let empty: EdgePoolSpec =
            serde_json::from_str(r#"{"limits": {}}"#).expect("all fields have defaults");
        assert_eq!(absent, empty);
        assert_eq!(absent.limits.message_size, "50Mi");
        assert_eq!(absent.drain_seconds, 60);
    }

    #[test]
    fn a_privileged_port_is_raised_in_the_pod() {
        let listener = |text: &str| -> Listener { serde_json::from_str(text).expect("good") };
        let smtp = listener(r#"{"name": "smtp", "protocol": "SMTP", "port": 25}"#);
        assert_eq!(
            (smtp.container_port(), smtp.tls_mode()),
            (2525, TlsMode::Optional)
        );
        let tls = listener(r#"{"name": "s", "protocol": "Submissions", "port": 465}"#);
        assert_eq!(
            (tls.container_port(), tls.tls_mode()),
            (2965, TlsMode::Implicit)
        );
        assert_eq!(
            listener(r#"{"name": "s", "protocol": "SMTP", "port": 2525}"#).container_port(),
            2525
        );
    }
}
