//! One table of one group: the overlay, the frozen overlay, fjall.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use fjall::{Keyspace, OwnedWriteBatch};
use mail::Ulid;
use queue::Table;

use super::StoreError;
use super::codec::{self, Row};
use super::key::{self, Key};

/// ULIDs end in random octets, and those who make them are authenticated: nothing is to be mixed.
#[derive(Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }
    fn write_u128(&mut self, n: u128) {
        self.0 = (n as u64) ^ (n >> 64) as u64;
    }
    fn finish(&self) -> u64 {
        // The set takes its tag from the highest bits, the bucket from the lowest.
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// What the tables of a group share.
#[derive(Default)]
pub(super) struct Shared {
    /// The first error; from then on the group's rows are not to be believed.
    error: Mutex<Option<StoreError>>,
    /// Messages that were looked up since the last freeze and found in no layer. None of their rows can lie below the
    /// overlay: a row of a message is written only while the message lives.
    born: Mutex<HashSet<Ulid, BuildHasherDefault<LowBits>>>,
}

impl Shared {
    pub(super) fn fail(&self, error: StoreError) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::error!(%error, "cannot read the metadata store");
            *first = Some(error);
        }
    }

    pub(super) fn error(&self) -> Option<StoreError> {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn is_born(&self, message: &Ulid) -> bool {
        self.born
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(message)
    }

    fn note_born(&self, message: Ulid) {
        self.born
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(message);
    }

    pub(super) fn forget_born(&self) {
        self.born
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// How a table knows that fjall cannot hold a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The table of messages: looks fjall up, and so finds out who is born.
    Message,
    /// Its rows live only while their message does.
    OfMessage,
    /// Keyed by Raft index: rows are made by the entry of that index.
    Indexed,
    /// Only by a look at fjall.
    None,
}

/// What the overlay says about a key.
#[derive(Clone)]
pub(super) struct Slot<V> {
    /// `None`: there is no row.
    row: Option<Arc<V>>,
    /// A layer below may hold the key, so that a deletion must be written.
    below: bool,
    /// Not so: it was only read from below.
    dirty: bool,
}

pub(super) type Layer<K, V> = BTreeMap<K, Slot<V>>;

/// A table's frozen overlay, as the flush sees it.
pub(super) trait Frozen: Send + Sync {
    /// Adds its rows to the batch and gives their count.
    fn encode(&self, group: u32, keyspace: &Keyspace, batch: &mut OwnedWriteBatch) -> usize;
}

impl<K: Key, V: Row> Frozen for Layer<K, V> {
    fn encode(&self, group: u32, keyspace: &Keyspace, batch: &mut OwnedWriteBatch) -> usize {
        let mut rows = 0;
        for (key, slot) in self.iter().filter(|(_, slot)| slot.dirty) {
            let key = key::prefixed(group, key);
            match &slot.row {
                Some(row) => batch.insert(keyspace, key, codec::encode(&**row)),
                None => batch.remove(keyspace, key),
            }
            rows += 1;
        }
        rows
    }
}

/// About what a slot costs in memory beside key and row, bytes: its share of a tree node, and the `Arc`'s counts.
const SLOT_BYTES: usize = 48;

pub(super) struct OverlayTable<K, V> {
    overlay: RefCell<Layer<K, V>>,
    frozen: Option<Arc<Layer<K, V>>>,
    keyspace: Keyspace,
    group: u32,
    kinship: Kinship,
    /// [`Kinship::Indexed`]: higher indexes cannot lie below.
    floor: u64,
    /// Nothing lies below: so it is for uploads, held items and the like on most days, and no look is needed.
    empty_below: bool,
    shared: Arc<Shared>,
    /// Estimate of the overlay.
    bytes: Cell<usize>,
}

impl<K: Key + 'static, V: Row + 'static> OverlayTable<K, V> {
    pub(super) fn new(
        group: u32,
        keyspace: Keyspace,
        kinship: Kinship,
        floor: u64,
        shared: Arc<Shared>,
    ) -> Self {
        let mut table = OverlayTable {
            overlay: RefCell::default(),
            frozen: None,
            keyspace,
            group,
            kinship,
            floor,
            empty_below: false,
            shared,
            bytes: Cell::new(0),
        };
        table.empty_below = Merge::new(&table, None).next.is_none();
        table
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Begins a new overlay; the former one is for the flush. `applied` is the index that it belongs to.
    pub(super) fn freeze(&mut self, applied: u64) -> Option<(Keyspace, Arc<dyn Frozen>)> {
        debug_assert!(self.frozen.is_none(), "one flush at a time");
        self.floor = applied;
        let layer = Arc::new(self.overlay.take());
        self.bytes.set(0);
        if layer.is_empty() {
            return None;
        }
        self.empty_below &= layer.values().all(|slot| slot.row.is_none());
        self.frozen = Some(layer.clone());
        Some((self.keyspace.clone(), layer))
    }

    /// The frozen overlay is in fjall now.
    pub(super) fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Forgets what was only read: an idle group is not frozen, and its overlay must not grow.
    pub(super) fn shed(&mut self) {
        self.overlay.get_mut().retain(|_, slot| slot.dirty);
        if self.overlay.get_mut().is_empty() {
            self.bytes.set(0);
        }
    }

    /// The key cannot lie below the overlay, by what is known without a look.
    fn is_new(&self, key: &K) -> bool {
        if self.empty_below {
            if self.kinship == Kinship::Message {
                self.note_absent(key);
            }
            return true;
        }
        match self.kinship {
            Kinship::Message | Kinship::OfMessage => {
                key.owner().is_some_and(|owner| self.shared.is_born(&owner))
            }
            Kinship::Indexed => key.index().is_some_and(|index| index > self.floor),
            Kinship::None => false,
        }
    }

    /// The overlay says nothing of `key`: whether a layer below may.
    fn may_lie_below(&self, key: &K) -> bool {
        if self.is_new(key) {
            return false;
        }
        if let Some(slot) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            // It is in fjall, in this state, before the present overlay is written.
            return slot.row.is_some();
        }
        match self.kinship {
            Kinship::Message => self.look_below(key).is_some(),
            _ => true,
        }
    }

    fn note_absent(&self, key: &K) {
        key.owner()
            .into_iter()
            .for_each(|message| self.shared.note_born(message));
    }

    fn add_bytes(&self, row: &V) {
        let row = size_of::<K>() + size_of::<V>() + SLOT_BYTES + row.weight();
        self.bytes.set(self.bytes.get() + row);
    }

    fn remove_bytes(&self, row: Option<&Arc<V>>) {
        let row = row.map_or(0, |row| {
            size_of::<K>() + size_of::<V>() + SLOT_BYTES + row.weight()
        });
        self.bytes.set(self.bytes.get().saturating_sub(row));
    }

    /// Reads fjall, and remembers what is found: most reads come before a write of the same key.
    fn look_below(&self, key: &K) -> Option<Arc<V>> {
        let bytes = key::prefixed(self.group, key);
        let found = match self.keyspace.get(&bytes) {
            Ok(found) => found,
            Err(error) => {
                self.shared.fail(StoreError::of(error));
                return None;
            }
        };
        let row = match found.map(|value| codec::decode::<V>(&value)) {
            None => None,
            Some(Some(row)) => Some(Arc::new(row)),
            Some(None) => {
                self.shared.fail(StoreError::unreadable(
                    self.keyspace.name(),
                    self.group,
                    &bytes,
                ));
                return None;
            }
        };
        match (&row, self.kinship) {
            (None, Kinship::Message) => self.note_absent(key),
            (None, Kinship::OfMessage | Kinship::Indexed) => {}
            _ => self.remember(key, row.clone()),
        }
        row
    }

    fn remember(&self, key: &K, row: Option<Arc<V>>) {
        match &row {
            Some(row) => self.add_bytes(row),
            None => self
                .bytes
                .set(self.bytes.get() + size_of::<K>() + SLOT_BYTES),
        }
        let slot = Slot {
            below: row.is_some(),
            row,
            dirty: false,
        };
        self.overlay.borrow_mut().insert(key.clone(), slot);
    }

    fn unreadable_key(&self, bytes: &[u8]) {
        self.shared.fail(StoreError::unreadable(
            self.keyspace.name(),
            self.group,
            bytes,
        ));
    }
}

impl<K: Key + 'static, V: Row + 'static> Table<K, V> for OverlayTable<K, V> {
    fn get(&self, key: &K) -> Option<Arc<V>> {
        if let Some(slot) = self.overlay.borrow().get(key) {
            return slot.row.clone();
        }
        if self.is_new(key) {
            return None;
        }
        if let Some(slot) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return slot.row.clone();
        }
        self.look_below(key)
    }

    fn put(&mut self, key: K, row: V) {
        self.add_bytes(&row);
        let row = Some(Arc::new(row));
        if let Some(slot) = self.overlay.get_mut().get_mut(&key) {
            let before = std::mem::replace(&mut slot.row, row);
            slot.dirty = true;
            self.remove_bytes(before.as_ref());
            return;
        }
        let below = self.may_lie_below(&key);
        self.overlay.get_mut().insert(
            key,
            Slot {
                row,
                below,
                dirty: true,
            },
        );
    }

    fn delete(&mut self, key: &K) {
        match self.overlay.get_mut().entry(key.clone()) {
            Entry::Occupied(mut slot) => {
                let before = match slot.get().below {
                    true => {
                        slot.get_mut().dirty = true;
                        slot.get_mut().row.take()
                    }
                    false => slot.remove().row,
                };
                self.remove_bytes(before.as_ref());
            }
            Entry::Vacant(_) => {
                if self.may_lie_below(key) {
                    self.bytes
                        .set(self.bytes.get() + size_of::<K>() + SLOT_BYTES);
                    let gone = Slot {
                        row: None,
                        below: true,
                        dirty: true,
                    };
                    self.overlay.get_mut().insert(key.clone(), gone);
                }
            }
        }
    }

    fn range(&self, from: Option<&K>, limit: usize) -> Vec<(K, Arc<V>)> {
        let mut merged = Merge::new(self, from);
        let overlay = self.overlay.borrow();
        let mut upper = match from {
            Some(from) => overlay.range(from..),
            None => overlay.range::<K, _>(..),
        }
        .peekable();
        let mut out = Vec::new();
        while out.len() < limit {
            // The lowest key of all layers; where several hold it, the newest wins and the others move on.
            let newest = upper.peek().map(|(key, _)| *key);
            let Some(key) = merged.lowest(newest) else {
                break;
            };
            let row = match upper.next_if(|(k, _)| **k == key) {
                Some((_, slot)) => {
                    merged.skip(&key);
                    slot.row.clone()
                }
                None => merged.take(&key),
            };
            out.extend(row.map(|row| (key, row)));
        }
        out
    }
}

