//! Keys on disk: their octets sort as the keys do.

use mail::{Destination, Ulid};
use queue::{DueKey, ForgetKey, ItemId, LeaseSessionId, RecipientId, TimerKey, Timestamp};

use super::codec::Reader;
use super::config::ConfigKey;
use crate::wire::log::intern;

/// A key of a table.
pub(super) trait Key: Ord + Clone + Send + Sync {
    /// Appends its octets.
    fn write(&self, out: &mut Vec<u8>);
    /// The reverse; must take all of `from`.
    fn read(from: &mut Reader<'_>) -> Option<Self>;
    /// The message whose life bounds the row's life, in tables where that is so.
    fn owner(&self) -> Option<Ulid> {
        None
    }
    /// The Raft index, for the table of bodies.
    fn index(&self) -> Option<u64> {
        None
    }
}

/// A group's part of a table.
pub(super) fn prefixed(group: u32, key: &impl Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(&group.to_be_bytes());
    key.write(&mut out);
    out
}

/// The key within the group.
pub(super) fn parse<K: Key>(bytes: &[u8]) -> Option<K> {
    let mut from = Reader(bytes.get(4..)?);
    let key = K::read(&mut from)?;
    from.0.is_empty().then_some(key)
}

fn number(from: &mut Reader<'_>) -> Option<u64> {
    from.fixed().map(u64::from_be_bytes)
}

impl Key for u64 {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<u64> {
        number(from)
    }
    fn index(&self) -> Option<u64> {
        Some(*self)
    }
}

impl Key for ConfigKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.kind);
        out.extend_from_slice(self.name.as_bytes());
        out.push(0);
        out.extend_from_slice(&self.part.to_be_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<ConfigKey> {
        Some(ConfigKey {
            kind: from.byte()?,
            name: from.until_nul()?.into(),
            part: from.fixed().map(u16::from_be_bytes)?,
        })
    }
}

impl Key for Ulid {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<Ulid> {
        from.fixed().map(Ulid::from_bytes)
    }
    fn owner(&self) -> Option<Ulid> {
        Some(*self)
    }
}

impl Key for ItemId {
    fn write(&self, out: &mut Vec<u8>) {
        self.message.write(out);
        out.extend_from_slice(&self.number.to_be_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<ItemId> {
        Some(ItemId {
            message: Ulid::read(from)?,
            number: from.fixed().map(u32::from_be_bytes)?,
        })
    }
    fn owner(&self) -> Option<Ulid> {
        Some(self.message)
    }
}

impl Key for RecipientId {
    fn write(&self, out: &mut Vec<u8>) {
        self.item.write(out);
        out.extend_from_slice(&self.number.to_be_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<RecipientId> {
        Some(RecipientId {
            item: ItemId::read(from)?,
            number: from.fixed().map(u32::from_be_bytes)?,
        })
    }
    fn owner(&self) -> Option<Ulid> {
        Some(self.item.message)
    }
}

/// Neither text holds a NUL (the log's door sees to it), so one NUL ends each and shorter texts sort first.
impl Key for DueKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.minute.to_be_bytes());
        for text in [&*self.class, self.destination.as_str()] {
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        out.push(self.rank as u8 ^ 0x80);
        out.extend_from_slice(&self.due.0.to_be_bytes());
        self.item.write(out);
    }
    fn read(from: &mut Reader<'_>) -> Option<DueKey> {
        Some(DueKey {
            minute: number(from)?,
            class: intern::text(from.until_nul()?),
            destination: intern::destination(from.until_nul()?),
            rank: (from.byte()? ^ 0x80) as i8,
            due: Timestamp(number(from)?),
            item: ItemId::read(from)?,
        })
    }
    fn owner(&self) -> Option<Ulid> {
        Some(self.item.message)
    }
}

impl Key for (LeaseSessionId, ItemId) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some((LeaseSessionId::read(from)?, ItemId::read(from)?))
    }
    fn owner(&self) -> Option<Ulid> {
        Some(self.1.message)
    }
}

impl Key for LeaseSessionId {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_be_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<LeaseSessionId> {
        number(from).map(LeaseSessionId)
    }
}

impl Key for TimerKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.0.to_be_bytes());
        self.item.write(out);
    }
    fn read(from: &mut Reader<'_>) -> Option<TimerKey> {
        Some(TimerKey {
            at: Timestamp(number(from)?),
            item: ItemId::read(from)?,
        })
    }
    fn owner(&self) -> Option<Ulid> {
        Some(self.item.message)
    }
}

impl Key for ForgetKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.0.to_be_bytes());
        self.message.write(out);
    }
    fn read(from: &mut Reader<'_>) -> Option<ForgetKey> {
        Some(ForgetKey {
            at: Timestamp(number(from)?),
            message: Ulid::read(from)?,
        })
    }
}

/// The last part of its key, so it needs no end.
impl Key for Destination {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_str().as_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Option<Destination> {
        std::str::from_utf8(from.rest())
            .ok()
            .map(intern::destination)
    }
}
