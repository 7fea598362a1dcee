//! What a Ready asks for, in the order that keeps promises.
//!
//! 1. Followers' append responses, and votes, leave only when the write of their Ready is durable; a Ready without a
//!    write waits behind the last one that has one.
//! 2. A leader's messages may leave before its own fsync, but not while its own term or vote is not durable.
//! 3. Heartbeat responses say nothing about the log and leave at once, under the same condition.
//! 4. Entries are readable before `advance_append_async`.
//! 5. Whoever waits for a proposal is answered when it is committed, before it is handed out to be applied.

use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{
    ConfChange, ConfChangeV2, Entry, EntryType, HardState as RaftHardState, Message, MessageType,
    Snapshot,
};

use super::group::{Standing, Unpersisted, new_vote};
use super::planted::Mutation;
use super::{AbortReason, Action, Committed, Group, Membership, Role};
use crate::log::{EntryKind, Location, WriteTask};
use crate::storage::{hard_state_to_log, to_log};

impl Group {
    pub(super) fn process_readies(&mut self) {
        // A commit index can move without a Ready (a write that became durable): answers do not wait for one.
        while !self.stopped && self.raw.has_ready() {
            self.process_ready();
        }
        if !self.stopped {
            self.follow_standing();
            self.collect_fetches();
            self.collect_snapshots();
        }
    }

    /// Between `ready()` and `advance_append_async` nothing else may touch Raft.
    fn process_ready(&mut self) {
        let mut ready = self.raw.ready();
        let number = ready.number();
        let must_sync = ready.must_sync();
        let hard_state = ready.hs().cloned();
        let now = ready.take_messages();
        let later = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        let snapshot = Some(ready.snapshot().clone()).filter(|s| !s.is_empty());

        let log = self.raw.mut_store();
        if let Some(new) = &hard_state {
            if new_vote(log.hard_state(), new) {
                self.unsynced_vote = number;
            }
            log.set_hard_state(new.clone());
        }
        if let Some(snapshot) = &snapshot {
            self.members = log.reset_to(snapshot);
            self.handed_out = snapshot.get_metadata().index;
        }
        log.truncate_and_append(number, &entries);
        self.raw.advance_append_async(ready);
        if snapshot.is_some() {
            self.meet_members();
        }

        self.send_early(now);
        let later = self.split_heartbeat_responses(later);
        if must_sync {
            self.submit(number, entries, hard_state, later, snapshot);
        } else {
            self.let_pass(number, hard_state, later);
        }
        self.follow_standing();
        self.hand_out(committed);
    }

    /// A leader's messages.
    fn send_early(&mut self, messages: Vec<Message>) {
        if self.unsynced_vote > 0 && !self.planted(Mutation::NoGate) {
            self.held.extend(messages);
        } else {
            self.send(messages);
        }
    }

    fn split_heartbeat_responses(&mut self, messages: Vec<Message>) -> Vec<Message> {
        if self.unsynced_vote > 0 {
            return messages;
        }
        let (responses, rest) = messages
            .into_iter()
            .partition(|message| message.get_msg_type() == MessageType::MsgHeartbeatResponse);
        self.send(responses);
        rest
    }

    /// A Ready with a write.
    fn submit(
        &mut self,
        number: u64,
        entries: Vec<Entry>,
        hard_state: Option<RaftHardState>,
        messages: Vec<Message>,
        snapshot: Option<Snapshot>,
    ) {
        let late_commit = self.late_commit.take();
        let early = self.planted(Mutation::FollowerEarly)
            || (self.planted(Mutation::TermVoteNotWaited) && entries.is_empty());
        let messages = if early {
            self.send(messages);
            Vec::new()
        } else {
            messages
        };
        self.unpersisted.push_back(Unpersisted {
            number,
            last: number,
            messages,
            since: self.ticks,
        });
        let task = WriteTask {
            group: self.config.log_group,
            number,
            reset: snapshot.as_ref().map(|snapshot| {
                let of = snapshot.get_metadata();
                (of.index, of.term)
            }),
            urgent: entries.iter().all(|entry| self.is_urgent(entry)),
            entries: entries.iter().map(to_log).collect(),
            hard_state: hard_state.as_ref().map(hard_state_to_log).or(late_commit),
        };
        self.write_or_install(task, snapshot);
    }

    /// A leader was told; a follower looks at the entry. Replacing a replica is how a full disk is helped.
    fn is_urgent(&self, entry: &Entry) -> bool {
        match self.waiters.get(&entry.index) {
            Some(waiter) => waiter.urgent,
            None => {
                entry.data.is_empty()
                    || entry.get_entry_type() != EntryType::EntryNormal
                    || !(self.config.brings_mail)(&entry.context)
            }
        }
    }

    /// A Ready without a write. A hard state in it has only a new commit index: that rides with any later write, and
    /// nobody waits for it.
    fn let_pass(&mut self, number: u64, hard_state: Option<RaftHardState>, messages: Vec<Message>) {
        if let Some(hard_state) = hard_state {
            self.late_commit = Some(hard_state_to_log(&hard_state));
        }
        let overtake = self.planted(Mutation::EmptyEarly);
        match self.unpersisted.back_mut() {
            None => {
                self.send(messages);
                self.raw.on_persist_ready(number);
            }
            Some(before) => {
                before.last = number;
                if overtake {
                    self.send(messages);
                } else {
                    before.messages.extend(messages);
                }
            }
        }
    }

