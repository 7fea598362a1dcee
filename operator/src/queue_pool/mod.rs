//! QueuePool: the operator's own pods and volume claims, one change at a time.
//!
//! ```text
//! ask.rs      asks the queue how it is
//! observe.rs  claims, pods, and what the queue says of itself
//! plan.rs     one step from what is declared and what was seen; pure
//! finalizer.rs  keeps a pool whose volumes with mail would go
//! act.rs      does that step
//! build.rs    the objects; pure
//! status.rs   what people are told
//! ```

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use resource::{QueuePool, RelayCluster};

use crate::cluster::{self, of_cluster};
use crate::conditions::Reason;
use crate::context::Context;
use crate::error::Error;
use crate::names;
use crate::node_pool::delete_own;
use crate::ssa::{self, Controller};
use crate::{network, pki, place};

mod act;
mod ask;
mod build;
mod finalizer;
mod observe;
mod plan;
mod status;

pub use observe::is_ready;

use build::Parts;
use finalizer::Held;
use plan::{Desired, Step};

/// While something is under way the queue is asked this often; it has no watch of its own.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// A pool that is on its way out is asked this often whether it is empty.
const HELD: Duration = Duration::from_secs(5);
/// When all is as declared.
const AT_REST: Duration = Duration::from_secs(15);

/// Brings one queue pool nearer to what is declared, by one step.
pub async fn reconcile(pool: Arc<QueuePool>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, own) = place(&*pool)?;
    let held = finalizer::keep(&context, &pool).await?;
    if held == Held::Released {
        return Ok(Action::await_change());
    }
    let name = build::name(&pool, namespace);
    let held = match held {
        Held::By(_) => finalizer::leave(&context, &pool, &name).await?,
        other => other,
    };
    let held = match held {
        Held::Released => return Ok(Action::await_change()),
        Held::Stays => None,
        Held::By(text) => Some(text),
    };
    let refuse = async |reason: Reason, text: String| {
        let text = [Some(text), held.clone()].into_iter().flatten();
        let text = text.collect::<Vec<_>>().join("; ");
        status::refuse(&context, &pool, &name, reason, text).await
    };
    let clusters: Api<RelayCluster> = Api::namespaced(context.client.clone(), namespace);
    let Some(cluster) = clusters.get_opt(&name.cluster).await? else {
        let text = format!(
            "there is no RelayCluster {} in this namespace: apply one, or name another in clusterRef",
            name.cluster
        );
        return refuse(Reason::ClusterNotFound, text).await;
    };
    let all = of_cluster(&context, namespace, |other: &QueuePool| {
        other.spec.cluster_ref.name == name.cluster
    })
    .await?;
    let first = all.first().and_then(|pool| pool.metadata.name.as_deref());
    if let Some(first) = first.filter(|first| *first != own) {
        let text = format!(
            "the RelayCluster {} has the QueuePool {first}, which is older: a cluster has one",
            name.cluster
        );
        return refuse(Reason::QueuePoolConflict, text).await;
    }
    if cluster.spec.paused {
        let text = "the RelayCluster is paused: nothing is changed".to_owned();
        return refuse(Reason::Paused, text).await;
    }
    let Some(ca) = pki::find_ca(&context.client, namespace, &name.cluster).await? else {
        return Err(Error::NotYet(format!(
            "the CA of {} is not there yet",
            name.cluster
        )));
    };

    let services: Api<Service> = Api::namespaced(context.client.clone(), namespace);
    for service in build::services(&pool, &name) {
        ssa::apply(&services, Controller::QueuePool, &service).await?;
    }
    let (owners, wanted) = (ssa::owner(&*pool), cluster.spec.network_policy);
    network::apply(&context, Controller::QueuePool, &name, &owners, wanted, &[]).await?;
    let address = names::queue_service(own, namespace);
    let admin = context
        .queue(namespace, &name.cluster, &address, &ca)?
        .admin();
    let answer = match has_ready_pod(&context, &name).await? {
        true => ask::ask(&admin).await,
        false => Err("no queue node is ready".into()),
    };
    let unreachable = answer.as_ref().err().cloned();
    let seen = observe::observe(&context.client, &name, answer.ok()).await?;

    let known = seen
        .cluster_id
        .clone()
        .or_else(|| pool.status.as_ref()?.cluster_id.clone());
    let cluster_id = known.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let parts = Parts {
        pool: &pool,
        cluster: &cluster,
        name: &name,
        image: &cluster::image(&cluster, &context.node_image),
        cluster_id: &cluster_id,
    };
    let replace_after = u64::try_from(pool.spec.replace_after_seconds).unwrap_or_default();
    let desired = Desired {
        replicas: usize::try_from(pool.spec.replicas).unwrap_or(1),
        replication_factor: usize::try_from(pool.spec.replication_factor).unwrap_or(1),
        hash: build::hash(&parts),
        begun: pool
            .status
            .as_ref()
            .is_some_and(|status| !status.members.is_empty()),
        replace_after_ms: (replace_after > 0).then_some(replace_after * 1000),
    };
    // The id of the queue is written down before the first claim is made: it must not be made twice.
    let noted = pool
        .status
        .as_ref()
        .and_then(|status| status.cluster_id.as_ref())
        == Some(&cluster_id);
    let step = match noted {
        true if held.is_some() => plan::keep_up(&seen.observed),
        true => plan::plan(&desired, &seen.observed),
        false => Step::Wait("the id of the queue is written down".into()),
    };
    let members = seen
        .observed
        .queue
        .as_ref()
        .map_or(0, |queue| queue.members.len());
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(context.client.clone(), namespace);
    match build::disruption_budget(&pool, &name, members) {
        Some(budget) => drop(ssa::apply(&budgets, Controller::QueuePool, &budget).await?),
        // While the queue does not answer the last number stays.
        None if seen.observed.queue.is_some() => delete_own(&budgets, &name.object()).await?,
        None => {}
    }
    let ends = act::renew_leaves(&context, &parts, &seen, &ca).await?;
    act::label_members(&context, &name, &seen).await?;
    let volumes = act::grow_volumes(&context, &parts, &seen).await?;
    let outcome = match &step {
        Step::Done | Step::Wait(_) => Ok(()),
        step => {
            tracing::info!(pool = own, namespace, ?step, "acts");
            act::act(&context, &parts, &seen, &ca, &admin, step).await
        }
    };
    let refusal = match outcome {
        Ok(()) => {
            if !matches!(step, Step::Done | Step::Wait(_)) {
                context.tell(&*pool, "Changed", status::what(&step)).await;
            }
            None
        }
        // No is an answer and not a failure.
        Err(Error::Refused(text)) => Some(text),
        Err(error) => return Err(error),
    };
    let holds = held.is_some();
    let refusal = held.or(refusal).or(volumes);
    let told = status::Told {
        step: &step,
        ends: &ends,
        unreachable,
        refusal,
    };
    status::write(&context, &parts, &seen, told).await?;
    Ok(Action::requeue(match step {
        Step::Done if holds => HELD,
        Step::Done => AT_REST,
        _ => UNDER_WAY,
    }))
}

/// Somebody is there to be asked; without one the question would only take its time.
async fn has_ready_pod(context: &Context, name: &names::PoolName) -> Result<bool, Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let selected = ListParams::default().labels(&name.selector_text());
    Ok(pods
        .list(&selected)
        .await?
        .items
        .iter()
        .any(observe::is_ready))
}
