//! A network that drops, delays, reorders and (between replicas) duplicates, and can be cut in one direction only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use mail::Ulid;
use queue::{ItemId, KeptItem, LeaseSessionId, Token, Verdict};
use spool::node::Message;

use crate::sim::churn::{Order, slot_of};
use crate::sim::profile::Faults;
use crate::sim::rng::Rng;
use crate::sim::snapshots::Parcel;

/// A client of the replicas.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Actor {
    Edge(usize),
    Delivery(usize),
}

/// What clients say to replicas.
#[derive(Clone, Debug)]
pub enum Ask {
    Append {
        id: Ulid,
        /// 0: the body comes with it.
        chunks: u32,
    },
    Chunk {
        id: Ulid,
        seq: u32,
    },
    Open {
        incarnation: u64,
        boot: u64,
        sent: u64,
        past_dot: Vec<ItemId>,
        handed_back: Vec<ItemId>,
    },
    Keepalive {
        session: LeaseSessionId,
        sent: u64,
        holding: Vec<(ItemId, Token)>,
        credit: usize,
    },
    Settle {
        item: ItemId,
        token: Token,
        session: LeaseSessionId,
        verdict: Verdict,
    },
}

/// What replicas say to clients.
#[derive(Clone, Debug)]
pub enum Tell {
    Appended {
        id: Ulid,
    },
    Stored {
        id: Ulid,
        seq: u32,
    },
    /// The id is too old to be known, or its chunks are gone: 451.
    Stale {
        id: Ulid,
    },
    /// Not written, or nobody knows: the same id again.
    Again {
        id: Ulid,
        leader: Option<usize>,
    },
    NotLeader {
        leader: Option<usize>,
    },
    Opened {
        incarnation: u64,
        sent: u64,
        session: LeaseSessionId,
        kept: Vec<KeptItem>,
    },
    Kept {
        session: LeaseSessionId,
        sent: u64,
    },
    Gone {
        session: LeaseSessionId,
    },
    Grant {
        session: LeaseSessionId,
        item: ItemId,
        token: Token,
    },
    Revoke {
        session: LeaseSessionId,
        item: ItemId,
    },
    Settled {
        item: ItemId,
        token: Token,
    },
}

pub enum Packet {
    Raft(Message),
    Ask {
        from: Actor,
        to: usize,
        ask: Ask,
    },
    Tell {
        to: Actor,
        tell: Tell,
    },
    /// The control group's leader tells a node where the groups shall be.
    Order {
        to: usize,
        order: Order,
    },
    /// What a node answers.
    Report {
        node: u64,
        term: u64,
        report: Box<proto::v1::SteerReport>,
    },
    /// Staged at the receiver when it arrives.
    Snapshot(Parcel),
    /// What became of one: the sender hears it. Peer ids.
    SnapshotSent {
        from: u64,
        to: u64,
        id: u64,
        staged: bool,
    },
    /// A replica tells another whether its disk is full.
    Full {
        from: usize,
        to: usize,
        full: bool,
    },
}

/// Steps, one way, when nothing goes wrong any more.
const DELAY_MAX_CALM: u64 = 2;
/// Steps that a slow link adds: up to more than two election timeouts.
const SLOW_LINK_MAX: u64 = 120;

#[derive(Default)]
pub struct Net {
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    packets: BTreeMap<u64, Packet>,
    next: u64,
    /// (from, to) of replicas that do not hear each other.
    cut: BTreeSet<(usize, usize)>,
    /// (from, to) of replicas, and the steps that this takes longer.
    slow: BTreeMap<(usize, usize), u64>,
    /// Clients that are cut off, and until when.
    isolated: BTreeMap<Actor, u64>,
    /// Nothing goes wrong any more.
    calm: bool,
    faults: Faults,
}

impl Net {
    pub fn new(faults: Faults) -> Net {
        Net {
            faults,
            ..Net::default()
        }
    }

    /// From now on every packet arrives, soon.
    pub fn heal(&mut self) {
        self.calm = true;
        self.cut.clear();
        self.slow.clear();
        self.isolated.clear();
    }

    /// A client and the replicas do not hear each other.
    pub fn isolate(&mut self, client: Actor, until: u64) {
        self.isolated.insert(client, until);
    }

    pub fn send(&mut self, now: u64, rng: &mut Rng, packet: Packet) {
        if !self.calm && rng.chance(self.faults.drop) {
            return;
        }
        let link = match &packet {
            Packet::Raft(message) => Some((slot_of(message.from), slot_of(message.to))),
            Packet::Full { from, to, .. } => Some((*from, *to)),
            // Clients speak over streams: a frame is lost with its stream or arrives once.
            Packet::Ask { .. } | Packet::Tell { .. } => None,
            // The control group's leader is anywhere.
            Packet::Order { .. } | Packet::Report { .. } => None,
            Packet::Snapshot(_) | Packet::SnapshotSent { .. } => None,
        };
        if link.is_some_and(|link| self.cut.contains(&link)) {
            return;
        }
        let client = match &packet {
            Packet::Ask { from, .. } => Some(from),
            Packet::Tell { to, .. } => Some(to),
            _ => None,
        };
        if client.is_some_and(|client| self.isolated.get(client).is_some_and(|until| *until > now))
        {
            return;
        }
        let copy = match &packet {
            Packet::Raft(message) if !self.calm && rng.chance(self.faults.duplicate) => {
                Some(Packet::Raft(message.clone()))
            }
            _ => None,
        };
        let longer = link.and_then(|link| self.slow.get(&link)).copied();
        let most = if self.calm {
            DELAY_MAX_CALM
        } else {
            self.faults.delay
        };
        for packet in [Some(packet), copy].into_iter().flatten() {
            let at = now + rng.within(1, most) + longer.unwrap_or(0);
            self.put(at, packet);
        }
    }

    /// Comes at `at`, whatever happens.
    pub fn put(&mut self, at: u64, packet: Packet) {
        self.next += 1;
        self.queue.push(Reverse((at, self.next)));
        self.packets.insert(self.next, packet);
    }

    /// The next packet that is due.
    pub fn receive(&mut self, now: u64) -> Option<Packet> {
        let &Reverse((at, number)) = self.queue.peek()?;
        if at > now {
            return None;
        }
        self.queue.pop();
        self.packets.remove(&number)
    }

    /// Cuts some links, or heals all.
    pub fn shake(&mut self, rng: &mut Rng, replicas: usize) {
        let healed = self.cut.is_empty();
        self.cut.clear();
        if !healed && rng.one_in(2) {
            return;
        }
        let (shape, side) = (rng.below(4), rng.next());
        let pair = (
            rng.below(replicas as u64) as usize,
            rng.below(replicas as u64) as usize,
        );
        for from in 0..replicas {
            for to in 0..replicas {
                let apart = match shape {
                    // Each direction by itself.
                    0 => rng.one_in(3),
                    // Two do not see each other; the others see both.
                    1 => (from, to) == pair || (to, from) == pair,
                    _ => (side >> from) & 1 != (side >> to) & 1,
                };
                if from != to && apart {
                    self.cut.insert((from, to));
                }
            }
        }
    }

    /// One link, in one direction, takes longer, or none does.
    pub fn slow_down(&mut self, rng: &mut Rng, replicas: usize) {
        if rng.one_in(3) {
            return self.slow.clear();
        }
        let from = rng.below(replicas as u64) as usize;
        let to = rng.below(replicas as u64) as usize;
        self.slow.insert((from, to), rng.within(20, SLOW_LINK_MAX));
    }
}
