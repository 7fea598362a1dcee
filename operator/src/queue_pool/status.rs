//! What people are told of a queue pool: its members, its groups, what is being done and what is in the way.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::Api;
use kube::runtime::controller::Action;
use resource::{Groups, Member, MemberState, Operation, OperationType, QueuePool, QueuePoolStatus};
use serde_json::json;

use super::ask::{Answer, Node, Stage};
use super::build::Parts;
use super::observe::Seen;
use super::plan::Step;
use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, PoolName};
use crate::node_pool::refusal::Refusal;
use crate::ssa::{self, Controller};

const CONDITIONS: [&str; 5] = [
    "Ready",
    "Accepted",
    "QuorumHealthy",
    "Progressing",
    "ScaleBlocked",
];
/// A pool that is refused looks again this often; a change of what is in its way comes by no watch.
const REFUSED: std::time::Duration = std::time::Duration::from_secs(5);

/// Says that nothing is done with the pool. What runs, runs on; everything else of the status stays.
pub async fn refuse(
    context: &Context,
    pool: &QueuePool,
    name: &PoolName,
    reason: Reason,
    text: String,
) -> Result<Action, Error> {
    let mut status = pool.status.clone().unwrap_or_default();
    let before = status.conditions.clone();
    let mut conditions = Conditions::new(&before, pool.metadata.generation, Timestamp::now());
    conditions.set("Accepted", false, reason, text.clone());
    if reason != Reason::Paused {
        conditions.set("Ready", false, reason, text);
    }
    status.observed_generation = pool.metadata.generation;
    status.conditions = conditions.finish(&CONDITIONS);
    status.selector = name.selector_text();
    put(context, name, &status).await?;
    Ok(Action::requeue(REFUSED))
}

/// What one look at a pool came to.
pub struct Told<'a> {
    /// What is done.
    pub step: &'a Step,
    /// When the certificate of each node ends.
    pub ends: &'a BTreeMap<u64, Timestamp>,
    /// Nodes in whose place others come.
    pub lost: &'a [u64],
    /// Why the queue did not answer.
    pub unreachable: Option<String>,
    /// What is in the way.
    pub refusal: Option<String>,
    /// What the API server did not take.
    pub rejected: Option<&'a Refusal>,
}

/// Says what was seen and what is done.
pub async fn write(
    context: &Context,
    parts: &Parts<'_>,
    seen: &Seen,
    told: Told<'_>,
) -> Result<(), Error> {
    let Told {
        step,
        ends,
        lost,
        unreachable,
        refusal,
        rejected,
    } = told;
    let before = parts.pool.status.clone().unwrap_or_default();
    let generation = parts.pool.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, Timestamp::now());
    let groups = seen.answer.as_ref();
    let groups = groups.map(|answer| groups_of(answer, parts.pool.spec.shards));
    // First of all and whatever else: whether mail can be kept.
    quorum(groups.as_ref(), unreachable, &mut conditions);
    if let Some(rejected) = rejected {
        rejected.warn(context, parts.pool, &before.conditions).await;
    }
    progress(step, rejected, &mut conditions);
    let desired = usize::try_from(parts.pool.spec.replicas).unwrap_or_default();
    match refusal {
        Some(text) => {
            let mut old = before.conditions.iter();
            if !old.any(|old| old.type_ == "ScaleBlocked" && old.message == text) {
                context.warn(parts.pool, "ScaleBlocked", text.clone()).await;
            }
            conditions.set("ScaleBlocked", true, Reason::RefusedByQueue, text);
        }
        None => conditions.set(
            "ScaleBlocked",
            false,
            Reason::NotBlocked,
            "nothing is in the way",
        ),
    }
    let ready = seen.observed.pods.values().filter(|pod| pod.ready).count();
    let text = format!("{ready} of {desired} nodes are ready");
    match conditions.is("QuorumHealthy") && ready >= desired {
        true => conditions.set("Ready", true, Reason::AsDeclared, text),
        false => conditions.set("Ready", false, Reason::PodsNotReady, text),
    }
    let hash = super::build::hash(parts);
    let updated = seen
        .observed
        .pods
        .values()
        .filter(|pod| pod.hash == hash)
        .count();
    let status = QueuePoolStatus {
        observed_generation: generation,
        conditions: conditions.finish(&CONDITIONS),
        // A queue that does not answer has the members that it had.
        replicas: match &seen.observed.queue {
            Some(queue) => count(queue.members.len()),
            None => before.replicas,
        },
        ready_replicas: count(ready),
        updated_replicas: count(updated),
        selector: parts.name.selector_text(),
        cluster_id: Some(parts.cluster_id.to_owned()),
        members: match &seen.answer {
            Some(answer) if answer.overview.is_some() => members(parts, answer, ends, lost),
            _ => before.members.clone(),
        },
        groups,
        operation: operation(step, before.operation.as_ref()),
    };
    put(context, parts.name, &status).await
}

