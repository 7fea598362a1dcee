//! The Raft thread: owns the groups of a node, never blocks on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::AppendOutcome;

use super::Snapshots;
use crate::directory::{Directory, group_of, node_of};
use crate::event::{
    AppendReply, Failure, LogEvent, Mailboxes, RaftEvent, SnapshotWork, StateEvent, Ticket,
};
use crate::node::{Ack, Action, Group, GroupStatus, Input, Refusal, Role, SnapshotAction, TICK_MS};
use crate::peer::Peers;

const TICK: Duration = Duration::from_millis(TICK_MS);

/// Events taken from the mailbox before the groups are drained: one burst costs one round of messages and one write.
const BURST: usize = 1024;

/// What the Raft thread holds.
pub struct RaftThread {
    pub groups: BTreeMap<u32, Group>,
    pub mail: Receiver<RaftEvent>,
    pub to: Mailboxes,
    pub log: Sender<LogEvent>,
    pub peers: Peers,
    pub snapshots: Snapshots,
    pub directory: Directory,
    pub health: super::Health,
    /// Index up to which each group's rows are durable here: by the last flush of the state.
    pub durable: BTreeMap<u32, u64>,
    /// Nodes with a full disk.
    pub full: BTreeSet<u64>,
    /// Replies of proposals that are answered at commit.
    pub replies: HashMap<Ticket, AppendReply>,
}

