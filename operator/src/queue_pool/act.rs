//! Does one step. Each may be done twice: what was done already is found so, or refused without harm.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use proto::Role;
use proto::client::{AdminClient, CallError};
use proto::pki::Pair;
use proto::v1::AddNodeRequest;
use resource::Retention;
use serde_json::json;

use super::build::{self, Parts};
use super::observe::Seen;
use super::plan::Step;
use super::rehearse::rehearse;
use crate::context::Context;
use crate::error::Error;
use crate::fail_point;
use crate::names::{self, CLIENT_PORT, PEER_PORT, PoolName};
use crate::node_pool::delete;
use crate::pki::{self, Leaf};
use crate::ssa::{self, Controller};

/// Does it.
pub async fn act(
    context: &Context,
    parts: &Parts<'_>,
    seen: &Seen,
    ca: &Pair,
    admin: &AdminClient,
    step: &Step,
) -> Result<(), Error> {
    let namespace = &parts.name.namespace;
    let pool = &parts.name.pool;
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    match step {
        Step::Done | Step::Wait(_) => Ok(()),
        Step::CreateClaim { node, initial } => {
            let claim = build::claim(parts, *node, initial.as_ref());
            create(&claims, &claim, "claim-created").await
        }
        Step::CreatePod { node } => {
            renew_leaf(context, parts, *node, ca).await?;
            let claim = seen.observed.claims.get(node);
            // Before the pod: whoever dies in between leaves a mark too many, and all first claims are there by now.
            if claim.is_some_and(|claim| !claim.used) {
                mark(parts, &claims, *node, names::USED).await?;
                fail_point::after("claim-marked");
            }
            create(&pods, &pod_of(parts, seen, *node), "pod-created").await
        }
        Step::AddNode { node } => {
            let host = names::queue_host(pool, namespace, *node);
            let add = AddNodeRequest {
                node: *node,
                peer_address: format!("{host}:{PEER_PORT}"),
                client_address: format!("{host}:{CLIENT_PORT}"),
                zone: String::new(),
            };
            asked(admin.add_node(add).await, "node-added")
        }
        Step::RemoveNode { node } => asked(admin.remove_node(*node).await, "node-removed"),
        Step::MoveLeaders { node } => asked(admin.move_leaders(*node).await, "leaders-moved"),
        Step::SetReplicationFactor { factor } => {
            let factor = u32::try_from(*factor).unwrap_or(u32::MAX);
            asked(admin.set_replication_factor(factor).await, "copies-set")
        }
        Step::DeletePod { node } => {
            if comes_again(seen, *node) {
                rehearse(&pods, pod_of(parts, seen, *node), seen.pods.get(node)).await?;
            }
            delete(&pods, &names::queue_pod(pool, *node)).await?;
            fail_point::after("pod-deleted");
            Ok(())
        }
        Step::Retire { node } => {
            retire(parts, &claims, *node).await?;
            fail_point::after("claim-retired");
            Ok(())
        }
    }
}

/// The pod of a node, as it is declared now.
fn pod_of(parts: &Parts<'_>, seen: &Seen, node: u64) -> serde_json::Value {
    let claim = seen.observed.claims.get(&node);
    let initial = claim.and_then(|claim| claim.initial.as_ref());
    build::pod(parts, node, initial, is_member(seen, node))
}

/// A pod of this node is made anew when the present one has gone: the queue has the node, or does not say.
fn comes_again(seen: &Seen, node: u64) -> bool {
    let queue = seen.observed.queue.as_ref();
    let known = queue.is_none_or(|queue| queue.members.contains_key(&node));
    known && seen.observed.claims.contains_key(&node)
}

/// The queue's no is an answer; that it gave none is a failure.
fn asked(answer: Result<String, CallError>, write: &str) -> Result<(), Error> {
    match answer {
        Ok(text) => {
            tracing::info!("{text}");
            fail_point::after(write);
            Ok(())
        }
        Err(CallError::Declined { text }) => Err(Error::Refused(text)),
        Err(error) => Err(Error::Queue(error.to_string())),
    }
}

