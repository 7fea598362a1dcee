//! What a leader does for the state machine itself: raises its version, and has the replicas compared.

use std::time::{Duration, Instant};

use bytes::Bytes;
use queue::Command;

use super::waiter::Waiter;
use super::{Leader, ShardRows, Turn};

/// Rows of one digest: a millisecond or two between two entries.
const DIGEST_ROWS: u32 = 500;

/// Between two digests of a pass: apply is held up for a thousandth of its time at the most.
const DIGEST_PAUSE: Duration = Duration::from_secs(1);

/// Between two passes over all rows.
const PASS_PAUSE: Duration = Duration::from_secs(600);

/// A new leader waits for so long: after an election there is more urgent work.
const FIRST_PASS: Duration = Duration::from_secs(10);

/// How far the comparison of the replicas has come. A new leader begins at the first row.
pub(super) struct Pass {
    from: Vec<u8>,
    next_at: Instant,
    pub(super) under_way: bool,
}

impl Pass {
    pub(super) fn new(now: Instant) -> Pass {
        Pass {
            from: Vec::new(),
            next_at: now + FIRST_PASS,
            under_way: false,
        }
    }
}

impl Leader {
    /// The state machine's version goes up when the program of every voter knows the next one (`members_know`: the oldest of
    /// them). An entry that repeats another changes nothing.
    pub(super) fn raise_version(&mut self, members_know: u32, turn: &mut Turn<'_, impl ShardRows>) {
        let in_force = turn.rows.shard().version_in_force();
        if members_know > in_force {
            tracing::info!(
                group = self.group,
                in_force,
                members_know,
                "every voter's program knows a newer state machine"
            );
            let command = Command::SetVersion {
                version: members_know,
            };
            self.propose(command, Bytes::new(), Waiter::Internal, turn);
        }
    }

    /// The next digest of a pass, when it is time.
    pub(super) fn compare_replicas(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        let command = Command::VerifyDigest {
            from: self.pass.from.as_slice().into(),
            rows: DIGEST_ROWS,
        };
        let known = turn.rows.shard().version_in_force() >= command.since();
        if known && !self.pass.under_way && turn.now >= self.pass.next_at {
            self.pass.under_way = true;
            self.propose(command, Bytes::new(), Waiter::Digest, turn);
        }
    }

    /// Rows were digested at an entry; the next digest begins at `next` (empty: the pass is over).
    pub fn digested(&mut self, next: &[u8], now: Instant) {
        self.pass.from = next.to_vec();
        self.pass.next_at = now
            + if next.is_empty() {
                PASS_PAUSE
            } else {
                DIGEST_PAUSE
            };
    }
}