impl RaftThread {
    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let mut more = match self.mail.recv_timeout(wait) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            for _ in 0..BURST {
                let Ok(event) = self.mail.try_recv() else {
                    break;
                };
                more &= self.take(event);
            }
            let now = Instant::now();
            if now >= next_tick {
                // After a pause (SIGSTOP, a loaded machine) one tick, not a storm of them: an election needs time in
                // which the others could be heard.
                next_tick = now + TICK;
                for group in self.groups.values_mut() {
                    group.handle(Input::Tick);
                }
            }
            self.drain();
            if !more {
                return self.stop();
            }
        }
    }

    /// Takes an event; `false` ends the thread.
    fn take(&mut self, event: RaftEvent) -> bool {
        match event {
            RaftEvent::Peer(messages) => {
                for (group, message) in messages {
                    self.input(group, Input::Step(message));
                }
            }
            RaftEvent::Propose {
                group,
                proposals,
                replies,
            } => {
                self.replies.extend(replies);
                self.input(group, Input::Propose(proposals));
            }
            RaftEvent::Persisted(written) => {
                for w in written {
                    let (number, locations) = (w.number, w.locations);
                    // What an earlier replica of the group wrote is nothing to this one.
                    let group = self.groups.get_mut(&group_of(w.group));
                    if let Some(group) = group.filter(|group| group.log_group() == w.group) {
                        group.handle(Input::Persisted { number, locations });
                    }
                }
            }
            RaftEvent::Applied { group, index } => self.input(group, Input::Applied { index }),
            RaftEvent::Fetched { group, id, entries } => {
                self.input(group, Input::Fetched { id, entries })
            }
            RaftEvent::Durable { group, applied } => {
                self.durable.insert(group, applied);
                let over_budget = self.health.over_budget();
                self.input(
                    group,
                    Input::Truncate {
                        upto: applied,
                        over_budget,
                    },
                );
            }
            RaftEvent::Full { node, full } => {
                match full {
                    true => self.full.insert(node),
                    false => self.full.remove(&node),
                };
                for group in self.groups.values_mut() {
                    super::replicas::tell_full(group, node, full);
                }
            }
            RaftEvent::Create(group) => self.create(*group),
            RaftEvent::Destroy { group, peer } => self.destroy(group, peer),
            RaftEvent::Plans(plans) => {
                for (group, plan) in plans {
                    self.input(group, Input::Plan(plan));
                }
            }
            RaftEvent::Report(reply) => {
                let reports = self
                    .groups
                    .values()
                    .map(|g| super::replicas::report(&g.status()));
                let _ = reply.send(reports.collect());
            }
            RaftEvent::Locate {
                group,
                index,
                reply,
            } => {
                let group = self.groups.get(&group);
                let _ = reply.send(group.and_then(|group| group.committed_location(index)));
            }
            RaftEvent::Snapshot { group, input } => match self.groups.contains_key(&group) {
                true => self.input(group, Input::Snapshot(input)),
                false => self.snapshots.ownerless(group, input),
            },
            RaftEvent::Status(reply) => {
                let durable = |s: &GroupStatus| self.durable.get(&s.group).copied().unwrap_or(0);
                let status = |g: &Group| {
                    let s = g.status();
                    status(&s, durable(&s), &self.snapshots)
                };
                let _ = reply.send(self.groups.values().map(status).collect());
            }
            RaftEvent::HandOver => {
                for group in self.groups.values_mut() {
                    group.handle(Input::TransferLeader { to: None });
                }
            }
            RaftEvent::Failed(reason) => {
                self.health.stop_for_good(&reason);
                return false;
            }
            RaftEvent::Stop => return false,
        }
        true
    }

    fn input(&mut self, group: u32, input: Input) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.handle(input);
        }
    }

    pub(super) fn drain(&mut self) {
        let mut writes = Vec::new();
        let mut aborted = None;
        let groups: Vec<u32> = self.groups.keys().copied().collect();
        for id in groups {
            let Some(group) = self.groups.get_mut(&id) else {
                continue;
            };
            let actions = group.drain();
            if actions.is_empty() {
                continue;
            }
            let mut tickets = Vec::new();
            let mut entries = Vec::new();
            for action in actions {
                match action {
                    Action::Write(task) => writes.push(task),
                    Action::Apply(committed) => entries.extend(committed),
                    Action::Committed { ticket, index, ack } => {
                        if ack == Ack::Commit {
                            self.reply(ticket, AppendOutcome::Created, id);
                        }
                        tickets.push((index, ticket));
                    }
                    Action::Abort { reason } => aborted = Some(reason.to_string()),
                    other => self.act(id, other, &mut tickets, &mut entries),
                }
            }
            self.committed(id, &mut tickets, &mut entries);
        }
        if !writes.is_empty() {
            let _ = self.log.send(LogEvent::Write(writes));
        }
        if let Some(reason) = aborted {
            self.health.stop_for_good(&reason);
            let _ = self.to.raft.send(RaftEvent::Stop);
        }
    }

    fn committed(
        &mut self,
        group: u32,
        tickets: &mut Vec<(u64, Ticket)>,
        entries: &mut Vec<crate::node::Committed>,
    ) {
        if tickets.is_empty() && entries.is_empty() {
            return;
        }
        let tickets = std::mem::take(tickets);
        let entries = std::mem::take(entries);
        let _ = self.to.state.send(StateEvent::Committed {
            group,
            tickets,
            entries,
        });
    }

    fn act(
        &mut self,
        id: u32,
        action: Action,
        tickets: &mut Vec<(u64, Ticket)>,
        entries: &mut Vec<crate::node::Committed>,
    ) {
        match action {
            Action::Send(messages) => self.peers.send(id, messages),
            Action::Unknown { ticket } => {
                self.reply(ticket, AppendOutcome::Unknown, id);
                self.failed(id, ticket, Failure::Unknown);
            }
            Action::Refused { ticket, why } => {
                let (outcome, why) = match why {
                    Refusal::NotLeader { .. } => (AppendOutcome::NotLeader, Failure::NotLeader),
                    Refusal::Busy => (AppendOutcome::Busy, Failure::Busy),
                };
                self.reply(ticket, outcome, id);
                self.failed(id, ticket, why);
            }
            Action::Role {
                role, term, leader, ..
            } => {
                // What was committed before belongs to the role before.
                self.committed(id, tickets, entries);
                self.directory
                    .set_leader(id, term, leader.map_or(0, node_of));
                let leader = role == Role::Leader;
                let _ = self.to.state.send(StateEvent::Role {
                    group: id,
                    leader,
                    term,
                });
            }
            Action::Fetch { id: fetch, entries } => {
                let _ = self.log.send(LogEvent::Fetch {
                    group: id,
                    id: fetch,
                    entries,
                });
            }
            Action::ConfChanged { index, members } => {
                self.committed(id, tickets, entries);
                self.directory
                    .set_voters(id, members.voters.iter().map(|p| node_of(*p)).collect());
                self.tell_who_is_full(id);
                let _ = self.to.state.send(StateEvent::ConfChanged {
                    group: id,
                    index,
                    members,
                });
            }
            Action::Truncated { .. } => {
                if let Some(group) = self.groups.get(&id) {
                    let (index, term) = group.truncated();
                    let _ = self.log.send(LogEvent::Truncated {
                        group: group.log_group(),
                        index,
                        term,
                    });
                }
            }
            Action::Snapshot(action) => {
                self.committed(id, tickets, entries);
                self.snapshot(id, action);
            }
            // Taken by the caller.
            Action::Write(_)
            | Action::Apply(_)
            | Action::Committed { .. }
            | Action::Abort { .. } => {}
        }
    }

    fn snapshot(&mut self, group: u32, action: SnapshotAction) {
        let work = match action {
            SnapshotAction::Make { to } => SnapshotWork::Make { to },
            SnapshotAction::Install(made) => {
                let voters = made.members.voters.iter().map(|p| node_of(*p)).collect();
                self.directory.set_voters(group, voters);
                self.tell_who_is_full(group);
                SnapshotWork::Install(made)
            }
            SnapshotAction::Send { to, id, message } => {
                return self.snapshots.send(group, to, id, *message);
            }
            SnapshotAction::Drop { id } => return self.snapshots.drop_made(id),
            SnapshotAction::Discard { id } => return self.snapshots.discard(group, id),
        };
        let _ = self.to.state.send(StateEvent::Snapshot { group, work });
    }

    fn failed(&self, group: u32, ticket: Ticket, why: Failure) {
        let _ = self
            .to
            .state
            .send(StateEvent::Failed { group, ticket, why });
    }

    fn reply(&mut self, ticket: Ticket, outcome: AppendOutcome, group: u32) {
        if let Some(reply) = self.replies.remove(&ticket) {
            let address = match outcome {
                AppendOutcome::NotLeader | AppendOutcome::Unknown => {
                    self.directory.leader_address(group)
                }
                _ => String::new(),
            };
            reply.send_with(outcome, address, String::new());
        }
    }

    fn stop(mut self) {
        for group in self.groups.values_mut() {
            group.handle(Input::Stop);
        }
        self.drain();
        let _ = self.log.send(LogEvent::Stop);
        let _ = self.to.state.send(StateEvent::Stop);
    }
}

