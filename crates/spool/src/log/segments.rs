//! Which segments exist, which are released, and how much room is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::record::collected_name;
use super::spare::Spares;
use super::{Disk, DiskFile, DiskUse, GONE, SegmentInfo};

/// Segment files that readers keep open at most; beyond it all are closed and opened again as needed.
const OPEN_FILES: usize = 512;
/// Less free space than this is full, unless the disk is small (queue.md 4.8).
const RESERVE_BYTES: u64 = 256 << 20;
/// More free space than this is never full. What the reserve is for does not grow with the disk: the reserved segments, a
/// collection's copies, a flush of the metadata, and the seconds until new mail is refused. A twentieth of a shared 10 TB
/// file system would refuse mail with 500 GB free.
const RESERVE_BYTES_MAX: u64 = 2 << 30;

/// The log's segments, shared by the writer, the readers and the owner of the live counters.
#[derive(Clone)]
pub struct Segments(pub(super) Arc<Shared>);

/// What the handles share.
pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    /// Length of a segment file, bytes.
    pub capacity: u64,
    pub disk_bytes: Option<u64>,
    pub table: Mutex<Table>,
    /// Signalled when the filler hands a spare back.
    pub returned: Condvar,
    /// Wakes the thread that prepares spares; None without one.
    pub wake: Option<SyncSender<()>>,
    /// Bytes flushed so far, by which the filler knows whether the disk is busy.
    pub flushed: AtomicU64,
}

/// The state of all segments.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub segments: BTreeMap<u64, Segment>,
    /// The segment that is written into; all others are sealed.
    pub active: Option<u64>,
    /// True once the first batch of the active segment, with its STATE records, is durable.
    pub active_durable: bool,
    /// Truncations that owners asked for.
    pub wanted: BTreeMap<u32, (u64, u64)>,
    /// Truncations that a durable STATE record says.
    pub durable: BTreeMap<u32, (u64, u64)>,
    /// Released by the owner of the live counters, not yet recycled.
    pub released: BTreeSet<u64>,
    /// Not to be recycled, whatever lives: who wants them, and which.
    pub pins: BTreeMap<u64, BTreeSet<u64>>,
    pub spares: Spares,
    /// Highest number of a collected segment so far; 0: none.
    pub last_collected: u64,
    /// Bytes that others use of the same budget.
    pub other_bytes: u64,
    /// The disk failed outside the writer; its next write says so.
    pub failed: Option<io::Error>,
}

/// One segment that holds records.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub last: BTreeMap<u32, u64>,
    pub file: Option<Arc<dyn DiskFile>>,
    /// 0: of the Raft log.
    pub generation: u32,
    /// The collector still writes into it.
    pub open: bool,
    /// Where its last batch ends; `None`: a segment of the collector from before the last start, which nobody has read.
    pub end: Option<u64>,
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments")
            .field("dir", &self.0.dir)
            .finish_non_exhaustive()
    }
}

impl Segments {
    /// The last index and term of `group` that is logically gone; the next STATE record says so. Never goes back.
    pub fn set_truncated(&self, group: u32, truncated: (u64, u64)) {
        let mut table = self.0.lock();
        let wanted = table.wanted.entry(group).or_default();
        *wanted = (*wanted).max(truncated);
    }

    /// Nothing in the segment lives and everything in it is applied durably: recycle it. The log itself waits until a
    /// newer STATE record that covers it is durable. Unknown and active segments are ignored.
    pub fn release(&self, segment: u64) {
        let mut table = self.0.lock();
        // What is pinned may be about to live: whoever knows what lives asks again when the pin is gone.
        let open = table.segments.get(&segment).is_none_or(|it| it.open);
        if !open && table.active != Some(segment) && !table.is_pinned(segment) {
            table.released.insert(segment);
        }
        drop(table);
        self.0.wake();
    }

    /// Keeps segments from being recycled until [`Segments::unpin`], even released ones: a snapshot is read from them, or
    /// was written into them and is not referred to yet. Adds to what `who` has pinned before.
    pub fn pin(&self, who: u64, segments: impl IntoIterator<Item = u64>) {
        let mut table = self.0.lock();
        table.pins.entry(who).or_default().extend(segments);
    }

    /// `who` needs its segments no longer.
    pub fn unpin(&self, who: u64) {
        let known = self.0.lock().pins.remove(&who).is_some();
        if known {
            self.0.wake();
        }
    }

