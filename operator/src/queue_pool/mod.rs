//! QueuePool: the operator's own pods and volume claims, one change at a time.
//!
//! ```text
//! ask.rs      asks the queue how it is
//! observe.rs  claims, pods, and what the queue says of itself
//! plan.rs     one step from what is declared and what was seen; pure
//! finalizer.rs  keeps a pool whose volumes with mail would go
//! act.rs      does that step
//! rehearse.rs  asks whether a pod could be made anew before it is deleted
//! build.rs    the objects; pure
//! status.rs   what people are told
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use proto::client::AdminClient;
use proto::pki::Pair;
use resource::{Condition, QueuePool, RelayCluster};

use crate::cluster::{self, of_cluster};
use crate::conditions::Reason;
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, PoolName};
use crate::node_pool::delete_own;
use crate::node_pool::refusal::Refusal;
use crate::ssa::{self, Controller};
use crate::{network, pki, place};

mod act;
mod ask;
mod build;
mod finalizer;
mod observe;
mod plan;
mod rehearse;
mod status;

pub use observe::is_ready;

use build::Parts;
use finalizer::Held;
use observe::Seen;
use plan::{Desired, Step};

/// While something is under way the queue is asked this often; it has no watch of its own.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// A pool that is on its way out is asked this often whether it is empty.
const HELD: Duration = Duration::from_secs(5);
/// When all is as declared.
const AT_REST: Duration = Duration::from_secs(15);

/// Brings one queue pool nearer to what is declared, by one step.
pub async fn reconcile(pool: Arc<QueuePool>, context: Arc<Context>) -> Result<Action, Error> {
    let outcome = look(&pool, &context).await;
    // What the API server refuses before the queue could be asked.
    if let Some(refusal) = outcome.as_ref().err().and_then(Refusal::of) {
        let (namespace, _) = place(&*pool)?;
        let name = build::name(&pool, namespace);
        refusal.warn(&context, &*pool, before(&pool)).await;
        let Refusal { reason, text } = refusal;
        // The error itself says more than that nobody can be told of it.
        drop(status::refuse(&context, &pool, &name, reason, text).await);
    }
    outcome
}

/// The conditions that stand there.
fn before(pool: &QueuePool) -> &[Condition] {
    match &pool.status {
        Some(status) => &status.conditions,
        None => &[],
    }
}

