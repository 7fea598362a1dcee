//! Where bodies lie by the last durable flush, for threads that do not apply: the collector, and whoever reads a body of
//! which the segment was recycled meanwhile.

use std::sync::{Arc, Mutex};

use fjall::Keyspace;

use super::StoreError;
use super::bodies::Kept;
use super::codec;
use super::durable::Durable;
use super::key;
use crate::collect::BodyIndex;
use crate::log::Location;

/// The durable rows of all replicas that say where bodies lie. A segment is given back only after the rows that no longer
/// name it are durable, so what these rows say can be read.
///
/// The keys begin with the replica's slot, which a snapshot changes ([`super::import`]): what a slot that is no replica's holds
/// is staged, or about to be removed, and is never looked at.
#[derive(Clone)]
pub struct StoredBodies {
    pub(super) kept: Keyspace,
    pub(super) messages: Keyspace,
    pub(super) durable: Arc<Mutex<Durable>>,
}

impl StoredBodies {
    pub(super) fn slot(&self, replica: u32) -> Option<u32> {
        Durable::of(&self.durable).slot_if_here(replica)
    }
}

impl BodyIndex for StoredBodies {
    fn locate(&self, replica: u32, index: u64) -> Result<Option<Location>, StoreError> {
        loop {
            let Some(slot) = self.slot(replica) else {
                return Ok(None);
            };
            let key = key::prefixed(slot, &index);
            let value = self.kept.get(&key).map_err(StoreError::of)?;
            if self.slot(replica) != Some(slot) {
                // A snapshot came in between, and the rows that were looked at may be gone.
                continue;
            }
            let Some(value) = value else {
                return Ok(None);
            };
            return codec::decode::<Kept>(&value)
                .map(|kept| Some(kept.location))
                .ok_or_else(|| StoreError::unreadable(self.kept.name(), replica, &key));
        }
    }

    fn replica_of(&self, group: u32) -> Option<u32> {
        Durable::of(&self.durable).replica_of(group)
    }

    fn rows(
        &self,
        from: (u32, u64),
        limit: usize,
    ) -> Result<Vec<(u32, u64, Location)>, StoreError> {
        // One replica after another: slots do not lie in the order of their replicas, by which callers go on.
        let slots = Durable::of(&self.durable).slots_from(from.0);
        let mut rows = Vec::new();
        for (replica, slot) in slots {
            let first = if replica == from.0 { from.1 } else { 0 };
            let range = key::prefixed(slot, &first)..=key::prefixed(slot, &u64::MAX);
            for guard in self.kept.range(range).take(limit - rows.len()) {
                let (bytes, value) = guard.into_inner().map_err(StoreError::of)?;
                let row = key::parse::<u64>(&bytes).zip(codec::decode::<Kept>(&value));
                let (index, kept) =
                    row.ok_or_else(|| StoreError::unreadable(self.kept.name(), replica, &bytes))?;
                rows.push((replica, index, kept.location));
            }
            if rows.len() >= limit {
                break;
            }
        }
        Ok(rows)
    }
}
