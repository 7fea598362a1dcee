//! The real log of a replica, over a disk in memory that loses and tears sectors, fails and fills.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use spool::collect::Move;
use spool::identity::ClusterId;
use spool::log::{
    GONE, Location, Log, LogConfig, LogReader, LogWriter, OpenError, RecoveredGroup, SimDisk,
    WriteError, WriteTask,
};

use crate::sim::collecting::Collecting;
use crate::sim::disk::{Durable, Stored, Trouble};
use crate::sim::replica::Place;
use crate::sim::rng::Rng;

const DIR: &str = "/log";
/// Octets of a simulated disk: some tens of segments.
const CAPACITY: u64 = 6 << 20;
/// The largest entry, octets: segments are as small as the log allows with it, about 40 KiB.
const ENTRY_MAX: u32 = 8 << 10;
/// Octets of a batch: a burst of writes takes several.
const BATCH: usize = 8 << 10;

pub struct RealLog {
    disk: SimDisk,
    /// What the log calls the replica that the node has.
    group: u32,
    /// Whether it collects what is dead.
    collects: bool,
    collecting: Option<Collecting>,
    /// Octets that the collector copied, before the present life.
    copied: u64,
    open: Option<(LogWriter, LogReader)>,
    /// On the way to the disk when the process died: it may be there.
    in_flight: Vec<WriteTask>,
    /// A start may fail by a crash of its own.
    crash_in_start: bool,
    /// Segments given back so far.
    pub recycled: u64,
}

impl RealLog {
    /// An empty one. `group`: what it calls the replica that the node has.
    pub fn new(seed: u64, group: u32, collects: bool) -> RealLog {
        RealLog {
            disk: SimDisk::new(CAPACITY, seed),
            group,
            collects,
            collecting: None,
            copied: 0,
            open: None,
            in_flight: Vec::new(),
            crash_in_start: false,
            recycled: 0,
        }
    }

    fn config(&self) -> LogConfig {
        LogConfig {
            replicas: Some([self.group].into()),
            segment_bytes: 0,
            max_entry_bytes: ENTRY_MAX,
            batch_bytes: BATCH,
            background: false,
            ..LogConfig::new(ClusterId([7; 16]), 7)
        }
    }

    /// The process starts; `Vec`: what was on its way when the last one died. `live`: where bodies lie, as the state has
    /// it.
    pub fn open(
        &mut self,
        rng: &mut Rng,
        live: &BTreeMap<u64, Place>,
    ) -> Result<(RecoveredGroup, Vec<WriteTask>), Trouble> {
        if std::mem::take(&mut self.crash_in_start) {
            self.disk.crash_after(rng.below(12));
        }
        let disk = Arc::new(self.disk.clone());
        let opened = Log::open_on(disk.clone(), Path::new(DIR), self.config());
        let opened = match opened {
            Err(_) if self.disk.is_down() => {
                self.disk.restart();
                Log::open_on(disk, Path::new(DIR), self.config())
            }
            other if self.disk.is_down() => {
                drop(other);
                self.disk.restart();
                Log::open_on(disk, Path::new(DIR), self.config())
            }
            other => other,
        };
        let (writer, reader, mut found) = opened.map_err(|error| match error {
            OpenError::Io { .. } => Trouble::Failed(error.to_string()),
            _ => Trouble::Wrong(format!("no start: {error}")),
        })?;
        self.disk.crash_after(u64::MAX);
        self.collecting = self
            .collects
            .then(|| Collecting::new(self.group, &writer, reader.clone(), live));
        self.open = Some((writer, reader));
        if let Some(damaged) = found.damaged.first() {
            return Err(Trouble::Wrong(format!("no bits rot here, but {damaged:?}")));
        }
        let group = found.groups.remove(&self.group).unwrap_or_default();
        Ok((group, std::mem::take(&mut self.in_flight)))
    }

    /// What is durable, and the positions of what found no room.
    pub fn write(&mut self, tasks: &[WriteTask]) -> Result<(Vec<Durable>, Vec<usize>), Trouble> {
        let Some((writer, _)) = &mut self.open else {
            return Err(Trouble::Wrong("a closed log is written".into()));
        };
        let (written, left) = match writer.write(tasks) {
            Ok(written) => (written, Vec::new()),
            Err(WriteError::NoSpace { written, unwritten }) => (written, unwritten),
            Err(WriteError::Fatal(_)) if self.disk.is_down() => {
                self.in_flight = tasks.to_vec();
                return Err(Trouble::Power);
            }
            Err(WriteError::Fatal(error)) => return Err(Trouble::Failed(error.to_string())),
        };
        let durable = written
            .into_iter()
            .map(|written| (written.number, written.locations));
        Ok((durable.collect(), left))
    }

    pub fn read(&self, index: u64, at: Location) -> Option<Stored> {
        let (_, reader) = self.open.as_ref()?;
        let entry = reader.read_entry(at, self.group, index).ok()?;
        Some(Stored {
            term: entry.term,
            kind: entry.kind,
            context: entry.context,
            data: entry.data,
        })
    }

    /// The replica goes: nothing that the log holds of it counts any more.
    pub fn part(&mut self) {
        if let Some((writer, _)) = &mut self.open {
            writer.set_group_state(self.group, GONE);
        }
    }

