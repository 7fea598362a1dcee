//! EdgePool: nodes that accept.

use k8s_openapi::api::core::v1::Pod;
use resource::{EdgePool, RelayCluster, ServiceType, TlsMode, TrafficPolicy};
use serde_json::{Value, json};

use super::build::{Nodes, deployment};
use crate::names::{ADMIN_PORT, Component, PKI_DIR, POOL_DIR, PoolName, TLS_DIR};
use crate::ssa;
use crate::template;

/// The flag by which a node knows from its start on that clients' addresses are not theirs. Its file says so too, but a mounted
/// file comes a minute after the Service has changed.
const CLIENTS_HIDDEN: &str = "--clients-hidden";

/// The node of this pod knows that clients' addresses are not theirs.
pub fn knows_of_hidden_clients(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut args = containers.flat_map(|one| one.args.iter().flatten());
    args.any(|arg| arg == CLIENTS_HIDDEN)
}

/// Names and labels of a pool.
pub fn name(pool: &EdgePool, namespace: &str) -> PoolName {
    PoolName {
        namespace: namespace.into(),
        cluster: pool.spec.cluster_ref.name.clone(),
        pool: pool.metadata.name.clone().unwrap_or_default(),
        component: Component::Edge,
    }
}

/// What the nodes of a pool are called in SMTP.
pub fn hostname(pool: &EdgePool, namespace: &str) -> String {
    let service = || format!("{}.{namespace}.svc", name(pool, namespace).object());
    pool.spec.hostname.clone().unwrap_or_else(service)
}

/// The Deployment of a pool.
pub fn build(
    pool: &EdgePool,
    cluster: &RelayCluster,
    name: &PoolName,
    image: &str,
    queue: &str,
) -> Value {
    let spec = &pool.spec;
    let mut args: Vec<String> = ["edge", "--queue", queue, "--pki", PKI_DIR]
        .map(Into::into)
        .into();
    args.extend(["--pool".into(), POOL_DIR.into()]);
    args.extend(["--admin-listen".into(), format!("0.0.0.0:{ADMIN_PORT}")]);
    args.extend(["--log-format".into(), "json".into()]);
    args.extend(["--hostname".into(), hostname(pool, &name.namespace)]);
    if !spec.source_address_is_reliable() {
        args.push(CLIENTS_HIDDEN.into());
    }
    let listen = |implicit: bool| {
        let wanted = spec.listeners.iter();
        let wanted =
            wanted.filter(|listener| (listener.tls_mode() == TlsMode::Implicit) == implicit);
        let addresses = wanted.map(|listener| format!("0.0.0.0:{}", listener.container_port()));
        addresses.collect::<Vec<String>>().join(",")
    };
    for (flag, addresses) in [("--listen", listen(false)), ("--listen-tls", listen(true))] {
        if !addresses.is_empty() {
            args.extend([flag.into(), addresses]);
        }
    }
    let secrets = certificates(pool);
    if let Some(first) = secrets.first() {
        args.extend([
            "--tls".into(),
            TLS_DIR.into(),
            "--tls-default".into(),
            first.clone(),
            "--tls-may-wait".into(),
        ]);
        // The same on all listeners that begin in clear: the API server holds pools to that.
        let any = |mode| spec.listeners.iter().any(|one| one.tls_mode() == mode);
        if any(TlsMode::Required) {
            args.push("--require-starttls".into());
        } else if any(TlsMode::Disabled) {
            args.push("--no-starttls".into());
        }
    }
    let ports = spec
        .listeners
        .iter()
        .map(|listener| (listener.name.clone(), listener.container_port()))
        .collect();
    deployment(Nodes {
        name,
        owners: ssa::owner(pool),
        replicas: spec.replicas,
        image,
        args,
        ports,
        volumes: secrets.iter().enumerate().map(|(n, secret)| tls_volume(n, secret)).collect(),
        mounts: secrets
            .iter()
            .enumerate()
            .map(|(n, secret)| json!({"name": format!("tls-{n}"), "mountPath": format!("{TLS_DIR}/{secret}"), "readOnly": true}))
            .collect(),
        drain_seconds: spec.drain_seconds,
        lingers: true,
        template: template::merge(&cluster.spec.template, &spec.template),
        cluster,
    })
}

/// Secrets with certificates for clients, each once; the first is for clients that ask for no known name.
pub fn certificates(pool: &EdgePool) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let listeners = pool.spec.listeners.iter();
    for secret in
        listeners.flat_map(|listener| listener.tls.iter().flat_map(|tls| &tls.secret_names))
    {
        if !names.contains(secret) {
            names.push(secret.clone());
        }
    }
    names
}

/// Never by subPath: such a file is never updated. A Secret that is not there holds up no pod, whose node offers no TLS until it
/// comes.
fn tls_volume(number: usize, secret: &str) -> Value {
    json!({"name": format!("tls-{number}"), "secret": {"secretName": secret, "defaultMode": 0o440, "optional": true, "items": [
        {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"},
    ]}})
}

/// The Service in front of a pool. `hides`: every node knows that it may hide clients' addresses; until then it does not.
pub fn service(pool: &EdgePool, name: &PoolName, hides: bool) -> Value {
    let wanted = &pool.spec.service;
    let ports: Vec<Value> = pool
        .spec
        .listeners
        .iter()
        .map(|listener| {
            json!({"name": listener.name, "port": listener.port, "targetPort": listener.name, "protocol": "TCP"})
        })
        .collect();
    let mut spec = json!({
        "type": wanted.type_,
        "selector": name.selector(),
        "ports": ports,
    });
    if wanted.type_ != ServiceType::ClusterIP {
        let policy = match hides {
            true => wanted.external_traffic_policy,
            false => TrafficPolicy::Local,
        };
        spec["externalTrafficPolicy"] = json!(policy);
    }
    if wanted.type_ == ServiceType::LoadBalancer {
        if let Some(class) = &wanted.load_balancer_class {
            spec["loadBalancerClass"] = json!(class);
        }
        if !wanted.load_balancer_source_ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = json!(wanted.load_balancer_source_ranges);
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name.object(), "labels": name.labels(), "annotations": wanted.annotations,
            "ownerReferences": ssa::owner(pool),
        },
        "spec": spec,
    })
}

/// Where a Service is reached: by load balancer if it has one, else by name.
pub fn addresses(service: &k8s_openapi::api::core::v1::Service) -> Vec<String> {
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref());
    let outside: Vec<String> = ingress
        .into_iter()
        .flatten()
        .filter_map(|one| one.hostname.clone().or_else(|| one.ip.clone()))
        .collect();
    let inside = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.clone());
    match outside.is_empty() {
        true => inside.into_iter().collect(),
        false => outside,
    }
}
