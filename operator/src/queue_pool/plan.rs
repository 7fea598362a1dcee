//! What to do next with a queue pool. Pure: from what is declared and what was seen comes one [`Step`], and the next step
//! is decided from what is seen then. So the operator may die anywhere and go on.
//!
//! The order of things, and why:
//! * The first nodes are fixed by their volume claims, each of which carries the whole list; a list half made is completed,
//!   until one of them gets a pod, which its claim keeps in mind: from then on a claim that is missing is a lost disk.
//! * A node comes as claim, pod, then AddNode: the queue hears of a node that is there.
//! * A node goes as RemoveNode, then, when the queue has forgotten it, pod and claim. The queue refuses to let one go
//!   that is needed, and its refusal is final here: the spec is never rewritten.
//! * The number of copies rises when the nodes for it are there, and falls before nodes go.
//! * One change of membership at a time, and none while a group has no leader.
//! * A lost node is replaced: another one is added first, then it is removed, under which the queue's own gate lies. Its pod may
//!   never end: nobody is there to end it while its Kubernetes node is dead. What is left of it holds up nothing.
//! * Pods are made anew one at a time, each after its leaderships were moved away and all copies are in step. A pod that
//!   is not ready and out of date is made anew without that where nobody counts on it. That it is not ready does not say so:
//!   none is while a group has no leader.

use std::collections::{BTreeMap, BTreeSet};

/// The queue does without a node of which it heard nothing for so long; it takes it for silent itself by then.
const UNHEARD_MS: u64 = 10_000;

/// What is declared.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Queue nodes.
    pub replicas: usize,
    /// Copies of each group: as many nodes as the queue begins with.
    pub replication_factor: usize,
    /// What pods are made from.
    pub hash: String,
    /// The queue had members before.
    pub begun: bool,
    /// Silent for so long and without a pod, a node is lost; `None`: never.
    pub replace_after_ms: Option<u64>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Volume claims by node id, retired ones as well.
    pub claims: BTreeMap<u64, Claim>,
    /// Pods by node id.
    pub pods: BTreeMap<u64, Pod>,
    /// What the queue says; `None`: it does not answer.
    pub queue: Option<Queue>,
}

/// A volume claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of one of the first nodes: their ids.
    pub initial: Option<BTreeSet<u64>>,
    /// It had a pod once: the queue may have begun.
    pub used: bool,
    /// Its node left the queue.
    pub retired: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// What it was made from.
    pub hash: String,
    /// Its process is there.
    pub runs: bool,
    /// Its process says so.
    pub ready: bool,
    /// It is on its way out.
    pub leaving: bool,
    /// It should have ended long ago, and perhaps never does: its Kubernetes node may be dead.
    pub overdue: bool,
}

/// What the queue says of itself.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Its nodes.
    pub members: BTreeMap<u64, Member>,
    /// No id up to this one may be given again.
    pub highest_node: u64,
    /// Copies of each group, as the queue has them or is on its way to.
    pub replication_factor: usize,
    /// Groups without a leader.
    pub leaderless: usize,
    /// Every group is where it should be, with all copies in step.
    pub settled: bool,
}

/// A node as the queue knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// It was told to go.
    pub leaving: bool,
    /// It was added and not heard of yet.
    pub joining: bool,
    /// It was asked not to lead, and hands over what it leads.
    pub rests: bool,
    /// Groups that it leads.
    pub leads: u32,
    /// It was not heard of for so long.
    pub silent_ms: u64,
    /// Nodes in its zone, itself among them; where nobody knows of zones these are all.
    pub crowd: usize,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: all is as declared.
    Done,
    /// Something is under way, and this is what is waited for.
    Wait(String),
    /// Make a volume claim; `initial` is the list of the first nodes if it is one of them.
    CreateClaim {
        /// For this node.
        node: u64,
        /// See [`Claim::initial`].
        initial: Option<BTreeSet<u64>>,
    },
    /// Make a pod for a claim, which is marked as used before.
    CreatePod {
        /// Of this node.
        node: u64,
    },
    /// Tell the queue of a new node.
    AddNode {
        /// This one.
        node: u64,
    },
    /// Tell the queue to do without a node.
    RemoveNode {
        /// This one.
        node: u64,
    },
    /// Tell the queue how many copies each group has.
    SetReplicationFactor {
        /// So many.
        factor: usize,
    },
    /// Move leaderships away from a node whose pod is to be made anew.
    MoveLeaders {
        /// This one.
        node: u64,
    },
    /// Delete a pod: it is made anew, or its node is gone.
    DeletePod {
        /// Of this node.
        node: u64,
    },
    /// The claim's node left the queue: delete the claim, or mark it.
    Retire {
        /// Of this node.
        node: u64,
    },
}

