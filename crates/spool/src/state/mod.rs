//! The durable rows of a node's replicas: `queue::Rows` over one fjall database, `<dir>/meta`.
//!
//! # Layers
//! A [`GroupState`] reads through three layers, newest first: the *overlay* (rows since the last freeze, decoded, in
//! memory), the *frozen* overlay that a flush is just writing, and fjall. Writes go to the overlay only. Every
//! [`FLUSH_INTERVAL`], or when the overlays hold [`FLUSH_BYTES`], the caller freezes the overlays of all groups and
//! has [`Flush::run`] write them on a helper thread: **one** batch with the rows of each group *and* the applied index
//! that they belong to, synced before it is visible. So the rule that the applied index lies in the same batch as the
//! rows holds, with one batch a window in place of one an apply. The Raft log is the write-ahead log: what a crash
//! takes from the overlay is applied again from `applied + 1` on, and the log is truncated only up to
//! [`Store::durable_applied`].
//!
//! The reason is cost. Most mail is delivered within the window in which it came, and a row that is put and deleted
//! between two freezes, and that fjall cannot know, leaves nothing at all: no journal, no memtable, no tombstone.
//! What tells whether fjall can know it is the *born* set: messages that were looked up and found absent in all
//! layers during this window. The rows of a message live only while the message does, so none of its items,
//! recipients, due times and timers can lie below either; no Bloom filter is asked and no tombstone written.
//!
//! # Bounds
//! Memory does not grow with parked mail: the overlay holds one window, fjall its block cache ([`BLOCK_CACHE_BYTES`])
//! and memtables ([`MEMTABLE_BYTES`] a table; the database-wide cap of fjall 3.1 has no effect, so the cap is a
//! table's). Rows stay below [`ROW_MAX`].
//!
//! # Snapshots
//! [`Export`] reads what the last flush made durable, by MVCC, while everything goes on. [`Import`] writes the rows of
//! another replica under a prefix of their own (a *slot*), where nothing sees them, and one batch makes them the group's.
//!
//! # When the disk fails
//! `Rows` cannot fail, because `apply` cannot. A read error is kept ([`GroupState::error`]), defaults are
//! returned, and nothing of that group is ever flushed again: the caller stops the replica node before it answers
//! anyone. A full disk is [`StoreError::NoSpace`]: close everything, wait, open again; Raft replays.

mod bodies;
mod codec;
mod config;
mod digest;
mod durable;
mod error;
mod export;
mod flush;
mod group;
mod import;
mod index;
mod journal;
mod key;
mod rows;
mod store;
mod sweep;
mod sworn;
mod table;

#[cfg(test)]
mod tests;

pub use bodies::SegmentLive;
pub use config::ConfigRow;
pub use digest::{DIGEST_ROWS_MAX, Digested, digest};
pub use error::StoreError;
pub use export::{Export, ExportedBody};
pub use flush::{Flush, Flushed};
pub use group::GroupState;
pub use import::{Cleaner, Import, Importer, Switched};
pub use index::StoredBodies;
pub use store::{MESSAGES, Store, StoreConfig};
pub use sweep::Sweep;
pub use sworn::Sworn;
#[cfg(test)]
pub use sworn::message_row;

use std::time::Duration;

/// How long rows stay in memory only. A crash replays at most about this much of the log, and mail that is settled
/// sooner costs no disk at all.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(2);

/// A flush is due when the overlays hold about this much, bytes: with the frozen ones twice this is the most.
pub const FLUSH_BYTES: usize = 32 * 1024 * 1024;

/// fjall's block cache, bytes.
pub const BLOCK_CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A table's memtable, bytes: sixteen tables together stay near 64 MiB.
pub const MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;

/// Journals on disk before fjall writes memtables out, bytes: what a start has to read.
pub const JOURNAL_BYTES: u64 = 128 * 1024 * 1024;

/// Longest row, bytes. A page (4 KiB) of a journal that a power cut lost reads as zeros; below this it always covers the
/// header of an entry, which is then seen to be damaged at once. Rows are usually below 1 KiB.
pub const ROW_MAX: usize = 4000;
