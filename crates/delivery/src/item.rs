//! The name of an item, as it stands in logs, in the journal and on the wire.

use std::fmt;

use bytes::Bytes;
use mail::Ulid;
use proto::v1;

/// A message's id and the number of the item in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ItemId {
    /// The message.
    pub(crate) message: Ulid,
    /// Which of its destinations.
    pub(crate) number: u32,
}

impl ItemId {
    /// From the wire; `None` when the reference is absent or its id has not 16 octets.
    pub(crate) fn from_wire(item: Option<&v1::ItemRef>) -> Option<ItemId> {
        let item = item?;
        let message = Ulid::from_bytes(item.message.as_ref().try_into().ok()?);
        Some(ItemId {
            message,
            number: item.number,
        })
    }

    /// For the wire.
    pub(crate) fn to_wire(self) -> v1::ItemRef {
        v1::ItemRef {
            message: Bytes::copy_from_slice(&self.message.to_bytes()),
            number: self.number,
        }
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.number)
    }
}

impl fmt::Debug for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
