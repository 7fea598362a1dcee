//! The state machine itself: replicas of two program versions in one group, the entry that raises the version when all
//! know it, and digests of rows that must be equal wherever an entry is applied.

use bytes::Bytes;
use mail::Digest;
use queue::{Command, Effect, Facts, Rows};
use spool::node::Ack;

use crate::sim::replica::Pending;
use crate::sim::world::World;

/// Steps between two looks at versions and rows.
const UPKEEP_STEPS: u64 = 120;
/// Rows of a digest: few, so that a pass is many.
const DIGEST_ROWS: u32 = 12;

impl World {
    /// A process starts, perhaps with a newer program. Its chance is apart from that of the run.
    pub fn upgrade(&mut self, k: usize) {
        if self.calm || self.upgrades.one_in(2) {
            self.replicas[k].knows = queue::version::NEWEST;
        }
    }

    /// What a leader does for the state machine itself.
    pub fn keep_up(&mut self, k: usize) {
        let now = self.now;
        let early = self.planted.version_early;
        let know = self.replicas.iter().map(|replica| replica.knows).min();
        let know = know.filter(|_| !early).unwrap_or(queue::version::NEWEST);
        let replica = &mut self.replicas[k];
        let in_force = replica.rows.shard().version_in_force();
        let Some(lead) = replica.lead.as_mut() else {
            return;
        };
        let versions = self.faults.versions;
        if (versions && lead.next_upkeep > now) || (!versions && know == in_force) {
            return;
        }
        lead.next_upkeep = now + UPKEEP_STEPS;
        let command = if know > in_force {
            Command::SetVersion { version: know }
        } else {
            Command::VerifyDigest {
                from: lead.digest_from.as_slice().into(),
                rows: DIGEST_ROWS,
            }
        };
        if command.since() <= know.max(in_force) {
            self.propose(k, command, Bytes::new(), Ack::Apply, Pending::Nobody);
        }
    }

    /// A program that does not know a command halts; here that is a failure, for the leader should have known.
    pub fn check_known(&self, k: usize, index: u64, facts: &Facts) -> Result<(), String> {
        let replica = &self.replicas[k];
        if facts.command.since() <= replica.knows {
            return Ok(());
        }
        Err(format!(
            "replica {} knows version {} and halts at entry {index}: {:?}",
            k + 1,
            replica.knows,
            facts.command
        ))
    }

    /// Digests what an entry wants digested, and holds it against the other replicas.
    pub fn verify(&mut self, k: usize, index: u64, effects: &[Effect]) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        for effect in effects {
            let Effect::DigestWanted { from, rows } = effect else {
                continue;
            };
            let found = spool::state::digest(&mut replica.rows, from, *rows);
            if let Some(lead) = replica.lead.as_mut() {
                lead.digest_from = found.next;
            }
            self.model.digest(index, replica.peer, found.digest)?;
        }
        Ok(())
    }

    /// A planted drift: one replica reads an entry differently, as another program could.
    pub fn drift(&mut self, k: usize, index: u64) {
        if !self.planted.drift || k != 1 || !index.is_multiple_of(200) {
            return;
        }
        let rows = &mut self.replicas[k].rows;
        if let Some((id, row)) = rows.sessions().range(None, 1).pop() {
            let mut row = queue::LeaseSession::clone(&row);
            row.opened = row.opened.plus(1);
            rows.sessions().put(id, row);
        }
    }
}

impl crate::sim::model::Model {
    /// The same rows have the same digest, wherever they are.
    fn digest(&mut self, index: u64, peer: u64, digest: Digest) -> Result<(), String> {
        match self.digests.insert(index, digest) {
            Some(other) if other != digest => Err(format!(
                "the digest at entry {index} is {digest:?} on replica {peer} and {other:?} on another"
            )),
            _ => Ok(()),
        }
    }
}
