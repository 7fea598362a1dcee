//! The group itself: what it keeps, how it starts, and what each input does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState as RaftHardState, Message, MessageType};
use raft::{Config, GetEntriesContext, RawNode, StateRole};

use super::{AbortReason, Ack, Action, GroupConfig, Input, Membership, Role, StartError};
use crate::log::{HardState, Location};
use crate::storage::{GroupLog, hard_state_from_log};
use crate::trace;

/// A proposal that is not committed yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) term: u64,
    pub(super) ticket: u64,
    pub(super) ack: Ack,
    pub(super) urgent: bool,
}

/// A Ready with a write, and the Readys without one that came after it.
#[derive(Debug)]
pub(super) struct Unpersisted {
    pub(super) number: u64,
    /// The last of the Readys without a write behind this one: persisted when this one is.
    pub(super) last: u64,
    /// What may leave when it is durable.
    pub(super) messages: Vec<Message>,
    /// [`Group::ticks`] when it was submitted.
    pub(super) since: u64,
}

/// What was last told of role, term and leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    pub(super) role: Role,
    pub(super) term: u64,
    pub(super) leader: Option<u64>,
}

/// One replica of one Raft group.
pub struct Group {
    pub(super) config: GroupConfig,
    pub(super) raw: RawNode<GroupLog>,
    pub(super) actions: Vec<Action>,
    /// Proposals by index.
    pub(super) waiters: BTreeMap<u64, Waiter>,
    pub(super) unpersisted: VecDeque<Unpersisted>,
    /// The last Ready with a new term or vote that is not durable; 0: there is none.
    pub(super) unsynced_vote: u64,
    /// What a leader must not send before that one is durable.
    pub(super) held: Vec<Message>,
    /// A commit index that waits for any later write; nobody waits for it.
    pub(super) late_commit: Option<HardState>,
    pub(super) standing: Standing,
    /// This leader's first entry.
    pub(super) noop: Option<u64>,
    pub(super) ticks: u64,
    /// Handed out to be applied, up to here.
    pub(super) handed_out: u64,
    /// (index, octets) of what is handed out and not applied, oldest first.
    pub(super) unapplied: VecDeque<(u64, u64)>,
    pub(super) unapplied_bytes: u64,
    /// Tick at which each peer was last heard of.
    pub(super) heard: BTreeMap<u64, u64>,
    /// Tick at which a leader of this replica's term last spoke to it.
    pub(super) led_at: Option<u64>,
    pub(super) needs_snapshot: BTreeSet<u64>,
    /// Every member that counts has everything up to here, durably.
    pub(super) floor: u64,
    /// Peers with a full disk; this one too.
    pub(super) full: BTreeSet<u64>,
    /// What each peer last acknowledged, and the tick at which that was seen first.
    pub(super) advanced: BTreeMap<u64, (u64, u64)>,
    pub(super) fetches: BTreeMap<u64, Fetching>,
    pub(super) next_fetch: u64,
    pub(super) members: Membership,
    pub(super) steps: super::steps::Steps,
    pub(super) snapshots: super::snapshot::Snapshots,
    pub(super) stopped: bool,
    #[cfg(feature = "planted-bugs")]
    pub(super) mutation: Option<super::Mutation>,
    #[cfg(feature = "planted-bugs")]
    pub(super) answered: u64,
}

/// A read for lagging followers that is under way.
#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) low: u64,
    /// (index, term, location) that were asked for.
    pub(super) entries: Vec<(u64, u64, Location)>,
    /// Whom Raft wanted them for.
    pub(super) contexts: Vec<GetEntriesContext>,
}