/// Decides. See the module for the order.
pub fn plan(desired: &Desired, seen: &Observed) -> Step {
    first_nodes(desired, seen)
        .or_else(|| needless(desired, seen))
        .or_else(|| missing_pod(seen))
        .or_else(|| broken_pod(desired, seen))
        .or_else(|| {
            let Some(queue) = &seen.queue else {
                return Some(unanswered(desired, seen));
            };
            gone(seen, queue)
                .or_else(|| membership(desired, seen, queue))
                .or_else(|| roll(desired, seen, queue))
                .or_else(|| ending(seen, queue))
                .or_else(|| unsettled(queue))
        })
        .unwrap_or(Step::Done)
}

/// The claims that the queue begins with: all of them, or there would never be a majority.
fn first_nodes(desired: &Desired, seen: &Observed) -> Option<Step> {
    let list = seen.claims.values().find_map(|claim| claim.initial.clone());
    let initial = match list {
        Some(list) => list,
        None if seen.claims.is_empty() => {
            // A queue that had members and has no claims has lost all its volumes. It is not begun anew: people would not hear of
            // the mail that went with them, and node ids would come again.
            if seen.queue.is_some() || desired.begun {
                return Some(Step::Wait(
                    "every volume claim is gone: restore them, or delete this QueuePool and apply it again to begin without their mail".into(),
                ));
            }
            (1..=desired.replication_factor as u64).collect()
        }
        None => return None,
    };
    // All were there when the first of them got its pod; one that is missing since was lost, and its id is not given again.
    if seen.queue.is_some() || seen.claims.values().any(|claim| claim.used) {
        return None;
    }
    let node = initial
        .iter()
        .copied()
        .find(|node| !seen.claims.contains_key(node))?;
    let initial = Some(initial);
    Some(Step::CreateClaim { node, initial })
}

/// What is left to do for a pool that is on its way out and has mail in it: its nodes run until it is delivered.
pub fn keep_up(seen: &Observed) -> Step {
    let why = || Step::Wait("the pool goes when its mail is delivered".into());
    missing_pod(seen).unwrap_or_else(why)
}

/// A node that was to come and did not yet, when there are enough without it again: a pod that found no room must not stand in
/// the way of the scale that takes it back.
fn needless(desired: &Desired, seen: &Observed) -> Option<Step> {
    let queue = seen.queue.as_ref()?;
    let healthy = queue.members.len() - lost(desired, seen, queue).len();
    if healthy < desired.replicas {
        return None;
    }
    let node = comer(seen, queue)?;
    Some(match seen.pods.get(&node) {
        Some(pod) if pod.leaving => Step::Wait(ends(node, pod)),
        Some(_) => Step::DeletePod { node },
        None => Step::Retire { node },
    })
}

/// A node that has a volume and of which the queue did not hear yet. Not one whose pod is overdue: another comes in its place.
fn comer(seen: &Observed, queue: &Queue) -> Option<u64> {
    let waits = |(node, claim): &(&u64, &Claim)| {
        let overdue = seen.pods.get(node).is_some_and(|pod| pod.overdue);
        let known = **node <= queue.highest_node || queue.members.contains_key(node);
        !claim.retired && !overdue && !known
    };
    seen.claims.iter().find(waits).map(|(node, _)| *node)
}

/// Every claim whose node is or will be in the queue has a pod.
fn missing_pod(seen: &Observed) -> Option<Step> {
    let live = seen.claims.iter().filter(|(_, claim)| !claim.retired);
    let bare = |node: &u64| !seen.pods.contains_key(node);
    let node = live.map(|(node, _)| *node).find(bare)?;
    // A node that the queue has forgotten gets no pod any more: its claim is retired below.
    let queue = seen.queue.as_ref();
    if queue.is_some_and(|queue| is_forgotten(queue, node)) {
        return None;
    }
    Some(Step::CreatePod { node })
}

/// A pod that is out of date and not ready, and that nobody counts on.
fn broken_pod(desired: &Desired, seen: &Observed) -> Option<Step> {
    let mut broken = broken(desired, seen).filter(|node| is_spare(desired, seen, *node));
    broken.next().map(|node| Step::DeletePod { node })
}

