//! What is there of a queue pool: volume claims, pods, and what the queue says of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::ask::{Answer, Node, Overview, Stage};
use super::plan::{self, Claim, Member, Observed, Queue};
use crate::error::Error;
use crate::names::{self, PoolName};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams, ObjectMeta};
use kube::{Client, ResourceExt};

/// A pod that was to be gone so long ago is not about to end: the kubelet that would end it is away.
const OVERDUE: SignedDuration = SignedDuration::from_secs(60);

/// Everything that was seen.
pub struct Seen {
    /// As the planner wants it.
    pub observed: Observed,
    /// Id of the queue, from its claims.
    pub cluster_id: Option<String>,
    /// The pods themselves.
    pub pods: BTreeMap<u64, Pod>,
    /// What each claim asks for, octets.
    pub volumes: BTreeMap<u64, u64>,
    /// The queue's whole answer.
    pub answer: Option<Answer>,
}

/// Looks at claims and pods, and takes the queue's answer, if it gave one.
pub async fn observe(
    client: &Client,
    name: &PoolName,
    answer: Option<Answer>,
) -> Result<Seen, Error> {
    let selected = ListParams::default().labels(&name.selector_text());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    let pods: BTreeMap<u64, Pod> = by_node(pods.list(&selected).await?.items);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &name.namespace);
    let claims: BTreeMap<u64, PersistentVolumeClaim> = by_node(claims.list(&selected).await?.items);
    let cluster_id = claims
        .values()
        .find_map(|claim| claim.labels().get(names::CLUSTER_ID).cloned());
    let observed = Observed {
        claims: claims
            .iter()
            // A claim on its way out stays until its pod is gone, and is of no use for another one.
            .filter(|(node, claim)| {
                claim.metadata.deletion_timestamp.is_none() || pods.contains_key(node)
            })
            .map(|(node, claim)| (*node, seen_claim(&claim.metadata)))
            .collect(),
        pods: pods
            .iter()
            .map(|(node, pod)| (*node, seen_pod(pod)))
            .collect(),
        queue: answer
            .as_ref()
            .and_then(|answer| Some(seen_queue(answer, answer.overview?))),
    };
    let volumes = claims
        .iter()
        .filter_map(|(node, claim)| Some((*node, requested(claim)?)))
        .collect();
    Ok(Seen {
        observed,
        volumes,
        cluster_id,
        pods,
        answer,
    })
}

fn by_node<K: ResourceExt>(objects: Vec<K>) -> BTreeMap<u64, K> {
    objects
        .into_iter()
        .filter_map(|object| {
            let node = object.labels().get(names::NODE_ID)?.parse().ok()?;
            Some((node, object))
        })
        .collect()
}

fn requested(claim: &PersistentVolumeClaim) -> Option<u64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    resource::parse_quantity(&requests.get("storage")?.0).ok()
}

fn seen_claim(metadata: &ObjectMeta) -> Claim {
    let note = |name: &str| {
        metadata
            .annotations
            .as_ref()
            .and_then(|notes| notes.get(name))
    };
    let list = note(names::INITIAL_CLUSTER).map(|list| {
        let ids = list.split(',').filter_map(|id| id.parse().ok());
        ids.collect::<BTreeSet<u64>>()
    });
    Claim {
        initial: list,
        used: note(names::USED).is_some(),
        retired: note(names::RETIRED).is_some(),
    }
}

fn seen_pod(pod: &Pod) -> plan::Pod {
    plan::Pod {
        hash: pod
            .annotations()
            .get(names::TEMPLATE_HASH)
            .cloned()
            .unwrap_or_default(),
        runs: has_process(pod),
        ready: is_ready(pod),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        overdue: is_overdue(pod, Timestamp::now()),
    }
}

/// Its time to end, which the deletion timestamp has in it, passed long ago.
fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let end = pod.metadata.deletion_timestamp.as_ref();
    end.is_some_and(|end| now.duration_since(end.0) > OVERDUE)
}

/// Of these pods one may answer. That none is ready says nothing: none is while a single group has no leader, which is when people
/// want to know what is wrong.
pub fn may_answer(pods: &[Pod]) -> bool {
    pods.iter().any(has_process)
}

/// One of its containers runs, as far as the kubelet said.
fn has_process(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let mut states = containers
        .into_iter()
        .flatten()
        .filter_map(|container| container.state.as_ref());
    states.any(|state| state.running.is_some())
}

/// Its Ready condition.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn seen_queue(answer: &Answer, overview: Overview) -> Queue {
    let crowd = |zone: &str| {
        let nodes = answer.nodes.values();
        nodes.filter(|node| node.zone == zone).count()
    };
    let member = |node: &Node| Member {
        crowd: crowd(&node.zone),
        leaving: node.stage == Stage::Leaving,
        joining: node.stage == Stage::Joining,
        rests: node.rests,
        leads: u32::try_from(node.leads).unwrap_or(u32::MAX),
        silent_ms: node.silent_ms,
    };
    let speaks = |node: &Node| node.stage != Stage::Silent;
    Queue {
        members: answer
            .nodes
            .iter()
            .map(|(id, node)| (*id, member(node)))
            .collect(),
        highest_node: overview.highest_node,
        replication_factor: overview.replication_factor as usize,
        leaderless: answer.groups - answer.led,
        settled: answer.groups == answer.in_step
            && overview.moves_left == 0
            && answer.nodes.values().all(speaks),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(state: &str) -> Pod {
        let pod = json!({
            "metadata": {"name": "main-queue-1", "deletionTimestamp": "2026-01-01T00:01:00Z"},
            "status": {
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{
                    "name": "postroad", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
                    "state": {(state): {}},
                }],
            },
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_queue_of_which_no_node_is_ready_is_asked_what_is_wrong() {
        let (runs, waits) = (pod("running"), pod("waiting"));
        assert!(!is_ready(&runs));
        assert!(may_answer(&[waits.clone(), runs]));
        assert!(!may_answer(&[waits]));
    }

    #[test]
    fn a_pod_is_overdue_a_minute_after_it_should_have_ended() {
        let at = |time: &str| -> Timestamp { time.parse().expect("a time") };
        let leaves = pod("running");
        assert!(!is_overdue(&leaves, at("2026-01-01T00:02:00Z")));
        assert!(is_overdue(&leaves, at("2026-01-01T00:02:01Z")));
        assert!(!is_overdue(&Pod::default(), at("2026-01-01T00:02:01Z")));
    }
}