impl Group {
    /// A replica that continues from what its disk holds: the log, the hard state of the log, and the applied index
    /// of the state store (which is never ahead of the log).
    pub fn new(
        config: GroupConfig,
        mut log: GroupLog,
        hard_state: HardState,
        applied: u64,
    ) -> Result<Group, StartError> {
        let (group, last) = (config.group, log.last());
        for (what, known) in [
            ("the hard state", hard_state.commit),
            ("the state store", applied),
        ] {
            if known > last {
                return Err(StartError::LogTooShort {
                    group,
                    last,
                    what,
                    known,
                });
            }
        }
        if applied + 1 < log.first() {
            return Err(StartError::StateTooOld {
                group,
                applied,
                first: log.first(),
            });
        }
        // What is applied was committed, though the commit index may have waited for a later write.
        let commit = hard_state.commit.max(applied);
        log.set_hard_state(hard_state_from_log(&HardState {
            commit,
            ..hard_state
        }));
        log.set_conf_state(ConfState::from(&config.members));
        let logger = trace::logger(group, config.peer_id);
        let raw = RawNode::new(&raft_config(&config, applied), log, &logger)
            .map_err(|source| StartError::Raft { group, source })?;
        let members = config.members.clone();
        let standing = Standing {
            role: Role::Follower,
            term: hard_state.term,
            leader: None,
        };
        Ok(Group {
            config,
            raw,
            actions: Vec::new(),
            waiters: BTreeMap::new(),
            unpersisted: VecDeque::new(),
            unsynced_vote: 0,
            held: Vec::new(),
            late_commit: None,
            standing,
            noop: None,
            ticks: 0,
            handed_out: applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            heard: BTreeMap::new(),
            led_at: None,
            needs_snapshot: BTreeSet::new(),
            floor: 0,
            full: BTreeSet::new(),
            advanced: BTreeMap::new(),
            fetches: BTreeMap::new(),
            next_fetch: 0,
            members,
            steps: super::steps::Steps::default(),
            snapshots: super::snapshot::Snapshots::default(),
            stopped: false,
            #[cfg(feature = "planted-bugs")]
            mutation: None,
            #[cfg(feature = "planted-bugs")]
            answered: hard_state.commit,
        })
    }

    /// Takes what happened. Several inputs may come before one [`Group::drain`]: they share writes and messages.
    pub fn handle(&mut self, input: Input) {
        if self.stopped {
            return;
        }
        match input {
            Input::Tick => self.tick(),
            Input::Step(message) => self.step(message),
            Input::Propose(proposals) => self.propose(proposals),
            Input::Persisted { number, locations } => self.persisted(number, &locations),
            Input::Applied { index } => self.applied(index),
            Input::Fetched { id, entries } => self.fetched(id, entries),
            Input::Relocated(moves) => {
                for (index, old, new) in moves {
                    self.raw.mut_store().relocated(index, old, new);
                }
            }
            Input::TransferLeader { to } => self.transfer_leader(to),
            Input::Plan(plan) => self.plan(plan),
            Input::PeerFull { peer, full } => self.peer_full(peer, full),
            Input::Truncate { upto, over_budget } => self.truncate(upto, over_budget),
            Input::Snapshot(input) => self.snapshot(input),
            Input::Stop => self.stop(),
        }
    }

    /// What is to be done now, in this order.
    pub fn drain(&mut self) -> Vec<Action> {
        self.process_readies();
        std::mem::take(&mut self.actions)
    }

    /// Context and data of an entry of the log, while they are in RAM.
    pub fn cached(&self, index: u64) -> Option<(Bytes, Bytes)> {
        self.raw.store().cached(index)
    }

    /// Where an entry of the log lies, once it is durable.
    pub fn location(&self, index: u64) -> Option<Location> {
        self.raw.store().location(index)
    }

    /// Where a committed entry of the log lies: what every replica has alike.
    pub fn committed_location(&self, index: u64) -> Option<Location> {
        let committed = self.raw.raft.raft_log.committed;
        self.location(index).filter(|_| index <= committed)
    }

    /// Index and term of the last entry that is gone from the log.
    pub fn truncated(&self) -> (u64, u64) {
        let log = self.raw.store();
        let index = log.first() - 1;
        (index, log.term_of(index).unwrap_or(0))
    }

    /// Raft peer id of this replica.
    pub fn peer(&self) -> u64 {
        self.config.peer_id
    }

    /// See [`GroupConfig::log_group`].
    pub fn log_group(&self) -> u32 {
        self.config.log_group
    }

    /// Who the members are.
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// What this replica is now.
    pub fn role(&self) -> Role {
        self.standing.role
    }

    /// Peer id of the leader, when known.
    pub fn leader(&self) -> Option<u64> {
        self.standing.leader
    }

    /// Raft term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// It leads, or a leader spoke to it within two election timeouts: a leader speaks to members only, so whatever else
    /// is said, somebody counts on this replica.
    pub fn is_needed(&self) -> bool {
        let lately = 2 * self.config.election_ticks.end as u64;
        self.leads() || self.led_at.is_some_and(|at| self.ticks - at <= lately)
    }

