//! DeliveryPool: nodes that deliver.

use resource::{DeliveryPool, EdgePool, RelayCluster};
use serde_json::{Value, json};

use super::build::{Nodes, deployment};
use super::edge;
use crate::names::{self, ADMIN_PORT, Component, DATA_DIR, PKI_DIR, POOL_DIR, PoolName};
use crate::ssa;
use crate::template;

/// Names and labels of a pool.
pub fn name(pool: &DeliveryPool, namespace: &str) -> PoolName {
    PoolName {
        namespace: namespace.into(),
        cluster: pool.spec.cluster_ref.name.clone(),
        pool: pool.metadata.name.clone().unwrap_or_default(),
        component: Component::Delivery,
    }
}

/// The Deployment of a pool.
pub fn build(
    pool: &DeliveryPool,
    cluster: &RelayCluster,
    name: &PoolName,
    image: &str,
    queue: &str,
    edges: &[EdgePool],
) -> Value {
    let mut args: Vec<String> = ["delivery", "--queue", queue, "--pki", PKI_DIR]
        .map(Into::into)
        .into();
    args.extend(["--pool".into(), POOL_DIR.into()]);
    args.extend(["--seal".into(), names::SEAL_DIR.into()]);
    args.extend(["--data".into(), DATA_DIR.into()]);
    args.extend(["--admin-listen".into(), format!("0.0.0.0:{ADMIN_PORT}")]);
    args.extend(["--log-format".into(), "json".into()]);
    if let Some(host) = &pool.spec.egress.hostname {
        args.extend(["--hostname".into(), host.clone()]);
    }
    // What MX records call the edges: mail for a domain that has them as backup must not be sent to them.
    let mut names: Vec<String> = edges
        .iter()
        .map(|pool| edge::hostname(pool, &name.namespace))
        .collect();
    names.sort();
    if !names.is_empty() {
        args.extend(["--own-names".into(), names.join(",")]);
    }
    // The journal outlives the container and not the pod: a pod that is gone has no connection that could still say 250.
    let volumes = vec![
        json!({"name": "journal", "emptyDir": {}}),
        json!({"name": "seal", "secret": {"secretName": names::seal_secret(&name.cluster), "defaultMode": 0o440, "optional": true}}),
    ];
    let mounts = vec![
        json!({"name": "journal", "mountPath": DATA_DIR}),
        json!({"name": "seal", "mountPath": names::SEAL_DIR, "readOnly": true}),
    ];
    deployment(Nodes {
        name,
        owners: ssa::owner(pool),
        replicas: pool.spec.replicas,
        image,
        args,
        ports: Vec::new(),
        volumes,
        mounts,
        drain_seconds: pool.spec.drain_seconds,
        lingers: false,
        template: template::merge(&cluster.spec.template, &pool.spec.template),
        cluster,
    })
}
