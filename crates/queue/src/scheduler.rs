//! Who gets what next: the leader's picture of the Waiting items of one shard. Pure; effects keep it current, and a
//! bounded scan of `due` fills it.
//!
//! Round robin over destinations for each consumer (a lease session with a stream). RAM holds at most
//! [`HEADS_PER_DESTINATION_MAX`] items of a destination and [`HEADS_PER_SHARD_MAX`] in all; the rest stays on disk and
//! is read when there is room, so a dead destination with millions of items costs neither memory nor credit.
//!
//! **Invariant:** every row of `due` below the cursor is a head here, or picked, or at or behind its lane's `resume`.
//!
//! **Starvation bound:** in a consumer's ring a lane (a destination's mail of one class) with a ready item, an open window,
//! its octets within [`OCTETS_SHARE`] and no Busy gets its turn within as many picks as the ring has lanes. Within a lane the
//! most urgent goes first, but each [`AGE_EVERY`]th pick takes the oldest of the least urgent.
//!
//! **Lateness bound:** rows of a minute are in the order of their urgency. Where a full lane left some on disk, one that is due may
//! lie behind a more urgent one that is due later, and is read with it: before the minute ends in which both are due.

mod consumer;
mod lane;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mail::{Destination, Ulid};

use crate::{DueKey, Effect, ItemId, LeaseSessionId, Timestamp};
use consumer::Consumer;
use lane::{Head, LaneId, Lanes};

pub use consumer::{FLOWS_MAX, OCTETS_SHARE, WINDOW_ITEMS};
pub use lane::AGE_EVERY;
pub use load::LOAD_ROWS_MAX;

/// Heads of one destination and class in memory: seconds of work for a fast next hop, while the next are read.
pub const HEADS_PER_DESTINATION_MAX: usize = 1_000;

/// Heads in memory: about 20 MB a shard.
pub const HEADS_PER_SHARD_MAX: usize = 100_000;

/// Items that are due within this time are read ahead, ms.
pub const READ_AHEAD_MS: u64 = 2 * 60 * 1000;

/// How much of what waits is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Items of one destination and class.
    pub per_destination: usize,
    /// Items of a shard.
    pub per_shard: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            per_destination: HEADS_PER_DESTINATION_MAX,
            per_shard: HEADS_PER_SHARD_MAX,
        }
    }
}

/// What a consumer has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credit {
    /// Items.
    pub items: usize,
    /// Octets of bodies. The last item may exceed it: a body larger than all credit must go out too.
    pub bytes: u64,
}

/// An item for which a grant is on its way through the log.
#[derive(Debug)]
struct Picked {
    session: LeaseSessionId,
    destination: Destination,
    /// To put it back; `None`: it is not Waiting any more, or never was (a reservation).
    back: Option<(Arc<str>, Head)>,
    /// For an express grant: its Append may turn out to be a duplicate.
    reserved: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Scheduler {
    now: Timestamp,
    lanes: Lanes,
    consumers: BTreeMap<LeaseSessionId, Consumer>,
    picked: BTreeMap<ItemId, Picked>,
    /// When a destination stops to be Busy for a consumer.
    busy: BTreeSet<(Timestamp, LeaseSessionId, Destination)>,
    /// Rows of `due` below it were read; `None`: none.
    cursor: Option<DueKey>,
    /// Memory had no room for the row at the cursor, which is due then; reading goes on when it has.
    full: Option<Timestamp>,
}

impl Scheduler {
    /// A lease session's stream is there. `classes`: what it takes; empty: all. Called again, it changes the classes.
    pub fn connect(&mut self, session: LeaseSessionId, classes: Vec<Arc<str>>) {
        let consumer = self.consumers.entry(session).or_default();
        if !consumer.connect(classes) {
            return;
        }
        for (id, lane) in self.lanes.ready() {
            consumer.offer(id, &lane.class);
        }
    }

    /// The stream is gone; what the lease session holds stays its own.
    pub fn disconnect(&mut self, session: LeaseSessionId) {
        if let Some(consumer) = self.consumers.get_mut(&session) {
            consumer.disconnect();
        }
    }

    /// How many unsettled items of a destination a consumer wants ([`WINDOW_ITEMS`] until it says so).
    pub fn window(&mut self, session: LeaseSessionId, destination: &Destination, items: u32) {
        if let Some(consumer) = self.consumers.get_mut(&session) {
            consumer.set_window(destination, items);
            offer_destination(&self.lanes, consumer, destination);
        }
    }

    /// Nothing of a destination goes to a consumer before `until`.
    pub fn busy(&mut self, session: LeaseSessionId, destination: &Destination, until: Timestamp) {
        let Some(consumer) = self.consumers.get_mut(&session) else {
            return;
        };
        if let Some(before) = consumer.set_busy(destination, until) {
            self.busy.remove(&(before, session, destination.clone()));
        }
        if consumer.is_busy(destination) {
            self.busy.insert((until, session, destination.clone()));
        }
        self.advance(self.now);
    }