/// The two lower layers of a range, in step.
struct Merge<'a, K: Key, V> {
    table: &'a OverlayTable<K, V>,
    frozen: Option<std::iter::Peekable<std::collections::btree_map::Range<'a, K, Slot<V>>>>,
    fjall: fjall::Iter,
    /// The next of fjall: its octets are decoded only if no layer above has the key.
    next: Option<(K, fjall::UserValue)>,
}

impl<'a, K: Key + 'static, V: Row + 'static> Merge<'a, K, V> {
    fn new(table: &'a OverlayTable<K, V>, from: Option<&K>) -> Self {
        let frozen = table.frozen.as_deref().map(|frozen| match from {
            Some(from) => frozen.range(from..).peekable(),
            None => frozen.range::<K, _>(..).peekable(),
        });
        let start = match from {
            Some(from) => key::prefixed(table.group, from),
            None => table.group.to_be_bytes().to_vec(),
        };
        let fjall = match table.group.checked_add(1) {
            Some(end) => table.keyspace.range(start..end.to_be_bytes().to_vec()),
            None => table.keyspace.range(start..),
        };
        let mut merge = Merge {
            table,
            frozen,
            fjall,
            next: None,
        };
        merge.advance();
        merge
    }

    fn advance(&mut self) {
        self.next = match self.fjall.next().map(|guard| guard.into_inner()) {
            None => None,
            Some(Err(error)) => {
                self.table.shared.fail(StoreError::of(error));
                None
            }
            Some(Ok((bytes, value))) => match key::parse(&bytes) {
                Some(key) => Some((key, value)),
                None => {
                    self.table.unreadable_key(&bytes);
                    None
                }
            },
        };
    }

