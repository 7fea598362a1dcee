//! The one writer of a device: tasks of all groups into batches, one `pwrite` and one `fdatasync` each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::{Batch, GroupState};
use super::place::{Active, Rank, Stop};
use super::planted::{Mutation, planted};
use super::record::{HARD_STATE_PAYLOAD, Position, STATE_PAYLOAD};
use super::spare::is_no_space;
use super::{
    CollectedWriter, Entry, HardState, Location, LogConfig, Segments, WriteError, WriteTask,
    Written,
};

/// How long after the last flush an idle log says that it was durable: it separates a torn tail from damage.
const IDLE_MARK: Duration = Duration::from_millis(50);

/// Writes the log. One thread owns it.
#[derive(Debug)]
pub struct LogWriter {
    pub(super) segments: Segments,
    pub(super) config: LogConfig,
    pub(super) active: Option<Active>,
    pub(super) groups: BTreeMap<u32, GroupState>,
    pub(super) next_segment: u64,
    pub(super) next_batch: u64,
    /// All before it is durable.
    pub(super) durable: Position,
    /// No batch says yet that the last one is durable.
    pub(super) unmarked: bool,
    pub(super) batch: Batch,
    pub(super) last_flush: Instant,
    /// Set by the first failure; nothing is written any more.
    pub(super) dead: bool,
}

/// Tasks on their way through `write`.
#[derive(Default)]
struct Progress {
    done: Vec<Written>,
    /// Complete in the batch that is not flushed yet, with their positions.
    buffered: Vec<(usize, Written)>,
    unwritten: Vec<usize>,
    /// Groups with an unwritten task: what follows must wait as well.
    blocked: BTreeSet<u32>,
}

impl LogWriter {
    /// Makes all tasks durable, in the order given. When it returns, so they are; [`WriteError::NoSpace`] names those
    /// that are not; after [`WriteError::Fatal`] the writer refuses everything.
    pub fn write(&mut self, tasks: &[WriteTask]) -> Result<Vec<Written>, WriteError> {
        self.check_alive()?;
        let mut progress = Progress::default();
        self.begin_batch();
        for (at, task) in tasks.iter().enumerate() {
            if progress.blocked.contains(&task.group) {
                progress.unwritten.push(at);
                continue;
            }
            match self.add_task(at, task, &mut progress) {
                Ok(()) => {}
                Err(Stop::NoSpace) => {
                    progress.unwritten.push(at);
                    progress.blocked.insert(task.group);
                }
                Err(Stop::Fatal(error)) => return Err(self.die(error)),
            }
        }
        match self.flush(&mut progress) {
            Ok(()) | Err(Stop::NoSpace) => {}
            Err(Stop::Fatal(error)) => return Err(self.die(error)),
        }
        let Progress {
            done,
            mut unwritten,
            ..
        } = progress;
        if unwritten.is_empty() {
            return Ok(done);
        }
        unwritten.sort_unstable();
        Err(WriteError::NoSpace {
            written: done,
            unwritten,
        })
    }

    /// Writes the data of committed entries again, durably, and says where each lies now: a snapshot brought them. They
    /// are garbage until the metadata refer to them, so pin their segments (see [`Segments::pin`]) until these do.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`]: some may be written, none is referred to. [`WriteError::Fatal`] as ever.
    pub fn write_bodies(
        &mut self,
        group: u32,
        bodies: &[(u64, Bytes)],
    ) -> Result<Vec<Location>, WriteError> {
        self.check_alive()?;
        self.begin_batch();
        let mut progress = Progress::default();
        let mut locations = Vec::with_capacity(bodies.len());
        let mut add = |writer: &mut LogWriter, index: u64, data: &Bytes| {
            writer.make_room_for(data.len(), Rank::Normal, &mut progress)?;
            locations.push(writer.batch.relocated(group, index, data));
            Ok(())
        };
        let mut outcome = bodies
            .iter()
            .try_for_each(|(index, data)| add(self, *index, data));
        if outcome.is_ok() {
            outcome = self.flush(&mut progress);
        } else {
            self.begin_batch();
        }
        match outcome {
            Ok(()) => Ok(locations),
            Err(Stop::NoSpace) => Err(WriteError::NoSpace {
                written: Vec::new(),
                unwritten: (0..bodies.len()).collect(),
            }),
            Err(Stop::Fatal(error)) => Err(self.die(error)),
        }
    }

    /// When the last flush was at least 50 ms ago and no batch says yet that it was durable, writes one that does. Also
    /// writes the STATE records that a released segment waits for. Call it when there is nothing to write.
    pub fn mark_if_idle(&mut self) -> Result<(), WriteError> {
        if self.last_flush.elapsed() < IDLE_MARK {
            Ok(())
        } else {
            self.mark()
        }
    }