    pub(super) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn step(&mut self, mut message: Message) {
        use MessageType::*;
        let from = message.from;
        if message.to != self.config.peer_id || from == self.config.peer_id {
            return;
        }
        match message.get_msg_type() {
            // Raft would take these from anybody; they are ours to make. Nothing reads by ReadIndex, and a snapshot
            // comes only when it is staged (see SnapshotInput::Staged).
            MsgHup | MsgBeat | MsgPropose | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum
            | MsgTransferLeader | MsgReadIndex | MsgReadIndexResp | MsgSnapshot => return,
            MsgAppend if self.unapplied_bytes > self.config.limits.unapplied_bytes => return,
            // Raft sends it again.
            MsgAppend if !message.entries.is_empty() && self.raw.store().is_exhausted() => return,
            // What waits for room cannot be overtaken: more of it would only fill the memory.
            MsgAppend if self.disk_late() && self.full.contains(&self.config.peer_id) => return,
            // A replica whose disk does not answer must not lead.
            MsgTimeoutNow if self.disk_late() || self.installs() => return,
            MsgHeartbeat => {
                let (known, last) = (message.commit, self.raw.raft.raft_log.last_index());
                if known > last && message.term >= self.raw.raft.term {
                    let group = self.config.group;
                    return self.abort(AbortReason::LostEntries { group, last, known });
                }
                self.hear_floor(&mut message);
            }
            _ => {}
        }
        self.heard.insert(from, self.ticks);
        let leads = matches!(message.get_msg_type(), MsgAppend | MsgHeartbeat);
        if leads && message.term >= self.raw.raft.term {
            self.led_at = Some(self.ticks);
        }
        // Stale and foreign messages are refused here; whoever sent them will notice by himself.
        let _ = self.raw.step(message);
        if self.leads() {
            self.never_send_below_match(from);
        }
    }

    fn applied(&mut self, index: u64) {
        if index <= self.raw.raft.raft_log.applied() || index > self.handed_out {
            return;
        }
        while let Some(&(first, bytes)) = self.unapplied.front() {
            if first > index {
                break;
            }
            self.unapplied_bytes -= bytes;
            self.unapplied.pop_front();
        }
        self.raw.advance_apply_to(index);
    }

    fn fetched(&mut self, id: u64, entries: Vec<(u64, Bytes, Bytes)>) {
        let Some(fetching) = self.fetches.remove(&id) else {
            return;
        };
        let log = self.raw.mut_store();
        for (index, context, data) in entries {
            // Entries that were replaced while they were being read are other entries now.
            let asked = fetching.entries.iter().find(|entry| entry.0 == index);
            if asked.is_some_and(|asked| log.term_of(index) == Some(asked.1)) {
                log.lend(index, context, data);
            }
        }
        if log.lent() {
            for context in fetching.contexts {
                self.raw.on_entries_fetched(context);
            }
            // Asked for again by what Raft just did: those follow.
            self.collect_fetches();
            self.raw.mut_store().end_loan();
        }
    }

    /// Leaves nobody waiting, and does nothing more.
    fn stop(&mut self) {
        self.fail_waiters();
        self.drop_snapshots(|_| true);
        self.stopped = true;
    }

    pub(super) fn abort(&mut self, reason: AbortReason) {
        tracing::error!(
            group = self.config.group,
            peer = self.config.peer_id,
            "{reason}"
        );
        self.stop();
        self.actions.push(Action::Abort { reason });
    }

    pub(super) fn fail_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        self.actions
            .extend(waiters.into_values().map(|waiter| Action::Unknown {
                ticket: waiter.ticket,
            }));
    }
}

fn raft_config(config: &GroupConfig, applied: u64) -> Config {
    let limits = &config.limits;
    Config {
        id: config.peer_id,
        election_tick: config.election_ticks.start,
        min_election_tick: config.election_ticks.start,
        max_election_tick: config.election_ticks.end,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        pre_vote: true,
        check_quorum: true,
        max_size_per_msg: limits.message_bytes,
        max_inflight_msgs: limits.inflight_messages,
        max_uncommitted_size: limits.uncommitted_bytes,
        max_committed_size_per_ready: limits.committed_bytes_per_ready,
        // Batching has no bound of octets; followers serve no reads, so the commit index can ride along.
        batch_append: false,
        skip_bcast_commit: true,
        priority: 0,
        ..Config::default()
    }
}

/// Whether term or vote differ: these must be durable before anything that follows from them leaves.
pub(super) fn new_vote(old: &RaftHardState, new: &RaftHardState) -> bool {
    (old.term, old.vote) != (new.term, new.vote)
}
