//! Where bodies lie by the last durable flush, for threads that do not apply: the collector, and whoever reads a body of
//! which the segment was recycled meanwhile.

use fjall::Keyspace;

use super::StoreError;
use super::bodies::Kept;
use super::codec;
use super::key;
use crate::collect::BodyIndex;
use crate::log::Location;

/// The durable rows of all groups that say where bodies lie. A segment is given back only after the rows that no longer
/// name it are durable, so what these rows say can be read.
#[derive(Clone)]
pub struct StoredBodies {
    pub(super) kept: Keyspace,
}

impl BodyIndex for StoredBodies {
    fn locate(&self, group: u32, index: u64) -> Result<Option<Location>, StoreError> {
        let key = key::prefixed(group, &index);
        let Some(value) = self.kept.get(&key).map_err(StoreError::of)? else {
            return Ok(None);
        };
        codec::decode::<Kept>(&value)
            .map(|kept| Some(kept.location))
            .ok_or_else(|| StoreError::unreadable(self.kept.name(), group, &key))
    }

    fn rows(
        &self,
        from: (u32, u64),
        limit: usize,
    ) -> Result<Vec<(u32, u64, Location)>, StoreError> {
        let mut rows = Vec::new();
        for guard in self
            .kept
            .range(key::prefixed(from.0, &from.1)..)
            .take(limit)
        {
            let (bytes, value) = guard.into_inner().map_err(StoreError::of)?;
            let group = bytes.first_chunk().map(|group| u32::from_be_bytes(*group));
            let row = group
                .zip(key::parse::<u64>(&bytes))
                .zip(codec::decode::<Kept>(&value));
            let ((group, index), kept) =
                row.ok_or_else(|| StoreError::unreadable(self.kept.name(), 0, &bytes))?;
            rows.push((group, index, kept.location));
        }
        Ok(rows)
    }
}