    /// Takes items for a consumer, as far as its credit goes: O(picked). `size` gives the octets that an item takes of
    /// the credit. Each is the consumer's until [`Effect::Granted`], [`Effect::GrantSkipped`] or [`Scheduler::unpick`].
    pub fn pick(
        &mut self,
        now: Timestamp,
        session: LeaseSessionId,
        mut credit: Credit,
        mut size: impl FnMut(ItemId) -> u64,
    ) -> Vec<ItemId> {
        self.advance(now);
        let mut found = Vec::new();
        let Some(consumer) = self.consumers.get_mut(&session) else {
            return found;
        };
        for destination in consumer.take_fitting(credit.bytes) {
            offer_destination(&self.lanes, consumer, &destination);
        }
        while credit.items > 0 && credit.bytes > 0 {
            // A lane that cannot go on leaves the ring; whatever opens it again offers it again.
            let Some(id) = consumer.next_lane() else {
                break;
            };
            let Some(lane) = self.lanes.get(id) else {
                continue;
            };
            if !consumer.accepts(&lane.class) || !consumer.is_open(&lane.destination) {
                continue;
            }
            let (class, destination) = (lane.class.clone(), lane.destination.clone());
            if !consumer.fits(&destination, credit.bytes) {
                consumer.set_full(destination);
                continue;
            }
            let Some(head) = self.lanes.take(id) else {
                continue;
            };
            if self.lanes.get(id).is_some_and(|lane| lane.is_ready()) {
                consumer.offer(id, &class);
            }
            let octets = size(head.item);
            consumer.add_unsettled(&destination, head.item, octets);
            credit.items -= 1;
            credit.bytes = credit.bytes.saturating_sub(octets);
            found.push(head.item);
            let picked = Picked {
                session,
                destination,
                back: Some((class, head)),
                reserved: false,
            };
            self.picked.insert(head.item, picked);
        }
        found
    }

    /// The grant of a picked or reserved item was not proposed, or the proposal was dropped.
    pub fn unpick(&mut self, item: ItemId) {
        if let Some(Picked {
            destination,
            back: Some((class, head)),
            ..
        }) = self.forget_pick(item)
        {
            self.insert(&class, &destination, head);
        }
    }

    /// Whether a new item could go to this consumer with its Append: nothing of its destination waits before it, it is
    /// not Busy, its window is open, and of the `left` octets of credit enough are others'.
    pub fn express(
        &mut self,
        session: LeaseSessionId,
        destination: &Destination,
        class: &str,
        now: Timestamp,
        left: u64,
    ) -> bool {
        self.advance(now);
        let open = |c: &Consumer| {
            c.is_connected()
                && c.accepts(class)
                && c.is_open(destination)
                && c.fits(destination, left)
        };
        let read = self
            .cursor
            .as_ref()
            .is_some_and(|cursor| cursor.minute > self.now.0 / 60_000);
        read && self.consumers.get(&session).is_some_and(open)
            && self.lanes.is_idle(class, destination)
    }

    /// Counts an express grant that is on its way inside an Append. `octets`: what it takes of the credit.
    pub fn reserve(
        &mut self,
        session: LeaseSessionId,
        item: ItemId,
        destination: &Destination,
        octets: u64,
    ) {
        let Some(consumer) = self.consumers.get_mut(&session) else {
            return;
        };
        consumer.add_unsettled(destination, item, octets);
        let picked = Picked {
            session,
            destination: destination.clone(),
            back: None,
            reserved: true,
        };
        self.picked.insert(item, picked);
    }

    /// Takes in what an applied entry did. Every effect of every entry goes here, in order.
    pub fn observe(&mut self, effect: &Effect) {
        match effect {
            Effect::Waiting {
                item,
                destination,
                class,
                priority,
                due,
            } => {
                let head = Head {
                    rank: priority.saturating_neg(),
                    due: *due,
                    item: *item,
                };
                match self.picked.get_mut(item) {
                    // Its grant is on the way; the answer to that one comes.
                    Some(picked) => picked.back = Some((class.clone(), head)),
                    None => self.insert(class, destination, head),
                }
            }
            Effect::LeftWaiting { item, .. } => match self.picked.get_mut(item) {
                Some(picked) => picked.back = None,
                None => self.lanes.remove(*item),
            },
            Effect::Granted {
                item,
                session,
                destination,
                ..
            } => self.granted(*item, *session, destination),
            Effect::GrantSkipped { item, session } => self.skipped(*item, *session),
            Effect::Ungranted {
                item,
                session,
                destination,
            } => self.settled(*session, *item, destination),
            Effect::SessionOpened { session, kept, .. } => {
                let consumer = self.consumers.entry(*session).or_default();
                kept.iter()
                    .for_each(|kept| consumer.add_unsettled(&kept.destination, kept.item, 0));
            }
            Effect::SessionEnded { session, .. } => {
                self.consumers.remove(session);
                self.busy.retain(|(_, busy, _)| busy != session);
            }
            Effect::AlreadyQueued { message }
            | Effect::Conflict { message }
            | Effect::UploadGone { message } => {
                self.unreserve(*message);
            }
            _ => {}
        }
    }

