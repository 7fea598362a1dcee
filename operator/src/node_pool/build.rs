//! The objects of a pool without disks, built from what was declared. Nothing here talks to anyone.

use resource::{RelayCluster, Template};
use serde_json::{Map, Value, json};

use crate::names::{self, ADMIN_PORT, PKI_DIR, POOL_DIR, POOL_FILE, PoolName, USER};
use crate::ssa;
use crate::template;

/// A node between the moment when its pod is told to go and the moment when clients stop coming: endpoints and proxies need
/// that long to forget it.
const STILL_ACCEPTING_SECONDS: u32 = 5;
/// After the drain, for the end of the process itself.
const SPARE_SECONDS: u32 = 10;

/// What a pool's Deployment is made from.
pub struct Nodes<'a> {
    /// Names and labels.
    pub name: &'a PoolName,
    /// Owner references.
    pub owners: Value,
    /// As declared.
    pub replicas: i32,
    /// Of the nodes.
    pub image: &'a str,
    /// The program's arguments.
    pub args: Vec<String>,
    /// Ports by name.
    pub ports: Vec<(String, u16)>,
    /// Volumes beyond certificates and the pool's resource.
    pub volumes: Vec<Value>,
    /// Their mounts.
    pub mounts: Vec<Value>,
    /// How long a leaving node may take.
    pub drain_seconds: u32,
    /// It goes on serving while its clients learn that it goes.
    pub lingers: bool,
    /// What people want on top.
    pub template: Template,
    /// The cluster, for its pull secrets.
    pub cluster: &'a RelayCluster,
}

/// The Deployment.
pub fn deployment(nodes: Nodes<'_>) -> Value {
    let name = nodes.name.object();
    let linger = if nodes.lingers {
        STILL_ACCEPTING_SECONDS
    } else {
        0
    };
    let mut ports: Vec<Value> =
        vec![json!({"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"})];
    for (port, number) in &nodes.ports {
        ports.push(json!({"name": port, "containerPort": number, "protocol": "TCP"}));
    }
    let mut volumes = vec![
        pki_volume(&nodes.name.cluster, &names::leaf_secret(&name)),
        json!({"name": "pool", "configMap": {"name": name}}),
    ];
    volumes.extend(nodes.volumes);
    let mut mounts = vec![
        json!({"name": "pki", "mountPath": PKI_DIR, "readOnly": true}),
        json!({"name": "pool", "mountPath": POOL_DIR, "readOnly": true}),
    ];
    mounts.extend(nodes.mounts);
    let mut container = container(nodes.image, &nodes.args, &nodes.template);
    container["ports"] = json!(ports);
    container["volumeMounts"] = json!(mounts);
    container["env"] = json!([{"name": "POSTROAD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    if linger > 0 {
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": linger}}});
    }
    let mut pod = pod(
        nodes.cluster,
        nodes.name,
        &nodes.template,
        container,
        volumes,
    );
    pod["spec"]["terminationGracePeriodSeconds"] =
        json!(linger + nodes.drain_seconds + SPARE_SECONDS);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": nodes.name.labels(), "ownerReferences": nodes.owners},
        "spec": {
            "replicas": nodes.replicas,
            "selector": {"matchLabels": nodes.name.selector()},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
            "template": pod,
        },
    })
}

/// At most one node of the pool is evicted at a time; `None` for a single node, whose budget could only be in the way.
pub fn disruption_budget(name: &PoolName, owners: &Value, replicas: i32) -> Option<Value> {
    (replicas > 1).then(|| {
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": name.object(), "labels": name.labels(), "ownerReferences": owners},
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": name.selector()},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    })
}

/// A resource as nodes read it from a file; JSON is YAML.
pub fn document(kind: &str, namespace: &str, name: &str, spec: &Value) -> String {
    let document = json!({
        "apiVersion": resource::API_VERSION, "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    });
    ssa::without_nulls(document).to_string()
}

/// The ConfigMap with the pool's own resource, which its nodes read as a file.
pub fn pool_file(name: &PoolName, owners: &Value, resource: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name.object(), "labels": name.labels(), "ownerReferences": owners},
        "data": {POOL_FILE: resource},
    })
}

/// Certificate, key and what is trusted in one directory. Never by subPath: such a file is never updated.
pub fn pki_volume(cluster: &str, leaf: &str) -> Value {
    json!({"name": "pki", "projected": {"defaultMode": 0o440, "sources": [
        {"configMap": {"name": names::ca_bundle(cluster), "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"secret": {"name": leaf, "items": [
            {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"},
        ]}},
    ]}})
}

/// What a node asks for when nobody says how much: so little that it always finds a place, and enough not to be the first
/// that a crowded Kubernetes node ends, as pods that ask for nothing are.
fn usual_resources() -> Value {
    json!({"requests": {"cpu": "100m", "memory": "128Mi"}})
}

/// The one container of every node.
pub fn container(image: &str, args: &[String], template: &Template) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "admin", "scheme": "HTTP"},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    json!({
        "name": "postroad",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "resources": template.resources.clone().unwrap_or_else(usual_resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "readinessProbe": probe("/readyz", 2, 2),
        // Loops that stand still for a minute and a half will not turn again by themselves.
        "livenessProbe": probe("/livez", 15, 6),
    })
}

/// The pod around a container, as pod security `restricted` wants it.
pub fn pod(
    cluster: &RelayCluster,
    name: &PoolName,
    template: &Template,
    container: Value,
    volumes: Vec<Value>,
) -> Value {
    let mut labels: Map<String, Value> = name.labels();
    for (label, value) in template.pod_labels.iter().flatten() {
        // The operator's own labels choose the pods: nobody replaces one.
        labels.entry(label).or_insert_with(|| json!(value));
    }
    let image = container["image"].clone();
    let secrets = &cluster.spec.image_pull_secrets;
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    });
    if !secrets.is_empty() {
        let names: Vec<Value> = secrets
            .iter()
            .map(|secret| json!({"name": secret.name}))
            .collect();
        spec["imagePullSecrets"] = json!(names);
    }
    template::place(&mut spec, template, &name.selector());
    let mut annotations = json!(template.pod_annotations.clone().unwrap_or_default());
    annotations[names::IMAGE] = image;
    json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec})
}
