//! What the operator asks of the API server, kind by kind: the one table that its ClusterRole is written from
//! (`cargo run -p gen`). A test holds it against the kinds that the code names and what it does with them.

/// Rights to one kind.
pub struct Right {
    /// API group; empty: core.
    pub group: &'static str,
    /// As in paths.
    pub resource: &'static str,
    /// The type in the code; empty: of a subresource.
    pub kind: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
    /// Why.
    pub why: &'static str,
}

const FOLLOW: &[&str] = &["list", "watch"];
/// Server-side apply of an object that is not there is a `create` too.
const STATE: &[&str] = &["list", "watch", "create", "patch"];
const KEEP: &[&str] = &["list", "watch", "create", "patch", "delete"];
const STATUS: &[&str] = &["patch"];
const OWN: &[&str] = &["update"];

const fn right(
    group: &'static str,
    resource: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Right {
    Right {
        group,
        resource,
        kind,
        verbs,
        why,
    }
}

/// Our own API group.
pub const POSTROAD: &str = "postroad.dev";
const DECLARED: &str = "what people declare is read and never written";
const TOLD: &str = "what became of it";
const OWNER: &str = "blockOwnerDeletion in what belongs to it, where the API server asks for that";

/// All rights, whatever the namespace. The Lease is in a Role of the operator's own namespace.
pub const RIGHTS: &[Right] = &[
    right(
        POSTROAD,
        "relayclusters",
        "RelayCluster",
        &["get", "list", "watch"],
        DECLARED,
    ),
    right(POSTROAD, "edgepools", "EdgePool", FOLLOW, DECLARED),
    right(
        POSTROAD,
        "queuepools",
        "QueuePool",
        &["list", "watch", "patch"],
        "read, and held by a finalizer while volumes with mail would go with it",
    ),
    right(POSTROAD, "deliverypools", "DeliveryPool", FOLLOW, DECLARED),
    right(POSTROAD, "relaydomains", "RelayDomain", FOLLOW, DECLARED),
    right(
        POSTROAD,
        "dkimkeys",
        "DkimKey",
        &["get", "list", "watch", "create", "delete"],
        "keys are made and end; none is changed",
    ),
    right(POSTROAD, "relayclusters/status", "", STATUS, TOLD),
    right(POSTROAD, "edgepools/status", "", STATUS, TOLD),
    right(POSTROAD, "queuepools/status", "", STATUS, TOLD),
    right(POSTROAD, "deliverypools/status", "", STATUS, TOLD),
    right(POSTROAD, "relaydomains/status", "", STATUS, TOLD),
    right(POSTROAD, "dkimkeys/status", "", STATUS, TOLD),
    right(POSTROAD, "relayclusters/finalizers", "", OWN, OWNER),
    right(POSTROAD, "edgepools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "queuepools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "deliverypools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "relaydomains/finalizers", "", OWN, OWNER),
    right(POSTROAD, "dkimkeys/finalizers", "", OWN, OWNER),
    right(
        "",
        "secrets",
        "Secret",
        &["get", "list", "watch", "create", "patch", "delete"],
        "certificates, sealing keys, signing keys; those of keys that never sign again are deleted",
    ),
    right(
        "",
        "configmaps",
        "ConfigMap",
        STATE,
        "what nodes trust, and pools' own resources",
    ),
    right(
        "",
        "services",
        "Service",
        STATE,
        "in front of edge and queue pools",
    ),
    right("", "pods", "Pod", KEEP, "queue nodes"),
    right(
        "",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        KEEP,
        "of queue nodes",
    ),
    right(
        "",
        "namespaces",
        "Namespace",
        &["get"],
        "a RelayCluster admits them by their labels",
    ),
    right(
        "apps",
        "deployments",
        "Deployment",
        STATE,
        "edge and delivery pools",
    ),
    right(
        "policy",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        &["get", "create", "patch", "delete"],
        "of pools with several nodes",
    ),
    right(
        "networking.k8s.io",
        "networkpolicies",
        "NetworkPolicy",
        &["get", "create", "patch", "delete"],
        "who reaches which pool",
    ),
    right(
        "events.k8s.io",
        "events",
        "",
        &["create", "patch"],
        "what people are told",
    ),
];

/// The `rules` of the ClusterRole.
pub fn rules() -> String {
    let mut text = String::from("# Written by `cargo run -p gen` from operator/src/rbac.rs.\n");
    for right in RIGHTS {
        let list = |items: &[&str]| items.join(", ");
        text += &format!(
            "# {}\n- apiGroups: [{:?}]\n  resources: [{}]\n  verbs: [{}]\n",
            right.why,
            right.group,
            right.resource,
            list(right.verbs)
        );
    }
    text
}
