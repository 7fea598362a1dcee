//! The words of the log: entries, write tasks, locations, what recovery found, how much room is left.
//! No raft-rs type appears here; `storage` and `node` convert.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::identity::ClusterId;

/// What a Raft entry is for; the numbers are those on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// A command of the state machine, or the empty entry of a new leader.
    Normal = 0,
    /// A membership change of one node.
    ConfChange = 1,
    /// A membership change by joint consensus.
    ConfChangeV2 = 2,
}

/// One Raft entry: a command (`context`) and the bytes of bodies that it brings (`data`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Raft index, from 1.
    pub index: u64,
    /// Raft term in which a leader made it.
    pub term: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// The command, as `log.proto` writes it.
    pub context: Bytes,
    /// Bodies or reports, exactly as they came.
    pub data: Bytes,
}

/// What a Raft group must never forget (Raft paper, figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// Peer voted for in `term`, 0 = nobody.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// What one `Ready` of one group asks the log to make durable.
#[derive(Clone, Debug)]
pub struct WriteTask {
    /// Raft group.
    pub group: u32,
    /// Number of the `Ready`; comes back in [`Written`].
    pub number: u64,
    /// Entries in rising order; the first may lie below the last one written, which then truncates the suffix.
    pub entries: Vec<Entry>,
    /// The hard state, when it changed.
    pub hard_state: Option<HardState>,
    /// (index, term) of a snapshot that is installed: the group's log is emptied and goes on after it. Before the entries.
    pub reset: Option<(u64, u64)>,
    /// True when the entries only settle, grant or keep lease sessions: such a task may use the two reserved segments.
    pub urgent: bool,
}

/// Where a record lies. The reader verifies group, index and segment in the record itself, so a stale one is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// Segment number, never reused.
    pub segment: u64,
    /// Offset of the record's header in the segment's file, bytes.
    pub offset: u32,
    /// Length of the context, bytes.
    pub context_len: u32,
    /// Length of the data that follows the context, bytes.
    pub data_len: u32,
}

/// One task is durable: its fdatasync returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Raft group of the task.
    pub group: u32,
    /// Number of the task.
    pub number: u64,
    /// Index and place of every entry of the task, in order.
    pub locations: Vec<(u64, Location)>,
}

/// What the log held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every group that ever wrote a hard state, an entry or a truncation.
    pub groups: BTreeMap<u32, RecoveredGroup>,
    /// Bytes of an unacknowledged last batch that were dropped, for the start-up message; 0 = a clean end.
    pub torn_bytes: u64,
    /// Segments read; 0: the log was never begun, or its disk was lost.
    pub segments: usize,
    /// Entries that were acknowledged and whose bytes are damaged, all of them at or below [`LogConfig::applied`]. What
    /// still needs them gets them from another replica.
    pub damaged: Vec<Damaged>,
}

/// An entry that is known to have been durable and cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damaged {
    /// Raft group.
    pub group: u32,
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Where its record stands.
    pub location: Location,
    /// The record is a copy of the entry's data, and no part of the group's log.
    pub copy: bool,
}

/// One group as the log held it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// Index and term of the last entry that is gone; `entries` begin right after it.
    pub truncated: (u64, u64),
    /// What is there, without gaps. Bodies are not read into memory.
    pub entries: Vec<RecoveredEntry>,
}

impl RecoveredGroup {
    /// The term of an entry that is there, or of the one before the first.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        let at = self
            .entries
            .binary_search_by_key(&index, |entry| entry.index);
        at.ok().map(|at| self.entries[at].term)
    }

    /// The last index of the group's log.
    pub fn last_index(&self) -> u64 {
        self.entries
            .last()
            .map_or(self.truncated.0, |entry| entry.index)
    }
}

/// An entry without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredEntry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// Where its bytes are.
    pub location: Location,
}

/// The data of an entry, to be kept in a segment of the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocated {
    /// Raft group.
    pub group: u32,
    /// Raft index.
    pub index: u64,
    /// Raft term of the entry.
    pub term: u64,
    /// Digest of `data`.
    pub digest: mail::Digest,
    /// The entry's data, whole.
    pub data: Bytes,
}

/// How much room the log's disk has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// What all percentages refer to, bytes: `disk_bytes`, or the file system.
    pub limit: u64,
    /// Used of it, bytes; spare segments do not count.
    pub used: u64,
    /// Spare segments and those that could still be made.
    pub free_segments: u64,
    /// Free bytes that mail cannot have: the segments that are reserved for what frees space, and what is lost at the end
    /// of the last one.
    pub reserved: u64,
    /// True when no new mail must be taken: fewer than three free segments, or less free space than the reserve.
    pub full: bool,
    /// `used` of `limit`, percent, 0 to 100.
    pub percent: u8,
}

/// A segment as the owner of the live counters needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Segment number.
    pub id: u64,
    /// 0: written by the Raft log; above: by the collector, which counts how often what is in it was copied.
    pub generation: u32,
    /// Nothing more will be written into it.
    pub sealed: bool,
    /// All its entries are truncated in every group, and no copy into it waits for the state's flush.
    pub truncated: bool,
    /// Highest index of each group in it, overwritten entries included.
    pub last: BTreeMap<u32, u64>,
}

/// A truncation beyond everything: of a replica that this node does not have any more. What the log holds of it counts
/// nowhere, and its segments are released.
pub const GONE: (u64, u64) = (1 << 62, 0);

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The cluster that the segments must belong to.
    pub cluster_id: ClusterId,
    /// The store incarnation that the segments must belong to.
    pub incarnation: u128,
    /// Size of a segment file, bytes; raised to hold one entry of `max_entry_bytes`.
    pub segment_bytes: u64,
    /// The most that the log may use of its disk, bytes; None = the file system's size.
    pub disk_bytes: Option<u64>,
    /// Largest context and data of one entry together, bytes.
    pub max_entry_bytes: u32,
    /// A batch is flushed when it is this long, bytes; one entry may exceed it.
    pub batch_bytes: usize,
    /// For each group the index up to which its state is durable. Damage to bodies of entries up to there can be mended,
    /// since nothing will apply them again; all other damage keeps the log closed.
    pub applied: BTreeMap<u32, u64>,
    /// The replicas that this node has, by what the log calls them; what it holds of others is [`GONE`]. `None`: all.
    pub replicas: Option<std::collections::BTreeSet<u32>>,
    /// Make and fill spare segments in a thread. Off, [`super::Segments::maintain`] does it when called (simulation).
    pub background: bool,
}

impl LogConfig {
    /// Default size of a segment file.
    pub const SEGMENT_BYTES: u64 = 64 << 20;
    /// A body chunk of 1 MiB and a command of 256 KiB (queue.md 4.2).
    pub const MAX_ENTRY_BYTES: u32 = (1 << 20) + (256 << 10);
    /// 1 to 4 MiB a flush is where disks reach their bandwidth.
    pub const BATCH_BYTES: usize = 4 << 20;

    /// The defaults for a store.
    pub fn new(cluster_id: ClusterId, incarnation: u128) -> Self {
        Self {
            cluster_id,
            incarnation,
            segment_bytes: Self::SEGMENT_BYTES,
            disk_bytes: None,
            max_entry_bytes: Self::MAX_ENTRY_BYTES,
            batch_bytes: Self::BATCH_BYTES,
            applied: BTreeMap::new(),
            replicas: None,
            background: true,
        }
    }
}