    /// [`LogWriter::mark_if_idle`] without the clock.
    pub fn mark(&mut self) -> Result<(), WriteError> {
        self.check_alive()?;
        let wants_state = self.segments.0.lock().wants_state();
        if self.active.as_ref().is_none_or(|active| active.fresh) || !(self.unmarked || wants_state)
        {
            return Ok(());
        }
        self.begin_batch();
        let rank = if wants_state {
            Rank::State
        } else {
            Rank::Urgent
        };
        if !wants_state && !self.fits(0, rank) {
            // The head of the next segment will say it.
            return Ok(());
        }
        // A full disk may wait for these STATE records, so they may take a reserved segment.
        let added = self.make_room(0, rank).map(|()| self.batch.mark());
        match added.and_then(|()| self.flush(&mut Progress::default())) {
            Ok(()) => {
                self.unmarked = false;
                Ok(())
            }
            // The next batch will say it.
            Err(Stop::NoSpace) => Ok(()),
            Err(Stop::Fatal(error)) => Err(self.die(error)),
        }
    }

    /// Begins an empty log durably: from now on a log without a segment is one that was lost, and not a new one.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] without tasks, or [`WriteError::Fatal`].
    pub fn begin(&mut self) -> Result<(), WriteError> {
        self.check_alive()?;
        if self.active.is_some() {
            return Ok(());
        }
        self.begin_batch();
        let mut progress = Progress::default();
        let begun = self.make_room(0, Rank::Urgent).and_then(|()| {
            self.batch.mark();
            self.flush(&mut progress)
        });
        match begun {
            Ok(()) => Ok(()),
            Err(Stop::NoSpace) => Err(WriteError::NoSpace {
                written: Vec::new(),
                unwritten: Vec::new(),
            }),
            Err(Stop::Fatal(error)) => Err(self.die(error)),
        }
    }

    /// The last index and term of `group` that is logically gone. Snapshots set it beyond the log's end, which empties
    /// the group's log.
    pub fn set_group_state(&mut self, group: u32, truncated: (u64, u64)) {
        self.segments.set_truncated(group, truncated);
    }

