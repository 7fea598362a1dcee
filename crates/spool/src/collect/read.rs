//! Bodies for those who look up a place first and read later: the collector may have moved them in between.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::BodyIndex;
use crate::log::{Location, LogReader, ReadError};

/// A body that was not read.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unread {
    /// Where it was looked for last: by the durable state, when that names another place than was asked for.
    pub location: Location,
    /// Why.
    #[source]
    pub error: ReadError,
}

impl Unread {
    /// The durable state names this place: a segment is given back only after that is no longer so. One that is not there
    /// was not recycled, but lost.
    fn into_damage(self) -> Unread {
        let Unread { location, error } = self;
        let error = match error {
            ReadError::Recycled { segment } => ReadError::Corrupt {
                segment,
                offset: location.offset,
                what: MISSING,
            },
            other => other,
        };
        Unread { location, error }
    }
}

/// What is wrong with a place in a segment that is not there.
pub(super) const MISSING: &str = "the segment's file is missing, and mail that lives lies in it";

/// Reads bodies; cheap to clone.
#[derive(Clone)]
pub struct BodyReader {
    reader: LogReader,
    /// Weak: a stream that still stands when the node closes must not keep the metadata open.
    index: Weak<dyn BodyIndex>,
}

impl BodyReader {
    /// Over a log and what the durable state says of it.
    pub fn new(reader: LogReader, index: &Arc<dyn BodyIndex>) -> BodyReader {
        BodyReader {
            reader,
            index: Arc::downgrade(index),
        }
    }

    /// Reads `len` octets of an entry's data from `offset`. The record at `location` says whose it is; when it is another
    /// one, the segment was recycled, and the durable state names the new place: a segment is given back only after
    /// that is so.
    ///
    /// # Errors
    /// [`Unread`]; but for [`ReadError::Recycled`] it is damage, and another replica has the body.
    pub fn read_data(
        &self,
        location: Location,
        group: u32,
        index: u64,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Unread> {
        let read = |location| {
            self.reader
                .read_data(location, group, index, offset, len)
                .map_err(|error| Unread { location, error })
        };
        let first = read(location);
        if first.is_ok() {
            return first;
        }
        let rows = self.index.upgrade();
        let now = rows.and_then(|rows| {
            // The replica may be another one than the place is of: what it has is the same entry's.
            let replica = rows.replica_of(group)?;
            rows.locate(replica, index).ok().flatten()
        });
        match now {
            Some(now) if now != location => read(now).map_err(Unread::into_damage),
            Some(_) => first.map_err(Unread::into_damage),
            None => first,
        }
    }
}
