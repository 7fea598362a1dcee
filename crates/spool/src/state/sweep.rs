//! Removing what a replica left that this node does not have any more.

use std::ops::Bound;

use fjall::{Database, Keyspace};

use super::StoreError;
use super::store::{Keyspaces, is_replica_mark};

/// Rows that one batch removes: a few hundred kilobytes of journal, so that others are not held up.
const ROWS_AT_ONCE: usize = 4096;

/// The rows of a replica that was buried. Idempotent: what a crash leaves is swept at the next start.
#[must_use]
pub struct Sweep {
    pub(super) database: Database,
    pub(super) keyspaces: Keyspaces,
    pub(super) replica: u32,
}

impl Sweep {
    /// Removes them, in parts; how many there were. Nothing needs to be synced: rows that come back are removed again.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn run(self) -> Result<usize, StoreError> {
        let keyspaces = self.keyspaces.all();
        keyspaces.map(|keyspace| self.clear(keyspace)).sum()
    }

    fn clear(&self, keyspace: &Keyspace) -> Result<usize, StoreError> {
        let mut rows = 0;
        let mut from = Bound::Included(self.replica.to_be_bytes().to_vec());
        let end = Bound::Excluded(self.replica.saturating_add(1).to_be_bytes().to_vec());
        loop {
            let mut batch = self.database.batch();
            let mut last = None;
            let mut seen = 0;
            for guard in keyspace
                .range((from.clone(), end.clone()))
                .take(ROWS_AT_ONCE)
            {
                let key = guard.key().map_err(StoreError::of)?;
                seen += 1;
                if !is_replica_mark(&key) || !std::ptr::eq(keyspace, &self.keyspaces.fixed) {
                    batch.remove(keyspace, key.clone());
                    rows += 1;
                }
                last = Some(key.to_vec());
            }
            batch.commit().map_err(StoreError::of)?;
            match last {
                Some(last) if seen == ROWS_AT_ONCE => from = Bound::Excluded(last),
                _ => return Ok(rows),
            }
        }
    }
}
