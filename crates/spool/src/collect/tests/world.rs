//! A replica without Raft: its log and collector on a simulated disk, and rows that are flushed now and then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::super::{BodyIndex, BodyReader, CollectConfig, Collector, Damage, Moves, Step};
use crate::identity::ClusterId;
use crate::log::{
    Entry, EntryKind, Location, Log, LogConfig, LogReader, LogWriter, Segments, SimDisk,
    WriteError, WriteTask,
};
use crate::state::{SegmentLive, StoreError};

/// Group and index.
pub type Id = (u32, u64);
pub type Rows = BTreeMap<Id, Location>;

/// What a flush made durable, as the collector's thread sees it.
#[derive(Default)]
pub struct Durable(Mutex<Rows>);

impl Durable {
    fn rows(&self) -> Rows {
        self.0.lock().expect("no test panics with it").clone()
    }
}

impl BodyIndex for Durable {
    fn locate(&self, group: u32, index: u64) -> Result<Option<Location>, StoreError> {
        let rows = self.0.lock().expect("no test panics with it");
        Ok(rows.get(&(group, index)).copied())
    }

    fn replica_of(&self, group: u32) -> Option<u32> {
        Some(group)
    }

    fn rows(
        &self,
        from: (u32, u64),
        limit: usize,
    ) -> Result<Vec<(u32, u64, Location)>, StoreError> {
        let rows = self.0.lock().expect("no test panics with it");
        let from = rows.range(from..).take(limit);
        Ok(from.map(|((g, i), at)| (*g, *i, *at)).collect())
    }
}

/// A store that no crash takes, but what was not flushed.
pub struct World {
    pub disk: SimDisk,
    pub log_config: LogConfig,
    pub config: CollectConfig,
    pub writer: LogWriter,
    pub reader: LogReader,
    pub segments: Segments,
    pub collector: Collector,
    pub durable: Arc<Durable>,
    durable_upto: BTreeMap<u32, u64>,
    /// Rows with what was applied since the last flush.
    pub rows: Rows,
    /// Settles are in the log, so a crash does not undo them.
    settled: BTreeSet<Id>,
    next: BTreeMap<u32, u64>,
    number: u64,
    /// On their way to the state thread.
    mail: VecDeque<Moves>,
    waiting: Vec<u64>,
    last_moves: u64,
    pub damages: Vec<Damage>,
    pub now_ms: u64,
    pub appended: u64,
    pub moved: u64,
}

/// Segments of about 64 KiB.
pub fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        max_entry_bytes: 16 << 10,
        batch_bytes: 24 << 10,
        background: false,
        ..LogConfig::new(ClusterId([7; 16]), 42)
    }
}

/// Copies a few bodies at once, so that a collection has many steps.
pub fn eager() -> CollectConfig {
    CollectConfig {
        min_age_ms: 0,
        step_bytes: 8 << 10,
        ..CollectConfig::default()
    }
}

/// The data of an entry follow from its name.
pub fn data(id: Id, len: usize) -> Bytes {
    let byte = |at: usize| (id.1 * 31 + u64::from(id.0) * 7 + at as u64) as u8;
    (0..len).map(byte).collect::<Vec<_>>().into()
}

impl World {
    pub fn new(disk: SimDisk, log_config: LogConfig, config: CollectConfig) -> World {
        let durable = Arc::new(Durable::default());
        let (writer, reader, _) =
            Log::open_on(Arc::new(disk.clone()), "/log".as_ref(), log_config.clone())
                .unwrap_or_else(|error| panic!("the log does not open: {error}"));
        let collector = Collector::new(
            config.clone(),
            &writer,
            reader.clone(),
            durable.clone(),
            BTreeMap::new(),
        );
        World {
            segments: writer.segments(),
            disk,
            log_config,
            config,
            writer,
            reader,
            collector,
            durable,
            durable_upto: BTreeMap::new(),
            rows: Rows::new(),
            settled: BTreeSet::new(),
            next: BTreeMap::new(),
            number: 0,
            mail: VecDeque::new(),
            waiting: Vec::new(),
            last_moves: 0,
            damages: Vec::new(),
            now_ms: 0,
            appended: 0,
            moved: 0,
        }
    }