async fn put(context: &Context, name: &PoolName, status: &QueuePoolStatus) -> Result<(), Error> {
    let api: Api<QueuePool> = Api::namespaced(context.client.clone(), &name.namespace);
    ssa::apply_status(&api, Controller::QueuePool, &name.pool, &json!(status)).await?;
    Ok(())
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The groups. Without the leader of their control group nodes tell only of those that they hold; how many there must be is
/// declared, and one that nobody leads, or tells of, has no leader.
fn groups_of(answer: &Answer, shards: i32) -> Groups {
    let total = match answer.overview {
        Some(_) => count(answer.groups),
        None => count(answer.groups).max(shards.saturating_add(1)),
    };
    Groups {
        total,
        with_leader: count(answer.led),
        fully_replicated: count(answer.in_step),
    }
}

/// Whether every message that is in the queue can be served, and every new one kept.
fn quorum(groups: Option<&Groups>, unreachable: Option<String>, conditions: &mut Conditions<'_>) {
    match (groups, unreachable) {
        (Some(groups), _) if groups.total > 0 && groups.with_leader == groups.total => {
            let text = format!("all {} groups have a leader", groups.total);
            conditions.set("QuorumHealthy", true, Reason::EveryGroupHasALeader, text);
        }
        (Some(groups), _) => {
            let missing = groups.total - groups.with_leader;
            let text = format!("{missing} of {} groups have no leader", groups.total);
            conditions.set("QuorumHealthy", false, Reason::GroupsWithoutLeader, text);
        }
        (None, why) => {
            let text = why.unwrap_or_else(|| "not asked yet".into());
            conditions.unknown("QuorumHealthy", Reason::QueueUnreachable, text);
        }
    }
}

/// Whether anything is done, or the API server does not let it: for what is declared, or for what is declared elsewhere, like a quota.
fn progress(step: &Step, rejected: Option<&Refusal>, conditions: &mut Conditions<'_>) {
    let wrong = rejected.filter(|rejected| rejected.reason == Reason::Invalid);
    match wrong {
        Some(wrong) => conditions.set("Accepted", false, wrong.reason, wrong.text.clone()),
        None => conditions.set("Accepted", true, Reason::AsDeclared, "the cluster is there"),
    }
    match (rejected, step) {
        (Some(rejected), _) => {
            conditions.set("Progressing", false, rejected.reason, rejected.text.clone());
        }
        (None, Step::Done) => {
            conditions.set("Progressing", false, Reason::Settled, "all is as declared");
        }
        (None, step) => conditions.set("Progressing", true, Reason::Working, what(step)),
    }
}

/// Where a node is in its life. One that says nothing is lost only when another takes its place.
fn state(stage: Stage, lost: bool) -> MemberState {
    match stage {
        Stage::Joining => MemberState::Joining,
        Stage::Leaving => MemberState::Leaving,
        _ if lost => MemberState::Lost,
        Stage::Ready => MemberState::Ready,
        Stage::Silent => MemberState::Silent,
    }
}

fn members(
    parts: &Parts<'_>,
    answer: &Answer,
    ends: &BTreeMap<u64, Timestamp>,
    lost: &[u64],
) -> Vec<Member> {
    let known = |node: &Node| !node.version.is_empty();
    answer
        .nodes
        .iter()
        .map(|(id, node)| Member {
            node_id: i64::try_from(*id).unwrap_or(i64::MAX),
            pod_name: names::queue_pod(&parts.name.pool, *id),
            pvc_name: names::queue_claim(&parts.name.pool, *id),
            zone: (!node.zone.is_empty()).then(|| node.zone.clone()),
            state: state(node.stage, lost.contains(id)),
            groups: known(node).then(|| count(node.groups)),
            leads: known(node).then(|| count(node.leads)),
            version: known(node).then(|| node.version.clone()),
            certificate_not_after: ends.get(id).map(Timestamp::to_string),
        })
        .collect()
}

/// A step for people.
pub fn what(step: &Step) -> String {
    match step {
        Step::Done => "all is as declared".into(),
        Step::Wait(why) => why.clone(),
        Step::CreateClaim { node, .. } => format!("node {node} gets a volume"),
        Step::CreatePod { node } => format!("node {node} gets a pod"),
        Step::AddNode { node } => format!("node {node} joins the queue"),
        Step::RemoveNode { node } => format!("node {node} leaves the queue"),
        Step::SetReplicationFactor { factor } => format!("every shard gets {factor} copies"),
        Step::MoveLeaders { node } => format!("others lead what node {node} leads"),
        Step::DeletePod { node } => format!("the pod of node {node} is taken away"),
        Step::Retire { node } => format!("the volume of node {node} is retired"),
    }
}

fn operation(step: &Step, before: Option<&Operation>) -> Option<Operation> {
    let (type_, node) = match step {
        Step::Done => return None,
        // What is waited for belongs to what was begun.
        Step::Wait(why) => {
            let step = why.chars().take(64).collect();
            return before.map(|old| Operation {
                step,
                ..old.clone()
            });
        }
        Step::CreateClaim {
            node,
            initial: Some(_),
        } => (OperationType::Bootstrap, node),
        Step::CreateClaim {
            node,
            initial: None,
        }
        | Step::AddNode { node } => (OperationType::Add, node),
        Step::CreatePod { node } => (before.map_or(OperationType::Roll, |old| old.type_), node),
        Step::RemoveNode { node } | Step::Retire { node } => (OperationType::Remove, node),
        Step::SetReplicationFactor { .. } => (OperationType::Copies, &0),
        Step::MoveLeaders { node } => (OperationType::Roll, node),
        Step::DeletePod { node } => (before.map_or(OperationType::Roll, |old| old.type_), node),
    };
    let same = before.filter(|old| old.type_ == type_);
    Some(Operation {
        type_,
        node_id: i64::try_from(*node).ok().filter(|node| *node > 0),
        step: what(step).chars().take(64).collect(),
        start_time: match same {
            Some(old) => old.start_time.clone(),
            None => Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use resource::ConditionStatus;

    use super::*;
    use crate::conditions::find;
    use crate::queue_pool::ask::Overview;

    fn said(say: impl FnOnce(&mut Conditions<'_>), type_: &str) -> (ConditionStatus, String) {
        let mut conditions = Conditions::new(&[], Some(1), Timestamp::UNIX_EPOCH);
        say(&mut conditions);
        let all = conditions.finish(&[]);
        let one = find(&all, type_).expect("it is said");
        (one.status, format!("{}: {}", one.reason, one.message))
    }

    #[test]
    fn a_queue_without_the_leader_of_its_control_group_is_not_healthy_and_its_groups_are_told() {
        let mut answer = Answer {
            groups: 3,
            led: 2,
            in_step: 2,
            overview: None,
            ..Answer::default()
        };
        let alone = groups_of(&answer, 16);
        assert_eq!((alone.total, alone.with_leader), (17, 2));
        let quorum_of = |groups: Option<&Groups>| {
            let why = groups.is_none().then(|| "no queue node runs".to_owned());
            said(
                |conditions| quorum(groups, why, conditions),
                "QuorumHealthy",
            )
        };
        let (status, text) = quorum_of(Some(&alone));
        assert_eq!(status, ConditionStatus::False);
        assert_eq!(text, "GroupsWithoutLeader: 15 of 17 groups have no leader");
        answer.overview = Some(Overview::default());
        assert_eq!(groups_of(&answer, 16).total, 3);
        let (status, text) = quorum_of(None);
        assert_eq!(status, ConditionStatus::Unknown);
        assert_eq!(text, "QueueUnreachable: no queue node runs");
    }

    #[test]
    fn a_node_is_lost_only_when_another_takes_its_place() {
        assert_eq!(state(Stage::Silent, false), MemberState::Silent);
        assert_eq!(state(Stage::Silent, true), MemberState::Lost);
        assert_eq!(state(Stage::Leaving, true), MemberState::Leaving);
    }

    #[test]
    fn what_the_api_server_does_not_take_stands_in_the_status() {
        let refusal = |reason| Refusal {
            reason,
            text: "the API server refuses it: why".into(),
        };
        let step = Step::CreatePod { node: 4 };
        let told = |rejected: Option<&Refusal>, type_: &str| {
            let (status, _) = said(|conditions| progress(&step, rejected, conditions), type_);
            status
        };
        let (wrong, full) = (refusal(Reason::Invalid), refusal(Reason::Rejected));
        assert_eq!(told(Some(&wrong), "Accepted"), ConditionStatus::False);
        assert_eq!(told(Some(&wrong), "Progressing"), ConditionStatus::False);
        assert_eq!(told(Some(&full), "Accepted"), ConditionStatus::True);
        assert_eq!(told(Some(&full), "Progressing"), ConditionStatus::False);
        assert_eq!(told(None, "Progressing"), ConditionStatus::True);
    }
}
