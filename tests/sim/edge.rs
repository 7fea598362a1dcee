//! Edges: they append with ids of their own, and after anything but an answer send the same id again, elsewhere.

use mail::Ulid;

use crate::net::{Actor, Ask, Packet, Tell};
use crate::world::World;

/// Steps without an answer after which a stream counts as broken.
const PATIENCE: u64 = 60;
/// Messages on their way from one edge.
const OUTSTANDING: usize = 4;

pub struct Outgoing {
    id: Ulid,
    again_at: u64,
}

#[derive(Default)]
pub struct Edge {
    pub outgoing: Vec<Outgoing>,
    guess: usize,
}

impl World {
    pub fn edges_act(&mut self) {
        for e in 0..self.edges.len() {
            if !self.quiet && self.edges[e].outgoing.len() < OUTSTANDING && self.rng.one_in(8) {
                let id = self.new_id();
                self.edges[e].outgoing.push(Outgoing {
                    id,
                    again_at: self.now,
                });
            }
            let due: Vec<usize> = (0..self.edges[e].outgoing.len())
                .filter(|&at| self.edges[e].outgoing[at].again_at <= self.now)
                .collect();
            for at in due {
                if self.rng.one_in(3) {
                    self.edges[e].guess = self.rng.below(self.replicas.len() as u64) as usize;
                }
                self.edges[e].outgoing[at].again_at = self.now + PATIENCE;
                let (id, to) = (self.edges[e].outgoing[at].id, self.edges[e].guess);
                let packet = Packet::Ask {
                    from: Actor::Edge(e),
                    to,
                    ask: Ask::Append { id },
                };
                self.net.send(self.now, &mut self.rng, packet);
            }
        }
    }

    pub fn edge_hears(&mut self, e: usize, tell: Tell) {
        match tell {
            Tell::Appended { id } => {
                self.edges[e].outgoing.retain(|outgoing| outgoing.id != id);
            }
            Tell::Again { id, leader } => {
                self.edges[e].guess = match leader {
                    Some(leader) => leader,
                    None => self.rng.below(self.replicas.len() as u64) as usize,
                };
                let again_at = self.now + 1 + self.rng.below(8);
                for outgoing in self.edges[e]
                    .outgoing
                    .iter_mut()
                    .filter(|outgoing| outgoing.id == id)
                {
                    outgoing.again_at = again_at;
                }
            }
            _ => {}
        }
    }
}
