//! The lease side of a delivery node: which lease session to open, reattach or give up, and how much work to ask for.
//! Pure: streams, the clock and the topology come in, requests and work go out; `node` is the driver.
//!
//! ```text
//!              OpenSession          SessionOpened
//!   (closed) ─────────────► opening ─────────────► open ◄──── Reattach (other leader, other stream)
//!      ▲                                            │
//!      └── SessionEnded, or 20 s without an answer ─┘
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::v1;
use v1::lease_event::What as Event;
use v1::lease_request::What as Request;

use crate::hand::Hand;
use crate::item::ItemId;

mod hints;
mod shard;
#[cfg(test)]
mod tests;
mod work;

use hints::{Hint, Hints};
use shard::Shard;

/// How often a lease session is kept alive: three may be lost before the fence.
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// Items in hand at most, over all shards: more than are in flight at full speed, few enough to hand back at leaving.
pub(crate) const ITEMS_IN_HAND_MAX: u32 = 2_000;
/// Octets of bodies in hand at most, over all shards.
pub(crate) const BYTES_IN_HAND_MAX: u64 = 64 * 1024 * 1024;
/// What the queue hands out of a destination until told otherwise (queue.proto).
pub(crate) const WINDOW_DEFAULT: u32 = 20;
/// How long a request to open waits for its answer, and a refused shard for its next try.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Destinations whose windows are remembered; those beyond keep the default.
const WINDOWS_MAX: usize = 10_000;
/// Destinations that may back off at once: the queue remembers no more of one delivery node either.
const BUSY_MAX: usize = 100_000;

/// What the driver has to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send this to the queue node at the address.
    Send(String, Request),
    /// Deliver this.
    Work(u32, Box<v1::Handout>),
    /// Settle this, which the journal knew of an item: the item is still ours, or some of its recipients have the mail.
    Recalled(v1::SettleRequest),
    /// The journal's item is no longer ours: forget it.
    Forgotten(ItemId),
    /// Hand this grant back.
    Release {
        shard: u32,
        item: ItemId,
        token: u64,
        session: u64,
    },
}

#[derive(Debug)]
struct Link {
    serial: u64,
    /// Credit to be given.
    items: u32,
    bytes: u64,
    /// What its queue node has not heard yet of destinations.
    hints: Hints,
}

/// The leases of this node.
#[derive(Debug)]
pub(crate) struct Leases {
    keepalive_every: Duration,
    shards: Vec<Shard>,
    links: HashMap<String, Link>,
    last_serial: u64,
    /// Of the last OpenSession, over all shards.
    last_open: u64,
    nodes: u32,
    windows: HashMap<String, u32>,
    busy: HashMap<String, Instant>,
    /// When `busy` was last cleared of what is over.
    pruned: Option<Instant>,
    /// Items that only the journal knows, until the new lease session says whether it kept them.
    recalled: HashMap<u32, Vec<(ItemId, v1::SettleRequest)>>,
    leaving: bool,
}

impl Leases {
    /// Without shards: the topology brings them.
    pub(crate) fn new(keepalive_every: Duration) -> Leases {
        Leases {
            keepalive_every,
            shards: Vec::new(),
            links: HashMap::new(),
            last_serial: 0,
            last_open: 0,
            nodes: 1,
            windows: HashMap::new(),
            busy: HashMap::new(),
            pruned: None,
            recalled: HashMap::new(),
            leaving: false,
        }
    }

    /// The journal's results of this shard go before its first lease session.
    pub(crate) fn settle_first(&mut self, shard: u32) {
        self.shard(shard).first += 1;
    }

    /// One of those results has its outcome.
    pub(crate) fn settled_first(&mut self, shard: u32) {
        let shard = self.shard(shard);
        shard.first = shard.first.saturating_sub(1);
    }

    /// The journal knows an item past its dot; it is in the hand as such.
    pub(crate) fn recall(&mut self, shard: u32, item: ItemId, if_lost: v1::SettleRequest) {
        self.recalled
            .entry(shard)
            .or_default()
            .push((item, if_lost));
    }

    /// Who leads, by shard, and how many queue nodes share this node's credit. Gives the addresses to have streams to.
    pub(crate) fn topology(
        &mut self,
        leaders: &[(u32, Option<String>)],
        nodes: usize,
    ) -> Vec<String> {
        self.nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
        for (shard, leader) in leaders {
            let shard = self.shard(*shard);
            if shard.leader != *leader {
                shard.leader.clone_from(leader);
                shard.link = None;
                shard.retry_at = None;
            }
        }
        let mut addresses: Vec<String> = self
            .shards
            .iter()
            .filter_map(|shard| shard.leader.clone())
            .collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// A stream to a queue node stands. Gives its serial. What is in hand of streams that are gone is charged to it.
    pub(crate) fn link_up(&mut self, address: &str, hand: &mut Hand) -> u64 {
        self.last_serial += 1;
        let share = (
            (ITEMS_IN_HAND_MAX / self.nodes).max(1),
            (BYTES_IN_HAND_MAX / u64::from(self.nodes)).max(1),
        );
        self.links.remove(address);
        let live: Vec<u64> = self.links.values().map(|link| link.serial).collect();
        let (items, bytes) = hand.charge_orphans(&live, self.last_serial, share);
        let mut hints = Hints::default();
        for destination in self.windows.keys() {
            hints.push(Hint::Window(destination.clone()));
        }
        let link = Link {
            serial: self.last_serial,
            items: share.0.saturating_sub(items),
            bytes: share.1.saturating_sub(bytes),
            hints,
        };
        self.links.insert(address.to_string(), link);
        self.last_serial
    }

    /// The stream with this serial is gone.
    pub(crate) fn link_down(&mut self, address: &str, serial: u64) {
        if self
            .links
            .get(address)
            .is_some_and(|link| link.serial == serial)
        {
            self.links.remove(address);
        }
        for shard in self
            .shards
            .iter_mut()
            .filter(|shard| shard.link == Some(serial))
        {
            shard.link = None;
            shard.opening = None;
        }
    }

    /// No new work from now on: no lease session is opened and no credit is given.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
    }