    /// Sealed segments, not yet released, whose entries are all truncated in every group.
    pub fn truncatable(&self) -> Vec<u64> {
        let table = self.0.lock();
        let covered = |id: &u64, segment: &Segment| {
            table.active != Some(*id)
                && !table.released.contains(id)
                && !segment.open
                && !table.is_pinned(*id)
                && covers(&table.wanted, segment)
        };
        table
            .segments
            .iter()
            .filter(|(id, segment)| covered(id, segment))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Octets of log that are kept for followers that lag, and for nothing else: of sealed segments of the Raft log whose
    /// entries are all applied durably (`applied`, the index of each group) and not all truncated, what does not live.
    /// `lives` says how many octets of a segment do; a few parked messages in each segment must not hide the rest.
    pub fn kept_for_followers(
        &self,
        applied: &BTreeMap<u32, u64>,
        lives: impl Fn(u64) -> u64,
    ) -> u64 {
        let table = self.0.lock();
        let done = |segment: &Segment| {
            let of = |group: &u32| match table.wanted.get(group) {
                // Of a replica that is gone nothing will ever be applied again.
                Some(&GONE) => u64::MAX,
                _ => applied.get(group).copied().unwrap_or(0),
            };
            segment.last.iter().all(|(group, last)| of(group) >= *last)
        };
        let kept = table.segments.iter().filter(|(id, segment)| {
            segment.generation == 0
                && table.active != Some(**id)
                && done(segment)
                && !covers(&table.wanted, segment)
        });
        kept.map(|(id, _)| self.0.capacity.saturating_sub(lives(*id)))
            .sum()
    }

    /// All segments that hold records, oldest first.
    pub fn list(&self) -> Vec<SegmentInfo> {
        let table = self.0.lock();
        let info = |(id, segment): (&u64, &Segment)| SegmentInfo {
            id: *id,
            generation: segment.generation,
            sealed: table.active != Some(*id) && !segment.open,
            truncated: !table.is_pinned(*id) && covers(&table.wanted, segment),
            last: segment.last.clone(),
        };
        table.segments.iter().map(info).collect()
    }

    /// How much room there is. Asks the file system, so a call costs a few microseconds.
    pub fn disk(&self) -> DiskUse {
        self.0.disk_use(&self.0.lock())
    }

    /// Length of a segment's file, bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.0.capacity
    }

    /// Bytes that others (the metadata store) use of the same `disk_bytes`.
    pub fn set_other_bytes(&self, bytes: u64) {
        self.0.lock().other_bytes = bytes;
    }

    /// Recycles released segments and keeps spares ready. Only needed when the log was opened without `background`.
    pub fn maintain(&self) {
        self.0.maintain();
    }
}

impl Segment {
    /// Its file's name.
    pub fn name(&self, id: u64) -> String {
        collected_name(id, self.generation)
    }
}

/// Are all entries of the segment truncated?
fn covers(truncated: &BTreeMap<u32, (u64, u64)>, segment: &Segment) -> bool {
    segment
        .last
        .iter()
        .all(|(group, last)| truncated.get(group).is_some_and(|(index, _)| index >= last))
}

impl Table {
    fn is_pinned(&self, id: u64) -> bool {
        self.pins.values().any(|pinned| pinned.contains(&id))
    }

    /// Takes out the released segments that nothing needs any more, with the names of their files. One of the Raft log
    /// waits until a newer, durable STATE record says all that must be remembered of it; one of the collector holds
    /// nothing that the Raft log knows.
    pub fn take_recyclable(&mut self) -> Vec<String> {
        let active = self.active.filter(|_| self.active_durable);
        let ready = |id: &u64| {
            !self.is_pinned(*id)
                && self.segments.get(id).is_some_and(|segment| {
                    segment.generation > 0
                        || active.is_some_and(|active| *id < active)
                            && covers(&self.durable, segment)
                })
        };
        let ids: Vec<u64> = self.released.iter().copied().filter(ready).collect();
        let take = |id: u64| {
            self.released.remove(&id);
            self.segments.remove(&id).map(|segment| segment.name(id))
        };
        ids.into_iter().filter_map(take).collect()
    }