/// Nodes whose pods are out of date and not ready.
fn broken(desired: &Desired, seen: &Observed) -> impl Iterator<Item = u64> {
    let pods = seen.pods.iter();
    let broken =
        pods.filter(move |(_, pod)| !pod.ready && !pod.leaving && pod.hash != desired.hash);
    broken.map(|(node, _)| *node)
}

/// Nothing gets worse when the pod of this node, which is not ready, goes: all others are well, or the queue does without it.
/// Of a queue that does not answer one that has no process goes, and the next one only when the new one has a process:
/// what is declared may be as bad as what was. One that is overdue is waited for by nobody.
fn is_spare(desired: &Desired, seen: &Observed, node: u64) -> bool {
    let sound = |other: &u64| {
        let pod = seen.pods.get(other);
        pod.is_some_and(|pod| pod.ready && !pod.leaving)
    };
    let Some(queue) = &seen.queue else {
        let mut others = seen.pods.keys().filter(|other| **other != node);
        let new = |pod: &Pod| pod.hash == desired.hash;
        let at_rest = |pod: &Pod| pod.overdue || !pod.leaving && (pod.runs || !new(pod));
        return others.all(sound) || !seen.pods[&node].runs && seen.pods.values().all(at_rest);
    };
    let heard = |member: &Member| !member.joining && member.silent_ms < UNHEARD_MS;
    let mut others = queue.members.keys().filter(|other| **other != node);
    !queue.members.get(&node).is_some_and(heard) || others.all(sound)
}

/// Nothing is known of a queue that does not answer, and a pod that seems to be of no use may be one that it lacks.
fn unanswered(desired: &Desired, seen: &Observed) -> Step {
    let mut pods = seen.pods.iter();
    if let Some((node, pod)) = pods.find(|(_, pod)| pod.overdue) {
        let ends = ends(*node, pod);
        return Step::Wait(format!("the queue does not answer, and {ends}"));
    }
    let broken: Vec<String> = broken(desired, seen).map(|node| node.to_string()).collect();
    Step::Wait(match broken.is_empty() {
        true => "the queue does not answer yet".into(),
        false => format!(
            "the queue does not answer; pods of these nodes are out of date and stay, for it may need them: {}; delete one to have it made anew",
            broken.join(", ")
        ),
    })
}

/// It was in the queue, or was to be, and the queue does without it for good.
fn is_forgotten(queue: &Queue, node: u64) -> bool {
    node <= queue.highest_node && !queue.members.contains_key(&node)
}

/// What is left of nodes that the queue has forgotten. A pod that was told to go is not waited for, and its volume has time until
/// it has ended: it may write there until then.
fn gone(seen: &Observed, queue: &Queue) -> Option<Step> {
    let mut pods = seen.pods.iter();
    let left = pods.find(|(node, pod)| is_forgotten(queue, **node) && !pod.leaving);
    if let Some((node, _)) = left {
        return Some(Step::DeletePod { node: *node });
    }
    let is_left = |(node, claim): &(&u64, &Claim)| {
        !claim.retired && is_forgotten(queue, **node) && !seen.pods.contains_key(node)
    };
    let (node, _) = seen.claims.iter().find(is_left)?;
    Some(Step::Retire { node: *node })
}

/// A pod that nobody needs, or nobody can have, has not ended yet.
fn ending(seen: &Observed, queue: &Queue) -> Option<Step> {
    let mut pods = seen.pods.iter();
    let left = pods.find(|(node, pod)| pod.overdue || is_forgotten(queue, **node));
    left.map(|(node, pod)| Step::Wait(ends(*node, pod)))
}

/// What is waited for when a pod is on its way out, and what to do when that is in vain.
fn ends(node: u64, pod: &Pod) -> String {
    match pod.overdue {
        true => format!(
            "the pod of node {node} does not end: if its Kubernetes node is dead, delete that Node object"
        ),
        false => format!("the pod of node {node} ends"),
    }
}

