//! The typed rows that `apply` reads and writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use mail::{Destination, Ulid};

use crate::{
    DestinationCounts, DueKey, Finished, ForgetKey, InFlight, Item, ItemId, LeaseSession,
    LeaseSessionId, Message, Recipient, RecipientId, ShardState, TimerKey, Upload,
};

/// An ordered table. Rows are shared, never changed in place.
pub trait Table<K, V> {
    /// The row at `key`.
    fn get(&self, key: &K) -> Option<Arc<V>>;
    /// Writes or replaces it.
    fn put(&mut self, key: K, row: V);
    /// Removes it; nothing happens where there is none.
    fn delete(&mut self, key: &K);
    /// At most `limit` rows from `from` on (`None`: from the first), in order of keys.
    fn range(&self, from: Option<&K>, limit: usize) -> Vec<(K, Arc<V>)>;
}

/// All tables of one shard. Implementations: [`MemoryRows`] here, the durable one in `spool::state`.
pub trait Rows {
    /// The one row of the shard.
    fn shard(&self) -> ShardState;
    /// Writes it.
    fn set_shard(&mut self, state: ShardState);
    /// Live messages.
    fn messages(&mut self) -> &mut dyn Table<Ulid, Message>;
    /// Live items.
    fn items(&mut self) -> &mut dyn Table<ItemId, Item>;
    /// Recipients of live items.
    fn recipients(&mut self) -> &mut dyn Table<RecipientId, Recipient>;
    /// Every Waiting item.
    fn due(&mut self) -> &mut dyn Table<DueKey, ()>;
    /// Every Leased item.
    fn inflight(&mut self) -> &mut dyn Table<(LeaseSessionId, ItemId), InFlight>;
    /// Every Held item.
    fn held(&mut self) -> &mut dyn Table<ItemId, ()>;
    /// Counts by destination.
    fn destinations(&mut self) -> &mut dyn Table<Destination, DestinationCounts>;
    /// Finished messages that are remembered.
    fn finished(&mut self) -> &mut dyn Table<Ulid, Finished>;
    /// When some of `finished` are forgotten (see [`ForgetKey`]).
    fn forgets(&mut self) -> &mut dyn Table<ForgetKey, ()>;
    /// Big messages that are coming in.
    fn uploads(&mut self) -> &mut dyn Table<Ulid, Upload>;
    /// Lease sessions that live.
    fn sessions(&mut self) -> &mut dyn Table<LeaseSessionId, LeaseSession>;
    /// The next notice or expiry of each Waiting item.
    fn timers(&mut self) -> &mut dyn Table<TimerKey, ()>;
}

impl<K: Ord + Clone, V> Table<K, V> for BTreeMap<K, Arc<V>> {
    fn get(&self, key: &K) -> Option<Arc<V>> {
        BTreeMap::get(self, key).cloned()
    }

    fn put(&mut self, key: K, row: V) {
        self.insert(key, Arc::new(row));
    }

    fn delete(&mut self, key: &K) {
        self.remove(key);
    }

    fn range(&self, from: Option<&K>, limit: usize) -> Vec<(K, Arc<V>)> {
        let copy = |(k, v): (&K, &Arc<V>)| (k.clone(), v.clone());
        match from {
            Some(from) => BTreeMap::range(self, from..)
                .take(limit)
                .map(copy)
                .collect(),
            None => self.iter().take(limit).map(copy).collect(),
        }
    }
}

/// Rows in memory, for tests and simulation. `Clone` is a snapshot.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct MemoryRows {
    shard: ShardState,
    messages: BTreeMap<Ulid, Arc<Message>>,
    items: BTreeMap<ItemId, Arc<Item>>,
    recipients: BTreeMap<RecipientId, Arc<Recipient>>,
    due: BTreeMap<DueKey, Arc<()>>,
    inflight: BTreeMap<(LeaseSessionId, ItemId), Arc<InFlight>>,
    held: BTreeMap<ItemId, Arc<()>>,
    destinations: BTreeMap<Destination, Arc<DestinationCounts>>,
    finished: BTreeMap<Ulid, Arc<Finished>>,
    forgets: BTreeMap<ForgetKey, Arc<()>>,
    uploads: BTreeMap<Ulid, Arc<Upload>>,
    sessions: BTreeMap<LeaseSessionId, Arc<LeaseSession>>,
    timers: BTreeMap<TimerKey, Arc<()>>,
}

impl Rows for MemoryRows {
    fn shard(&self) -> ShardState {
        self.shard
    }
    fn set_shard(&mut self, state: ShardState) {
        self.shard = state;
    }
    fn messages(&mut self) -> &mut dyn Table<Ulid, Message> {
        &mut self.messages
    }
    fn items(&mut self) -> &mut dyn Table<ItemId, Item> {
        &mut self.items
    }
    fn recipients(&mut self) -> &mut dyn Table<RecipientId, Recipient> {
        &mut self.recipients
    }
    fn due(&mut self) -> &mut dyn Table<DueKey, ()> {
        &mut self.due
    }
    fn inflight(&mut self) -> &mut dyn Table<(LeaseSessionId, ItemId), InFlight> {
        &mut self.inflight
    }
    fn held(&mut self) -> &mut dyn Table<ItemId, ()> {
        &mut self.held
    }
    fn destinations(&mut self) -> &mut dyn Table<Destination, DestinationCounts> {
        &mut self.destinations
    }
    fn finished(&mut self) -> &mut dyn Table<Ulid, Finished> {
        &mut self.finished
    }
    fn forgets(&mut self) -> &mut dyn Table<ForgetKey, ()> {
        &mut self.forgets
    }
    fn uploads(&mut self) -> &mut dyn Table<Ulid, Upload> {
        &mut self.uploads
    }
    fn sessions(&mut self) -> &mut dyn Table<LeaseSessionId, LeaseSession> {
        &mut self.sessions
    }
    fn timers(&mut self) -> &mut dyn Table<TimerKey, ()> {
        &mut self.timers
    }
}
