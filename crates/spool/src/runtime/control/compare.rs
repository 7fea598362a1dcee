//! The control group's replicas compared, as those of shards are: each digests the same state at the same entry.

use std::ops::Bound;
use std::time::{Duration, Instant};

use queue::config::Configuration;
use queue::control::{ControlCommand, ControlState};
use queue::version::DOCUMENTS;

use super::{Control, Health};
use crate::directory::Directory;
use crate::oversee::What;
use crate::wire::{config, control};

/// Documents of one digest: applying it takes a few milliseconds.
const DIGEST_ROWS: u32 = 500;
/// More than that, whatever an entry says.
const DIGEST_ROWS_MAX: u32 = 2_000;
/// Between two digests of a pass.
const DIGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between two passes.
const PASS_PAUSE: Duration = Duration::from_secs(600);
/// A new leader waits for so long.
const FIRST_PASS: Duration = Duration::from_secs(10);

/// How far the comparison has come.
pub struct Pass {
    from: Vec<u8>,
    next_at: Instant,
}

impl Pass {
    pub fn new(now: Instant) -> Pass {
        Pass {
            from: Vec::new(),
            next_at: now + FIRST_PASS,
        }
    }
}

impl Control {
    /// The next digest of a pass, when it is time.
    pub(super) fn compare(&self, now: Instant) -> Option<(What, ControlCommand)> {
        let due = self.state.version_in_force() >= DOCUMENTS && now >= self.pass.next_at;
        let command = ControlCommand::VerifyDigest {
            from: self.pass.from.as_slice().into(),
            rows: DIGEST_ROWS,
        };
        due.then_some((What::Digest, command))
    }

    /// Digests what an entry wants digested, and compares; the node stops when it is wrong.
    pub(super) fn digest(
        &mut self,
        index: u64,
        (from, rows): (&[u8], u32),
        directory: &Directory,
        health: &Health,
    ) {
        let state = &self.state;
        let desk = &self.settings.desk;
        let (digest, next) = desk.read(|all| digest(state, all, from, rows));
        let group = crate::CONTROL_GROUP;
        let judgement = directory.digested(group, index, directory.own(), digest);
        health.judge(group, &judgement);
        let pause = if next.is_empty() {
            PASS_PAUSE
        } else {
            DIGEST_PAUSE
        };
        self.pass.from = next;
        self.pass.next_at = Instant::now() + pause;
    }
}

/// The digest of some documents behind a key, and where the next one begins; empty: this was the end. The first has the
/// group's own state too, the last the writers. The order is part of the format.
fn digest(
    state: &ControlState,
    all: &Configuration,
    from: &[u8],
    rows: u32,
) -> ([u8; 16], Vec<u8>) {
    let mut digester = mail::Digester::default();
    let mut add = |octets: &[u8]| {
        digester.update(&(octets.len() as u64).to_be_bytes());
        digester.update(octets);
    };
    if from.is_empty() {
        add(&control::state_to_bytes(state));
    }
    let from = String::from_utf8_lossy(from);
    let behind = (Bound::Excluded(&*from), Bound::Unbounded);
    let mut rest = all.documents().range::<str, _>(behind);
    let mut last = Vec::new();
    for (key, held) in rest.by_ref().take(rows.clamp(1, DIGEST_ROWS_MAX) as usize) {
        add(&config::held_to_bytes(held));
        last = key.as_bytes().to_vec();
    }
    if rest.next().is_some() {
        return (digester.finish().0, last);
    }
    for (name, writer) in all.writers() {
        add(name.as_bytes());
        add(&config::writer_to_bytes(writer));
    }
    (digester.finish().0, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::config::{Audience, Document, Put};

    fn declared(count: usize, body: &str) -> Configuration {
        let mut all = Configuration::default();
        let upserts = (0..count).map(|n| Document {
            key: format!("Kind/a/{n:03}").as_str().into(),
            generation: 0,
            audience: Audience::All,
            sha256: [0; 32],
            body: match n {
                7 => bytes::Bytes::copy_from_slice(body.as_bytes()),
                _ => bytes::Bytes::new(),
            },
        });
        let put = Put {
            writer: "w".into(),
            expected: 0,
            upserts: upserts.collect(),
            deletes: Vec::new(),
            complete: false,
            since: 0,
            digest: [1; 32],
        };
        all.apply(5, &put).unwrap();
        all
    }

    fn pass(state: &ControlState, all: &Configuration, rows: u32) -> Vec<[u8; 16]> {
        let (mut digests, mut from) = (Vec::new(), Vec::new());
        loop {
            let (found, next) = digest(state, all, &from, rows);
            digests.push(found);
            assert!(digests.len() < 100, "the pass has no end");
            if next.is_empty() {
                return digests;
            }
            from = next;
        }
    }

    #[test]
    fn a_pass_ends_and_one_other_octet_is_in_one_digest() {
        let state = ControlState::default();
        for rows in [1, 3, 20, 1000] {
            let (one, other) = (declared(20, "a"), declared(20, "b"));
            let (one, other) = (pass(&state, &one, rows), pass(&state, &other, rows));
            let differ = one.iter().zip(&other).filter(|(a, b)| a != b).count();
            assert_eq!((one.len(), differ), (other.len(), 1), "{rows} rows at once");
        }
        let newer = ControlState {
            state_machine: 3,
            ..ControlState::default()
        };
        assert_ne!(
            pass(&state, &declared(0, ""), 9),
            pass(&newer, &declared(0, ""), 9)
        );
    }
}
