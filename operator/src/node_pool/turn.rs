//! Whose turn it is in an upgrade. A new image goes to the queue first, then to delivery nodes, then to edges: those who ask
//! are never newer than those who answer, and where the queue cannot go on, the others stay as they are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use resource::{DeliveryPool, QueuePool};

use crate::cluster::of_cluster;
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, Component, PoolName};
use crate::queue_pool::is_ready;

/// The image that a pool's nodes get now.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The one that is declared, or the one that they run.
    pub image: String,
    /// Why it is not the one that is declared.
    pub waits: Option<String>,
}

/// Whose nodes run a new image before those of a component get it.
fn ahead_of(component: Component) -> &'static [Component] {
    match component {
        Component::Queue => &[],
        Component::Delivery => &[Component::Queue],
        Component::Edge => &[Component::Queue, Component::Delivery],
    }
}

/// The image that the nodes of an edge or delivery pool get now, where `wanted` is declared for the cluster, which has this queue.
pub async fn turn(
    context: &Context,
    name: &PoolName,
    queue: &QueuePool,
    wanted: &str,
) -> Result<Turn, Error> {
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &name.namespace);
    let own = ListParams::default().labels(&name.selector_text());
    let own = deployments.list(&own).await?.items;
    let running = own.first().and_then(image_of);
    if running.is_none_or(|running| running == wanted) {
        return Ok(decide(wanted, running, 0, &[]));
    }
    let mut declared = queue.spec.replicas;
    if ahead_of(name.component).contains(&Component::Delivery) {
        let pools = of_cluster(context, &name.namespace, |pool: &DeliveryPool| {
            pool.spec.cluster_ref.name == name.cluster
        });
        let pools = pools.await?;
        declared += pools.iter().map(|pool| pool.spec.replicas).sum::<i32>();
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let mut ahead = Vec::new();
    for component in ahead_of(name.component).iter().copied() {
        let others = PoolName {
            component,
            ..name.clone()
        };
        let selected = ListParams::default().labels(&others.of_cluster());
        ahead.extend(pods.list(&selected).await?.items);
    }
    let declared = usize::try_from(declared).unwrap_or_default();
    Ok(decide(wanted, running, declared, &ahead))
}

/// What the operator declared for the pods of a Deployment. Not the container's image: clusters rewrite it to that of a mirror.
fn image_of(deployment: &Deployment) -> Option<&str> {
    let template = deployment.spec.as_ref()?.template.metadata.as_ref()?;
    let image = template.annotations.as_ref()?.get(names::IMAGE)?;
    Some(image)
}

/// `running`: what the pool's pods are made with, if it has any. `ahead`: the pods of those whose turn is before; `declared`: how many
/// they should be, since one that is made anew is not there for a moment.
fn decide(wanted: &str, running: Option<&str>, declared: usize, ahead: &[Pod]) -> Turn {
    let old = running.filter(|running| *running != wanted);
    let ahead = ahead.iter().filter(|pod| !is_over(pod));
    let (having, lacking): (Vec<&Pod>, Vec<&Pod>) = ahead.partition(|pod| has(pod, wanted));
    let missing = declared.saturating_sub(having.len()).max(lacking.len());
    match old.filter(|_| missing > 0) {
        None => Turn {
            image: wanted.to_owned(),
            waits: None,
        },
        Some(old) => Turn {
            image: old.to_owned(),
            waits: Some(format!(
                "the nodes keep {old} until those that get {wanted} before them are ready with it: {missing} of {declared} are not"
            )),
        },
    }
}

fn has(pod: &Pod, image: &str) -> bool {
    let own = pod.annotations().get(names::IMAGE);
    own.is_some_and(|own| own == image) && is_ready(pod)
}

/// It goes, or ended: an evicted pod stays as it failed until somebody clears it away.
fn is_over(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(image: &str, ready: bool, more: serde_json::Value) -> Pod {
        let ready = if ready { "True" } else { "False" };
        let mut pod = json!({
            "metadata": {"annotations": {(names::IMAGE): image}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        for (part, fields) in more.as_object().into_iter().flatten() {
            for (field, value) in fields.as_object().into_iter().flatten() {
                pod[part][field] = value.clone();
            }
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn waits(running: Option<&str>, ahead: &[Pod]) -> bool {
        let turn = decide("new", running, 2, ahead);
        assert_eq!(turn.image, if turn.waits.is_some() { "old" } else { "new" });
        turn.waits.is_some()
    }

    #[test]
    fn edges_come_last_and_the_queue_waits_for_nobody() {
        assert!(ahead_of(Component::Queue).is_empty());
        assert_eq!(ahead_of(Component::Delivery), [Component::Queue]);
        assert_eq!(
            ahead_of(Component::Edge),
            [Component::Queue, Component::Delivery]
        );
    }

    #[test]
    fn a_new_image_waits_until_all_ahead_are_ready_with_it() {
        let none = json!({});
        let new = || pod("new", true, none.clone());
        assert!(waits(Some("old"), &[new(), pod("old", true, none.clone())]));
        assert!(waits(
            Some("old"),
            &[new(), pod("new", false, none.clone())]
        ));
        assert!(!waits(Some("old"), &[new(), new()]));
        let text = decide(
            "new",
            Some("old"),
            2,
            &[new(), pod("old", true, none.clone())],
        )
        .waits;
        let text = text.expect("it waits");
        assert!(text.ends_with("1 of 2 are not"), "{text}");
    }

    /// The last queue pod was deleted and not made yet, and all others had it: delivery nodes went on before it came.
    #[test]
    fn one_that_is_being_made_anew_is_waited_for() {
        let new = || pod("new", true, json!({}));
        let goes = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(waits(Some("old"), &[new()]));
        assert!(waits(Some("old"), &[new(), pod("old", true, goes)]));
    }

    #[test]
    fn what_ended_and_what_is_more_than_declared_is_not_counted() {
        let new = || pod("new", true, json!({}));
        let goes = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let failed = json!({"status": {"phase": "Failed"}});
        let over = [pod("old", true, goes), pod("old", false, failed)];
        assert!(!waits(Some("old"), &[[new(), new()], over].concat()));
        assert!(!waits(Some("old"), &[new(), new(), new()]));
        // One that is to go, and did not yet.
        assert!(waits(
            Some("old"),
            &[new(), new(), pod("old", true, json!({}))]
        ));
    }

    #[test]
    fn a_first_image_and_one_that_runs_already_wait_for_nobody() {
        let old = [pod("old", true, json!({}))];
        assert!(!waits(None, &old));
        assert!(!waits(Some("new"), &old));
    }
}
