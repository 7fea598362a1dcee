//! One byte of the log is not what was written (nats#7549, nats#7556, nats#4410, rabbit#4251: half the acknowledged data
//! gone, a snapshot deleted, a node that cannot start). Whatever the byte: all comes back, or the body is named and comes
//! from another replica, or the log stays closed with a text. Nothing acknowledged is missing silently, no file is
//! touched when the log stays closed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{Disk, Log, LogConfig, OpenError, ReadError, Recovered, SimDisk, WriteTask};
use super::{entry, open, small, task, voted};

type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// Three segments of 64 KiB: three groups, votes, entries over a cut suffix, a truncation, a mark.
fn three_segments(marked: bool) -> (SimDisk, Contents, (u64, u64)) {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, _, _) = open(&disk);
    writer
        .write(&[voted(1, 1, 1, 2), voted(2, 1, 1, 3)])
        .unwrap();
    let mut next = [1; 3];
    let mut number = 2;
    while writer.segments().list().len() < 3 || writer.durable.1 < 40 << 10 {
        let group = (number % 3) as u32;
        let at = &mut next[group as usize];
        let entries =
            (*at..*at + 2).map(|index| entry(index, 1, 900 * (1 + number as usize % 7), 0));
        writer
            .write(&[task(group + 1, number, entries.collect())])
            .unwrap();
        (*at, number) = (*at + 2, number + 1);
    }
    // A later leader overwrites the end of group 3.
    let last = next[2] - 1;
    let over = WriteTask {
        hard_state: Some(super::HardState {
            term: 2,
            vote: 1,
            commit: last - 1,
        }),
        ..task(3, number, vec![entry(last, 2, 700, 9)])
    };
    let last_batch = writer.durable;
    writer.write(&[over]).unwrap();
    if marked {
        writer.mark().unwrap();
    }
    disk.kill_process();
    let contents = disk.contents();
    (disk, contents, last_batch)
}

/// The metadata are durable up to all but the last two entries of groups 1 and 2; group 3 has none.
fn config(of: &Recovered) -> LogConfig {
    let applied = [1, 2].map(|group| (group, of.groups[&group].last_index() - 2));
    LogConfig {
        applied: applied.into_iter().collect(),
        ..small()
    }
}

#[derive(Default, Debug)]
struct Tally {
    harmless: usize,
    named: usize,
    dropped: usize,
    refused: usize,
}

struct Flips {
    disk: SimDisk,
    before: Contents,
    whole: Recovered,
    /// What is left when the last batch, which nothing vouches for, is dropped.
    shorter: Option<Recovered>,
    last_batch: (u64, u64),
    tally: Tally,
}

impl Flips {
    fn new(marked: bool) -> Flips {
        let (disk, before, last_batch) = three_segments(marked);
        let (_, _, whole) = open(&disk);
        Flips {
            disk,
            before,
            whole,
            shorter: None,
            last_batch,
            tally: Tally::default(),
        }
    }

