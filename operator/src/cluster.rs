//! RelayCluster: its CA, its sealing key, the image of its nodes, and what is said of all its pools together.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use resource::{DeliveryPool, EdgePool, QueuePool, RelayCluster};
use serde_json::json;

use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;
use crate::ssa::{self, Controller};
use crate::{names, pki, place};

/// What a RelayCluster's status speaks of, as far as this controller writes it.
const CONDITIONS: [&str; 2] = ["Ready", "CertificateAuthorityReady"];
/// Certificates are looked at this often, also when nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Somebody must act before the CA ends: it is said so long before. The chart's alert says it at the same time.
const CA_ENDS_SOON: SignedDuration = SignedDuration::from_hours(60 * 24);

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
        count(edge.iter().map(|pool| {
            let ready = pool
                .status
                .as_ref()
                .map_or(0, |status| status.ready_replicas);
            (ready, pool.spec.replicas)
        })),
        count(queue.iter().map(|pool| {
            let ready = pool
                .status
                .as_ref()
                .map_or(0, |status| status.ready_replicas);
            (ready, pool.spec.replicas)
        })),
        count(delivery.iter().map(|pool| {
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
    let ends = pki::ends(ca.certificate.as_bytes());
    let (good, reason, text) = authority(&names::ca_secret(name), ends, Timestamp::now());
    conditions.set("CertificateAuthorityReady", good, reason, text);
    if let Some(ends) = ends {
        metrics::gauge!("postroad_operator_ca_expiry_timestamp_seconds", "namespace" => namespace.to_owned(), "cluster" => name.to_owned())
            .set(ends.as_second() as f64);
    }
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
        "caNotAfter": ends.map(|ends| ends.to_string()),
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

/// Ready and declared nodes of several pools. One that has more than it should does not make up for another.
fn count(pools: impl Iterator<Item = (i32, i32)>) -> (i32, i32) {
    pools.fold((0, 0), |all, (ready, desired)| {
        (all.0 + ready.min(desired), all.1 + desired)
    })
}

/// What is said of the CA in this Secret.
fn authority(secret: &str, ends: Option<Timestamp>, now: Timestamp) -> (bool, Reason, String) {
    let Some(ends) = ends else {
        let text = format!("the Secret {secret} holds no certificate that can be read");
        return (false, Reason::Ended, text);
    };
    let left = ends.duration_since(now);
    let day = ends.strftime("%F");
    let replace = format!(
        "delete the Secret {secret}: all nodes get another, and for a minute or two those that have it and those that do not yet \
         open no new connections to one another"
    );
    match () {
        () if left.is_negative() => {
            let text =
                format!("the CA ended on {day} and no node reaches another any more: {replace}");
            (false, Reason::Ended, text)
        }
        () if left < CA_ENDS_SOON => {
            let text =
                format!("the CA ends on {day}, and then every connection between nodes: {replace}");
            (true, Reason::EndsSoon, text)
        }
        () => (true, Reason::Valid, format!("the CA is valid until {day}")),
    }
}

#[cfg(test)]
mod tests {
    use resource::{RelayClusterSpec, RelayClusterStatus};

    use super::*;

    #[test]
    fn a_ca_says_when_it_ends_and_in_time_what_to_do() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let in_days = |days: i64| Some(now + SignedDuration::from_hours(24 * days));
        let said = |ends| authority("relay-ca", ends, now);
        let (good, reason, text) = said(in_days(61));
        assert_eq!((good, reason), (true, Reason::Valid), "{text}");
        let (good, reason, text) = said(in_days(59));
        assert_eq!((good, reason), (true, Reason::EndsSoon), "{text}");
        assert!(text.contains("delete the Secret relay-ca"), "{text}");
        let (good, reason, text) = said(in_days(-1));
        assert_eq!((good, reason), (false, Reason::Ended), "{text}");
        assert!(!said(None).0);
    }

    #[test]
    fn a_pool_with_too_many_nodes_does_not_make_up_for_one_with_too_few() {
        assert_eq!(count([(4, 2), (0, 2)].into_iter()), (2, 4));
    }

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