    /// Appends an entry and applies it. `None`: the disk is full.
    pub fn append(&mut self, group: u32, len: usize) -> Result<Option<Id>, WriteError> {
        let index = self.next.get(&group).copied().unwrap_or(1);
        self.number += 1;
        let entry = Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            context: Bytes::from_static(b"sixteen  octets."),
            data: data((group, index), len),
        };
        let task = WriteTask {
            group,
            number: self.number,
            entries: vec![entry],
            hard_state: None,
            reset: None,
            urgent: false,
        };
        match self.writer.write(&[task]) {
            Ok(written) => {
                self.next.insert(group, index + 1);
                self.rows.insert((group, index), written[0].locations[0].1);
                self.appended += 1;
                Ok(Some((group, index)))
            }
            Err(WriteError::NoSpace { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Appends entries with one flush.
    pub fn append_many(
        &mut self,
        group: u32,
        len: usize,
        count: usize,
    ) -> Result<Vec<Id>, WriteError> {
        let first = self.next.get(&group).copied().unwrap_or(1);
        self.number += 1;
        let entry = |index| Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            context: Bytes::from_static(b"sixteen  octets."),
            data: data((group, index), len),
        };
        let written = self.writer.write(&[WriteTask {
            group,
            number: self.number,
            entries: (first..first + count as u64).map(entry).collect(),
            hard_state: None,
            reset: None,
            urgent: false,
        }])?;
        let places = &written[0].locations;
        self.rows
            .extend(places.iter().map(|(index, at)| ((group, *index), *at)));
        self.next.insert(group, first + count as u64);
        self.appended += count as u64;
        Ok(places.iter().map(|(index, _)| (group, *index)).collect())
    }

    pub fn settle(&mut self, id: Id) {
        self.settled.insert(id);
        self.rows.remove(&id);
    }

    /// One step of the collector; its moves go into the mail.
    pub fn collect(&mut self) -> Result<bool, String> {
        let step = self
            .collector
            .step(self.now_ms)
            .map_err(|e| e.to_string())?;
        match step {
            Step::Idle => return Ok(false),
            Step::Worked { .. } => {}
            Step::Moved(moves) => self.mail.push_back(moves),
            Step::NoRoom(moves) => {
                self.mail.push_back(moves);
                return Ok(false);
            }
            Step::Examined { moves, damages } => {
                self.mail.extend(moves);
                self.damages.extend(damages);
            }
        }
        Ok(true)
    }

    /// What the state thread does with moves.
    pub fn take_moves(&mut self) {
        while let Some(moves) = self.mail.pop_front() {
            self.mail_moves(moves);
        }
    }

    pub fn mail_moves(&mut self, moves: Moves) {
        for it in &moves.moves {
            if let Some(row) = self.rows.get_mut(&(it.replica, it.index))
                && *row == it.from
            {
                *row = it.to;
                self.moved += 1;
            }
        }
        self.waiting.push(moves.pin);
        self.last_moves = moves.number;
    }

    /// A flush, and then everything that it allows: truncation, pins, release, new spares.
    pub fn flush(&mut self) {
        *self.durable.0.lock().expect("no test panics with it") = self.rows.clone();
        let live = self.live();
        for pin in std::mem::take(&mut self.waiting) {
            self.segments.unpin(pin);
        }
        self.collector
            .durable(self.last_moves, live.clone(), self.now_ms);
        for (group, next) in &self.next {
            self.segments.set_truncated(*group, (next - 1, 1));
            self.durable_upto.insert(*group, next - 1);
        }
        for segment in self.segments.truncatable() {
            if !live.contains_key(&segment) {
                self.segments.release(segment);
            }
        }
        let _ = self.writer.mark();
        self.segments.maintain();
    }

    fn live(&self) -> BTreeMap<u64, SegmentLive> {
        let mut live = BTreeMap::<u64, SegmentLive>::new();
        for location in self.durable.rows().values() {
            let of = live.entry(location.segment).or_default();
            of.count += 1;
            of.bytes += u64::from(location.data_len);
        }
        live
    }

    /// Collects until there is nothing to do, flushing as often as it takes.
    pub fn collect_all(&mut self) -> Result<(), String> {
        for _ in 0..1_000 {
            self.flush();
            let mut worked = false;
            while self.collect()? {
                worked = true;
            }
            self.take_moves();
            if !worked {
                self.flush();
                return Ok(());
            }
        }
        Err("the collection does not come to an end".to_owned())
    }

    /// After a crash: the log is recovered, and what the last flush did not know is applied again.
    pub fn reopen(&mut self) -> Result<(), String> {
        let disk = Arc::new(self.disk.clone());
        let opened = Log::open_on(disk, "/log".as_ref(), self.log_config.clone());
        let (writer, reader, recovered) = opened.map_err(|error| error.to_string())?;
        self.rows = self.durable.rows();
        self.next.clear();
        for (group, found) in &recovered.groups {
            let upto = self.durable_upto.get(group).copied().unwrap_or(0);
            let again = found.entries.iter().filter(|entry| entry.index > upto);
            self.rows
                .extend(again.map(|entry| ((*group, entry.index), entry.location)));
            self.next.insert(*group, found.last_index() + 1);
        }
        self.rows.retain(|id, _| !self.settled.contains(id));
        self.segments = writer.segments();
        self.mail.clear();
        self.waiting.clear();
        self.last_moves = 0;
        self.collector = Collector::new(
            self.config.clone(),
            &writer,
            reader.clone(),
            self.durable.clone(),
            self.live(),
        );
        (self.writer, self.reader) = (writer, reader);
        Ok(())
    }

    /// All bodies that live can be read, and are what was appended.
    pub fn check(&self) -> Result<(), String> {
        for (id, location) in &self.rows {
            let read = self.reader.read_entry(*location, id.0, id.1);
            let entry = read.map_err(|error| format!("{id:?}: {error}"))?;
            if entry.data != data(*id, location.data_len as usize) {
                return Err(format!("{id:?} at {location:?} is another body"));
            }
        }
        Ok(())
    }

    pub fn bodies(&self) -> (BodyReader, Arc<dyn BodyIndex>) {
        let index: Arc<dyn BodyIndex> = self.durable.clone();
        let reader = BodyReader::new(self.reader.clone(), &index);
        (reader, index)
    }

    /// Highest generation in which something is.
    pub fn generation(&self) -> u32 {
        let segments = self.segments.list();
        segments.iter().map(|it| it.generation).max().unwrap_or(0)
    }
}

/// splitmix64.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// Between 0 and 1.
    pub fn share(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1u64 << 53) as f64
    }
}
