//! Which segments exist, which are spare, and how much room is left.

use super::{DiskUse, SegmentInfo};

/// The log's segments, shared by the writer, the readers and the owner of the live counters.
#[derive(Clone, Debug)]
pub struct Segments {}

impl Segments {
    /// The last index and term of `group` that is logically gone; the next STATE record says so.
    pub fn set_truncated(&self, _group: u32, _truncated: (u64, u64)) {}

    /// Nothing in the segment lives and everything in it is applied durably: recycle it. The log itself waits until a
    /// newer STATE record that covers it is durable.
    pub fn release(&self, _segment: u64) {}

    /// Sealed segments, not yet released, whose entries are all truncated in every group.
    pub fn truncatable(&self) -> Vec<u64> {
        Vec::new()
    }

    /// All segments that hold records, oldest first.
    pub fn list(&self) -> Vec<SegmentInfo> {
        Vec::new()
    }

    /// How much room there is.
    pub fn disk(&self) -> DiskUse {
        DiskUse::default()
    }

    /// Bytes that others (the metadata store) use of the same `disk_bytes`.
    pub fn set_other_bytes(&self, _bytes: u64) {}

    /// Recycles released segments and keeps spares ready. Only needed when the log was opened without `background`.
    pub fn maintain(&self) {}
}
