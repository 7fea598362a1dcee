//! Edges: they append with ids of their own, and after anything but an answer send the same id again, elsewhere. Big
//! messages come in as chunks. An edge that dies forgets what it had on the way; its client sends it anew, under
//! another id, which is no business of the queue.

use mail::Ulid;

use crate::sim::net::{Actor, Ask, Packet, Tell};
use crate::sim::world::World;

/// Steps without an answer after which a stream counts as broken.
const PATIENCE: u64 = 60;
/// Messages on their way from one edge.
const OUTSTANDING: usize = 4;
/// Chunks of a big message at most.
const CHUNKS_MAX: u64 = 6;
/// Steps after which an answered id may come again at most.
const LATE_MAX: u64 = 700;

/// What an edge asks next of one message.
#[derive(Clone, Copy)]
pub struct Outgoing {
    id: Ulid,
    again_at: u64,
    /// It was asked for, and nobody answered yet.
    asked: bool,
    /// 0: the body comes with the Append.
    chunks: u32,
    /// Chunks that are stored.
    stored: u32,
    /// The client goes away when so many are.
    abandoned_at: Option<u32>,
}

#[derive(Default)]
pub struct Edge {
    outgoing: Vec<Outgoing>,
    /// Answered ids that come again, as a request does that was held up: (step, which).
    late: Vec<(u64, Outgoing)>,
    guess: usize,
}

impl Edge {
    pub fn is_idle(&self) -> bool {
        self.outgoing.is_empty() && self.late.is_empty()
    }

    fn find(&mut self, id: Ulid) -> Option<&mut Outgoing> {
        self.outgoing.iter_mut().find(|outgoing| outgoing.id == id)
    }

    fn forget(&mut self, id: Ulid) {
        self.outgoing.retain(|outgoing| outgoing.id != id);
    }
}

impl World {
    pub fn edges_act(&mut self) {
        for e in 0..self.edges.len() {
            if !self.calm && self.rng.chance(self.faults.edge_death) {
                self.edges[e].outgoing.clear();
            }
            if !self.quiet && self.edges[e].outgoing.len() < OUTSTANDING && self.rng.one_in(8) {
                self.begin(e);
            }
            let now = self.now;
            let due: Vec<usize> = (0..self.edges[e].outgoing.len())
                .filter(|&at| self.edges[e].outgoing[at].again_at <= now)
                .collect();
            for at in due {
                self.edges[e].outgoing[at].again_at = now + PATIENCE;
                let asked = std::mem::replace(&mut self.edges[e].outgoing[at].asked, true);
                if asked {
                    self.edges[e].guess = (self.edges[e].guess + 1) % self.replicas.len();
                }
                let outgoing = self.edges[e].outgoing[at];
                self.ask_for(e, outgoing);
            }
            let late = std::mem::take(&mut self.edges[e].late);
            for (at, outgoing) in late {
                match at <= now {
                    true => self.ask_for(e, outgoing),
                    false => self.edges[e].late.push((at, outgoing)),
                }
            }
        }
    }

    /// A client has a message.
    fn begin(&mut self, e: usize) {
        let id = self.new_id();
        let big = !self.calm && self.rng.chance(self.faults.upload);
        let chunks = if big {
            self.rng.within(1, CHUNKS_MAX)
        } else {
            0
        } as u32;
        let abandoned = chunks > 0 && self.rng.one_in(2);
        let abandoned_at = abandoned.then(|| self.rng.below(u64::from(chunks)) as u32);
        self.attempted += 1;
        self.edges[e].outgoing.push(Outgoing {
            id,
            again_at: self.now,
            asked: false,
            chunks,
            stored: 0,
            abandoned_at,
        });
    }

    fn ask_for(&mut self, e: usize, outgoing: Outgoing) {
        if self.rng.one_in(3) {
            self.edges[e].guess = self.rng.below(self.replicas.len() as u64) as usize;
        }
        let Outgoing {
            id, chunks, stored, ..
        } = outgoing;
        let ask = match stored < chunks {
            true => Ask::Chunk { id, seq: stored },
            false => Ask::Append { id, chunks },
        };
        let packet = Packet::Ask {
            from: Actor::Edge(e),
            to: self.edges[e].guess,
            ask,
        };
        self.net.send(self.now, &mut self.rng, packet);
    }

    pub fn edge_hears(&mut self, e: usize, tell: Tell) {
        let now = self.now;
        match tell {
            Tell::Appended { id } => {
                let late = !self.quiet && self.rng.chance(self.faults.late_retry);
                let edge = &mut self.edges[e];
                let done = edge.find(id).copied();
                edge.forget(id);
                if let Some(done) = done.filter(|_| late) {
                    let at = now + self.rng.below(LATE_MAX);
                    self.edges[e].late.push((at, done));
                }
            }
            Tell::Stale { id } => self.edges[e].forget(id),
            Tell::Stored { id, seq } => {
                let edge = &mut self.edges[e];
                let Some(outgoing) = edge.find(id) else {
                    return;
                };
                if outgoing.stored == seq {
                    (outgoing.stored, outgoing.again_at) = (seq + 1, now);
                    outgoing.asked = false;
                }
                if outgoing
                    .abandoned_at
                    .is_some_and(|at| outgoing.stored >= at)
                {
                    edge.forget(id);
                }
            }
            Tell::Again { id, leader } => {
                self.edges[e].guess = match leader {
                    Some(leader) => leader,
                    None => self.rng.below(self.replicas.len() as u64) as usize,
                };
                let again_at = now + 1 + self.rng.below(8);
                if let Some(outgoing) = self.edges[e].find(id) {
                    (outgoing.again_at, outgoing.asked) = (again_at, false);
                }
            }
            _ => {}
        }
    }
}
