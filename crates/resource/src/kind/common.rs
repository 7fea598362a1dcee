//! What several kinds share: references, pods' templates, conditions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The one API version that is understood.
pub const API_VERSION: &str = "postroad.dev/v1alpha1";
/// Namespace of a resource that names none; namespaces are tenants.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Class of mail whose RelayDomain names none, and of all inbound mail.
pub const DEFAULT_CLASS: &str = "default";
/// The cluster that is meant when none is named.
pub const DEFAULT_CLUSTER: &str = "postroad";

/// The cluster that a resource belongs to. It cannot be changed later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRef {
    /// Name of the RelayCluster.
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub name: String,
    /// Its namespace; the resource's own when absent. Pools live in their cluster's namespace.
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub namespace: Option<String>,
}

impl Default for ClusterRef {
    fn default() -> ClusterRef {
        ClusterRef {
            name: DEFAULT_CLUSTER.into(),
            namespace: None,
        }
    }
}

/// Names another object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub struct LocalRef {
    /// Its name.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

/// What a pool's pods get beyond what they need. A field that a pool sets replaces the cluster's. Kubernetes' own types
/// are passed on as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Template {
    /// Requests and limits of the container; absent: requests of 100m of CPU and 128Mi of memory.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::any_object"))]
    pub resources: Option<Value>,
    /// Labels of Kubernetes nodes that pods may run on.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::labels"))]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that pods bear.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::any_objects"))]
    pub tolerations: Option<Vec<Value>>,
    /// Where pods would like to run.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::any_object"))]
    pub affinity: Option<Value>,
    /// How pods spread; absent: over zones and Kubernetes nodes, as far as there are enough.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::any_objects"))]
    pub topology_spread_constraints: Option<Vec<Value>>,
    /// Priority of the pods.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub priority_class_name: Option<String>,
    /// Labels of the pods, beside the operator's own.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::labels"))]
    pub pod_labels: Option<BTreeMap<String, String>>,
    /// Annotations of the pods.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::labels"))]
    pub pod_annotations: Option<BTreeMap<String, String>>,
}

/// One aspect of an object's state, as `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect: `Ready`, `Accepted`, …
    #[serde(rename = "type")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 316)))]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub observed_generation: Option<i64>,
    /// When `status` last changed (RFC 3339).
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub last_transition_time: String,
    /// Why, as one word for programs.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub reason: String,
    /// Why and what to do, for people.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub message: String,
}

/// Of a [`Condition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Not looked at yet, or it cannot be known now.
    Unknown,
}

/// Whether something outlives what declared it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum Retention {
    /// It stays.
    #[default]
    Retain,
    /// It goes too.
    Delete,
}
