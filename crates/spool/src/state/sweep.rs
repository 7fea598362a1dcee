//! The replicas that this node has and had, and removing what is left of those that it had.

use std::collections::BTreeMap;
use std::ops::Bound;

use fjall::{Database, Keyspace, PersistMode};

use super::store::{FIXED_CONF_STATE, FIXED_REPLICA, fixed_key, fixed_tag};
use super::store::{Keyspaces, outlives_rows};
use super::{Store, StoreError};

/// Rows that one batch removes: a few hundred kilobytes of journal, so that others are not held up.
const ROWS_AT_ONCE: usize = 4096;

/// Values of [`FIXED_REPLICA`] begin so; the version of its placement follows, 8 octets.
const REPLICA_HERE: u8 = 1;
/// See [`REPLICA_HERE`].
const REPLICA_GONE: u8 = 0;

/// The rows of a replica that was buried. Idempotent: what a crash leaves is swept at the next start.
#[must_use]
pub struct Sweep {
    pub(super) database: Database,
    pub(super) keyspaces: Keyspaces,
    pub(super) replica: u32,
    /// Where its rows lie (see [`super::import`]).
    pub(super) slot: u32,
}

impl Store {
    /// Every replica that this node has, with the version of the placement that it was made for, or had (`None`), by what the
    /// log calls it.
    ///
    /// # Errors
    /// [`StoreError`]: they cannot be read.
    pub fn replicas(&self) -> Result<BTreeMap<u32, Option<u64>>, StoreError> {
        let mut replicas = BTreeMap::new();
        for guard in self.keyspaces.fixed.iter() {
            let (key, value) = guard.into_inner().map_err(StoreError::of)?;
            if let Some((replica, FIXED_REPLICA)) = fixed_key(&key) {
                let made_at = match value.split_first() {
                    Some((&REPLICA_HERE, version)) => Some(
                        <[u8; 8]>::try_from(version)
                            .map(u64::from_be_bytes)
                            .map_err(|_| StoreError::unreadable("fixed", replica, &key))?,
                    ),
                    _ => None,
                };
                replicas.insert(replica, made_at);
            }
        }
        Ok(replicas)
    }

    /// A new replica, durably, made for this version of its group's placement: the members that the group's log began with are
    /// all that it knows.
    ///
    /// # Errors
    /// As [`super::Flush::run`].
    pub fn create(&self, replica: u32, conf_state: &[u8], version: u64) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        let key = |tag| fixed_tag(replica, tag);
        let here = [&[REPLICA_HERE][..], &version.to_be_bytes()].concat();
        batch.insert(&self.keyspaces.fixed, key(FIXED_REPLICA), here);
        batch.insert(&self.keyspaces.fixed, key(FIXED_CONF_STATE), conf_state);
        batch.commit().map_err(StoreError::of)
    }

    /// This node does not have the replica any more, durably: late messages must not bring it back. Its rows go with
    /// [`Store::sweep`].
    ///
    /// # Errors
    /// As [`super::Flush::run`].
    pub fn bury(&self, replica: u32) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        let key = fixed_tag(replica, FIXED_REPLICA);
        batch.insert(&self.keyspaces.fixed, key, [REPLICA_GONE]);
        batch.commit().map_err(StoreError::of)
    }
}

impl Sweep {
    /// Removes them, in parts; how many there were. Nothing needs to be synced: rows that come back are removed again, and so
    /// are at the next start those that are left when `must_end` says between two parts that the node closes.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn run(self, must_end: impl Fn() -> bool) -> Result<usize, StoreError> {
        let Keyspaces {
            kept,
            segments,
            fixed,
            ..
        } = &self.keyspaces;
        let replicated = self.keyspaces.replicated();
        let replicated = replicated.iter().map(|(_, table)| (*table, self.slot));
        let local = [(kept, self.slot), (segments, self.slot)];
        // The last ones say where the others lie.
        let all = replicated.chain(local).chain([(fixed, self.replica)]);
        let mut rows = 0;
        for (keyspace, prefix) in all {
            if !self.clear(keyspace, prefix, &must_end, &mut rows)? {
                break;
            }
        }
        Ok(rows)
    }

    /// `false`: it was told to end before all were gone.
    fn clear(
        &self,
        keyspace: &Keyspace,
        prefix: u32,
        must_end: &impl Fn() -> bool,
        rows: &mut usize,
    ) -> Result<bool, StoreError> {
        let mut from = Bound::Included(prefix.to_be_bytes().to_vec());
        let end = Bound::Excluded(prefix.saturating_add(1).to_be_bytes().to_vec());
        loop {
            if must_end() {
                return Ok(false);
            }
            let mut batch = self.database.batch();
            let mut last = None;
            let mut seen = 0;
            for guard in keyspace
                .range((from.clone(), end.clone()))
                .take(ROWS_AT_ONCE)
            {
                let key = guard.key().map_err(StoreError::of)?;
                seen += 1;
                if !outlives_rows(&key) || !std::ptr::eq(keyspace, &self.keyspaces.fixed) {
                    batch.remove(keyspace, key.clone());
                    *rows += 1;
                }
                last = Some(key.to_vec());
            }
            batch.commit().map_err(StoreError::of)?;
            match last {
                Some(last) if seen == ROWS_AT_ONCE => from = Bound::Excluded(last),
                _ => return Ok(true),
            }
        }
    }
}
