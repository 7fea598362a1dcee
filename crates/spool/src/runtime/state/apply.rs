//! Applying committed entries in order, and telling whoever waited for them.

use std::time::Instant;

use bytes::Bytes;
use queue::Effect;

use super::{Shard, StateThread};
use crate::decide::{Out, Turn};
use crate::event::{RaftEvent, Ticket};
use crate::log::{EntryKind, Location};
use crate::node::Committed;
use crate::state::GroupState;

impl StateThread {
    /// Applies entries in order, and tells whoever waited for them.
    pub(super) fn committed(
        &mut self,
        group: u32,
        tickets: Vec<(u64, Ticket)>,
        entries: Vec<Committed>,
    ) {
        let Some(last) = entries.last().map(|e| e.index) else {
            if let Some(shard) = self.shards.get_mut(&group) {
                shard.tickets.extend(tickets);
            } else if let Some(control) = &mut self.control {
                control.tickets(tickets);
            }
            return;
        };
        if group == crate::CONTROL_GROUP {
            let Some(mut control) = self.control.take() else {
                return;
            };
            control.tickets(tickets);
            for entry in entries {
                let context = self.context(group, &entry);
                if self.health.stopped().is_some() {
                    return;
                }
                control.apply(&entry, context, &self.directory, &self.health);
                if self.health.stopped().is_some() {
                    let _ = self.to.raft.send(RaftEvent::Stop);
                }
                if let Some(members) = self.control_conf.remove(&entry.index) {
                    control.members_changed(crate::wire::members::to_bytes(&members));
                }
            }
            self.control = Some(control);
        } else {
            let Some(mut shard) = self.shards.remove(&group) else {
                return;
            };
            shard.tickets.extend(tickets);
            // Once for all of them: reading the clock for each was a tenth of this thread's time.
            let now = Instant::now();
            let mut out = Out::default();
            for entry in entries {
                self.apply(group, &mut shard, &entry, now, &mut out);
            }
            shard.tickets = shard.tickets.split_off(&(last + 1));
            self.shards.insert(group, shard);
            self.send(group, out);
        }
        let _ = self.to.raft.send(RaftEvent::Applied { group, index: last });
    }

    fn apply(
        &mut self,
        group: u32,
        shard: &mut Shard,
        entry: &Committed,
        now: Instant,
        out: &mut Out,
    ) {
        // An entry that could not be read or understood stopped this node: what follows it must not be applied, and
        // nothing is flushed any more.
        if entry.index <= shard.rows.applied().0 || self.health.stopped().is_some() {
            return;
        }
        let mut effects = Vec::new();
        if entry.kind == EntryKind::Normal {
            let context = self.context(group, entry);
            if self.health.stopped().is_some() {
                return;
            }
            if !context.is_empty() {
                match crate::wire::log::decode(&context, self.known) {
                    Ok(facts) => effects = queue::apply(&mut shard.rows, entry.index, &facts),
                    Err(error) => {
                        let text = format!(
                            "entry {} of group {group} cannot be understood: {error}. This replica stops; start it with \
                             the program version that the rest of the cluster runs",
                            entry.index
                        );
                        self.health.stop_for_good(&text);
                        let _ = self.to.raft.send(RaftEvent::Stop);
                        return;
                    }
                }
            }
        }
        account(&mut shard.rows, entry.index, entry.location, &effects);
        shard.rows.set_applied(entry.index, entry.term);
        if let Some(members) = shard.conf.remove(&entry.index) {
            shard
                .rows
                .set_conf_state(crate::wire::members::to_bytes(&members));
        }
        let digested = self.digest(group, shard, entry.index, &effects);
        let ticket = shard.tickets.remove(&entry.index);
        let Some(leader) = &mut shard.leader else {
            return;
        };
        let mut turn = Turn {
            rows: &mut shard.rows,
            streams: &mut self.streams,
            bodies: &mut self.bodies,
            now,
            out,
        };
        if entry.term == leader.term && !leader.is_ready() {
            leader.begin(&mut turn);
        }
        leader.applied(ticket, &effects, &mut turn);
        if let Some(next) = digested {
            leader.digested(&next, now);
        }
    }

    /// Digests rows when the entry wants it, tells the other replicas, and compares; where the next digest begins.
    fn digest(
        &mut self,
        group: u32,
        shard: &mut Shard,
        index: u64,
        effects: &[Effect],
    ) -> Option<Vec<u8>> {
        let (from, rows) = effects.iter().find_map(|effect| match effect {
            Effect::DigestWanted { from, rows } => Some((from, *rows)),
            _ => None,
        })?;
        let start = Instant::now();
        let found = crate::state::digest(&mut shard.rows, from, rows);
        metrics::histogram!("postroad_digest_seconds").record(start.elapsed());
        // A row that could not be read stops this replica in any case.
        if shard.rows.error().is_none() {
            let own = self.directory.own();
            let judgement = self.directory.digested(group, index, own, found.digest.0);
            if self.health.judge(group, &judgement) {
                let _ = self.to.raft.send(RaftEvent::Stop);
            }
        }
        Some(found.next)
    }

    /// The command of an entry: as handed over, or read from the log when the cache has let it go (after a restart).
    pub(super) fn context(&self, group: u32, entry: &Committed) -> Bytes {
        if let Some(context) = &entry.context {
            return context.clone();
        }
        let read = match entry.location {
            Some(location) => self
                .reader
                .read_entry(location, group, entry.index)
                .map_err(|e| e.to_string()),
            None => Err("its place in the log is not known".to_owned()),
        };
        match read {
            Ok(entry) => entry.context,
            Err(error) => {
                let text = format!(
                    "entry {} of group {group} cannot be read back: {error}",
                    entry.index
                );
                self.health.stop_for_good(&text);
                let _ = self.to.raft.send(RaftEvent::Stop);
                Bytes::new()
            }
        }
    }
}

/// Which bodies live in which segment: local to this replica, so it is not the state machine's business.
pub fn account(rows: &mut GroupState, index: u64, location: Option<Location>, effects: &[Effect]) {
    for effect in effects {
        match effect {
            Effect::BodyKept(extent) if extent.index == index => {
                if let Some(location) = location {
                    rows.body_kept(*extent, location);
                }
            }
            Effect::BodyKept(extent) => {
                if let Some(location) = rows.locate(extent.index) {
                    rows.body_kept(*extent, location);
                }
            }
            Effect::BodyDropped(extent) => rows.body_dropped(*extent),
            _ => {}
        }
    }
}
