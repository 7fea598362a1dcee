//! Bodies that the collector copied: their rows are moved here, where entries are applied, and nowhere else. So a settle
//! between copy and move wins: the row is gone, and the copy is garbage.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::StateThread;
use crate::collect::{CollectEvent, Moves};
use crate::directory::group_of;
use crate::event::LogEvent;
use crate::log::Location;
use crate::state::SegmentLive;

/// Moves on their way to be durable.
pub struct Moved {
    collect: Sender<CollectEvent>,
    /// Pins of moves since the last freeze.
    waiting: Vec<u64>,
    /// The same, of moves in the flush under way.
    flushing: Vec<u64>,
    /// Number of the last moves since the start, in the flush under way, and durable.
    last: u64,
    frozen: u64,
}

impl Moved {
    /// None yet.
    pub fn new(collect: Sender<CollectEvent>) -> Moved {
        Moved {
            collect,
            waiting: Vec::new(),
            flushing: Vec::new(),
            last: 0,
            frozen: 0,
        }
    }

    /// A flush begins: what was moved is in it. Not while a group is left out of flushes, because a snapshot replaces its
    /// rows: its moves would count as durable, and were the snapshot not installed after all, a later flush would name
    /// copies that nothing pins any more.
    pub(super) fn freeze(&mut self) {
        self.flushing.append(&mut self.waiting);
        self.frozen = self.last;
    }

    /// It is durable. The log thread has heard what lives by it, so the pins may go.
    pub(super) fn durable(&mut self, log: &Sender<LogEvent>, live: BTreeMap<u64, SegmentLive>) {
        if !self.flushing.is_empty() {
            let _ = log.send(LogEvent::Unpin(std::mem::take(&mut self.flushing)));
        }
        let moves = self.frozen;
        let _ = self.collect.send(CollectEvent::Durable { moves, live });
    }
}

impl StateThread {
    pub(super) fn relocate(&mut self, moves: Moves, hurry: bool) {
        for it in moves.moves {
            self.move_row(it.replica, it.index, it.from, it.to);
        }
        self.moved.waiting.push(moves.pin);
        self.moved.last = moves.number;
        if hurry {
            self.next_flush = Instant::now();
        }
    }

    /// A body that was settled or moved meanwhile needs none of it. Nor does one of a replica that is gone, or of a group
    /// whose rows are being replaced: they are not flushed, and the snapshot brings its own copy. The pin goes with the next
    /// flush of everything either way.
    pub(super) fn move_row(&mut self, replica: u32, index: u64, from: Location, to: Location) {
        let group = group_of(replica);
        if self.installing.contains_key(&group) || self.replica(group) != Some(replica) {
            return;
        }
        if let Some(shard) = self.shards.get_mut(&group) {
            shard.rows.relocate(index, from, to);
        } else if let Some(control) = &mut self.control {
            control.rows().relocate(index, from, to);
        }
    }
}