async fn look(pool: &QueuePool, context: &Context) -> Result<Action, Error> {
    let (namespace, own) = place(pool)?;
    let held = finalizer::keep(context, pool).await?;
    if held == Held::Released {
        return Ok(Action::await_change());
    }
    let name = build::name(pool, namespace);
    let held = match held {
        Held::By(_) => finalizer::leave(context, pool, &name).await?,
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
        status::refuse(context, pool, &name, reason, text).await
    };
    let clusters: Api<RelayCluster> = Api::namespaced(context.client.clone(), namespace);
    let Some(cluster) = clusters.get_opt(&name.cluster).await? else {
        let text = format!(
            "there is no RelayCluster {} in this namespace: apply one, or name another in clusterRef",
            name.cluster
        );
        return refuse(Reason::ClusterNotFound, text).await;
    };
    let all = of_cluster(context, namespace, |other: &QueuePool| {
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
        renew_while_paused(context, pool, &cluster, &name).await?;
        let text =
            "the RelayCluster is paused: only certificates between nodes are renewed".to_owned();
        return refuse(Reason::Paused, text).await;
    }
    let Some(ca) = pki::find_ca(&context.client, namespace, &name.cluster).await? else {
        return Err(Error::NotYet(format!(
            "the CA of {} is not there yet",
            name.cluster
        )));
    };
    go_on(context, pool, &cluster, &name, &ca, held).await
}

/// Certificates end whether their cluster is paused or not, and the nodes would be cut off from one another.
async fn renew_while_paused(
    context: &Context,
    pool: &QueuePool,
    cluster: &RelayCluster,
    name: &PoolName,
) -> Result<(), Error> {
    let Some(ca) = pki::find_ca(&context.client, &name.namespace, &name.cluster).await? else {
        return Ok(());
    };
    let seen = observe::observe(&context.client, name, None).await?;
    let parts = Parts {
        pool,
        cluster,
        name,
        image: &cluster::image(cluster, &context.node_image),
        // Nothing is built that would say it.
        cluster_id: "",
    };
    act::renew_leaves(context, &parts, &seen, &ca)
        .await
        .map(drop)
}

/// Asks the queue, decides, does it, and tells people, in this order: whether mail can be kept is told whatever fails then. `held`:
/// the pool is on its way out, and this holds it.
async fn go_on(
    context: &Context,
    pool: &QueuePool,
    cluster: &RelayCluster,
    name: &PoolName,
    ca: &Pair,
    held: Option<String>,
) -> Result<Action, Error> {
    let address = names::queue_service(&name.pool, &name.namespace);
    let queue = context.queue(&name.namespace, &name.cluster, &address, ca)?;
    let admin = queue.admin();
    let answer = match somebody_runs(context, name).await? {
        true => ask::ask(&admin).await,
        false => Err("no queue node runs".into()),
    };
    let unreachable = answer.as_ref().err().cloned();
    let seen = observe::observe(&context.client, name, answer.ok()).await?;

    let noted = pool.status.as_ref().and_then(|old| old.cluster_id.clone());
    let known = seen.cluster_id.clone().or_else(|| noted.clone());
    let cluster_id = known.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let parts = Parts {
        pool,
        cluster,
        name,
        image: &cluster::image(cluster, &context.node_image),
        cluster_id: &cluster_id,
    };
    let desired = desired(&parts);
    let queue = seen.observed.queue.as_ref();
    let lost = queue.map(|queue| plan::lost(&desired, &seen.observed, queue));
    // The id of the queue is written down before the first claim is made: it must not be made twice.
    let step = match noted.as_ref() == Some(&cluster_id) {
        true if held.is_some() => plan::keep_up(&seen.observed),
        true => plan::plan(&desired, &seen.observed),
        false => Step::Wait("the id of the queue is written down".into()),
    };
    let mut came = Came::default();
    let outcome = carry_out(context, &parts, &seen, ca, &admin, &step, &mut came).await;
    let rejected = match outcome {
        Ok(()) => None,
        Err(error) => Some(Refusal::of(&error).ok_or(error)?),
    };
    let holds = held.is_some();
    let told = status::Told {
        step: &step,
        ends: &came.ends,
        lost: &lost.unwrap_or_default(),
        unreachable,
        refusal: held.or(came.refusal),
        rejected: rejected.as_ref(),
    };
    status::write(context, &parts, &seen, told).await?;
    if let Some(rejected) = rejected {
        // It is told, and tried again after a pause that grows.
        return Err(Error::Refused(rejected.text));
    }
    Ok(Action::requeue(match step {
        Step::Done if holds => HELD,
        Step::Done => AT_REST,
        _ => UNDER_WAY,
    }))
}

/// What the planner is to bring about.
fn desired(parts: &Parts<'_>) -> Desired {
    let spec = &parts.pool.spec;
    let replace_after = u64::try_from(spec.replace_after_seconds).unwrap_or_default();
    let status = parts.pool.status.as_ref();
    Desired {
        replicas: usize::try_from(spec.replicas).unwrap_or(1),
        replication_factor: usize::try_from(spec.replication_factor).unwrap_or(1),
        hash: build::hash(parts),
        begun: status.is_some_and(|status| !status.members.is_empty()),
        replace_after_ms: (replace_after > 0).then_some(replace_after * 1000),
    }
}

/// What came of a look, also of one that broke off.
#[derive(Default)]
struct Came {
    /// When the certificates of nodes end.
    ends: BTreeMap<u64, Timestamp>,
    /// What the queue, or a volume, does not let be done.
    refusal: Option<String>,
}

/// States what every pool has, and does the step.
async fn carry_out(
    context: &Context,
    parts: &Parts<'_>,
    seen: &Seen,
    ca: &Pair,
    admin: &AdminClient,
    step: &Step,
    came: &mut Came,
) -> Result<(), Error> {
    let (pool, name) = (parts.pool, parts.name);
    let services: Api<Service> = Api::namespaced(context.client.clone(), &name.namespace);
    for service in build::services(pool, name) {
        ssa::apply(&services, Controller::QueuePool, &service).await?;
    }
    let (owners, wanted) = (ssa::owner(pool), parts.cluster.spec.network_policy);
    network::apply(context, Controller::QueuePool, name, &owners, wanted, &[]).await?;
    let queue = seen.observed.queue.as_ref();
    let members = queue.map_or(0, |queue| queue.members.len());
    let budgets: Api<PodDisruptionBudget> =
        Api::namespaced(context.client.clone(), &name.namespace);
    match build::disruption_budget(pool, name, members) {
        Some(budget) => drop(ssa::apply(&budgets, Controller::QueuePool, &budget).await?),
        // While the queue does not answer the last number stays.
        None if queue.is_some() => delete_own(&budgets, &name.object()).await?,
        None => {}
    }
    came.ends = act::renew_leaves(context, parts, seen, ca).await?;
    act::label_members(context, name, seen).await?;
    came.refusal = act::grow_volumes(context, parts, seen).await?;
    if matches!(step, Step::Done | Step::Wait(_)) {
        return Ok(());
    }
    tracing::info!(pool = name.pool, namespace = name.namespace, ?step, "acts");
    match act::act(context, parts, seen, ca, admin, step).await {
        Ok(()) => context.tell(pool, "Changed", status::what(step)).await,
        // No is an answer and not a failure.
        Err(Error::Refused(text)) => came.refusal = Some(text),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Somebody may be there to be asked; without one the question would only take its time.
async fn somebody_runs(context: &Context, name: &PoolName) -> Result<bool, Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let selected = ListParams::default().labels(&name.selector_text());
    Ok(observe::may_answer(&pods.list(&selected).await?.items))
}
