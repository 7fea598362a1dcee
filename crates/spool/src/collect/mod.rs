//! Collection: what lives on of segments that are mostly dead is copied, and the segments are given back (queue.md 4.3).
//!
//! A segment of the log dies by itself when all its mail is delivered, which most mail is within seconds. What is parked
//! for hours or days must not pin the segments that it happens to lie in: such bodies are copied into segments of the
//! next generation, where everything is old. Raft's truncation is only logical, and waits for nobody who is parked.
//!
//! # The order that keeps promises
//! 1. A segment is a source when the Raft log is done with it: its entries are at or below the durable applied index and
//!    truncated in every group, and nobody writes into it.
//! 2. Its living bodies are verified and copied into the open segment of the next generation, which is fsynced (its name
//!    was fsynced before its first byte). The target is pinned: nothing seems to live in it yet.
//! 3. The state thread, which applies the groups' entries, moves the rows (`GroupState::relocate`). A row that is gone
//!    meanwhile stays gone: a settle in between must not be undone.
//! 4. The rows are flushed and fsynced. Only then the target's pin goes, and the source, in which nothing lives any
//!    more by the *durable* state, is released like any dead segment. (cockroach#114191: files removed before the
//!    removal of what refers to them was durable.)
//!
//! So a crash at any instant leaves each living body in a segment that the durable state names; copies that nothing
//! names are garbage in a segment that is given back at the next start, or collected with it.
//!
//! # When the disk is full
//! One spare segment belongs to the collector alone (`log::spare`), and a job takes at most one and frees one. Copying
//! goes on while mail is refused, without the wait that otherwise lets young segments die by themselves.
//!
//! # Damage
//! A body that cannot be read stays where it is, is reported once an hour ([`Damage`]), and keeps its segment; every
//! other segment is collected as ever (BookKeeper#4596: one corrupt file stopped the collection for ever).

mod copy;
mod engine;
mod examine;
mod pace;
mod plan;
mod read;
mod scrub;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use copy::{CollectError, edge_digest, read_whole};
pub use engine::{Collector, Look, Space, Step};
pub use pace::Pace;
pub use plan::{Choice, PRESSED_PERCENT, Planner, REASONS};
pub use read::{BodyReader, Unread};
pub use scrub::Scrub;

use crate::log::Location;
use crate::state::{SegmentLive, StoreError};

/// Where bodies lie by the last durable flush of the state. Asked from other threads than the one that applies.
pub trait BodyIndex: Send + Sync {
    /// Where the data of an entry lies; `None`: nothing in it lives. The replica is what the log calls it
    /// ([`crate::directory::log_group`]): one that is gone has nothing that lives.
    ///
    /// # Errors
    /// The store cannot be read.
    fn locate(&self, replica: u32, index: u64) -> Result<Option<Location>, StoreError>;

    /// The replica that this node has of a group, as the log calls it; `None`: it has none, or one without rows.
    fn replica_of(&self, group: u32) -> Option<u32>;

    /// At most `limit` rows (replica, index, place) of all replicas, from `from` on, in order.
    ///
    /// # Errors
    /// The store cannot be read.
    fn rows(&self, from: (u32, u64), limit: usize)
    -> Result<Vec<(u32, u64, Location)>, StoreError>;
}

/// A copy that is durable: the row that names `from` is to name `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose row, as the log calls the replica.
    pub replica: u32,
    /// Raft index of the entry.
    pub index: u64,
    /// Where its data lay when it was copied.
    pub from: Location,
    /// Where the copy lies.
    pub to: Location,
}

/// Copies of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Counts them; [`Collector::durable`] is told the last one of a flush.
    pub number: u64,
    /// What to move.
    pub moves: Vec<Move>,
    /// What pins the segments that were copied to, until these moves are durable ([`crate::log::Segments::unpin`]).
    pub pin: u64,
}

/// To the collector's thread.
pub enum CollectEvent {
    /// A flush of the state is durable.
    Durable {
        /// Number of the last moves in it.
        moves: u64,
        /// What lives in each segment by it.
        live: BTreeMap<u64, SegmentLive>,
    },
    /// End.
    Stop,
}

/// A living body that this replica cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Of which replica, as the log calls it.
    pub replica: u32,
    /// Raft index of its entry.
    pub index: u64,
    /// Where it should lie.
    pub location: Location,
    /// What is wrong there.
    pub what: String,
}

/// Who is told of damage, from any thread; must not block.
pub type OnDamage = Arc<dyn Fn(&Damage) + Send + Sync>;

/// What the collector may do. The defaults are queue.md 4.3.
#[derive(Clone, Debug)]
pub struct CollectConfig {
    /// Percent of a segment that may live in it for it to be collected. `None`: 25 while less than 60 % of the disk are
    /// used, 50 above, 75 above 80 %.
    pub threshold: Option<u8>,
    /// A segment is left alone for so long after its end, milliseconds: most of what is in it will be gone by then.
    pub min_age_ms: u64,
    /// Octets a second that are copied at most while the disk is not pressed.
    pub rate: u64,
    /// Octets of bodies that are copied at once, with one flush.
    pub step_bytes: usize,
}

impl CollectConfig {
    /// Mail that a next hop takes at all is mostly gone within a minute.
    pub const MIN_AGE_MS: u64 = 60_000;
    /// A third of what a slow disk writes: mail comes first. Above 80 % used there is no such limit.
    pub const RATE: u64 = 32 << 20;
    /// As for the log's own flushes: 1 to 4 MiB is where disks reach their bandwidth.
    pub const STEP_BYTES: usize = 2 << 20;
}

impl Default for CollectConfig {
    fn default() -> CollectConfig {
        CollectConfig {
            threshold: None,
            min_age_ms: CollectConfig::MIN_AGE_MS,
            rate: CollectConfig::RATE,
            step_bytes: CollectConfig::STEP_BYTES,
        }
    }
}
