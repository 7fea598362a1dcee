//! Where the next record goes: the active segment, the head of a new one, or nowhere.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::batch::GroupState;
use super::planted::{Mutation, planted};
use super::record::{
    BLOCK, END_RECORD, HARD_STATE_PAYLOAD, HEADER, STATE_PAYLOAD, SegmentHeader, segment_name,
};
use super::segments::Segment;
use super::spare::is_no_space;
use super::{DiskFile, LogWriter, WriteTask};

/// The segment that is written into.
#[derive(Debug)]
pub(super) struct Active {
    pub id: u64,
    pub file: Arc<dyn DiskFile>,
    /// Offset of the next batch.
    pub tail: u64,
    /// Taken from the two reserved ones: only urgent tasks go in.
    pub reserved: bool,
    /// Its header and STATE records are yet to be written.
    pub fresh: bool,
}

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// New mail: neither the reserved segments nor the end of a segment.
    Normal,
    /// What frees space: the reserved segments as well.
    Urgent,
    /// STATE records that released segments wait for: also the end of a segment, so that a full disk can recover.
    State,
    /// Copies of what lives on: the last reserved segment.
    Collection,
}

impl Rank {
    pub fn of(task: &WriteTask) -> Self {
        if task.urgent {
            Self::Urgent
        } else {
            Self::Normal
        }
    }
}

/// Why a record found no place.
pub(super) enum Stop {
    NoSpace,
    Fatal(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Fatal(error)
    }
}

impl LogWriter {
    /// Is there room in the active segment for one more record and the end of its batch, and may it go there?
    pub(super) fn fits(&mut self, payload: usize, rank: Rank) -> bool {
        let states = self.groups.len() * (HEADER + STATE_PAYLOAD) + END_RECORD;
        let kept = if rank == Rank::State {
            0
        } else {
            (states as u64).next_multiple_of(BLOCK)
        };
        let needed = self.batch.len_with(payload).next_multiple_of(BLOCK) + kept;
        let capacity = self.segments.0.capacity;
        let Some(active) = &mut self.active else {
            return false;
        };
        if active.reserved && rank == Rank::Normal {
            active.reserved = !self.segments.0.reserve_is_whole();
        }
        (rank != Rank::Normal || !active.reserved) && active.tail + needed <= capacity
    }

    /// Begins a new segment when the active one has no room. Only called with an empty batch in that case.
    pub(super) fn make_room(&mut self, payload: usize, rank: Rank) -> Result<(), Stop> {
        if self.fits(payload, rank) {
            return Ok(());
        }
        if self.active.as_ref().is_some_and(|active| active.fresh) {
            // A fresh one is too small only for a record beyond `max_entry_bytes`, or is reserved.
            return Err(Stop::NoSpace);
        }
        let Some((spare, reserved)) = self.segments.0.take_spare(rank)? else {
            return Err(Stop::NoSpace);
        };
        let shared = &self.segments.0;
        let id = self.next_segment;
        let (from, to) = (shared.path(&spare.name), shared.path(&segment_name(id)));
        if let Err(error) = shared.disk.rename(&from, &to) {
            shared.lock().spares.ready.push(spare);
            return Err(if is_no_space(&error) {
                Stop::NoSpace
            } else {
                Stop::Fatal(error)
            });
        }
        // Before the first byte: a crash must not bring back the file under its old name with new content.
        if !planted(Mutation::NoDirSync) {
            shared.disk.sync_dir(&shared.dir)?;
        }
        self.next_segment += 1;
        let mut table = shared.lock();
        let segment = Segment {
            file: Some(spare.file.clone()),
            ..Segment::default()
        };
        table.segments.insert(id, segment);
        table.active = Some(id);
        table.active_durable = false;
        drop(table);
        self.active = Some(Active {
            id,
            file: spare.file,
            tail: 0,
            reserved,
            fresh: true,
        });
        self.begin_batch();
        Ok(())
    }

    /// An empty batch at the tail; at the head of a segment its header and the STATE of all groups.
    pub(super) fn begin_batch(&mut self) {
        let Some(active) = &self.active else {
            self.batch.begin(0, 0, self.next_batch);
            return;
        };
        self.batch.begin(active.id, active.tail, self.next_batch);
        if active.fresh {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            self.batch.lead(&SegmentHeader {
                segment: active.id,
                generation: 0,
                created_ms: now.as_millis() as u64,
                cluster: self.config.cluster_id,
                incarnation: self.config.incarnation,
                capacity: self.segments.0.capacity,
                durable: self.durable,
            });
            self.add_due_states(true);
        } else {
            let wanted = self.segments.0.lock().wants_state();
            self.add_due_states(wanted);
        }
    }

    /// STATE records: of all groups at the head of a segment, else of those whose truncation a release waits for.
    fn add_due_states(&mut self, wanted: bool) {
        if !wanted {
            return;
        }
        let head = self.active.as_ref().is_some_and(|active| active.fresh);
        let mut table = self.segments.0.lock();
        if head {
            for group in table.forget_gone() {
                self.groups.remove(&group);
            }
        }
        for (group, truncated) in &table.wanted {
            self.groups.entry(*group).or_default().adopt(*truncated);
        }
        let stale = |group: &u32, state: &GroupState| {
            table.durable.get(group).copied().unwrap_or_default() < state.truncated
        };
        let due: Vec<(u32, GroupState)> = self
            .groups
            .iter()
            .filter(|(group, state)| head || stale(group, state))
            .map(|(group, state)| (*group, *state))
            .collect();
        drop(table);
        for (group, state) in due {
            if head || self.fits(STATE_PAYLOAD, Rank::State) {
                self.batch.state(group, &state);
            }
        }
    }
}

impl GroupState {
    /// Takes over a snapshot: nothing of the group's log is left, whatever it held.
    pub fn reset(&mut self, snapshot: (u64, u64)) {
        self.truncated = snapshot;
        self.last = snapshot.0;
        self.hard_state.commit = self.hard_state.commit.max(snapshot.0);
    }

    /// Takes over a truncation; one beyond the end empties the group's log.
    pub fn adopt(&mut self, truncated: (u64, u64)) {
        self.truncated = self.truncated.max(truncated);
        self.last = self.last.max(truncated.0);
        self.hard_state.commit = self.hard_state.commit.max(truncated.0);
    }
}

/// Room that the head of a segment needs besides one largest entry, bytes: header, STATE of 256 shards and the control
/// group, hard states and the end.
pub(super) const HEAD_ROOM: u64 = 2 * BLOCK
    + 257 * (HEADER + STATE_PAYLOAD) as u64
    + 4 * (HEADER + HARD_STATE_PAYLOAD) as u64
    + END_RECORD as u64;
