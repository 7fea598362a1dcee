//! From the members that a group has to those that it shall have, one step at a time, by whoever leads.
//!
//! A new replica begins as a learner. When it has what is committed, a joint configuration promotes it and demotes the one
//! that goes; any leader leaves a joint configuration as soon as it is applied (raft-rs may never do so by itself:
//! etcd#12136). A demoted replica is dropped last, so that it has heard what became of it. A leader that is to go hands
//! over first (redpanda#3055). Nothing here remembers how far it came: each step follows from the members and the plan
//! alone, so a crash or a new leader only repeats the question.

use std::collections::{BTreeMap, BTreeSet};

use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::planted::Mutation;
use super::{Group, Membership};

/// Ticks between two looks: 200 ms, twice a heartbeat.
const STEP_TICKS: u64 = 4;
/// Ticks for which a learner must have been caught up before it is promoted (raft-rs#457): one second.
const CAUGHT_UP_TICKS: u64 = 20;
/// Ticks for which the preferred leader must have been fit before it is given the leadership: five seconds. A node that
/// comes back has other things to do first, and each transfer costs an election's worth of refused proposals.
const FIT_TICKS: u64 = 100;
/// Ticks after a transfer that came to nothing before the next one: ten seconds to the preferred leader, when nothing
/// waits for it, two when this leader is to go.
const TRANSFER_PAUSE: u64 = 200;
/// See [`TRANSFER_PAUSE`].
const LEAVE_PAUSE: u64 = 40;

/// Who a group's members shall be. It comes from the control group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// An older plan than the one known is not listened to.
    pub version: u64,
    /// Peer ids of those that shall vote; nobody else stays.
    pub voters: BTreeSet<u64>,
    /// Peer id of the one that should lead; 0: whoever does.
    pub leader: u64,
}

/// What a group knows of its way.
#[derive(Debug, Default)]
pub(super) struct Steps {
    plan: Option<Plan>,
    /// Learners that have what is committed, and since which tick.
    caught_up: BTreeMap<u64, u64>,
    /// Since when the preferred leader is fit to lead.
    fit_since: Option<u64>,
    /// No transfer before this tick.
    next_transfer: u64,
    /// The term in which this replica last began a joint configuration. Nobody needs it but a planted bug.
    swapped_in: u64,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    LeaveJoint,
    AddLearner(u64),
    Drop(u64),
    Swap {
        promote: Vec<u64>,
        demote: Vec<u64>,
    },
    /// Somebody else has to do the rest.
    Lead(u64),
}

/// What a leader sees of its replicas.
pub(super) struct Sight<'a> {
    pub(super) own: u64,
    /// Learners that may be promoted.
    pub(super) ready: &'a dyn Fn(u64) -> bool,
    /// Heard of lately, or this very replica.
    pub(super) alive: &'a dyn Fn(u64) -> bool,
}

/// The next step; `None`: all is as it should be, or something has to be waited for.
pub(super) fn next_step(
    members: &Membership,
    plan: Option<&Plan>,
    sight: &Sight<'_>,
) -> Option<Step> {
    let Sight { own, ready, alive } = *sight;
    let heir = |wanted: &dyn Fn(u64) -> bool| {
        let voters = members.voters.iter().copied();
        let mut heirs = voters.filter(|peer| *peer != own && wanted(*peer) && alive(*peer));
        let preferred = plan.map_or(0, |plan| plan.leader);
        heirs
            .clone()
            .find(|peer| *peer == preferred)
            .or_else(|| heirs.next())
    };
    if !members.voters.contains(&own)
        && let Some(heir) = heir(&|_| true)
    {
        return Some(Step::Lead(heir));
    }
    if !members.voters_outgoing.is_empty() {
        return Some(Step::LeaveJoint);
    }
    let plan = plan?;
    let wanted = |peer: &u64| plan.voters.contains(peer);
    let mut learners = members.learners.iter().copied();
    if let Some(learner) = learners.find(|learner| !wanted(learner) && *learner != own) {
        return Some(Step::Drop(learner));
    }
    let missing = plan.voters.iter().copied();
    let missing: Vec<u64> = missing
        .filter(|peer| !members.voters.contains(peer))
        .collect();
    if let Some(new) = missing
        .iter()
        .find(|peer| !members.learners.contains(*peer))
    {
        return Some(Step::AddLearner(*new));
    }
    let surplus = members.voters.iter().copied();
    let surplus: Vec<u64> = surplus.filter(|peer| !wanted(peer)).collect();
    let whole = missing.is_empty() && surplus.is_empty();
    if whole || !missing.iter().all(|peer| ready(*peer)) {
        return None;
    }
    // The new configuration must be able to commit from its first moment.
    let living = plan.voters.iter().filter(|peer| alive(**peer)).count();
    if living <= plan.voters.len() / 2 {
        return None;
    }
    if !surplus.contains(&own) {
        let (promote, demote) = (missing, surplus);
        return Some(Step::Swap { promote, demote });
    }
    if let Some(heir) = heir(&|peer| plan.voters.contains(&peer)) {
        return Some(Step::Lead(heir));
    }
    // Nobody stays (one copy that moves), or nobody of those that stay answers: the new ones must vote before one of them can
    // lead.
    let demote = Vec::new();
    (!missing.is_empty()).then_some(Step::Swap {
        promote: missing,
        demote,
    })
}

impl Group {
    pub(super) fn plan(&mut self, plan: Plan) {
        let known = self.steps.plan.as_ref();
        if known.is_none_or(|known| known.version <= plan.version) && known != Some(&plan) {
            self.steps.plan = Some(plan);
            self.steps.fit_since = None;
            self.steps.next_transfer = 0;
        }
    }

