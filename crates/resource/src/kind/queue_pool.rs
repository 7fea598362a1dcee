//! QueuePool: the queue nodes of a cluster.

use serde::{Deserialize, Serialize};

use super::common::{ClusterRef, Condition, Retention, Template};

/// The queue nodes of a cluster, one pool for each cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "QueuePool",
        namespaced,
        status = "QueuePoolStatus",
        derive = "PartialEq",
        shortname = "qp",
        category = "postroad",
        doc = "The queue nodes of a RelayCluster: replicated mail on volumes of their own.",
        scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
        printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
        printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
        printcolumn(name = "Members", type_ = "integer", json_path = ".status.replicas", description = "nodes that are in the queue"),
        printcolumn(name = "Ready-Pods", type_ = "integer", json_path = ".status.readyReplicas"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
        printcolumn(name = "Operation", type_ = "string", json_path = ".status.operation.type", priority = 1),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        validation = crate::schema::short_name_rule()
    ),
    schemars(extend("x-kubernetes-validations" = [{"rule": "self.replicas >= self.replicationFactor", "message": "fewer nodes than copies: replicas must be at least replicationFactor"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct QueuePoolSpec {
    /// The cluster that it belongs to.
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [crate::schema::cluster_ref_rule()])))]
    pub cluster_ref: ClusterRef,
    /// Queue nodes: more nodes carry more; each shard stays on `replicationFactor` of them.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 64)))]
    pub replicas: i32,
    /// Copies of every shard: 1, 3 or 5. When it changes, they come and go one by one, in a queue that takes mail meanwhile.
    #[cfg_attr(
        feature = "kube",
        schemars(range(min = 1, max = 5)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "self in [1, 3, 5]", "message": "a shard has 1, 3 or 5 copies"}]))
    )]
    pub replication_factor: i32,
    /// Raft groups beside the control group, a power of two. It cannot be changed later.
    #[cfg_attr(
        feature = "kube",
        schemars(range(min = 1, max = 256)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "self in [1, 2, 4, 8, 16, 32, 64, 128, 256]", "message": "shards is a power of two, at most 256"}, {"rule": "self == oldSelf", "message": "shards cannot be changed: a message's shard is fixed by its id"}]))
    )]
    pub shards: i32,
    /// Volumes.
    pub storage: Storage,
    /// How long a node may be away until it is replaced under a new id, seconds; 0: never.
    #[cfg_attr(
        feature = "kube",
        schemars(range(min = 0, max = 604800)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "self == 0 || self >= 60", "message": "write 0 to never replace a node, else at least 60"}]))
    )]
    pub replace_after_seconds: i32,
    /// What pods get beyond what they need; each field replaces the cluster's.
    pub template: Template,
}

impl Default for QueuePoolSpec {
    fn default() -> QueuePoolSpec {
        QueuePoolSpec {
            cluster_ref: ClusterRef::default(),
            replicas: 3,
            replication_factor: 3,
            shards: 16,
            storage: Storage::default(),
            replace_after_seconds: 900,
            template: Template::default(),
        }
    }
}

/// Volumes of queue nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)", "message": "storageClassName cannot be changed: make a new pool"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct Storage {
    /// Size of each, a Kubernetes quantity; at least 2Gi, and never smaller than before.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 32)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "isQuantity(self) && quantity(self).compareTo(quantity('2Gi')) >= 0", "message": "size is a quantity of at least 2Gi"}, {"rule": "quantity(self).compareTo(quantity(oldSelf)) >= 0", "message": "a volume never shrinks"}]))
    )]
    pub size: String,
    /// Its class; absent: the cluster's default one. It cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub storage_class_name: Option<String>,
    /// What becomes of the volume of a node that was scaled away.
    pub when_scaled: Retention,
    /// What becomes of volumes when the pool is deleted.
    pub when_deleted: Retention,
}

impl Default for Storage {
    fn default() -> Storage {
        Storage {
            size: "20Gi".into(),
            storage_class_name: None,
            when_scaled: Retention::Retain,
            when_deleted: Retention::Retain,
        }
    }
}

/// What the operator saw of a queue pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct QueuePoolStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Accepted, QuorumHealthy, Progressing, ScaleBlocked.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
    /// Nodes that are in the queue.
    pub replicas: i32,
    /// Those whose pods are ready.
    pub ready_replicas: i32,
    /// Those whose pods are as the spec says.
    pub updated_replicas: i32,
    /// Chooses the pods, as the scale subresource wants it.
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub selector: String,
    /// Id of the queue: volumes that carry it belong here.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 36)))]
    pub cluster_id: Option<String>,
    /// The nodes.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 128)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["nodeID"]))
    )]
    pub members: Vec<Member>,
    /// The Raft groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// What is being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// A queue node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Names a disk; never used again for another.
    #[serde(rename = "nodeID")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 4294967295u32)))]
    pub node_id: i64,
    /// Its pod.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub pod_name: String,
    /// Its volume claim.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub pvc_name: String,
    /// Zone that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub zone: Option<String>,
    /// Where it is in its life.
    pub state: MemberState,
    /// Groups that it holds a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<i32>,
    /// Groups that it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads: Option<i32>,
    /// Version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 64)))]
    pub version: Option<String>,
    /// When its certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub certificate_not_after: Option<String>,
}

/// Where a queue node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum MemberState {
    /// Not in the queue yet.
    Joining,
    /// Serving.
    Ready,
    /// Its groups are moved away.
    Leaving,
    /// Not heard of for some seconds: it may come back.
    Silent,
    /// Away for so long that another takes its place, or its volume is gone.
    Lost,
}

/// The Raft groups of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Groups {
    /// Shards and the control group.
    pub total: i32,
    /// Those with a leader.
    pub with_leader: i32,
    /// Those with all their copies in step.
    pub fully_replicated: i32,
}

/// What the operator does with a queue pool: one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// What.
    #[serde(rename = "type")]
    pub type_: OperationType,
    /// With which node.
    #[serde(rename = "nodeID", default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    /// How far it got.
    #[cfg_attr(feature = "kube", schemars(length(max = 64)))]
    pub step: String,
    /// Since when.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub start_time: String,
}

/// Kinds of [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum OperationType {
    /// The first nodes.
    Bootstrap,
    /// A node comes.
    Add,
    /// A node goes.
    Remove,
    /// A lost node is replaced under a new id.
    Replace,
    /// Every shard gets another number of copies.
    Copies,
    /// Pods are made anew, one at a time.
    Roll,
    /// Volumes grow.
    Resize,
}
