//! A network that drops, delays, reorders and (between replicas) duplicates, and can be cut in one direction only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use mail::Ulid;
use queue::{ItemId, KeptItem, LeaseSessionId, Token, Verdict};
use spool::node::Message;

use crate::rng::Rng;

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
    Ask { from: Actor, to: usize, ask: Ask },
    Tell { to: Actor, tell: Tell },
}

/// In steps; one way.
const DELAY_MAX: u64 = 6;
const DELAY_MAX_CALM: u64 = 2;

#[derive(Default)]
pub struct Net {
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    packets: BTreeMap<u64, Packet>,
    next: u64,
    /// (from, to) of replicas that do not hear each other.
    pub cut: Vec<(usize, usize)>,
    /// Nothing goes wrong any more.
    pub calm: bool,
}

impl Net {
    pub fn send(&mut self, now: u64, rng: &mut Rng, packet: Packet) {
        if !self.calm && rng.one_in(20) {
            return;
        }
        let copy = match &packet {
            Packet::Raft(message) => {
                if self
                    .cut
                    .contains(&(message.from as usize - 1, message.to as usize - 1))
                {
                    return;
                }
                let twice = !self.calm && rng.one_in(50);
                twice.then(|| Packet::Raft(message.clone()))
            }
            // Clients speak over streams: a frame is lost with its stream or arrives once.
            Packet::Ask { .. } | Packet::Tell { .. } => None,
        };
        for packet in [Some(packet), copy].into_iter().flatten() {
            let most = if self.calm { DELAY_MAX_CALM } else { DELAY_MAX };
            let at = now + rng.within(1, most);
            self.next += 1;
            self.queue.push(Reverse((at, self.next)));
            self.packets.insert(self.next, packet);
        }
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

    /// Cuts some links, each direction by itself, or heals all.
    pub fn shake(&mut self, rng: &mut Rng, replicas: usize) {
        let healed = self.cut.is_empty();
        self.cut.clear();
        if !healed && rng.one_in(2) {
            return;
        }
        let asymmetric = rng.one_in(3);
        let side = rng.next();
        for from in 0..replicas {
            for to in 0..replicas {
                let apart = (side >> from) & 1 != (side >> to) & 1;
                if from != to && if asymmetric { rng.one_in(3) } else { apart } {
                    self.cut.push((from, to));
                }
            }
        }
    }
}