    fn lowest(&mut self, upper: Option<&K>) -> Option<K> {
        let frozen = self
            .frozen
            .as_mut()
            .and_then(|frozen| frozen.peek())
            .map(|(key, _)| *key);
        let below = self.next.as_ref().map(|(key, _)| key);
        [upper, frozen, below].into_iter().flatten().min().cloned()
    }

    /// The row at `key`, which is the lowest of these layers.
    fn take(&mut self, key: &K) -> Option<Arc<V>> {
        let frozen = self
            .frozen
            .as_mut()
            .and_then(|frozen| frozen.next_if(|(k, _)| *k == key));
        let below = match &self.next {
            Some((k, _)) if k == key => self.next.take(),
            _ => None,
        };
        if below.is_some() {
            self.advance();
        }
        if let Some((_, slot)) = frozen {
            return slot.row.clone();
        }
        let row = codec::decode(&below?.1).map(Arc::new);
        if row.is_none() {
            self.table
                .unreadable_key(&key::prefixed(self.table.group, key));
        }
        row
    }

    /// Passes `key`, which a newer layer decided.
    fn skip(&mut self, key: &K) {
        if let Some(frozen) = &mut self.frozen {
            frozen.next_if(|(k, _)| *k == key);
        }
        if self.next.as_ref().is_some_and(|(k, _)| k == key) {
            self.advance();
        }
    }
}
