//! Bodies for those who look up a place first and read later: the collector may have moved them in between.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::{BodyIndex, Damage, OnDamage};
use crate::log::{Location, LogReader, ReadError};

/// Reads bodies; cheap to clone.
#[derive(Clone)]
pub struct BodyReader {
    reader: LogReader,
    /// Weak: a stream that still stands when the node closes must not keep the metadata open.
    index: Weak<dyn BodyIndex>,
    on_damage: OnDamage,
}

impl BodyReader {
    /// Over a log and what the durable state says of it.
    pub fn new(reader: LogReader, index: &Arc<dyn BodyIndex>, on_damage: OnDamage) -> BodyReader {
        BodyReader {
            reader,
            index: Arc::downgrade(index),
            on_damage,
        }
    }

    /// Reads `len` octets of an entry's data from `offset`. The record at `location` says whose it is; when it is another
    /// one, the segment was recycled, and the durable state names the new place: a segment is given back only after
    /// that is so.
    ///
    /// # Errors
    /// As [`LogReader::read_data`]; damage is reported.
    pub fn read_data(
        &self,
        location: Location,
        group: u32,
        index: u64,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, ReadError> {
        let read = |location| self.reader.read_data(location, group, index, offset, len);
        let first = read(location);
        if first.is_ok() {
            return first;
        }
        let rows = self.index.upgrade();
        let now = rows.and_then(|rows| rows.locate(group, index).ok().flatten());
        let (last, location) = match now {
            Some(now) if now != location => (read(now), now),
            _ => (first, location),
        };
        if let Err(error @ (ReadError::Corrupt { .. } | ReadError::Io { .. })) = &last {
            (self.on_damage)(&Damage {
                group,
                index,
                location,
                what: error.to_string(),
            });
        }
        last
    }
}
