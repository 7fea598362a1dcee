//! Chunks of big bodies on their way into the log: few at a time, and of all uploads in turn.
//!
//! The bound is on entries in flight, never on uploads: a slow client may take an hour to its final dot, and must hold
//! no place meanwhile. Between the chunks the shard's small entries have their turn at the disk and the network.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use mail::Ulid;

use crate::event::AppendReply;

/// Chunk entries of a shard that are proposed and not applied: 4 MiB at most, which a disk takes in some ten
/// milliseconds, so that is what a small entry waits behind.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// A chunk that waits for its turn. The octets are bounded at the node's door
/// ([`crate::serve::APPEND_BYTES_MAX`]): its reply holds them.
pub struct Chunk {
    /// Of which message.
    pub message: Ulid,
    /// Position.
    pub seq: u32,
    /// Octets.
    pub data: Bytes,
    /// Whom to tell.
    pub reply: AppendReply,
}

/// The chunks of one shard.
#[derive(Default)]
pub struct Chunks {
    in_flight: usize,
    /// Uploads that have something waiting, in turn.
    ring: VecDeque<Ulid>,
    waiting: HashMap<Ulid, VecDeque<Chunk>>,
}

impl Chunks {
    /// A chunk waits for its turn.
    pub fn push(&mut self, chunk: Chunk) {
        let message = chunk.message;
        let of_upload = self.waiting.entry(message).or_default();
        if of_upload.is_empty() {
            self.ring.push_back(message);
        }
        of_upload.push_back(chunk);
    }

    /// The next one that may be proposed now. It counts as in flight until [`Chunks::ended`].
    pub fn next(&mut self) -> Option<Chunk> {
        if self.in_flight >= CHUNKS_IN_FLIGHT_MAX {
            return None;
        }
        let message = self.ring.pop_front()?;
        let of_upload = self.waiting.get_mut(&message)?;
        let chunk = of_upload.pop_front()?;
        if of_upload.is_empty() {
            self.waiting.remove(&message);
        } else {
            self.ring.push_back(message);
        }
        self.in_flight += 1;
        Some(chunk)
    }

    /// A proposed one was applied, or came to nothing.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Those that were never proposed.
    pub fn drain(&mut self) -> Vec<Chunk> {
        self.ring.clear();
        self.waiting
            .drain()
            .flat_map(|(_, chunks)| chunks)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(upload: u128, seq: u32) -> Chunk {
        let (to, _answers) = tokio::sync::mpsc::unbounded_channel();
        Chunk {
            message: Ulid::from_parts(1, upload),
            seq,
            data: Bytes::new(),
            reply: AppendReply {
                request: 0,
                to,
                permit: None,
            },
        }
    }

    #[test]
    fn four_in_flight_and_every_upload_has_its_turn() {
        let mut chunks = Chunks::default();
        for seq in 0..6 {
            chunks.push(chunk(1, seq));
        }
        chunks.push(chunk(2, 0));
        chunks.push(chunk(3, 0));
        let mut order = Vec::new();
        while let Some(chunk) = chunks.next() {
            order.push((chunk.message.random(), chunk.seq));
        }
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1)]);
        assert!(chunks.next().is_none(), "four are in flight");
        chunks.ended();
        assert_eq!(chunks.next().map(|chunk| chunk.seq), Some(2));
        assert_eq!(chunks.drain().len(), 3, "the rest was never proposed");
        chunks.ended();
        assert!(chunks.next().is_none(), "nothing waits");
    }
}
