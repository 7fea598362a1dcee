//! What one turn of a leader works with.

use std::time::Instant;

use super::{BodyCache, Out, Streams};

/// What a leader is told of the world beyond its shard.
#[derive(Clone, Copy, Debug)]
pub struct Outside {
    /// This node's wall clock, milliseconds since the epoch.
    pub wall_ms: u64,
    /// The newest version of the state machine that the program of every voter of the group knows.
    pub members_know: u32,
}

/// The parts of a node's state thread, each borrowed for itself, while one leader takes one event.
pub struct Turn<'a, R> {
    /// The shard's rows, as of the last applied entry.
    pub rows: &'a mut R,
    /// The Lease streams that stand at this node.
    pub streams: &'a mut Streams,
    /// Bodies of young messages.
    pub bodies: &'a mut BodyCache,
    /// The monotonic clock, read once for the turn.
    pub now: Instant,
    /// What the leader wants done.
    pub out: &'a mut Out,
}
