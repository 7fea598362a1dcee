//! Another replica's rows in place of a group's own: staged where nothing sees them, then switched in one batch.
//!
//! The keys of a replica's rows begin with its *slot*: its number at first, another one after each snapshot. An import
//! writes into a new slot, which stands as garbage until the last batch takes that mark away, gives it to the old slot,
//! and replaces the small values (applied index, members). A crash before that batch leaves the old rows as they were and
//! garbage to be removed; after it, the new rows and the old ones as garbage. So nothing is ever merged, and no row of a
//! big state needs to be written twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fjall::{Database, OwnedWriteBatch, PersistMode};

use super::bodies::{Kept, SegmentLive};
use super::codec::{self, put_number};
use super::key;
use super::store::read_applied;
use super::store::{
    FIXED_APPLIED, FIXED_GARBAGE, FIXED_INSTALLED, FIXED_REPLICA, FIXED_SLOT, Keyspaces, fixed_key,
};
use super::{Store, StoreError};
use crate::directory::group_of;
use crate::log::Location;

/// Octets of rows in one batch: some milliseconds for everybody else who writes.
const BATCH_BYTES: usize = 1 << 20;

/// Rows that are removed in one batch.
const CLEAN_ROWS: usize = 2048;

/// Slots that came with a snapshot: never the number of a replica (see [`crate::directory::log_group`]), which is the slot
/// that a replica begins with.
const OF_SNAPSHOT: u32 = 1 << 31;

/// Below that mark a slot counts the snapshots, of all replicas that this node ever had of the group; its lower half is
/// the group.
const EPOCH_SHIFT: u32 = 16;

/// See [`EPOCH_SHIFT`].
const EPOCH_MAX: u32 = 0x7fff;

/// Begins imports from any thread.
#[derive(Clone)]
pub struct Importer {
    database: Database,
    keyspaces: Keyspaces,
}

/// An import under way. Dropped without [`Import::switch`] it leaves garbage, which the next [`Cleaner`] removes.
pub struct Import {
    to: Importer,
    group: u32,
    old: u32,
    new: u32,
    batch: OwnedWriteBatch,
    batch_bytes: usize,
    fixed: Vec<(Vec<u8>, Vec<u8>)>,
    segments: BTreeMap<u64, SegmentLive>,
}

/// The rows of a group were replaced, durably. To be given to [`Store::switched`].
#[must_use]
#[derive(Debug)]
pub struct Switched {
    pub(super) group: u32,
    pub(super) slot: u32,
    pub(super) index: u64,
    pub(super) segments: BTreeMap<u64, SegmentLive>,
}

impl Switched {
    /// Whose rows they are now, as the log calls it.
    pub fn replica(&self) -> u32 {
        self.group
    }
}

/// Removes rows that belong to nobody.
pub struct Cleaner {
    of: Importer,
    stop: Arc<AtomicBool>,
    /// The keys that mark them.
    marks: Vec<fjall::UserKey>,
}

impl Store {
    /// To begin imports with.
    pub fn importer(&self) -> Importer {
        Importer {
            database: self.database.clone(),
            keyspaces: self.keyspaces.clone(),
        }
    }

    /// Index and term of the snapshot whose rows these are, if one was ever installed: where the log ends before it, a
    /// crash came between rows and log.
    ///
    /// # Errors
    /// [`StoreError`] when the value cannot be read.
    pub fn installed(&self, group: u32) -> Result<Option<(u64, u64)>, StoreError> {
        let key = small(group, FIXED_INSTALLED);
        let value = self.keyspaces.fixed.get(&key).map_err(StoreError::of)?;
        value
            .map(|v| read_applied(&v).ok_or_else(|| StoreError::unreadable("fixed", group, &key)))
            .transpose()
    }
}

fn small(group: u32, tag: u8) -> Vec<u8> {
    [&group.to_be_bytes()[..], &[tag]].concat()
}

fn garbage(group: u32, slot: u32) -> Vec<u8> {
    [&small(group, FIXED_GARBAGE)[..], &slot.to_be_bytes()].concat()
}

