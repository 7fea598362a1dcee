//! The collector: chooses a source, copies, and waits for the state to say that the copies are what counts. Without
//! threads or clock: `runtime::collect_thread` drives it, and so do the tests, with a crash after any operation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::copy::{CollectError, Job};
use super::examine::Examination;
use super::plan::copy_bytes;
use super::{BodyIndex, Choice, CollectConfig, Damage, Moves, Planner};
use crate::log::{CollectedWriter, DiskUse, LogReader, LogWriter, SegmentInfo, Segments, Walk};
use crate::state::SegmentLive;

/// Collects. One thread owns it.
pub struct Collector {
    pub(super) config: CollectConfig,
    pub(super) segments: Segments,
    pub(super) reader: LogReader,
    pub(super) writer: CollectedWriter,
    pub(super) index: Arc<dyn BodyIndex>,
    pub(super) planner: Planner,
    pub(super) live: BTreeMap<u64, SegmentLive>,
    job: Option<Job>,
    examination: Option<Examination>,
    /// Sources that gave all that could be read, with the number of their last moves.
    copied: BTreeMap<u64, u64>,
    /// Segments to look at by their rows; with a generation: sources.
    suspects: BTreeMap<u64, Option<u32>>,
    /// Examined as a source once: what still lives in it then is damaged.
    examined: BTreeSet<u64>,
    /// Something in them is not what was written. Whatever it was, a start reads all segments of the log and refuses what it
    /// cannot believe: so what lives in them goes elsewhere, however much that is, once the log itself needs them no longer.
    rotten: BTreeSet<u64>,
    pub(super) number: u64,
    /// Octets copied since the start.
    pub copied_bytes: u64,
}

/// What a step did.
#[derive(Debug)]
pub enum Step {
    /// There is nothing to do.
    Idle,
    /// It went on, and there is nothing to tell.
    Worked {
        /// Octets copied.
        bytes: u64,
    },
    /// Copies are durable: the rows are to be moved.
    Moved(Moves),
    /// The same, but not for all that was to be copied: there was no room.
    NoRoom(Moves),
    /// A segment was looked at by its rows.
    Examined {
        /// What could be read and was copied.
        moves: Option<Moves>,
        /// What could not.
        damages: Vec<Damage>,
    },
}

/// How the disk of the log is used, octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In bodies that something refers to.
    pub live: u64,
    /// In segments, but not in such bodies.
    pub dead: u64,
    /// In segments that are being collected.
    pub collecting: u64,
}

impl Collector {
    /// A collector of this log. `live`: what lives in each segment by the durable state.
    pub fn new(
        config: CollectConfig,
        log: &LogWriter,
        reader: LogReader,
        index: Arc<dyn BodyIndex>,
        live: BTreeMap<u64, SegmentLive>,
    ) -> Collector {
        let segments = log.segments();
        Collector {
            planner: Planner::new(config.clone(), segments.segment_bytes()),
            config,
            writer: log.collected(),
            segments,
            reader,
            index,
            live,
            job: None,
            examination: None,
            copied: BTreeMap::new(),
            suspects: BTreeMap::new(),
            examined: BTreeSet::new(),
            rotten: BTreeSet::new(),
            number: 0,
            copied_bytes: 0,
        }
    }

    /// Does one step, of [`CollectConfig::step_bytes`] at most.
    ///
    /// # Errors
    /// [`CollectError`]: the replica node stops.
    pub fn step(&mut self, now_ms: u64) -> Result<Step, CollectError> {
        if let Some(job) = self.job.take() {
            return self.go_on(job, now_ms);
        }
        if let Some(examination) = self.examination.take() {
            return self.examine(examination, now_ms);
        }
        if let Some((segment, generation)) = self.suspects.pop_first() {
            self.examination = Some(Examination {
                segment,
                generation,
                from: (0, 0),
                damaged: 0,
            });
            return Ok(Step::Worked { bytes: 0 });
        }
        let disk = self.segments.disk();
        let segments = self.segments.list();
        if self.leave_rotten(&segments) {
            return Ok(Step::Worked { bytes: 0 });
        }
        let Some(choice) = self.planner.next(now_ms, &segments, &self.live, &disk) else {
            return Ok(Step::Idle);
        };
        self.begin(choice, now_ms);
        Ok(Step::Worked { bytes: 0 })
    }

