//! The log thread: one writer a device, for all groups of a node.
//!
//! It also decides when a segment is released, since it alone hears both conditions: all its entries are truncated in
//! every group, and by the last durable flush of the state nothing in it lives.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::directory::Directory;
use crate::event::{LogEvent, Mailboxes, RaftEvent, StateEvent};
use crate::log::{DiskUse, GONE, Location, LogReader, LogWriter, Segments, WriteError, WriteTask};
use crate::node::FetchEntry;
use crate::runtime::Mender;
use crate::state::SegmentLive;

/// Octets that one call of the writer takes at most: a second buffer's worth fills while it flushes.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// Pause after a write that found no room, before it is tried again: settles free segments in the meantime.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(200);

/// An idle log says by then that its last batch was durable.
const IDLE_MARK: Duration = Duration::from_millis(50);

/// Log kept for lagging followers only, before one that was silent for long is left behind (a snapshot would be cheaper to send than more): a tenth of
/// the disk, but no more than [`LOG_BUDGET_MAX`].
const LOG_BUDGET_SHARE: u64 = 10;

/// See [`LOG_BUDGET_SHARE`]; octets.
const LOG_BUDGET_MAX: u64 = 20 << 30;

/// How often room on the disk is looked at.
const DISK_SCAN: Duration = Duration::from_millis(500);

/// What the log thread holds.
pub struct LogThread {
    pub writer: LogWriter,
    pub reader: LogReader,
    pub segments: Segments,
    pub mail: Receiver<LogEvent>,
    pub to: Mailboxes,
    pub directory: Directory,
    pub health: super::Health,
    pub mender: Mender,
    /// What lives in each segment, as of the last durable flush of the state.
    pub live: BTreeMap<u64, SegmentLive>,
    /// Index up to which each replica's rows are durable, by the same flush.
    pub applied: BTreeMap<u32, u64>,
    /// What lives, or what is truncated, changed since segments were released.
    pub may_release: bool,
    /// Log that is kept for lagging followers, if it is said: octets.
    pub budget: Option<u64>,
    /// How long a write may find no room before the replica node closes and opens again.
    pub patience: Duration,
    /// How fast it may write, if that is said.
    pub pace: Option<Pace>,
}

/// A device that is given so many octets a second, and no more: each write takes its time. Nothing is saved up, so that
/// whoever shares the device never sees a burst.
pub struct Pace {
    per_second: NonZeroU64,
    free_at: Instant,
}

impl Pace {
    /// A device that is free now.
    pub fn new(per_second: NonZeroU64) -> Pace {
        let free_at = Instant::now();
        Pace {
            per_second,
            free_at,
        }
    }

    /// When a write that began at `begun` is over: no sooner than the ones before it and its own octets take.
    fn over_at(&mut self, begun: Instant, octets: usize) -> Instant {
        let micros = octets as u64 * 1_000_000 / self.per_second;
        self.free_at = self.free_at.max(begun) + Duration::from_micros(micros);
        self.free_at
    }
}

/// A write found no room.
struct Blocked {
    since: Instant,
    again: Instant,
}