impl Importer {
    /// Begins to replace the rows of a group, of which no flush may be under way until it ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&self, group: u32) -> Result<Import, StoreError> {
        let table = &self.keyspaces.fixed;
        let mut old = group;
        let mut highest = 0;
        // Replicas of the same group that are gone may still have rows.
        for guard in table.iter() {
            let (key, value) = guard.into_inner().map_err(StoreError::of)?;
            let Some((of, tag)) = fixed_key(&key) else {
                continue;
            };
            let slot = match tag {
                _ if group_of(of) != group_of(group) => continue,
                FIXED_SLOT => value.first_chunk(),
                FIXED_GARBAGE => key[5..].first_chunk(),
                _ => continue,
            };
            let slot = slot.map(|slot| u32::from_be_bytes(*slot));
            let slot = slot.ok_or_else(|| StoreError::unreadable("fixed", of, &key))?;
            if (of, tag) == (group, FIXED_SLOT) {
                old = slot;
            }
            if slot & OF_SNAPSHOT != 0 {
                highest = highest.max(slot >> EPOCH_SHIFT & EPOCH_MAX);
            }
        }
        // 32,767 snapshots of one group on one disk; then the numbers begin again, and what had them is long gone.
        let epoch = (highest + 1) & EPOCH_MAX;
        let new = OF_SNAPSHOT | epoch.max(1) << EPOCH_SHIFT | group_of(group);
        let mut batch = self.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(table, garbage(group, new), []);
        batch.commit().map_err(StoreError::of)?;
        Ok(Import {
            to: self.clone(),
            group,
            old,
            new,
            batch: self.batch(),
            batch_bytes: 0,
            fixed: Vec::new(),
            segments: BTreeMap::new(),
        })
    }

    fn batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }
}

impl Import {
    /// A replicated row, as [`super::Export::rows`] gave it.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Fatal`] also for a table that this program does not know.
    pub fn row(&mut self, table: u8, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if table == 0 {
            self.fixed.push((key.to_vec(), value.to_vec()));
            return Ok(());
        }
        let tables = self.to.keyspaces.replicated();
        let Some((_, keyspace)) = tables.iter().find(|(number, _)| *number == table) else {
            return Err(StoreError::Fatal(format!(
                "a snapshot of group {} has rows of table {table}, which this program does not know: run the version \
                 of postroad that the other replicas run",
                self.group
            )));
        };
        let key = [&self.new.to_be_bytes()[..], key].concat();
        self.batch_bytes += key.len() + value.len();
        self.batch.insert(keyspace, key, value);
        self.commit_if_long()
    }

