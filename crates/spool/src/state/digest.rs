//! The digest of some rows, so that replicas can be compared at one index of the log (queue.md 4.6).
//!
//! Replicas that applied the same entries have the same rows, whatever their disks look like. What is local (`loc`,
//! `seg`) is left out. A digest covers a bounded number of rows, from where the one before it ended: it is computed
//! between two entries, so that every replica sees the same rows, and some hundred rows keep the group's apply from
//! waiting for more than a few milliseconds. A pass over all rows is many entries.

use mail::Digest;
use mail::Digester;
use queue::{Rows, Table};

use super::codec::{self, Reader, Row};
use super::key::Key;

/// Rows of one digest at most, whatever an entry says: about 5 ms of apply.
pub const DIGEST_ROWS_MAX: u32 = 2_000;

/// The digest of some rows.
#[derive(Debug, PartialEq, Eq)]
pub struct Digested {
    /// Of keys and rows, as they are on disk.
    pub digest: Digest,
    /// Where the next one begins; empty: this was the end of a pass.
    pub next: Vec<u8>,
    /// How many rows it covers.
    pub rows: u32,
}

/// The digest of up to `limit` rows after `from` (empty, or what is no place at all: from the first), and of the shard's
/// one row.
pub fn digest(rows: &mut impl Rows, from: &[u8], limit: u32) -> Digested {
    let mut walk = Walk {
        digester: Digester::default(),
        from,
        table: 0,
        left: limit.clamp(1, DIGEST_ROWS_MAX),
        last: None,
        buffer: Vec::new(),
    };
    let limit = walk.left;
    walk.add(&codec::encode(&rows.shard()));
    // The order is part of the format: it may only be added to, with a version of the state machine.
    let over = walk.through(rows.messages())
        && walk.through(rows.items())
        && walk.through(rows.recipients())
        && walk.through(rows.due())
        && walk.through(rows.inflight())
        && walk.through(rows.held())
        && walk.through(rows.destinations())
        && walk.through(rows.finished())
        && walk.through(rows.forgets())
        && walk.through(rows.uploads())
        && walk.through(rows.sessions())
        && walk.through(rows.timers());
    Digested {
        digest: walk.digester.finish(),
        next: if over {
            Vec::new()
        } else {
            walk.last.unwrap_or_default()
        },
        rows: limit - walk.left,
    }
}

struct Walk<'a> {
    digester: Digester,
    /// Number of the table, and the key of the last row of the digest before.
    from: &'a [u8],
    table: u8,
    left: u32,
    last: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn add(&mut self, octets: &[u8]) {
        self.digester.update(&(octets.len() as u64).to_be_bytes());
        self.digester.update(octets);
    }

    /// Takes what may still be taken of a table; `true`: all of it.
    fn through<K: Key, V: Row>(&mut self, table: &mut dyn Table<K, V>) -> bool {
        let number = self.table;
        self.table += 1;
        let start = self.from.first().copied().unwrap_or_default();
        if number < start {
            return true;
        }
        let after: Option<K> = (number == start)
            .then(|| {
                let mut key = Reader(self.from.get(1..)?);
                K::read(&mut key).filter(|_| key.0.is_empty())
            })
            .flatten();
        // One more than wanted: the row at `after` may still be there, or the page shows that there are others.
        let page = table.range(after.as_ref(), self.left as usize + 2);
        for (key, row) in page {
            if Some(&key) == after.as_ref() {
                continue;
            }
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            let mut octets = std::mem::take(&mut self.buffer);
            octets.clear();
            octets.push(number);
            key.write(&mut octets);
            self.add(&octets);
            self.add(&codec::encode(&*row));
            self.last = Some(octets.clone());
            self.buffer = octets;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mail::Ulid;
    use queue::{ItemId, LeaseSession, LeaseSessionId, MemoryRows, Timestamp};

    use super::*;

    fn rows(count: u64) -> MemoryRows {
        let mut rows = MemoryRows::default();
        for n in 0..count {
            let message = Ulid::from_parts(1, n.into());
            rows.held().put(ItemId { message, number: 0 }, ());
            let session = LeaseSession {
                node: "d".into(),
                incarnation: [0; 16],
                sequence: n,
                boot_id: "b".into(),
                opened: Timestamp(1),
            };
            rows.sessions().put(LeaseSessionId(n), session);
        }
        rows
    }

    /// The digests of a whole pass.
    fn pass(rows: &mut MemoryRows, limit: u32) -> (Vec<Digest>, u32) {
        let (mut digests, mut count, mut from) = (Vec::new(), 0, Vec::new());
        loop {
            let found = digest(rows, &from, limit);
            digests.push(found.digest);
            count += found.rows;
            from = found.next;
            if from.is_empty() {
                return (digests, count);
            }
            assert!(digests.len() < 1_000, "the pass has no end");
        }
    }

    #[test]
    fn a_pass_covers_every_row_once_whatever_its_steps() {
        for limit in [1, 2, 7, 39, 40, 41, 1000] {
            assert_eq!(pass(&mut rows(20), limit).1, 40, "in steps of {limit}");
        }
        assert_eq!(pass(&mut rows(0), 7), pass(&mut rows(0), 100));
    }

    #[test]
    fn one_other_row_anywhere_is_another_digest() {
        let whole = pass(&mut rows(20), 7).0;
        for n in 0..20 {
            let mut drifted = rows(20);
            let at = LeaseSessionId(n);
            let row = drifted.sessions().get(&at).expect("it is there");
            let mut row = LeaseSession::clone(&row);
            row.boot_id = Arc::from("c");
            drifted.sessions().put(at, row);
            let found = pass(&mut drifted, 7).0;
            let differ = found.iter().zip(&whole).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 1, "row {n} is in one digest");
        }
    }

    #[test]
    fn a_place_that_is_none_begins_at_the_first_row() {
        let mut rows = rows(3);
        assert_eq!(digest(&mut rows, &[5, 1, 2], 9).rows, 6);
        assert_eq!(digest(&mut rows, &[200], 9).rows, 0);
    }
}
