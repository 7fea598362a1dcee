//! The rows of a group as of its last flush, for a snapshot. They are read by fjall's MVCC while flushes go on.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use fjall::Readable;

use super::bodies::Kept;
use super::codec;
use super::key;
use super::store::{
    self, FIXED_APPLIED, FIXED_GARBAGE, FIXED_INSTALLED, FIXED_REPLICA, FIXED_SLOT, Keyspaces,
    fixed_key,
};
use super::{Store, StoreError};
use crate::log::Location;

/// A group's rows at one index. fjall keeps what it replaces meanwhile, so it should not live for hours.
pub struct Export {
    snapshot: fjall::Snapshot,
    keyspaces: Keyspaces,
    group: u32,
    slot: u32,
    /// Index and term of the last entry that the rows contain.
    pub applied: (u64, u64),
    /// The members as of then, as the driver encoded them; empty: the first ones.
    pub conf_state: Bytes,
    /// Octets of live bodies.
    pub body_bytes: u64,
    /// The log's segments in which they lie.
    pub segments: BTreeSet<u64>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("group", &self.group)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

/// An entry whose data is referred to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportedBody {
    /// Raft index of the entry that brought it.
    pub index: u64,
    /// Where this replica has it.
    pub location: Location,
    /// Live extents.
    pub extents: u32,
    /// Their octets.
    pub bytes: u64,
}

impl Store {
    /// What is durable of a group now; `None`: nothing yet, or a flush of it is under way: its rows may be visible already,
    /// and name segments that are not known here yet and would not be pinned. Pin its segments before anything else is
    /// flushed.
    ///
    /// # Errors
    /// [`StoreError`] when the small values cannot be read.
    pub fn export(&self, group: u32) -> Result<Option<Export>, StoreError> {
        if self.is_flushing(group) {
            return Ok(None);
        }
        let snapshot = self.database.snapshot();
        let table = &self.keyspaces.fixed;
        let get = |tag: u8| {
            let key = [&group.to_be_bytes()[..], &[tag]].concat();
            snapshot.get(table, key).map_err(StoreError::of)
        };
        let Some(applied) = get(FIXED_APPLIED)? else {
            return Ok(None);
        };
        let applied = store::read_applied(&applied)
            .ok_or_else(|| StoreError::unreadable("fixed", group, &[FIXED_APPLIED]))?;
        let conf_state = get(store::FIXED_CONF_STATE)?
            .map_or_else(Bytes::new, |value| Bytes::copy_from_slice(&value));
        let segments = self.segments_of(group);
        Ok(Some(Export {
            keyspaces: self.keyspaces.clone(),
            group,
            slot: self.slot(group),
            applied,
            conf_state,
            body_bytes: segments.values().map(|live| live.bytes).sum(),
            segments: segments.into_keys().collect(),
            snapshot,
        }))
    }
}

impl Export {
    /// Gives every replicated row: number of the table, key without the group's part, value. `take` stops it by `Err`.
    ///
    /// # Errors
    /// Of the store, or `take`'s.
    pub fn rows<E: From<StoreError>>(
        &self,
        mut take: impl FnMut(u8, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for guard in self
            .snapshot
            .prefix(&self.keyspaces.fixed, self.group.to_be_bytes())
        {
            let (key, value) = guard.into_inner().map_err(StoreError::of)?;
            let local = [FIXED_SLOT, FIXED_GARBAGE, FIXED_INSTALLED, FIXED_REPLICA];
            if fixed_key(&key).is_some_and(|(_, tag)| !local.contains(&tag)) {
                take(0, &key[4..], &value)?;
            }
        }
        for (number, table) in self.keyspaces.replicated() {
            for guard in self.snapshot.prefix(table, self.slot.to_be_bytes()) {
                let (key, value) = guard.into_inner().map_err(StoreError::of)?;
                take(number, &key[4..], &value)?;
            }
        }
        Ok(())
    }

    /// Gives every live body, by index: about the order in which they lie in the log.
    ///
    /// # Errors
    /// Of the store, or `take`'s.
    pub fn bodies<E: From<StoreError>>(
        &self,
        mut take: impl FnMut(ExportedBody) -> Result<(), E>,
    ) -> Result<(), E> {
        for guard in self
            .snapshot
            .prefix(&self.keyspaces.kept, self.slot.to_be_bytes())
        {
            let (bytes, value) = guard.into_inner().map_err(StoreError::of)?;
            let row = key::parse::<u64>(&bytes).zip(codec::decode::<Kept>(&value));
            let (index, kept) =
                row.ok_or_else(|| StoreError::unreadable("bodies", self.group, &bytes))?;
            take(ExportedBody {
                index,
                location: kept.location,
                extents: kept.extents,
                bytes: kept.bytes,
            })?;
        }
        Ok(())
    }
}
