//! Bodies of young messages, so that handouts and reports need no read.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use mail::Ulid;

/// Bodies of young messages, so that a handout needs no read. First in, first out, by octets; shared by all shards
/// of a node. The octets are those of the Raft entry cache (one allocation), so this mostly costs the map.
pub struct BodyCache {
    limit: usize,
    bytes: usize,
    bodies: HashMap<Ulid, Bytes>,
    order: VecDeque<(Ulid, usize)>,
}

impl BodyCache {
    /// Holds at most `limit` octets.
    pub fn new(limit: usize) -> BodyCache {
        BodyCache {
            limit,
            bytes: 0,
            bodies: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Keeps a body for a while.
    pub fn insert(&mut self, message: Ulid, body: Bytes) {
        let size = body.len();
        if size == 0 || size > self.limit {
            return;
        }
        if self.bodies.insert(message, body).is_none() {
            self.bytes += size;
            self.order.push_back((message, size));
        }
        while self.bytes > self.limit || self.order.len() > 2 * self.bodies.len() + 64 {
            let Some((oldest, size)) = self.order.pop_front() else {
                break;
            };
            if self.bodies.remove(&oldest).is_some() {
                self.bytes -= size;
            }
        }
    }

    /// A body that is still here.
    pub fn get(&self, message: &Ulid) -> Option<Bytes> {
        self.bodies.get(message).cloned()
    }

    /// A message that is finished.
    pub fn remove(&mut self, message: &Ulid) {
        if let Some(body) = self.bodies.remove(message) {
            self.bytes -= body.len();
        }
    }
}