    /// It was told to leave.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// This much of a stream's credit is free again.
    fn returned(&mut self, serial: u64, items: u32, bytes: u64) {
        if let Some(link) = self.links.values_mut().find(|link| link.serial == serial) {
            link.items = (link.items + items).min(ITEMS_IN_HAND_MAX);
            link.bytes = (link.bytes + bytes).min(BYTES_IN_HAND_MAX);
        }
    }

    /// What time it is: fences, opens, reattaches, keeps alive, gives credit. Called after every input and every
    /// half second.
    pub(crate) fn tick(&mut self, hand: &mut Hand, now: Instant, out: &mut Vec<Effect>) {
        for number in 0..self.shards.len() {
            self.tick_shard(number, hand, now, out);
        }
        for (serial, (items, bytes)) in hand.take_freed() {
            self.returned(serial, items, bytes);
        }
        self.prune_now_and_then(now);
        if self.leaving {
            return;
        }
        for (address, link) in &mut self.links {
            // The first credit goes out with the first open lease session: until then nothing could be handed out.
            let open = self
                .shards
                .iter()
                .any(|shard| shard.link == Some(link.serial) && shard.session.is_some());
            if open && link.items > 0 {
                let credit = v1::Credit {
                    items: link.items,
                    bytes: link.bytes,
                    classes: Vec::new(),
                };
                (link.items, link.bytes) = (0, 0);
                out.push(Effect::Send(address.clone(), Request::Credit(credit)));
            }
        }
    }

    /// What came on the stream with this serial.
    pub(crate) fn event(
        &mut self,
        serial: u64,
        event: v1::LeaseEvent,
        hand: &mut Hand,
        now: Instant,
        out: &mut Vec<Effect>,
    ) {
        let id = event.shard;
        if id as usize >= self.shards.len() {
            return;
        }
        match event.what {
            Some(Event::Handout(handout)) => self.handout(serial, id, handout, hand, out),
            Some(Event::Opened(opened)) => self.opened(serial, id, &opened, hand, out),
            Some(Event::KeptAlive(kept)) => {
                let shard = &mut self.shards[id as usize];
                while let Some((sequence, sent)) = shard.unanswered.front().copied() {
                    if sequence > kept.sequence || shard.session != Some(kept.session) {
                        break;
                    }
                    shard.unanswered.pop_front();
                    if sequence == kept.sequence {
                        hand.prove(id, kept.session, sent);
                    }
                }
            }
            Some(Event::Ended(ended)) => {
                let shard = &mut self.shards[id as usize];
                if shard.session == Some(ended.session) {
                    tracing::warn!(
                        shard = id,
                        session = ended.session,
                        reason = ended.reason,
                        "the queue ended a lease session; a new one is opened"
                    );
                    metrics::counter!("postroad_lease_sessions_ended_total").increment(1);
                    hand.end(id);
                    shard.close();
                    shard.retry_at = Some(now + RETRY_AFTER);
                }
            }
            Some(Event::Revoke(item)) => {
                if let Some(item) = ItemId::from_wire(Some(&item)) {
                    hand.revoke(item);
                }
            }
            Some(Event::StillWorking(asked)) => self.still_working(id, &asked, hand, out),
            Some(Event::NotLeader(_)) => {
                let shard = &mut self.shards[id as usize];
                if shard.link == Some(serial) {
                    (shard.link, shard.opening) = (None, None);
                    shard.retry_at = Some(now + RETRY_AFTER);
                }
            }
            Some(Event::NotOpened(refused)) => {
                let shard = &mut self.shards[id as usize];
                if shard
                    .opening
                    .is_some_and(|(sequence, _)| sequence == refused.sequence)
                {
                    (shard.link, shard.opening) = (None, None);
                    shard.retry_at = Some(now + RETRY_AFTER);
                }
            }
            None => {}
        }
    }

    /// Every known shard has a lease session.
    pub(crate) fn ready(&self) -> bool {
        !self.leaving
            && !self.shards.is_empty()
            && self.shards.iter().all(|shard| shard.session.is_some())
    }

    fn shard(&mut self, number: u32) -> &mut Shard {
        let number = number as usize;
        if self.shards.len() <= number {
            self.shards.resize_with(number + 1, Shard::default);
        }
        &mut self.shards[number]
    }
}
