//! The objects of a queue pool, built from what was declared. Nothing here talks to anyone.

use std::collections::BTreeSet;

use resource::{QueuePool, RelayCluster};
use serde_json::{Value, json};

use crate::names::{
    self, ADMIN_PORT, CLIENT_PORT, Component, DATA_DIR, PEER_PORT, PKI_DIR, PoolName,
};
use crate::node_pool::build;
use crate::ssa;
use crate::template;

/// A queue node gives its leaderships away and flushes; that takes seconds.
const GRACE_SECONDS: u32 = 60;

/// What the objects of one queue pool are made from.
pub struct Parts<'a> {
    /// As declared.
    pub pool: &'a QueuePool,
    /// Its cluster.
    pub cluster: &'a RelayCluster,
    /// Names and labels.
    pub name: &'a PoolName,
    /// Of the nodes.
    pub image: &'a str,
    /// Id of the queue.
    pub cluster_id: &'a str,
}

/// Names and labels of a pool.
pub fn name(pool: &QueuePool, namespace: &str) -> PoolName {
    PoolName {
        namespace: namespace.into(),
        cluster: pool.spec.cluster_ref.name.clone(),
        pool: pool.metadata.name.clone().unwrap_or_default(),
        component: Component::Queue,
    }
}

/// The Services: one for clients, and one that gives each pod a name. Both know pods that are not ready: the first election needs
/// the names of all, and no node is ready while a single shard has no leader, when those who look for the others must still
/// find somebody to ask.
pub fn services(pool: &QueuePool, name: &PoolName) -> [Value; 2] {
    let service = |service: &str, spec: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": service, "labels": name.labels(), "ownerReferences": ssa::owner(pool)},
            "spec": spec,
        })
    };
    let port = |port: &str, number: u16| json!({"name": port, "port": number, "targetPort": port, "protocol": "TCP"});
    [
        service(
            &name.object(),
            json!({
                "type": "ClusterIP", "publishNotReadyAddresses": true, "selector": name.selector(),
                "ports": [port("client", CLIENT_PORT)],
            }),
        ),
        service(
            &names::queue_peers(&name.pool),
            json!({
                "type": "ClusterIP", "clusterIP": "None", "publishNotReadyAddresses": true, "selector": name.selector(),
                "ports": [port("client", CLIENT_PORT), port("peer", PEER_PORT)],
            }),
        ),
    ]
}

/// One node may be away, as a number that the operator keeps: the disruption controller would count from `spec.replicas`,
/// which is wrong while nodes come and go. `None` for a single node, whose budget could only be in the way.
///
/// A node is ready while it knows a leader of every group, so one that is cut off from the others is not counted on.
///
/// Nodes that are not ready may go only while the others are as many as they should be: while a group has no leader none is
/// ready, and all of them are needed. One that never started is `Pending` and goes always.
pub fn disruption_budget(pool: &QueuePool, name: &PoolName, members: usize) -> Option<Value> {
    let mut selector = name.selector();
    selector.insert(names::MEMBER.into(), json!("joined"));
    (members > 1).then(|| {
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": name.object(), "labels": name.labels(), "ownerReferences": ssa::owner(pool)},
            "spec": {
                "minAvailable": members - 1,
                "selector": {"matchLabels": selector},
                "unhealthyPodEvictionPolicy": "IfHealthyBudget",
            },
        })
    })
}

/// Volume claim of a node. It belongs to nobody, whatever `whenDeleted` says: that may change, and whoever collects garbage
/// does not wait for a finalizer. `finalizer` takes it away when the pool goes, if it is to go then.
pub fn claim(parts: &Parts<'_>, node: u64, initial: Option<&BTreeSet<u64>>) -> Value {
    let storage = &parts.pool.spec.storage;
    let mut labels = parts.name.labels();
    labels.insert(names::NODE_ID.into(), json!(node.to_string()));
    labels.insert(names::CLUSTER_ID.into(), json!(parts.cluster_id));
    let mut metadata =
        json!({"name": names::queue_claim(&parts.name.pool, node), "labels": labels});
    if let Some(initial) = initial {
        let list: Vec<String> = initial.iter().map(u64::to_string).collect();
        metadata["annotations"] = json!({names::INITIAL_CLUSTER: list.join(",")});
    }
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    });
    if let Some(class) = &storage.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
}