    /// What a start makes of one turned byte.
    fn try_one(&mut self, path: &PathBuf, at: usize, how: u8) {
        self.disk.put_back(&self.before);
        self.disk.damage(path, at, how);
        let opened = Log::open_on(
            Arc::new(self.disk.clone()),
            "/log".as_ref(),
            config(&self.whole),
        );
        let place = format!("{}, byte {at}", path.display());
        match opened {
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Corrupt { .. }),
                    "{place}: {error}"
                );
                let text = error.to_string();
                assert!(
                    text.contains("is damaged at offset") && text.contains("new node id"),
                    "{text}"
                );
                let mut expected = self.before.clone();
                expected.get_mut(path).unwrap()[at] ^= how;
                assert!(self.disk.contents() == expected, "{place}: files changed");
                self.tally.refused += 1;
            }
            Ok((_, reader, found)) => {
                for path in self.before.keys() {
                    let there = self.disk.open(path).is_ok();
                    assert!(there, "{place}: {} is gone", path.display());
                }
                if found.groups == self.whole.groups {
                    for it in &found.damaged {
                        let read = reader.read_entry(it.location, it.group, it.index);
                        assert!(
                            matches!(read, Err(ReadError::Corrupt { .. })),
                            "{place}: {read:?}"
                        );
                    }
                    match found.damaged.is_empty() {
                        true => self.tally.harmless += 1,
                        false => self.tally.named += 1,
                    }
                    return;
                }
                let shorter = self.shorter.as_ref().map(|shorter| &shorter.groups);
                assert_eq!(
                    Some(&found.groups),
                    shorter,
                    "{place}: something is missing"
                );
                assert!(found.torn_bytes > 0 || found.damaged.is_empty(), "{place}");
                self.tally.dropped += 1;
            }
        }
    }

    /// What a start makes of 512 octets that the device does not give back.
    fn try_unreadable(&mut self, path: &Path, at: u64) {
        self.disk.put_back(&self.before);
        assert!(self.disk.fail_read(path, at..at + 512));
        let disk = Arc::new(self.disk.clone());
        let opened = Log::open_on(disk, "/log".as_ref(), config(&self.whole));
        let place = format!("{}, octets from {at}", path.display());
        match opened {
            Err(error) => {
                assert!(error.is_damage(), "{place}: {error}");
                let text = error.to_string();
                assert!(text.contains("is damaged at offset"), "{place}: {text}");
                assert!(self.disk.contents() == self.before, "{place}: changed");
                self.tally.refused += 1;
            }
            Ok((_, reader, found)) => {
                assert_eq!(found.groups, self.whole.groups, "{place}");
                for it in &found.damaged {
                    let read = reader.read_entry(it.location, it.group, it.index);
                    assert!(
                        matches!(read, Err(ReadError::Io { .. })),
                        "{place}: {read:?}"
                    );
                }
                match found.damaged.is_empty() {
                    true => self.tally.harmless += 1,
                    false => self.tally.named += 1,
                }
            }
        }
    }

    fn all(&mut self, step: usize) {
        let files: Vec<_> = self
            .before
            .iter()
            .map(|(path, octets)| (path.clone(), octets.len()))
            .filter(|(path, _)| path.to_string_lossy().contains("/seg-"))
            .collect();
        assert_eq!(files.len(), 3);
        for (path, octets) in files {
            for at in (0..octets).step_by(step) {
                self.try_one(&path, at, 1 << (at % 8));
            }
        }
    }
}

#[test]
fn trap_9_any_flipped_byte_of_a_marked_log_is_named_or_keeps_the_log_closed() {
    let mut flips = Flips::new(true);
    flips.all(1);
    println!("{:?}", flips.tally);
    let Tally {
        harmless,
        named,
        dropped,
        refused,
    } = flips.tally;
    // Zeros behind batches, and the mark itself, which nobody vouches for and which says nothing else.
    assert!(
        harmless > 10_000 && named > 10_000 && refused > 10_000,
        "{harmless} {named} {refused}"
    );
    assert_eq!(dropped, 0, "all that was acknowledged is vouched for");
}

#[test]
fn trap_9_without_a_mark_only_the_last_batch_may_be_taken_for_a_torn_tail() {
    let mut flips = Flips::new(false);
    // The last batch's first block turned to zeros: nothing vouches for it.
    let (segment, offset) = flips.last_batch;
    let last = PathBuf::from("/log").join(super::super::record::segment_name(segment));
    flips.disk.put_back(&flips.before);
    flips.disk.damage(&last, offset as usize + 8, 0xff);
    flips.shorter = Some(open(&flips.disk).2);
    flips.all(7);
    println!("{:?}", flips.tally);
    assert!(
        flips.tally.dropped > 50 && flips.tally.dropped < 600,
        "{:?}",
        flips.tally
    );
}

/// The device refuses to read a sector (EIO). In a body it is like any damage, and the body comes from another replica; in
/// anything else the node says that it is damaged, and what to do. Never is it a start that fails for ever without that text,
/// and never is anything taken for a torn tail that was vouched for.
#[test]
fn trap_9_any_sector_that_cannot_be_read_is_named_or_keeps_the_log_closed() {
    let mut flips = Flips::new(true);
    let files: Vec<_> = flips
        .before
        .iter()
        .filter(|(path, _)| path.to_string_lossy().contains("/seg-"))
        .map(|(path, octets)| (path.clone(), octets.len() as u64))
        .collect();
    for (path, octets) in files {
        for at in (0..octets).step_by(512) {
            flips.try_unreadable(&path, at);
        }
    }
    println!("{:?}", flips.tally);
    let Tally {
        harmless,
        named,
        refused,
        ..
    } = flips.tally;
    assert!(
        harmless > 20 && named > 50 && refused > 50,
        "{harmless} {named} {refused}"
    );
}