    /// The segments, to share with whoever counts what lives in them.
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }

    /// Who writes the collector's segments.
    pub fn collected(&self) -> CollectedWriter {
        CollectedWriter::new(&self.segments, &self.config)
    }

    fn check_alive(&mut self) -> Result<(), WriteError> {
        let failed = self.segments.0.lock().failed.take();
        match failed {
            Some(error) => Err(self.die(error)),
            None if self.dead => Err(WriteError::Fatal(io::Error::other(
                "the disk failed earlier",
            ))),
            None => Ok(()),
        }
    }

    fn die(&mut self, error: io::Error) -> WriteError {
        self.dead = true;
        WriteError::Fatal(error)
    }

    fn add_task(
        &mut self,
        at: usize,
        task: &WriteTask,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        self.adopt_truncation(task, progress)?;
        if let Some(snapshot) = task.reset {
            self.make_room_for(STATE_PAYLOAD, Rank::Urgent, progress)?;
            let state = self.state_in_batch(task.group);
            state.reset(snapshot);
            let state = *state;
            self.batch.state(task.group, &state);
            self.segments.set_truncated(task.group, snapshot);
        }
        if let Some(wanted) = task.hard_state {
            // First, so that no entry of a term is durable before the term; with the commit that is durable already, and that no
            // entry of this task takes back: a part of it may be in the log from a try that found no room for the rest, and
            // writing it again cuts what stands behind it.
            let state = self.groups.get(&task.group).copied().unwrap_or_default();
            let first = task.entries.first().map(|entry| entry.index - 1);
            let kept = state.last.min(first.unwrap_or(state.last));
            let commit = wanted.commit.min(kept).max(state.hard_state.commit);
            self.add_hard_state(task, HardState { commit, ..wanted }, progress)?;
        }
        let mut locations = Vec::with_capacity(task.entries.len());
        for entry in &task.entries {
            let len = entry.context.len() + entry.data.len();
            if len > self.config.max_entry_bytes as usize {
                let text = format!(
                    "group {}: entry {} has {len} bytes, more than the log takes",
                    task.group, entry.index
                );
                return Err(Stop::Fatal(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    text,
                )));
            }
            self.make_room_for(len, Rank::of(task), progress)?;
            self.check_order(task.group, entry)?;
            locations.push((entry.index, self.batch.entry(task.group, entry)));
            self.state_in_batch(task.group).last = entry.index;
        }
        if let Some(wanted) = task.hard_state {
            let state = self.groups.get(&task.group).copied().unwrap_or_default();
            let commit = wanted.commit.min(state.last);
            if commit > state.hard_state.commit {
                self.add_hard_state(task, HardState { commit, ..wanted }, progress)?;
            }
        }
        progress.buffered.push((
            at,
            Written {
                group: task.group,
                number: task.number,
                locations,
            },
        ));
        Ok(())
    }

    fn add_hard_state(
        &mut self,
        task: &WriteTask,
        state: HardState,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        self.make_room_for(HARD_STATE_PAYLOAD, Rank::of(task), progress)?;
        self.batch.hard_state(task.group, state);
        self.state_in_batch(task.group).hard_state = state;
        Ok(())
    }

    /// The group's state, which is put back when the batch is not written.
    fn state_in_batch(&mut self, group: u32) -> &mut GroupState {
        let state = self.groups.entry(group).or_default();
        self.batch.before.entry(group).or_insert(*state);
        state
    }

    /// A hole would make the log unreadable at the next start; better to stop at the bug.
    fn check_order(&self, group: u32, entry: &Entry) -> Result<(), Stop> {
        let state = self.groups.get(&group).copied().unwrap_or_default();
        if entry.index > state.last + 1 || entry.index <= state.truncated.0 {
            let text = format!(
                "group {group}: entry {} follows {} (truncated to {})",
                entry.index, state.last, state.truncated.0
            );
            return Err(Stop::Fatal(io::Error::new(
                io::ErrorKind::InvalidInput,
                text,
            )));
        }
        Ok(())
    }

    /// A truncation beyond the end (a new group that begins at a snapshot) must be in the log before what follows it.
    fn adopt_truncation(&mut self, task: &WriteTask, progress: &mut Progress) -> Result<(), Stop> {
        let wanted = self
            .segments
            .0
            .lock()
            .wanted
            .get(&task.group)
            .copied()
            .unwrap_or_default();
        if wanted.0
            > self
                .groups
                .get(&task.group)
                .copied()
                .unwrap_or_default()
                .last
        {
            self.make_room_for(STATE_PAYLOAD, Rank::of(task), progress)?;
            let state = self.state_in_batch(task.group);
            state.adopt(wanted);
            let state = *state;
            self.batch.state(task.group, &state);
        }
        Ok(())
    }

    fn make_room_for(
        &mut self,
        payload: usize,
        rank: Rank,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let full =
            self.batch.len_with(payload) > self.config.batch_bytes as u64 && !self.batch.is_empty();
        if full || !self.fits(payload, rank) {
            self.flush(progress)?;
        }
        self.make_room(payload, rank)
    }

    /// One `pwrite`, one `fdatasync`; then what is in the batch is durable, and a new batch is begun.
    fn flush(&mut self, progress: &mut Progress) -> Result<(), Stop> {
        let Some(active) = self.active.as_mut().filter(|_| !self.batch.is_empty()) else {
            progress
                .done
                .extend(progress.buffered.drain(..).map(|(_, written)| written));
            return Ok(());
        };
        let (bytes, start) = self.batch.finish(self.durable);
        if let Err(error) = active.file.write_at(bytes, start) {
            if !is_no_space(&error) {
                return Err(Stop::Fatal(error));
            }
            // Nothing of it counts without its end, and the next batch goes to the same place: no hole.
            for (at, written) in progress.buffered.drain(..) {
                progress.unwritten.push(at);
                progress.blocked.insert(written.group);
            }
            self.groups.append(&mut self.batch.before);
            self.begin_batch();
            return Err(Stop::NoSpace);
        }
        if !planted(Mutation::NoSync) {
            active.file.sync_data()?;
        }
        active.tail = start + bytes.len() as u64;
        self.segments.0.count_flushed(bytes.len() as u64);
        self.durable = (active.id, active.tail);
        let freshly = mem::take(&mut active.fresh);
        let id = active.id;
        self.next_batch += 1;
        self.unmarked = true;
        self.last_flush = Instant::now();
        progress
            .done
            .extend(progress.buffered.drain(..).map(|(_, written)| written));
        self.publish(id, freshly);
        self.begin_batch();
        Ok(())
    }

    /// Tells the others what the flush made durable.
    fn publish(&mut self, id: u64, head: bool) {
        let mut table = self.segments.0.lock();
        table.active_durable = true;
        for (group, truncated) in &self.batch.truncated {
            let durable = table.durable.entry(*group).or_default();
            *durable = (*durable).max(*truncated);
        }
        if let Some(segment) = table.segments.get_mut(&id) {
            segment.end = Some(self.durable.1);
            for (group, index) in &self.batch.last {
                let last = segment.last.entry(*group).or_default();
                *last = (*last).max(*index);
            }
        }
        let released = !table.released.is_empty() && (head || !self.batch.truncated.is_empty());
        drop(table);
        if released {
            self.segments.0.wake();
        }
    }
}
