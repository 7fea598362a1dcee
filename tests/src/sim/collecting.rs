//! The collector of a replica's log: the real one, one step at a time. Its moves reach the rows by the hand that applies,
//! and count when these are written down.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spool::collect::{BodyIndex, CollectConfig, Collector, Move, Moves, Step};
use spool::log::{Location, LogReader, LogWriter, Segments};
use spool::state::{SegmentLive, StoreError};

use crate::sim::disk::Trouble;
use crate::sim::replica::Place;

/// Where bodies lie by the last flush, of the only replica.
struct Index {
    replica: u32,
    places: Mutex<BTreeMap<u64, Location>>,
}

impl Index {
    fn places(&self) -> MutexGuard<'_, BTreeMap<u64, Location>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyIndex for Index {
    fn locate(&self, replica: u32, index: u64) -> Result<Option<Location>, StoreError> {
        let found = self.places().get(&index).copied();
        Ok(found.filter(|_| replica == self.replica))
    }

    fn replica_of(&self, _group: u32) -> Option<u32> {
        Some(self.replica)
    }

    fn rows(
        &self,
        from: (u32, u64),
        limit: usize,
    ) -> Result<Vec<(u32, u64, Location)>, StoreError> {
        if from.0 > self.replica {
            return Ok(Vec::new());
        }
        let first = if from.0 == self.replica { from.1 } else { 0 };
        let places = self.places();
        let rows = places.range(first..).take(limit);
        Ok(rows
            .map(|(index, at)| (self.replica, *index, *at))
            .collect())
    }
}

pub struct Collecting {
    collector: Collector,
    index: Arc<Index>,
    segments: Segments,
    /// Moves on their way to the rows.
    mail: VecDeque<Moves>,
    /// Pins of moves that the rows have, and that are not flushed.
    pins: Vec<u64>,
    /// The last moves that the rows have.
    moved: u64,
}

impl Collecting {
    pub fn new(
        replica: u32,
        writer: &LogWriter,
        reader: LogReader,
        live: &BTreeMap<u64, Place>,
    ) -> Collecting {
        let index = Arc::new(Index {
            replica,
            places: Mutex::default(),
        });
        // Hasty and thorough: nearly every segment with something dead in it is worth it.
        let config = CollectConfig {
            threshold: Some(90),
            min_age_ms: 100,
            rate: u64::MAX,
            step_bytes: 2 << 10,
        };
        let collector = Collector::new(config, writer, reader, index.clone(), by_segment(live));
        let collecting = Collecting {
            collector,
            index,
            segments: writer.segments(),
            mail: VecDeque::new(),
            pins: Vec::new(),
            moved: 0,
        };
        collecting.publish(live);
        collecting
    }

    fn publish(&self, live: &BTreeMap<u64, Place>) {
        let places = live.iter().map(|(index, place)| (*index, place.at));
        *self.index.places() = places.collect();
    }

    /// One step; true when it did something.
    pub fn step(&mut self, now_ms: u64) -> Result<bool, Trouble> {
        let step = self.collector.step(now_ms);
        match step.map_err(|error| Trouble::Failed(error.to_string()))? {
            Step::Idle => return Ok(false),
            Step::Worked { .. } => {}
            Step::Moved(moves) => self.mail.push_back(moves),
            Step::NoRoom(moves) => {
                self.mail.push_back(moves);
                return Ok(false);
            }
            Step::Examined { moves, damages } => {
                self.mail.extend(moves);
                if let Some(damage) = damages.first() {
                    return Err(Trouble::Wrong(format!("the collector finds {damage:?}")));
                }
            }
        }
        Ok(true)
    }

    /// What the hand that applies is to move.
    pub fn moves(&mut self) -> Vec<Move> {
        let mut all = Vec::new();
        for moves in self.mail.drain(..) {
            self.pins.push(moves.pin);
            self.moved = moves.number;
            all.extend(moves.moves);
        }
        all
    }

    /// The rows are written down.
    pub fn flushed(&mut self, live: &BTreeMap<u64, Place>, now_ms: u64) {
        self.publish(live);
        for pin in self.pins.drain(..) {
            self.segments.unpin(pin);
        }
        self.collector.durable(self.moved, by_segment(live), now_ms);
    }

    /// Octets copied since the start.
    pub fn copied(&self) -> u64 {
        self.collector.copied_bytes
    }
}

fn by_segment(live: &BTreeMap<u64, Place>) -> BTreeMap<u64, SegmentLive> {
    let mut segments = BTreeMap::<u64, SegmentLive>::new();
    for place in live.values() {
        let of = segments.entry(place.at.segment).or_default();
        of.count += 1;
        of.bytes += u64::from(place.at.data_len);
    }
    segments
}