/// Digest of what people can see of a pod: another one makes a new pod. What a newer operator writes differently is not in it,
/// so that an operator's upgrade alone replaces no pod.
pub fn hash(parts: &Parts<'_>) -> String {
    let template = template::merge(&parts.cluster.spec.template, &parts.pool.spec.template);
    let seen = json!({
        "image": parts.image,
        "pullSecrets": parts.cluster.spec.image_pull_secrets,
        "template": template,
    });
    names::digest(&seen.to_string())
}

/// Pod of a node. `initial` is the list of the first nodes if it is one of them: only such a node may begin on an empty disk.
pub fn pod(parts: &Parts<'_>, node: u64, initial: Option<&BTreeSet<u64>>, joined: bool) -> Value {
    let (pool, namespace) = (&parts.name.pool, &parts.name.namespace);
    let host = |node: u64| names::queue_host(pool, namespace, node);
    let (list, state) = match initial {
        Some(initial) => (initial.clone(), "new"),
        None => (BTreeSet::from([node]), "existing"),
    };
    // The queue begins with as many nodes as copies. Their number may change later: the queue itself is told then, and knows.
    let copies = initial.map_or(1, BTreeSet::len);
    let list: Vec<String> = list
        .iter()
        .map(|node| format!("{node}={}:{PEER_PORT}", host(*node)))
        .collect();
    let mut args: Vec<String> = vec!["queue".into()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("cluster-id", parts.cluster_id.into());
    flag("node-id", node.to_string());
    flag("initial-cluster", list.join(","));
    flag("initial-cluster-state", state.into());
    flag("shards", parts.pool.spec.shards.to_string());
    flag("replication-factor", copies.to_string());
    flag("advertise", format!("{}:{PEER_PORT}", host(node)));
    flag("advertise-client", format!("{}:{CLIENT_PORT}", host(node)));
    flag("data", DATA_DIR.into());
    flag("pki", PKI_DIR.into());
    flag("admin-listen", format!("0.0.0.0:{ADMIN_PORT}"));
    flag("log-format", "json".into());

    let template = template::merge(&parts.cluster.spec.template, &parts.pool.spec.template);
    let mut container = build::container(parts.image, &args, &template);
    let port =
        |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    container["ports"] = json!([
        port("client", CLIENT_PORT),
        port("peer", PEER_PORT),
        port("admin", ADMIN_PORT),
    ]);
    container["volumeMounts"] = json!([
        {"name": "pki", "mountPath": PKI_DIR, "readOnly": true},
        {"name": "data", "mountPath": DATA_DIR},
    ]);
    // From Kubernetes 1.35 on a pod gets this label of the node that it is bound to; before, and where there are none, it is empty.
    let zone = format!("metadata.labels['{}']", names::ZONE);
    container["env"] =
        json!([{"name": "POSTROAD_ZONE", "valueFrom": {"fieldRef": {"fieldPath": zone}}}]);
    let pod_name = names::queue_pod(pool, node);
    let volumes = vec![
        build::pki_volume(&parts.name.cluster, &names::leaf_secret(&pod_name)),
        json!({"name": "data", "persistentVolumeClaim": {"claimName": names::queue_claim(pool, node)}}),
    ];
    let mut pod = build::pod(parts.cluster, parts.name, &template, container, volumes);
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(pod_name);
    pod["metadata"]["ownerReferences"] = ssa::owner(parts.pool);
    pod["metadata"]["labels"][names::NODE_ID] = json!(node.to_string());
    if joined {
        pod["metadata"]["labels"][names::MEMBER] = json!("joined");
    }
    pod["metadata"]["annotations"][names::TEMPLATE_HASH] = json!(hash(parts));
    // Both, or the pod has no name in the DNS and the first election never ends.
    pod["spec"]["hostname"] = json!(pod_name);
    pod["spec"]["subdomain"] = json!(names::queue_peers(pool));
    pod["spec"]["terminationGracePeriodSeconds"] = json!(GRACE_SECONDS);
    pod
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