    /// The node is given another replica, for which nothing was written yet.
    pub fn host(&mut self, group: u32) {
        self.group = group;
        self.in_flight.clear();
    }

    /// Begins the replica's log at a snapshot, at a start: what a crash came into.
    pub fn begin_at(&mut self, begin: (u64, u64)) -> Result<(), Trouble> {
        let task = WriteTask {
            group: self.group,
            number: 0,
            entries: Vec::new(),
            hard_state: None,
            reset: Some(begin),
            urgent: true,
        };
        let (_, left) = self.write(&[task])?;
        match left.is_empty() {
            true => Ok(()),
            false => Err(Trouble::NoRoom),
        }
    }

    /// Bodies that came with a snapshot; they are pinned in its name until [`RealLog::installed`].
    pub fn keep(
        &mut self,
        snapshot: u64,
        bodies: &[(u64, Bytes)],
    ) -> Result<Vec<Location>, Trouble> {
        let Some((writer, _)) = &mut self.open else {
            return Err(Trouble::Wrong("a snapshot comes to a closed log".into()));
        };
        let kept = writer.write_bodies(self.group, bodies);
        let locations = kept.map_err(|error| match error {
            WriteError::NoSpace { .. } => Trouble::NoRoom,
            WriteError::Fatal(_) if self.disk.is_down() => Trouble::Power,
            WriteError::Fatal(error) => Trouble::Failed(error.to_string()),
        })?;
        let segments = locations.iter().map(|location| location.segment);
        writer.segments().pin(snapshot, segments);
        Ok(locations)
    }

    /// The durable rows refer to the bodies of a snapshot.
    pub fn installed(&mut self, snapshot: u64, live: &BTreeMap<u64, Place>, now_ms: u64) {
        self.flushed(live, now_ms);
        if let Some((writer, _)) = &mut self.open {
            writer.segments().unpin(snapshot);
        }
    }

    pub fn truncate(&mut self, truncated: (u64, u64)) {
        if let Some((writer, _)) = &mut self.open {
            writer.set_group_state(self.group, truncated);
        }
    }

    /// Releases what nothing refers to, and writes what an idle log writes.
    pub fn tidy_up(&mut self, live: &BTreeSet<u64>) -> Result<(), Trouble> {
        let Some((writer, _)) = &mut self.open else {
            return Ok(());
        };
        let segments = writer.segments();
        for segment in segments.truncatable() {
            if !live.contains(&segment) {
                segments.release(segment);
                self.recycled += 1;
            }
        }
        segments.maintain();
        match writer.mark() {
            Ok(()) | Err(WriteError::NoSpace { .. }) => Ok(()),
            Err(WriteError::Fatal(_)) if self.disk.is_down() => Err(Trouble::Power),
            Err(WriteError::Fatal(error)) => Err(Trouble::Failed(error.to_string())),
        }
    }

    /// A step of the collector; true when it did something.
    pub fn collect(&mut self, now_ms: u64) -> Result<bool, Trouble> {
        let Some(collecting) = &mut self.collecting else {
            return Ok(false);
        };
        match collecting.step(now_ms) {
            Err(Trouble::Failed(_)) if self.disk.is_down() => Err(Trouble::Power),
            other => other,
        }
    }

    /// Copies that the rows are to name.
    pub fn moves(&mut self) -> Vec<Move> {
        let collecting = self.collecting.as_mut();
        collecting.map_or_else(Vec::new, Collecting::moves)
    }

    /// The rows are written down.
    pub fn flushed(&mut self, live: &BTreeMap<u64, Place>, now_ms: u64) {
        if let Some(collecting) = &mut self.collecting {
            collecting.flushed(live, now_ms);
        }
    }

    /// Octets that the collector copied.
    pub fn copied(&self) -> u64 {
        self.copied + self.collecting.as_ref().map_or(0, Collecting::copied)
    }

    /// Less room than mail may use.
    pub fn is_full(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|(writer, _)| writer.segments().disk().full)
    }

    pub fn crash(&mut self, rng: &mut Rng, waiting: Vec<WriteTask>, power: bool, in_write: bool) {
        if in_write
            && !waiting.is_empty()
            && let Some((writer, _)) = &mut self.open
        {
            self.disk.crash_after(rng.below(6));
            // Whatever comes of it, nobody is told.
            let _ = writer.write(&waiting);
        }
        // Part of it may be there also without that: a task that found no room in the middle. What a crash in `write`
        // left comes before it.
        self.in_flight.extend(waiting);
        self.open = None;
        self.copied += self.collecting.take().map_or(0, |it| it.copied());
        if power {
            self.disk.restart();
            self.crash_in_start = rng.one_in(4);
        } else {
            self.disk.kill_process();
        }
    }

    /// The next flush, or the next write, fails.
    pub fn break_down(&mut self, rng: &mut Rng) {
        match rng.one_in(2) {
            true => self.disk.fail_next_sync(),
            false => self.disk.fail_next_write(io::ErrorKind::Other),
        }
    }

    /// Something else takes so much of the disk that hardly anything is left; `None`: it is gone again.
    pub fn fill(&mut self, share: Option<u64>) {
        let taken = share.map_or(0, |percent| CAPACITY * percent / 100);
        self.disk.set_foreign_bytes(taken);
    }
}
