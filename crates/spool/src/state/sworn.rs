//! What the edges took of bodies: the digest in a message's row, and the octets of the log that it is of. Whoever brings a
//! body from elsewhere (a snapshot, a repair) compares it with that, end to end; checksums on the way only say that
//! nothing changed since they were taken.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mail::{Digest, Digester, Ulid};
use queue::{Extent, Message};

use super::index::StoredBodies;
use super::{StoreError, codec};

/// Messages that a walk through all of them passes between two looks at whether the node ends.
const LOOK_EVERY: usize = 4096;

/// A message's digest and where its octets are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sworn {
    /// Which.
    pub message: Ulid,
    /// As the edge took it.
    pub digest: Digest,
    /// In order.
    pub extents: Vec<Extent>,
}

impl Sworn {
    /// From a row of the table of messages, its key without the group's part. `None`: this program cannot read it.
    pub fn of_row(key: &[u8], value: &[u8]) -> Option<Sworn> {
        let message: Message = codec::decode(value)?;
        Some(Sworn {
            message: Ulid::from_bytes(key.try_into().ok()?),
            digest: message.digest,
            extents: message.body,
        })
    }

    /// Whether its octets are those that the edge took. `data` gives an entry's data.
    ///
    /// # Errors
    /// Those of `data`.
    pub fn holds<E>(&self, mut data: impl FnMut(u64) -> Result<Bytes, E>) -> Result<bool, E> {
        let mut digester = Digester::default();
        for extent in &self.extents {
            let data = data(extent.index)?;
            let range = usize::try_from(extent.offset)
                .ok()
                .zip(usize::try_from(extent.length).ok())
                .and_then(|(from, length)| data.get(from..from.checked_add(length)?));
            match range {
                Some(octets) => digester.update(octets),
                None => return Ok(false),
            }
        }
        Ok(digester.finish() == self.digest)
    }
}

impl StoredBodies {
    /// The messages that refer to any of these entries, by (replica, index), as of the last durable flush. There is no table
    /// of them by entry, so all messages of these replicas are passed by: for repairs only. `must_end` stops it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn sworn(
        &self,
        wanted: &BTreeSet<(u32, u64)>,
        must_end: impl Fn() -> bool,
    ) -> Result<BTreeMap<u32, Vec<Sworn>>, StoreError> {
        let replicas: BTreeSet<u32> = wanted.iter().map(|(replica, _)| *replica).collect();
        let mut found = BTreeMap::<u32, Vec<Sworn>>::new();
        for replica in replicas {
            let Some(slot) = self.slot(replica) else {
                continue;
            };
            let rows = self.messages.prefix(slot.to_be_bytes());
            for (at, guard) in rows.enumerate() {
                if at % LOOK_EVERY == 0 && must_end() {
                    return Ok(found);
                }
                let (bytes, value) = guard.into_inner().map_err(StoreError::of)?;
                let sworn = Sworn::of_row(&bytes[4..], &value)
                    .ok_or_else(|| StoreError::unreadable("messages", replica, &bytes))?;
                let extents = sworn.extents.iter();
                if extents
                    .into_iter()
                    .any(|e| wanted.contains(&(replica, e.index)))
                {
                    found.entry(replica).or_default().push(sworn);
                }
            }
        }
        Ok(found)
    }
}

/// The row of a message with this digest and these extents, as a snapshot has it, for tests.
#[cfg(test)]
pub fn message_row(
    message: u128,
    digest: Digest,
    extents: &[(u64, u64, u64)],
) -> (Vec<u8>, Vec<u8>) {
    let extent = |&(index, offset, length): &(u64, u64, u64)| Extent {
        index,
        offset,
        length,
    };
    let row = super::tests::message(digest, extents.iter().map(extent).collect());
    (message.to_be_bytes().to_vec(), codec::encode(&row))
}