    /// When [`Scheduler::pick`] or [`Scheduler::load`] may find something that it does not find now.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let read = match (&self.cursor, self.full) {
            _ if self.wants_load() => self.now,
            (_, Some(due)) if due > self.now => due,
            (Some(cursor), None) => Timestamp(
                cursor
                    .minute
                    .saturating_mul(60_000)
                    .saturating_sub(READ_AHEAD_MS),
            ),
            // What makes room is a pick or an effect.
            _ => Timestamp(u64::MAX),
        };
        let busy = self.busy.first().map(|(until, ..)| *until);
        [self.lanes.next_due(), busy, Some(read)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Items in memory, for metrics.
    pub fn heads(&self) -> usize {
        self.lanes.heads()
    }

    fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        for id in self.lanes.ripen(self.now) {
            self.offer(id);
        }
        while let Some((until, ..)) = self.busy.first() {
            if *until > self.now {
                break;
            }
            let Some((_, session, destination)) = self.busy.pop_first() else {
                break;
            };
            let Some(consumer) = self.consumers.get_mut(&session) else {
                continue;
            };
            consumer.end_busy(&destination);
            offer_destination(&self.lanes, consumer, &destination);
        }
    }

    /// A Waiting item, from an effect or put back.
    fn insert(&mut self, class: &Arc<str>, destination: &Destination, head: Head) {
        self.lanes.remove(head.item);
        let key = head.key(class, destination);
        // What is not read yet will be.
        if self.cursor.as_ref().is_some_and(|cursor| key < *cursor) {
            self.take_in(key);
        }
    }

    /// A row of `due` below the cursor becomes a head, where there is room.
    fn take_in(&mut self, key: DueKey) {
        match self.lanes.insert(&key) {
            lane::Inserted::Ready(id) => self.offer(id),
            lane::Inserted::Kept => {}
            // Not even its lane is known: it is read again from here when there is room.
            lane::Inserted::NoRoom => {
                self.full = Some(key.due);
                self.cursor = self.cursor.take().map(|cursor| cursor.min(key));
            }
        }
    }

    fn offer(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get(id).filter(|lane| lane.is_ready()) else {
            return;
        };
        for consumer in self.consumers.values_mut() {
            consumer.offer(id, &lane.class);
        }
    }

    fn granted(&mut self, item: ItemId, session: LeaseSessionId, destination: &Destination) {
        match self.picked.get(&item) {
            Some(picked) if picked.session == session => {
                self.picked.remove(&item);
            }
            // Not by a pick of this leader's, or by one that it gave up.
            _ => {
                self.lanes.remove(item);
                self.consumers
                    .entry(session)
                    .or_default()
                    .add_unsettled(destination, item, 0);
            }
        }
    }

    /// Where the item still waits, [`Effect::Waiting`] comes after this.
    fn skipped(&mut self, item: ItemId, session: LeaseSessionId) {
        if self
            .picked
            .get(&item)
            .is_some_and(|picked| picked.session == session)
        {
            self.forget_pick(item);
        }
    }

    fn settled(&mut self, session: LeaseSessionId, item: ItemId, destination: &Destination) {
        let Some(consumer) = self.consumers.get_mut(&session) else {
            return;
        };
        if consumer.remove_unsettled(destination, item) {
            offer_destination(&self.lanes, consumer, destination);
        }
    }

    fn forget_pick(&mut self, item: ItemId) -> Option<Picked> {
        let picked = self.picked.remove(&item)?;
        self.settled(picked.session, item, &picked.destination);
        Some(picked)
    }

    /// An Append turned out not to create its message.
    fn unreserve(&mut self, message: Ulid) {
        let all = ItemId { message, number: 0 }..=ItemId {
            message,
            number: u32::MAX,
        };
        let reserved: Vec<ItemId> = self
            .picked
            .range(all)
            .filter(|(_, picked)| picked.reserved)
            .map(|(item, _)| *item)
            .collect();
        for item in reserved {
            self.forget_pick(item);
        }
    }
}

/// A destination is open to a consumer again.
fn offer_destination(lanes: &Lanes, consumer: &mut Consumer, destination: &Destination) {
    if !consumer.is_open(destination) {
        return;
    }
    for (id, lane) in lanes.of(destination).filter(|(_, lane)| lane.is_ready()) {
        consumer.offer(id, &lane.class);
    }
}