/// Who comes and who goes.
fn membership(desired: &Desired, seen: &Observed, queue: &Queue) -> Option<Step> {
    if let Some((node, _)) = queue.members.iter().find(|(_, member)| member.leaving) {
        return Some(Step::Wait(format!(
            "node {node} hands its groups to the others"
        )));
    }
    if queue.leaderless > 0 {
        return Some(Step::Wait(format!(
            "{} groups have no leader",
            queue.leaderless
        )));
    }
    let lost: Vec<u64> = lost(desired, seen, queue);
    let healthy = queue.members.len() - lost.len();
    if let Some(node) = comer(seen, queue) {
        return Some(match seen.pods.get(&node) {
            Some(pod) if !pod.leaving => Step::AddNode { node },
            _ => Step::Wait(format!("the pod of node {node} starts")),
        });
    }
    let mut members = queue.members.iter();
    if let Some((node, _)) = members.rfind(|(node, member)| member.joining && !lost.contains(node))
    {
        // It has no copy of anything: it goes without harm when it is not wanted any more.
        return Some(match healthy > desired.replicas {
            true => Step::RemoveNode { node: *node },
            false => Step::Wait(format!("node {node} joins")),
        });
    }
    if healthy < desired.replicas {
        let node = next_id(seen, queue);
        return Some(Step::CreateClaim {
            node,
            initial: None,
        });
    }
    // A lost one goes before more copies are made, and keeps none from going: the queue could not do without it else.
    let fewer = desired.replication_factor < queue.replication_factor;
    let other = desired.replication_factor != queue.replication_factor;
    if other && (queue.settled || fewer && !lost.is_empty()) {
        let factor = desired.replication_factor;
        return Some(Step::SetReplicationFactor { factor });
    }
    if other && lost.is_empty() {
        let why = "copies are brought in step before their number changes";
        return Some(Step::Wait(why.into()));
    }
    if queue.members.len() > desired.replicas {
        // A lost one first, else the youngest where most are.
        let victim = lost.last().copied();
        let crowded = || {
            let members = queue.members.iter();
            members.max_by_key(|(node, member)| (member.crowd, **node))
        };
        let node = victim.or_else(|| crowded().map(|(node, _)| *node))?;
        return Some(match queue.settled || victim.is_some() {
            true => Step::RemoveNode { node },
            false => Step::Wait("copies are brought in step before a node goes".into()),
        });
    }
    None
}

/// Nodes that will not come back: their volume claim is gone, or they were silent for long and have no pod that is ready.
pub fn lost(desired: &Desired, seen: &Observed, queue: &Queue) -> Vec<u64> {
    let is_lost = |node: u64, member: &Member| {
        let ready = seen.pods.get(&node).is_some_and(|pod| pod.ready);
        let silent = desired
            .replace_after_ms
            .is_some_and(|limit| member.silent_ms > limit && !ready);
        !seen.claims.contains_key(&node) || silent
    };
    let members = queue.members.iter();
    members
        .filter(|(node, member)| is_lost(**node, member))
        .map(|(node, _)| *node)
        .collect()
}

/// An id that no disk ever had.
fn next_id(seen: &Observed, queue: &Queue) -> u64 {
    let claimed = seen.claims.keys().next_back().copied().unwrap_or_default();
    let running = seen.pods.keys().next_back().copied().unwrap_or_default();
    claimed.max(running).max(queue.highest_node) + 1
}

/// Pods that are not as declared, one at a time. Those of nodes that the queue has forgotten, or never heard of before their pod was
/// overdue, are nobody's concern.
fn roll(desired: &Desired, seen: &Observed, queue: &Queue) -> Option<Step> {
    let mut pods = seen.pods.iter();
    let concern = |(node, pod): &(&u64, &Pod)| {
        let comes = !pod.overdue && !is_forgotten(queue, **node);
        comes || queue.members.contains_key(node)
    };
    let old = |(_, pod): &(&u64, &Pod)| pod.hash != desired.hash;
    let (node, pod) = pods.clone().filter(concern).find(old)?;
    if pod.leaving {
        return Some(Step::Wait(ends(*node, pod)));
    }
    let away = |(_, pod): &(&u64, &Pod)| !pod.ready || pod.leaving;
    if let Some((other, _)) = pods.find(|pod| concern(pod) && away(pod)) {
        return Some(Step::Wait(format!("node {other} is not ready")));
    }
    if !queue.settled {
        return Some(Step::Wait(
            "copies are brought in step before the next pod".into(),
        ));
    }
    let member = queue.members.get(node).copied().unwrap_or_default();
    let alone = queue.members.len() < 2;
    Some(match member.leads > 0 && !alone {
        true if member.rests => Step::Wait(format!("others take over what node {node} leads")),
        true => Step::MoveLeaders { node: *node },
        false => Step::DeletePod { node: *node },
    })
}

/// It is as declared only when all copies are where they should be.
fn unsettled(queue: &Queue) -> Option<Step> {
    let why = match queue.leaderless {
        0 => "copies move to where they should be".into(),
        groups => format!("{groups} groups have no leader"),
    };
    (!queue.settled).then_some(Step::Wait(why))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