    /// A new leader has seen nothing yet.
    pub(super) fn begin_steps(&mut self) {
        self.steps.caught_up.clear();
        self.steps.fit_since = None;
        self.steps.next_transfer = 0;
    }

    /// Takes the next step when it is time for one. Called at each tick.
    pub(super) fn take_step(&mut self) {
        let raft = &self.raw.raft;
        if !self.leads() || raft.lead_transferee.is_some() || !self.ticks.is_multiple_of(STEP_TICKS)
        {
            return;
        }
        self.look_at_learners();
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        // What an earlier leader began must be known to be over: the entries before this term count only with one of it.
        let settled = log.term(log.committed).is_ok_and(|term| term == raft.term);
        if raft.has_pending_conf() || !settled {
            return;
        }
        let step = next_step(
            &self.members,
            self.steps.plan.as_ref(),
            &Sight {
                own: self.config.peer_id,
                ready: &|peer| self.is_ready(peer),
                alive: &|peer| self.is_alive(peer),
            },
        );
        match step {
            Some(Step::Lead(to)) => {
                if self.ticks >= self.steps.next_transfer {
                    self.steps.next_transfer = self.ticks + LEAVE_PAUSE;
                    self.transfer_leader(Some(to));
                }
            }
            Some(step) => self.propose_step(&step),
            None => self.prefer_leader(),
        }
    }

    fn propose_step(&mut self, step: &Step) {
        let single = |kind: ConfChangeType, peer: u64| {
            let mut change = ConfChangeSingle::default();
            change.set_change_type(kind);
            change.node_id = peer;
            change
        };
        let mut change = ConfChangeV2::default();
        let term = self.raw.raft.term;
        match step {
            Step::LeaveJoint
                if self.planted(Mutation::StayJoint) && self.steps.swapped_in != term =>
            {
                return;
            }
            // An empty change leaves.
            Step::LeaveJoint | Step::Lead(_) => {}
            Step::AddLearner(peer) => {
                change
                    .mut_changes()
                    .push(single(ConfChangeType::AddLearnerNode, *peer));
            }
            Step::Drop(peer) => {
                change
                    .mut_changes()
                    .push(single(ConfChangeType::RemoveNode, *peer));
            }
            Step::Swap { promote, demote } => {
                self.steps.swapped_in = term;
                let first = self.planted(Mutation::RemoveFirst) && !demote.is_empty();
                let promote = if first { &[][..] } else { promote };
                change.set_transition(ConfChangeTransition::Explicit);
                let promote = promote
                    .iter()
                    .map(|peer| single(ConfChangeType::AddNode, *peer));
                let demote = demote
                    .iter()
                    .map(|peer| single(ConfChangeType::AddLearnerNode, *peer));
                change.set_changes(promote.chain(demote).collect::<Vec<_>>().into());
            }
        }
        tracing::info!(group = self.config.group, ?step, members = ?self.members, "changes its members");
        // Dropped when too much is uncommitted: the next look tries again.
        if let Err(error) = self.raw.propose_conf_change(Vec::new(), change) {
            tracing::debug!(group = self.config.group, %error, "a change of membership is not taken now");
        }
    }

    fn look_at_learners(&mut self) {
        let raft = &self.raw.raft;
        let committed = raft.raft_log.committed;
        let lack = self.config.limits.caught_up_entries;
        let caught_up: BTreeMap<u64, u64> = self
            .members
            .learners
            .iter()
            .filter(|learner| {
                raft.prs().get(**learner).is_some_and(|progress| {
                    progress.state == ProgressState::Replicate
                        && progress.matched + lack >= committed
                        && progress.matched > 0
                })
            })
            .map(|learner| {
                let since = self.steps.caught_up.get(learner);
                (*learner, since.copied().unwrap_or(self.ticks))
            })
            .collect();
        self.steps.caught_up = caught_up;
    }

    fn is_ready(&self, learner: u64) -> bool {
        let since = self.steps.caught_up.get(&learner);
        since.is_some_and(|since| self.ticks - since >= CAUGHT_UP_TICKS)
            || self.planted(Mutation::PromoteEarly)
    }

    /// Heard of within an election timeout, or this replica.
    fn is_alive(&self, peer: u64) -> bool {
        let heard = self.heard.get(&peer).copied().unwrap_or(0);
        peer == self.config.peer_id
            || self.ticks.saturating_sub(heard) <= self.config.election_ticks.end as u64
    }

    /// Gives the leadership to the one that should have it, once that one is fit for a while.
    fn prefer_leader(&mut self) {
        let own = self.config.peer_id;
        let preferred = self.steps.plan.as_ref().map_or(0, |plan| plan.leader);
        let committed = self.raw.raft.raft_log.committed;
        let lack = self.config.limits.caught_up_entries;
        let keeps_up = |progress: &raft::Progress| {
            progress.state == ProgressState::Replicate && progress.matched + lack >= committed
        };
        let fit = preferred != own
            && self.members.voters.contains(&preferred)
            && self.is_alive(preferred)
            && !self.full.contains(&preferred)
            && self.raw.raft.prs().get(preferred).is_some_and(keeps_up);
        if !fit {
            self.steps.fit_since = None;
            return;
        }
        let since = *self.steps.fit_since.get_or_insert(self.ticks);
        if self.ticks - since >= FIT_TICKS && self.ticks >= self.steps.next_transfer {
            self.steps.next_transfer = self.ticks + TRANSFER_PAUSE;
            self.transfer_leader(Some(preferred));
        }
    }
}

#[cfg(test)]
#[path = "tests/steps.rs"]
mod tests;