impl LogThread {
    /// Runs until told to stop, or until the device fails.
    pub fn run(mut self) {
        let mut waiting: VecDeque<WriteTask> = VecDeque::new();
        let mut blocked: Option<Blocked> = None;
        let mut next_scan = Instant::now();
        loop {
            let now = Instant::now();
            let pause = match &blocked {
                Some(blocked) => IDLE_MARK.min(blocked.again.saturating_duration_since(now)),
                None if waiting.is_empty() => IDLE_MARK,
                None => Duration::ZERO,
            };
            match self.mail.recv_timeout(pause) {
                Ok(event) => {
                    if !self.take(event, &mut waiting) {
                        return self.finish(waiting);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(event) = self.mail.try_recv() {
                if !self.take(event, &mut waiting) {
                    return self.finish(waiting);
                }
            }
            if std::mem::take(&mut self.may_release) {
                self.release();
            }
            let now = Instant::now();
            if now >= next_scan {
                next_scan = now + DISK_SCAN;
                self.look_at_disk();
            }
            let waits = blocked.as_ref().is_some_and(|blocked| now < blocked.again);
            let written = if waiting.is_empty() || waits {
                self.mark()
            } else {
                self.write(&mut waiting)
            };
            match written {
                Ok(_) if waits => {}
                Ok(true) => blocked = None,
                Ok(false) => {
                    let since = blocked.map_or(now, |blocked| blocked.since);
                    if now >= since + self.patience {
                        self.reopen();
                    }
                    let again = now + NO_SPACE_PAUSE;
                    blocked = Some(Blocked { since, again });
                }
                Err(reason) => {
                    let _ = self.to.raft.send(RaftEvent::Failed(reason));
                    return;
                }
            }
        }
    }

    fn take(&mut self, event: LogEvent, waiting: &mut VecDeque<WriteTask>) -> bool {
        match event {
            LogEvent::Write(tasks) => waiting.extend(tasks),
            LogEvent::Truncated { group, index, term } => {
                self.segments.set_truncated(group, (index, term));
                self.may_release = true;
            }
            LogEvent::Durable { live, applied } => {
                self.live = live;
                self.applied = applied;
                self.may_release = true;
            }
            LogEvent::Gone(replica) => {
                waiting.retain(|task| task.group != replica);
                self.segments.set_truncated(replica, GONE);
                self.may_release = true;
            }
            LogEvent::Fetch { group, id, entries } => self.fetch(group, id, &entries),
            LogEvent::Mend {
                replica,
                index,
                from,
                data,
            } => self.mend(replica, index, from, data),
            LogEvent::Unpin(pins) => {
                pins.into_iter().for_each(|pin| self.segments.unpin(pin));
                self.may_release = true;
            }
            LogEvent::Bodies {
                who,
                replica,
                bodies,
                reply,
            } => {
                let written = self.writer.write_bodies(replica, &bodies);
                match &written {
                    Ok(locations) => {
                        // Before anything is released: the metadata do not refer to them yet.
                        let segments = locations.iter().map(|location| location.segment);
                        self.segments.pin(who, segments);
                    }
                    Err(error) => self.tell(error),
                }
                let _ = reply.send(written);
            }
            LogEvent::OtherBytes(bytes) => self.segments.set_other_bytes(bytes),
            LogEvent::Stop => return false,
        }
        true
    }

    /// Writes what waits. `Ok(false)`: there is no room; what was not written stays in front, in order.
    fn write(&mut self, waiting: &mut VecDeque<WriteTask>) -> Result<bool, String> {
        while !waiting.is_empty() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            while bytes < WRITE_BYTES_MAX
                && let Some(task) = waiting.pop_front()
            {
                bytes += task
                    .entries
                    .iter()
                    .map(|e| e.context.len() + e.data.len())
                    .sum::<usize>();
                batch.push(task);
            }
            let begun = Instant::now();
            match self.writer.write(&batch) {
                Ok(written) => {
                    if let Some(pace) = &mut self.pace {
                        let over = pace.over_at(begun, bytes);
                        thread::sleep(over.saturating_duration_since(Instant::now()));
                    }
                    metrics::histogram!("postroad_log_flush_seconds").record(begun.elapsed());
                    metrics::counter!("postroad_log_bytes_total").increment(bytes as u64);
                    let _ = self.to.raft.send(RaftEvent::Persisted(written));
                    // At once: what comes before the next scan could take the room that is kept for settles.
                    self.look_at_room();
                }
                Err(WriteError::NoSpace { written, unwritten }) => {
                    if !written.is_empty() {
                        let _ = self.to.raft.send(RaftEvent::Persisted(written));
                    }
                    let left = batch
                        .into_iter()
                        .enumerate()
                        .filter(|(at, _)| unwritten.contains(at));
                    for (_, task) in left.collect::<Vec<_>>().into_iter().rev() {
                        waiting.push_front(task);
                    }
                    return Ok(false);
                }
                Err(e) => return self.failed(e),
            }
        }
        Ok(true)
    }

    /// Says that the last batch was durable, and the STATE records that released segments wait for: a full disk gets
    /// its room back by these, so they are written while mail waits for room as well.
    fn mark(&mut self) -> Result<bool, String> {
        let marked = self.writer.mark_if_idle();
        marked.map(|()| true).or_else(|e| self.failed(e))
    }

    /// Nothing gave way: without what waits here, recovery finds a log that takes settles.
    fn reopen(&self) {
        self.health.reopen(
            "the queue's disk is full and mail that was under way stands before the settles that would free it; the \
             mail is dropped (its senders have no answer and try again)",
        );
        let _ = self.to.raft.send(RaftEvent::Stop);
    }

    fn failed(&self, error: WriteError) -> Result<bool, String> {
        fatal(&error).map_or(Ok(false), Err)
    }

    /// Reads entries back for a follower that lags behind the cache.
    fn fetch(&self, group: u32, id: u64, entries: &[FetchEntry]) {
        let reader = self.reader.clone();
        let raft = self.to.raft.clone();
        let mender = self.mender.clone();
        let entries = entries.to_vec();
        // A thread of its own: the flush of everybody's mail must not wait for one follower's reads. There is one
        // fetch a follower at a time, so their count is bounded by the peers.
        let nothing = raft.clone();
        let spawned = super::helpers::spawn("fetch", &self.health, move || {
            let mut read = Vec::new();
            for entry in entries {
                let whole = reader
                    .read_entry(entry.location, group, entry.index)
                    .map(|e| (e.context, e.data))
                    .or_else(|error| mender.entry_instead(group, &entry, &error));
                match whole {
                    Ok((context, data)) => read.push((entry.index, context, data)),
                    Err(error) => {
                        tracing::error!(
                            group,
                            index = entry.index,
                            error,
                            "cannot read an entry for a follower"
                        );
                        break;
                    }
                }
            }
            let _ = raft.send(RaftEvent::Fetched {
                group,
                id,
                entries: read,
            });
        });
        if let Err(error) = spawned {
            // Raft asks again.
            tracing::warn!(group, %error, "no thread to read entries for a follower");
            let entries = Vec::new();
            let _ = nothing.send(RaftEvent::Fetched { group, id, entries });
        }
    }

    /// Writes a body again that came from another replica. Its segment is pinned until the durable state refers to it.
    fn mend(&mut self, replica: u32, index: u64, from: Location, data: bytes::Bytes) {
        match self.writer.write_bodies(replica, &[(index, data)]) {
            Ok(written) => {
                let Some(to) = written.first().copied() else {
                    return;
                };
                let pin = self.mender.next_pin();
                self.segments.pin(pin, [to.segment]);
                let _ = self.to.state.send(StateEvent::Mended {
                    replica,
                    index,
                    from,
                    to,
                    pin,
                });
            }
            // Without room it stays damaged, and is tried again.
            Err(error) => self.tell(&error),
        }
    }

    /// What failed for good ends the node, whoever asked for the write.
    fn tell(&self, error: &WriteError) {
        if let Some(reason) = fatal(error) {
            let _ = self.to.raft.send(RaftEvent::Failed(reason));
        }
    }

    fn release(&mut self) {
        for segment in self.segments.truncatable() {
            if self.live.get(&segment).is_none_or(|live| live.count == 0) {
                self.segments.release(segment);
            }
        }
    }

    /// From time to time: room, and what the log keeps for those that lag.
    fn look_at_disk(&mut self) {
        let disk = self.look_at_room();
        metrics::gauge!("postroad_disk_used_bytes").set(disk.used as f64);
        metrics::gauge!("postroad_disk_limit_bytes").set(disk.limit as f64);
        let lives = |segment| self.live.get(&segment).map_or(0, |live| live.bytes);
        let kept = self.segments.kept_for_followers(&self.applied, lives);
        metrics::gauge!("postroad_log_kept_for_followers_bytes").set(kept as f64);
        let usual = (disk.limit / LOG_BUDGET_SHARE).min(LOG_BUDGET_MAX);
        self.health
            .set_over_budget(kept > self.budget.unwrap_or(usual));
    }

    /// Whether the disk is full: told to whoever takes mail.
    fn look_at_room(&mut self) -> DiskUse {
        let disk = self.segments.disk();
        if self.directory.own_full() != disk.full {
            if disk.full {
                tracing::warn!(
                    used = disk.used,
                    limit = disk.limit,
                    "the queue's disk is full: no new mail where a majority is; settles go on"
                );
            } else {
                tracing::info!(
                    used = disk.used,
                    limit = disk.limit,
                    "the queue's disk has room again"
                );
            }
        }
        if self.directory.own_full() != disk.full {
            self.directory.set_own_full(disk.full);
            let (node, full) = (self.directory.own(), disk.full);
            let _ = self.to.raft.send(RaftEvent::Full { node, full });
        }
        self.health.set_disk(disk);
        disk
    }

    /// The last words before a clean end.
    fn finish(mut self, mut waiting: VecDeque<WriteTask>) {
        if let Err(reason) = self.write(&mut waiting) {
            tracing::error!(reason, "the last write failed");
        }
        let _ = self.writer.mark_if_idle();
    }
}

/// Why this write ends the node for good; `None`: there was no room, which may come back.
fn fatal(error: &WriteError) -> Option<String> {
    match error {
        WriteError::NoSpace { .. } => None,
        // Pages are marked clean after a failed flush: a retry would succeed without the data (fsyncgate).
        other => Some(format!(
            "the log cannot be written: {other}; this replica node stops for good"
        )),
    }
}