    /// Replicas that are gone and of which no segment holds anything any more: nothing has to be said of them.
    pub fn forget_gone(&mut self) -> Vec<u32> {
        let held = |group: &u32| self.segments.values().any(|s| s.last.contains_key(group));
        let wanted = self.wanted.iter();
        let gone: Vec<u32> = wanted
            .filter(|(group, truncated)| **truncated == GONE && !held(group))
            .map(|(group, _)| *group)
            .collect();
        for group in &gone {
            self.wanted.remove(group);
            self.durable.remove(group);
        }
        gone
    }

    /// Does a released segment wait for STATE records that are not written yet?
    pub fn wants_state(&self) -> bool {
        let waits =
            |segment: &Segment| covers(&self.wanted, segment) && !covers(&self.durable, segment);
        self.released
            .iter()
            .any(|id| self.segments.get(id).is_some_and(waits))
    }
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is changed by assignments that cannot stop half way, so a panic elsewhere leaves it usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread that prepares spares.
    pub fn wake(&self) {
        if let Some(wake) = &self.wake {
            // A full channel has a wake-up under way already.
            let _ = wake.try_send(());
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file of a segment, opened when it is not; None when the segment was recycled.
    pub fn file(&self, id: u64) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let mut table = self.lock();
        match table.segments.get(&id) {
            None => return Ok(None),
            Some(Segment {
                file: Some(file), ..
            }) => return Ok(Some(file.clone())),
            Some(_) => {}
        }
        let name = table.segments.get(&id).map(|segment| segment.name(id));
        let file = self.disk.open(&self.path(&name.unwrap_or_default()))?;
        if table
            .segments
            .values()
            .filter(|segment| segment.file.is_some())
            .count()
            >= OPEN_FILES
        {
            table
                .segments
                .values_mut()
                .for_each(|segment| segment.file = None);
        }
        if let Some(segment) = table.segments.get_mut(&id) {
            segment.file = Some(file.clone());
        }
        Ok(Some(file))
    }

    /// See [`Segment::end`].
    pub fn end(&self, id: u64) -> Option<u64> {
        self.lock()
            .segments
            .get(&id)
            .and_then(|segment| segment.end)
    }

    /// Is the segment still one that holds records?
    pub fn holds(&self, id: u64) -> bool {
        self.lock().segments.contains_key(&id)
    }

    /// Space in bytes: (limit, free). Spares are free.
    fn space(&self, table: &Table) -> (u64, u64) {
        let (fs_free, fs_total) = self.disk.space(&self.dir).unwrap_or((0, 0));
        let limit = self
            .disk_bytes
            .map_or(fs_total, |bytes| bytes.min(fs_total.max(1)));
        let in_use = table.segments.len() as u64 * self.capacity + table.other_bytes;
        let spare = table.spares.count() as u64 * self.capacity;
        (limit, limit.saturating_sub(in_use).min(fs_free + spare))
    }

    /// May another segment file be made?
    pub fn may_grow(&self, table: &Table) -> bool {
        let (_, free) = self.space(table);
        free >= (table.spares.count() as u64 + 1) * self.capacity
    }

    pub fn disk_use(&self, table: &Table) -> DiskUse {
        let (limit, free) = self.space(table);
        let used = limit.saturating_sub(free);
        let free_segments = free / self.capacity;
        let reserve = reserve(limit);
        DiskUse {
            limit,
            used,
            free_segments,
            reserved: (super::spare::RESERVED as u64 + 1) * self.capacity,
            full: free_segments <= super::spare::RESERVED as u64 || free < reserve,
            percent: (used.saturating_mul(100) / limit.max(1)).min(100) as u8,
        }
    }

    /// Counts a flush.
    pub fn count_flushed(&self, bytes: u64) {
        self.flushed.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Free bytes below which a disk of `limit` bytes takes no new mail: a twentieth, within bounds.
fn reserve(limit: u64) -> u64 {
    (limit / 20)
        .max(RESERVE_BYTES.min(limit / 8))
        .min(RESERVE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::reserve;

    #[test]
    fn the_reserve_is_a_twentieth_and_neither_too_small_nor_absurd() {
        let (mib, gib) = (1_u64 << 20, 1_u64 << 30);
        assert_eq!(reserve(64 * mib), 8 * mib);
        assert_eq!(reserve(2 * gib), 256 * mib);
        assert_eq!(reserve(20 * gib), gib);
        // Found by a shared file system of 252 GB with 7 GB left, where every mail got 452.
        assert_eq!(reserve(252 * gib), 2 * gib);
        assert_eq!(reserve(10 << 40), 2 * gib);
    }
}