    fn begin(&mut self, choice: Choice, now_ms: u64) {
        let Choice { source, generation } = choice;
        match Walk::begin(&self.segments, source) {
            Ok(Some(walk)) => {
                self.planner.begun(source);
                self.job = Some(Job {
                    source,
                    generation,
                    walk,
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(segment = source, %error, "a segment cannot be opened, its mail cannot be read: look at the disk");
                self.planner.damaged(source, now_ms);
            }
        }
    }

    fn go_on(&mut self, mut job: Job, now_ms: u64) -> Result<Step, CollectError> {
        match self.copy_some(&mut job)? {
            None => {
                self.copied.insert(job.source, self.number);
                Ok(Step::Worked { bytes: 0 })
            }
            Some(step @ Step::NoRoom(_)) => {
                self.planner.ended(job.source);
                self.planner.no_room(job.source, now_ms);
                Ok(step)
            }
            Some(step) => {
                self.job = Some(job);
                Ok(step)
            }
        }
    }

    fn examine(&mut self, mut it: Examination, now_ms: u64) -> Result<Step, CollectError> {
        if let Some(step) = self.examine_some(&mut it)? {
            self.examination = Some(it);
            return Ok(step);
        }
        if it.damaged > 0 {
            self.planner.damaged(it.segment, now_ms);
        }
        if it.generation.is_some() {
            self.examined.insert(it.segment);
            self.copied.insert(it.segment, self.number);
        }
        Ok(Step::Worked { bytes: 0 })
    }

    /// The state is durable up to the moves of this number, and by it this is what lives.
    pub fn durable(&mut self, number: u64, live: BTreeMap<u64, SegmentLive>, now_ms: u64) {
        self.live = live;
        self.settle_copied(number, now_ms);
    }

    fn settle_copied(&mut self, durable: u64, now_ms: u64) {
        let (ended, wait): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.copied)
            .into_iter()
            .partition(|(_, last)| *last <= durable);
        self.copied = wait;
        for source in ended.into_keys() {
            self.planner.ended(source);
            let left = self.live.get(&source).map_or(0, |live| live.count);
            if left == 0 {
                self.examined.remove(&source);
            } else if self.examined.remove(&source) {
                self.planner.damaged(source, now_ms);
            } else {
                let infos = self.segments.list();
                let of = infos.iter().find(|info| info.id == source);
                let generation = of.map_or(1, |info| info.generation + 1);
                let generation = generation.min(super::plan::GENERATION_MAX);
                self.planner.begun(source);
                self.suspects.insert(source, Some(generation));
            }
        }
    }

    /// Something in this segment does not pass its checksum, or cannot be read: it is looked at whether a living body was
    /// hit, and the segment is given back as soon as may be.
    pub fn suspect(&mut self, segment: u64) {
        self.rotten.insert(segment);
        let segments = self.segments.list();
        let of = segments.iter().find(|it| it.id == segment);
        if of.is_none_or(|it| !self.may_leave(it)) {
            self.suspects.entry(segment).or_insert(None);
        }
    }

    fn may_leave(&self, segment: &SegmentInfo) -> bool {
        segment.sealed && segment.truncated && !self.planner.is_busy(segment.id)
    }

    /// Makes a source of a segment in which something rots.
    fn leave_rotten(&mut self, segments: &[SegmentInfo]) -> bool {
        self.rotten
            .retain(|id| segments.iter().any(|segment| segment.id == *id));
        let ready =
            |segment: &&SegmentInfo| self.rotten.contains(&segment.id) && self.may_leave(segment);
        let Some(segment) = segments.iter().find(ready) else {
            return false;
        };
        self.rotten.remove(&segment.id);
        // Where nothing lives it is given back without us.
        if self
            .live
            .get(&segment.id)
            .is_none_or(|live| live.count == 0)
        {
            return false;
        }
        let generation = (segment.generation + 1).min(super::plan::GENERATION_MAX);
        self.planner.begun(segment.id);
        self.suspects.insert(segment.id, Some(generation));
        true
    }

    /// For metrics and people.
    pub fn look(&self, now_ms: u64) -> Look {
        let disk = self.segments.disk();
        let segments = self.segments.list();
        let mut ratio: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut space = Space::default();
        let capacity = self.segments.segment_bytes();
        for segment in &segments {
            let live = self.live.get(&segment.id).copied();
            let lives = copy_bytes(live).min(capacity);
            let of = ratio.entry(segment.generation).or_default();
            *of = (of.0 + lives, of.1 + capacity);
            space.live += lives;
            space.dead += capacity - lives;
            if self.is_busy(segment) {
                space.collecting += capacity;
            }
        }
        Look {
            space,
            ratio: ratio
                .into_iter()
                .map(|(generation, (lives, all))| (generation, lives as f64 / all as f64))
                .collect(),
            pinned: self.planner.pinned(now_ms, &segments, &disk),
            damaged_segments: self.planner.damaged_segments(),
            disk,
        }
    }

    fn is_busy(&self, segment: &SegmentInfo) -> bool {
        self.copied.contains_key(&segment.id)
            || self
                .job
                .as_ref()
                .is_some_and(|job| job.source == segment.id)
    }
}

/// What [`Collector::look`] saw.
#[derive(Debug)]
pub struct Look {
    /// The log's use of its disk.
    pub space: Space,
    /// Share of each generation's segments that lives.
    pub ratio: BTreeMap<u32, f64>,
    /// Age of the oldest sealed segment that stays, by the reason, milliseconds.
    pub pinned: BTreeMap<&'static str, u64>,
    /// Segments in which a living body cannot be read.
    pub damaged_segments: usize,
    /// The disk as a whole.
    pub disk: DiskUse,
}
