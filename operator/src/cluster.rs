//! RelayCluster: its CA, its sealing key, the image of its nodes, and what is said of all its pools together.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use proto::pki::Pair;
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
/// Somebody must act before the CA ends: it is said so long before, or for the last third of a CA with a short life. The chart's
/// alert says it at the same time.
const CA_ENDS_SOON: SignedDuration = SignedDuration::from_hours(60 * 24);

/// Brings one cluster to what is declared.
pub async fn reconcile(cluster: Arc<RelayCluster>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = place(&*cluster)?;
    let before = cluster.status.clone().unwrap_or_default();
    let ca = authority(&context, &cluster).await?;
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
    let ends = ca
        .as_ref()
        .and_then(|ca| pki::ends(ca.certificate.as_bytes()));
    let soon = ends_soon(cluster.spec.internal_tls.ca_days);
    let secret = names::ca_secret(name);
    let (good, reason, text) = match &ca {
        Some(_) => said(&secret, ends, soon, Timestamp::now()),
        None => missing(&secret),
    };
    conditions.set("CertificateAuthorityReady", good, reason, text);
    if let Some(ends) = ends {
        measure(namespace, name, ends, soon);
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

/// The CA, and what nodes trust. A paused cluster gets neither a CA nor a sealing key, and what `deletionPolicy` says later waits;
/// but its pools' certificates are renewed, so its nodes are told what to trust: else it would end with the first of them.
async fn authority(context: &Context, cluster: &RelayCluster) -> Result<Option<Pair>, Error> {
    let (namespace, name) = place(cluster)?;
    let client = &context.client;
    if cluster.spec.paused {
        let ca = pki::find_ca(client, namespace, name).await?;
        if let Some(ca) = &ca {
            pki::apply_bundle(client, cluster, ca).await?;
        }
        return Ok(ca);
    }
    let ca = pki::ensure_ca(client, cluster).await?;
    pki::apply_bundle(client, cluster, &ca).await?;
    pki::ensure_seal(client, cluster).await?;
    Ok(Some(ca))
}

/// How long before its end a CA is one that ends soon. One that lives for no longer than sixty days would else be so from its
/// first day on, and an alert that always holds is read by nobody.
fn ends_soon(ca_days: u32) -> SignedDuration {
    let third = SignedDuration::from_hours(i64::from(ca_days) * 24 / 3);
    CA_ENDS_SOON.min(third)
}

/// For the chart's alert: when the CA ends, and from when on somebody should know.
fn measure(namespace: &str, cluster: &str, ends: Timestamp, soon: SignedDuration) {
    let labels = [
        ("namespace", namespace.to_owned()),
        ("cluster", cluster.to_owned()),
    ];
    let ends = ends.as_second();
    metrics::gauge!("postroad_operator_ca_expiry_timestamp_seconds", &labels).set(ends as f64);
    let soon = ends - soon.as_secs();
    metrics::gauge!("postroad_operator_ca_ends_soon_timestamp_seconds", &labels).set(soon as f64);
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

/// What is said of a CA that is not there and is not made.
fn missing(secret: &str) -> (bool, Reason, String) {
    let text = format!(
        "the Secret {secret} is not there, and a paused cluster gets no CA: nodes go on until their certificates end; restore the \
         Secret, or write paused: false"
    );
    (false, Reason::Paused, text)
}

/// What is said of the CA in this Secret; `soon`: how long before its end somebody should know.
fn said(
    secret: &str,
    ends: Option<Timestamp>,
    soon: SignedDuration,
    now: Timestamp,
) -> (bool, Reason, String) {
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
        () if left < soon => {
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
        let said = |ends| said("relay-ca", ends, ends_soon(365), now);
        let (good, reason, text) = said(in_days(61));
        assert_eq!((good, reason), (true, Reason::Valid), "{text}");
        let (good, reason, text) = said(in_days(59));
        assert_eq!((good, reason), (true, Reason::EndsSoon), "{text}");
        assert!(text.contains("delete the Secret relay-ca"), "{text}");
        let (good, reason, text) = said(in_days(-1));
        assert_eq!((good, reason), (false, Reason::Ended), "{text}");
        assert!(!said(None).0);
    }

    /// The condition and the alert held from the first day on.
    #[test]
    fn a_ca_of_a_month_ends_soon_in_its_last_third_only() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for (life, left, expected) in [
            (30, 30, Reason::Valid),
            (30, 11, Reason::Valid),
            (30, 9, Reason::EndsSoon),
            (180, 61, Reason::Valid),
            (180, 59, Reason::EndsSoon),
            (3650, 61, Reason::Valid),
            (3650, 59, Reason::EndsSoon),
        ] {
            let ends = Some(now + SignedDuration::from_hours(24 * left));
            let (good, reason, text) = said("relay-ca", ends, ends_soon(life), now);
            assert_eq!((good, reason), (true, expected), "{life} {left}: {text}");
        }
    }

    #[test]
    fn a_paused_cluster_without_a_ca_says_what_ends_it() {
        let (good, reason, text) = missing("relay-ca");
        assert_eq!((good, reason), (false, Reason::Paused));
        assert!(
            text.contains("relay-ca") && text.contains("paused: false"),
            "{text}"
        );
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
