//! Bodies that the collector copied: their rows are moved here, where entries are applied, and nowhere else. So a settle
//! between copy and move wins: the row is gone, and the copy is garbage.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::StateThread;
use crate::collect::Moves;
use crate::event::{CollectEvent, LogEvent};
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

    /// A flush begins: what was moved is in it.
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
            if let Some(shard) = self.shards.get_mut(&it.group) {
                shard.rows.relocate(it.index, it.from, it.to);
            } else if it.group == crate::CONTROL_GROUP {
                self.control.rows().relocate(it.index, it.from, it.to);
            }
        }
        self.moved.waiting.push(moves.pin);
        self.moved.last = moves.number;
        if hurry {
            self.next_flush = Instant::now();
        }
    }
}
