//! RelayCluster: its CA, its sealing key, the image of its nodes, and what is said of all its pools together.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use resource::{DeliveryPool, EdgePool, QueuePool, RelayCluster};
use serde_json::json;

use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;
use crate::ssa::{self, Controller};
use crate::{pki, place};

/// What a RelayCluster's status speaks of, as far as this controller writes it.
const CONDITIONS: [&str; 2] = ["Ready", "CertificateAuthorityReady"];
/// Certificates are looked at this often, also when nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Brings one cluster to what is declared.
pub async fn reconcile(cluster: Arc<RelayCluster>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = place(&*cluster)?;
    let before = cluster.status.clone().unwrap_or_default();
    let ca = pki::ensure_ca(&context.client, &cluster).await?;
    pki::apply_bundle(&context.client, &cluster, &ca).await?;
    pki::ensure_seal(&context.client, &cluster).await?;

    let image = image(&cluster, &context.node_image);
    let edge: Vec<EdgePool> = of_cluster(&context, namespace, |pool: &EdgePool| {
        pool.spec.cluster_ref.name == name
    })
    .await?;
    let queue: Vec<QueuePool> = of_cluster(&context, namespace, |pool: &QueuePool| {
        pool.spec.cluster_ref.name == name
    })
    .await?;
    let delivery: Vec<DeliveryPool> = of_cluster(&context, namespace, |pool: &DeliveryPool| {
        pool.spec.cluster_ref.name == name
    })
    .await?;
    let counts = [
        sum(edge.iter().map(|pool| {
            let ready = pool
                .status
                .as_ref()
                .map_or(0, |status| status.ready_replicas);
            (ready, pool.spec.replicas)
        })),
        sum(queue.iter().map(|pool| {
            let ready = pool
                .status
                .as_ref()
                .map_or(0, |status| status.ready_replicas);
            (ready, pool.spec.replicas)
        })),
        sum(delivery.iter().map(|pool| {
            let ready = pool
                .status
                .as_ref()
                .map_or(0, |status| status.ready_replicas);
            (ready, pool.spec.replicas)
        })),
    ];

    let mut conditions = Conditions::new(
        &before.conditions,
        cluster.metadata.generation,
        Timestamp::now(),
    );
    conditions.set(
        "CertificateAuthorityReady",
        true,
        Reason::Valid,
        "the CA is there",
    );
    let text = format!(
        "edge {}/{}, queue {}/{}, delivery {}/{} ready",
        counts[0].0, counts[0].1, counts[1].0, counts[1].1, counts[2].0, counts[2].1
    );
    match () {
        () if queue.is_empty() => conditions.set(
            "Ready",
            false,
            Reason::QueuePoolNotFound,
            "there is no QueuePool with this cluster's name in its clusterRef: apply one",
        ),
        () if counts.iter().any(|(ready, desired)| ready < desired) => {
            conditions.set("Ready", false, Reason::PodsNotReady, text);
        }
        () => conditions.set("Ready", true, Reason::AsDeclared, text),
    }
    let show = |(ready, desired): (i32, i32)| format!("{ready}/{desired}");
    let status = json!({
        "observedGeneration": cluster.metadata.generation,
        "conditions": conditions.finish(&CONDITIONS),
        "image": image,
        "edge": show(counts[0]), "queue": show(counts[1]), "delivery": show(counts[2]),
    });
    let api: Api<RelayCluster> = Api::namespaced(context.client.clone(), namespace);
    ssa::apply_status(&api, Controller::Cluster, name, &status).await?;
    Ok(Action::requeue(LOOK_AGAIN))
}

/// Image of a cluster's nodes: what it says, else what it ran before, so that a new operator alone replaces no pod.
pub fn image(cluster: &RelayCluster, usual: &str) -> String {
    let running = cluster
        .status
        .as_ref()
        .and_then(|status| status.image.clone());
    let image = cluster.spec.image.clone().or(running);
    image.unwrap_or_else(|| usual.to_owned())
}

/// All objects of a kind in the cluster's namespace that belong to it, the oldest first.
pub async fn of_cluster<K>(
    context: &Context,
    namespace: &str,
    belongs: impl Fn(&K) -> bool,
) -> Result<Vec<K>, Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let mut found = api.list(&ListParams::default()).await?.items;
    found.retain(|object| object.meta().deletion_timestamp.is_none() && belongs(object));
    found.sort_by_key(|object| {
        let meta = object.meta();
        (
            meta.creation_timestamp.as_ref().map(|time| time.0),
            meta.name.clone(),
        )
    });
    Ok(found)
}

fn sum(counts: impl Iterator<Item = (i32, i32)>) -> (i32, i32) {
    counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

#[cfg(test)]
mod tests {
    use resource::{RelayClusterSpec, RelayClusterStatus};

    use super::*;

    #[test]
    fn a_new_operator_changes_no_image_and_a_declared_one_wins() {
        let mut cluster = RelayCluster::new("postroad", RelayClusterSpec::default());
        assert_eq!(image(&cluster, "new"), "new");
        cluster.status = Some(RelayClusterStatus {
            image: Some("old".into()),
            ..RelayClusterStatus::default()
        });
        assert_eq!(image(&cluster, "new"), "old");
        cluster.spec.image = Some("declared".into());
        assert_eq!(image(&cluster, "new"), "declared");
    }
}