    /// A live body, and where it lies now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn body(
        &mut self,
        index: u64,
        extents: u32,
        bytes: u64,
        location: Location,
    ) -> Result<(), StoreError> {
        let live = self.segments.entry(location.segment).or_default();
        live.count += 1;
        // The whole entry, as for every other body: it is copied whole.
        live.bytes += u64::from(location.data_len);
        let row = codec::encode(&Kept {
            location,
            extents,
            bytes,
        });
        let key = key::prefixed(self.new, &index);
        self.batch_bytes += key.len() + row.len();
        self.batch.insert(&self.to.keyspaces.kept, key, row);
        self.commit_if_long()
    }

    fn commit_if_long(&mut self) -> Result<(), StoreError> {
        if self.batch_bytes < BATCH_BYTES {
            return Ok(());
        }
        self.commit()
    }

    /// Nothing of it is visible, so nothing needs to be durable before the switch.
    fn commit(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        let batch = std::mem::replace(&mut self.batch, self.to.batch());
        batch.commit().map_err(StoreError::of)
    }

    /// The rows must be those of this entry. Makes them the group's, durably.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Fatal`] also when the small values say another index, and nothing has changed then.
    pub fn switch(mut self, applied: (u64, u64)) -> Result<Switched, StoreError> {
        let said = self.fixed.iter().find(|(key, _)| key == &[FIXED_APPLIED]);
        let said = said.and_then(|(_, value)| read_applied(value));
        if said != Some(applied) {
            return Err(StoreError::Fatal(format!(
                "the snapshot of group {} calls itself one of entry {applied:?}, its rows are of {said:?}",
                self.group
            )));
        }
        for (segment, live) in &self.segments {
            let key = key::prefixed(self.new, segment);
            self.batch
                .insert(&self.to.keyspaces.segments, key, codec::encode(live));
        }
        self.commit()?;
        // The rows before the batch that makes them visible.
        let persisted = self.to.database.persist(PersistMode::SyncAll);
        persisted.map_err(StoreError::of)?;
        let table = self.to.keyspaces.fixed.clone();
        let mut batch = self.to.batch().durability(Some(PersistMode::SyncAll));
        let prefix = self.group.to_be_bytes();
        let new = |(key, value)| ([&prefix[..], key].concat(), value);
        let new: BTreeMap<Vec<u8>, &Vec<u8>> =
            self.fixed.iter().map(|(k, v)| new((&k[..], v))).collect();
        for guard in table.prefix(prefix) {
            let key = guard.key().map_err(StoreError::of)?;
            let local = [FIXED_GARBAGE, FIXED_SLOT, FIXED_INSTALLED, FIXED_REPLICA];
            // A key may stand in a batch only once.
            let stays = fixed_key(&key).is_some_and(|(_, tag)| local.contains(&tag));
            if !stays && !new.contains_key(&key[..]) {
                batch.remove(&table, key);
            }
        }
        for (key, value) in new {
            batch.insert(&table, key, &value[..]);
        }
        let mut installed = Vec::new();
        put_number(&mut installed, applied.0);
        put_number(&mut installed, applied.1);
        batch.insert(&table, small(self.group, FIXED_INSTALLED), installed);
        let slot = self.new.to_be_bytes();
        batch.insert(&table, small(self.group, FIXED_SLOT), slot);
        batch.remove(&table, garbage(self.group, self.new));
        batch.insert(&table, garbage(self.group, self.old), []);
        batch.commit().map_err(StoreError::of)?;
        Ok(Switched {
            group: self.group,
            slot: self.new,
            index: applied.0,
            segments: std::mem::take(&mut self.segments),
        })
    }
}

impl Cleaner {
    /// For all garbage that is there now, while no import is under way; `stop` ends it between two batches.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(store: &Store, stop: Arc<AtomicBool>) -> Result<Cleaner, StoreError> {
        let of = store.importer();
        let mut marks = Vec::new();
        for guard in of.keyspaces.fixed.iter() {
            let key = guard.key().map_err(StoreError::of)?;
            if let Some((_, FIXED_GARBAGE)) = fixed_key(&key) {
                marks.push(key);
            }
        }
        Ok(Cleaner { of, stop, marks })
    }

    /// Removes it, in small batches. Imports may begin meanwhile: they take slots that are not marked.
    ///
    /// # Errors
    /// [`StoreError`]: the store is of no use any more.
    pub fn run(self) -> Result<(), StoreError> {
        let fixed = &self.of.keyspaces.fixed;
        for mark in &self.marks {
            let Some(slot) = mark[5..].first_chunk::<4>() else {
                return Err(StoreError::unreadable("fixed", 0, mark));
            };
            if !self.remove(*slot)? {
                return Ok(());
            }
            let mut batch = self.of.batch();
            batch.remove(fixed, mark.clone());
            batch.commit().map_err(StoreError::of)?;
        }
        Ok(())
    }

    fn remove(&self, slot: [u8; 4]) -> Result<bool, StoreError> {
        let keyspaces = &self.of.keyspaces;
        let replicated = keyspaces.replicated().map(|(_, table)| table);
        let local = [&keyspaces.kept, &keyspaces.segments];
        for table in replicated.into_iter().chain(local) {
            let mut from = slot.to_vec();
            loop {
                let mut batch = self.of.batch();
                // From where the last batch ended: what it removed would have to be passed by again.
                let end = (u32::from_be_bytes(slot) + 1).to_be_bytes().to_vec();
                for guard in table.range(from.clone()..end).take(CLEAN_ROWS) {
                    let key = guard.key().map_err(StoreError::of)?;
                    from = key.to_vec();
                    batch.remove(table, key);
                }
                if batch.is_empty() {
                    break;
                }
                batch.commit().map_err(StoreError::of)?;
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