fn status(s: &GroupStatus, durable_applied: u64, snapshots: &Snapshots) -> v1::GroupStatus {
    let role = match s.role {
        Role::Leader => "Leader",
        Role::Follower => "Follower",
        Role::Candidate => "Candidate",
    };
    let progress = s.peers.iter().map(|p| v1::ReplicaProgress {
        node: node_of(p.peer),
        matched: p.matched,
        state: match p.snapshot {
            Some(id) => snapshots.progress(id),
            None if p.needs_snapshot => "needs snapshot".to_owned(),
            None => p.state.to_owned(),
        },
        recent_active: p.silent_ticks < 2 * crate::node::ELECTION_TICKS.end as u64,
    });
    v1::GroupStatus {
        group: s.group,
        role: role.to_owned(),
        term: s.term,
        leader_node: s.leader.map_or(0, node_of),
        first_index: s.first,
        last_index: s.last,
        committed: s.committed,
        applied: s.applied,
        durable_applied,
        progress: progress.collect(),
        voters: s.members.voters.iter().map(|p| node_of(*p)).collect(),
        learners: s.members.learners.iter().map(|p| node_of(*p)).collect(),
        outgoing: s
            .members
            .voters_outgoing
            .iter()
            .map(|p| node_of(*p))
            .collect(),
    }
}