    pub(super) fn persisted(&mut self, number: u64, locations: &[(u64, Location)]) {
        self.raw.mut_store().located(number, locations);
        let mut reached = 0;
        let mut messages = Vec::new();
        while let Some(first) = self
            .unpersisted
            .pop_front_if(|first| first.number <= number)
        {
            reached = first.last;
            messages.extend(first.messages);
        }
        if reached > 0 {
            self.raw.on_persist_ready(reached);
        }
        if self.unsynced_vote > 0 && self.unsynced_vote <= number {
            self.unsynced_vote = 0;
            messages.append(&mut self.held);
        }
        self.send(messages);
        self.end_install(number);
    }

    fn send(&mut self, mut messages: Vec<Message>) {
        self.hold_snapshots(&mut messages);
        if messages.is_empty() {
            return;
        }
        for message in &mut messages {
            self.tell_floor(message);
        }
        match self.actions.last_mut() {
            Some(Action::Send(before)) => before.extend(messages),
            _ => self.actions.push(Action::Send(messages)),
        }
    }

    /// Answers whoever can be answered, and tells of a change of role, term or leader.
    fn follow_standing(&mut self) {
        self.answer_waiters();
        let raft = &self.raw.raft;
        let now = Standing {
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            },
            term: raft.term,
            leader: Some(raft.leader_id).filter(|&leader| leader != 0),
        };
        if now == self.standing {
            return;
        }
        let led = self.standing.role == Role::Leader;
        let leads = now.role == Role::Leader;
        if led && (!leads || now.term != self.standing.term) {
            self.step_down();
        }
        if leads && (!led || now.term != self.standing.term) {
            self.step_up();
        }
        self.standing = now;
        let Standing { role, term, leader } = now;
        self.actions.push(Action::Role {
            role,
            term,
            leader,
            noop: self.noop,
        });
    }

    fn step_down(&mut self) {
        self.noop = None;
        self.drop_snapshots(|_| true);
        self.raw.mut_store().pin_from(u64::MAX);
        if !self.planted(Mutation::NoTermCheck) && !self.planted(Mutation::Fifo) {
            self.fail_waiters();
        }
    }

    fn step_up(&mut self) {
        // Proposals may already stand behind it, if they came in the same turn.
        let term = self.raw.raft.term;
        let last = self.raw.raft.raft_log.last_index();
        let own = |index: &u64| {
            self.raw
                .raft
                .raft_log
                .term(*index)
                .is_ok_and(|of| of == term)
        };
        self.noop = (self.handed_out + 1..=last).rev().take_while(own).last();
        self.raw.mut_store().pin_from(self.handed_out + 1);
        self.begin_to_lead();
    }

    fn hand_out(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last() else { return };
        self.handed_out = last.index;
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.get_entry_type() != EntryType::EntryNormal && !self.change_members(&entry) {
                let (group, index) = (self.config.group, entry.index);
                return self.abort(AbortReason::BadConfChange { group, index });
            }
            committed.push(self.committed(entry));
        }
        if self.leads() {
            self.raw.mut_store().pin_from(self.handed_out + 1);
        }
        self.actions.push(Action::Apply(committed));
    }

    fn committed(&mut self, entry: Entry) -> Committed {
        let log = self.raw.store();
        let slot = log.slot(entry.index);
        let bytes = slot.map_or(0, |slot| slot.bytes());
        let payload = log.cached(entry.index);
        let (context, data) =
            payload.map_or((None, None), |(context, data)| (Some(context), Some(data)));
        let committed = Committed {
            index: entry.index,
            term: entry.term,
            kind: slot.map_or(EntryKind::Normal, |slot| slot.kind),
            context,
            data,
            data_len: slot.map_or(0, |slot| slot.data_len),
            location: log.location(entry.index),
        };
        self.unapplied.push_back((entry.index, bytes));
        self.unapplied_bytes += bytes;
        committed
    }

    /// A committed change of membership holds for Raft as soon as it is handed out; the driver persists it with the
    /// applied index that contains it, so that a restart repeats it or has it.
    fn change_members(&mut self, entry: &Entry) -> bool {
        let outcome = match entry.get_entry_type() {
            EntryType::EntryConfChange => ConfChange::parse_from_bytes(&entry.data)
                .map(|change| self.raw.apply_conf_change(&change)),
            _ => ConfChangeV2::parse_from_bytes(&entry.data)
                .map(|change| self.raw.apply_conf_change(&change)),
        };
        let Ok(Ok(state)) = outcome else { return false };
        self.members = Membership::from(&state);
        self.raw.mut_store().set_conf_state(state);
        self.meet_members();
        let members = self.members.clone();
        self.actions.push(Action::ConfChanged {
            index: entry.index,
            members,
        });
        true
    }
}