/// Creates what must not be there yet. What is there all the same was not among this pool's own when it was looked at.
async fn create<K>(api: &Api<K>, object: &serde_json::Value, write: &str) -> Result<(), Error>
where
    K: Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object.clone())?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {
            fail_point::after(write);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::Refused(format!(
            "{}: if it stays so, delete it, or give this pool another name",
            status.message
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The claim of a node that left: deleted, or marked, so that nobody takes it for one of a member.
async fn retire(
    parts: &Parts<'_>,
    claims: &Api<PersistentVolumeClaim>,
    node: u64,
) -> Result<(), Error> {
    let claim = names::queue_claim(&parts.name.pool, node);
    if parts.pool.spec.storage.when_scaled == Retention::Delete {
        return delete(claims, &claim).await;
    }
    mark(parts, claims, node, names::RETIRED).await
}

/// Notes on the claim of a node what became of it.
async fn mark(
    parts: &Parts<'_>,
    claims: &Api<PersistentVolumeClaim>,
    node: u64,
    note: &str,
) -> Result<(), Error> {
    let claim = names::queue_claim(&parts.name.pool, node);
    let marked = json!({"metadata": {"annotations": {note: node.to_string()}}});
    let merge = PatchParams::default();
    claims.patch(&claim, &merge, &Patch::Merge(&marked)).await?;
    Ok(())
}

fn is_member(seen: &Seen, node: u64) -> bool {
    let queue = seen.observed.queue.as_ref();
    queue.is_some_and(|queue| {
        let member = queue.members.get(&node);
        member.is_some_and(|member| !member.joining && !member.leaving)
    })
}

/// The label by which the disruption budget counts follows what the queue says.
pub async fn label_members(context: &Context, name: &PoolName, seen: &Seen) -> Result<(), Error> {
    if seen.observed.queue.is_none() {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    for (node, pod) in &seen.pods {
        let labels = pod.metadata.labels.as_ref();
        let labelled = labels.is_some_and(|labels| labels.contains_key(names::MEMBER));
        let member = is_member(seen, *node);
        if labelled == member {
            continue;
        }
        let value = member.then_some("joined");
        let patch = json!({"metadata": {"labels": {names::MEMBER: value}}});
        let pod = names::queue_pod(&name.pool, *node);
        match pods
            .patch(&pod, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Claims that ask for less than is declared ask for more. Says what stands in the way, for people: a volume can grow only where
/// its storage class lets it.
pub async fn grow_volumes(
    context: &Context,
    parts: &Parts<'_>,
    seen: &Seen,
) -> Result<Option<String>, Error> {
    let size = &parts.pool.spec.storage.size;
    let Ok(wanted) = resource::parse_quantity(size) else {
        return Ok(None);
    };
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &parts.name.namespace);
    let small = seen.volumes.iter().filter(|(_, asked)| **asked < wanted);
    for (node, _) in small {
        let retired = seen
            .observed
            .claims
            .get(node)
            .is_none_or(|claim| claim.retired);
        if retired {
            continue;
        }
        let claim = names::queue_claim(&parts.name.pool, *node);
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        match claims
            .patch(&claim, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {
                let text = format!("the volume of node {node} grows to {size}");
                context.tell(parts.pool, "VolumeGrows", text).await;
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => {
                return Ok(Some(format!(
                    "the volume claim {claim} cannot grow to {size}: {}; choose a storage class with allowVolumeExpansion for new nodes, or write the former size",
                    status.message
                )));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Certificates of all nodes that have a pod, made anew in time; says when each ends.
pub async fn renew_leaves(
    context: &Context,
    parts: &Parts<'_>,
    seen: &Seen,
    ca: &Pair,
) -> Result<BTreeMap<u64, Timestamp>, Error> {
    let mut ends = BTreeMap::new();
    for node in seen.pods.keys() {
        let end = renew_leaf(context, parts, *node, ca).await?;
        ends.extend(end.map(|end| (*node, end)));
    }
    Ok(ends)
}

async fn renew_leaf(
    context: &Context,
    parts: &Parts<'_>,
    node: u64,
    ca: &Pair,
) -> Result<Option<Timestamp>, Error> {
    let leaf = Leaf {
        namespace: &parts.name.namespace,
        secret: names::leaf_secret(&names::queue_pod(&parts.name.pool, node)),
        labels: json!(parts.name.labels()),
        owners: ssa::owner(parts.pool),
        role: Role::Queue,
        name: node.to_string(),
    };
    let tls = &parts.cluster.spec.internal_tls;
    let ensured = pki::ensure_leaf(&context.client, Controller::QueuePool, ca, tls, leaf).await?;
    if ensured.made {
        fail_point::after("certificate-made");
    }
    Ok(ensured.ends)
}
