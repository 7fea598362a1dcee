//! What a flush makes durable, what a crash takes away, and a journal that a power cut tore.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use queue::*;

use super::life::{apply_to, facts};
use super::{Bench, contents};
use crate::log::Location;
use crate::state::{Store, StoreConfig, StoreError, journal};

pub(super) fn append(m: u8) -> Facts {
    let expires = Timestamp(1_000_000);
    let append = Append {
        facts: facts(m, 0, 0),
        expires,
        notice: None,
        grant_to: vec![],
    };
    Facts {
        time: Timestamp(1),
        command: Command::Append(Box::new(append)),
    }
}

pub(super) fn drop_item(m: u8) -> Facts {
    let items = vec![ItemId {
        message: facts(m, 0, 0).message,
        number: 0,
    }];
    let admin = Admin {
        action: AdminAction::Drop,
        items,
        actor: "eve".into(),
        reason: "test".into(),
    };
    Facts {
        time: Timestamp(2),
        command: Command::Admin(admin),
    }
}

#[test]
fn a_crash_returns_to_the_last_flush() {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(1));
    bench.groups[0].set_conf_state(Bytes::from_static(b"voters"));
    bench.groups[0].set_blob(Bytes::from(vec![7; 9000]));
    bench.flush();
    let durable = contents(&mut bench.groups[0]);
    assert_eq!(bench.store().durable_applied(1), 1);

    apply_to(&mut bench.groups[0], 2, &append(2));
    assert_ne!(contents(&mut bench.groups[0]), durable);
    bench.crash();
    assert_eq!(bench.groups[0].applied(), (1, 1));
    assert_eq!(bench.store().durable_applied(1), 1);
    assert_eq!(contents(&mut bench.groups[0]), durable);
    assert_eq!(&bench.groups[0].conf_state()[..], b"voters");
    assert_eq!(bench.groups[0].blob(), vec![7; 9000]);
}

#[test]
fn a_shorter_blob_replaces_a_longer_one() {
    let mut bench = Bench::new(1);
    for blob in [vec![1; 9000], vec![2; 10], vec![]] {
        bench.groups[0].set_blob(blob.clone().into());
        bench.flush();
        bench.crash();
        assert_eq!(bench.groups[0].blob(), blob);
    }
}

#[test]
fn mail_that_is_gone_before_the_flush_leaves_only_its_memory() {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(0));
    // One message parks, so that the tables are not empty and a deletion could have to be written.
    bench.flush();
    for m in 1..50_u8 {
        apply_to(&mut bench.groups[0], u64::from(m) * 2, &append(m));
        apply_to(&mut bench.groups[0], u64::from(m) * 2 + 1, &drop_item(m));
    }
    let rows = bench.flush();
    // A row of `finished` each; the destination's counts, the sweep's and the fixed rows, the segments that were touched.
    assert!((49..49 + 25).contains(&rows), "{rows} rows");
}

#[test]
fn segments_are_released_when_the_flush_is_durable_and_not_before() {
    let mut bench = Bench::new(2);
    apply_to(&mut bench.groups[0], 1, &append(1));
    apply_to(&mut bench.groups[1], 1, &append(1));
    assert!(bench.store().segments_live().is_empty());
    bench.flush();
    let live = bench.store().segments_live();
    assert_eq!((live[&0].bytes, live[&0].count), (200, 2));

    apply_to(&mut bench.groups[0], 2, &drop_item(1));
    apply_to(&mut bench.groups[1], 2, &drop_item(1));
    assert_eq!(bench.store().segments_live(), live);
    bench.crash();
    assert_eq!(bench.store().segments_live(), live);
    apply_to(&mut bench.groups[0], 2, &drop_item(1));
    apply_to(&mut bench.groups[1], 2, &drop_item(1));
    bench.flush();
    assert!(bench.store().segments_live().is_empty());
    assert_eq!(bench.groups[0].locate(1), None);
}

#[test]
fn a_body_moves_only_from_where_it_is() {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(1));
    bench.flush();
    let from = bench.groups[0].locate(1).unwrap();
    let to = Location { segment: 9, ..from };
    assert!(!bench.groups[0].relocate(1, to, from), "it was never there");
    assert!(bench.groups[0].relocate(1, from, to));
    bench.flush();
    bench.crash();
    assert_eq!(bench.groups[0].locate(1), Some(to));
    assert_eq!(
        bench.store().segments_live().keys().collect::<Vec<_>>(),
        [&9]
    );
}

#[test]
fn one_flush_at_a_time() {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(1));
    let first = bench.freeze().unwrap();
    apply_to(&mut bench.groups[0], 2, &append(2));
    assert!(bench.freeze().is_none());
    bench.finish(first);
    assert_eq!(bench.store().durable_applied(1), 1);
    bench.flush();
    assert_eq!(bench.store().durable_applied(1), 2);
    assert!(bench.freeze().is_none(), "nothing changed since");
}

#[test]
fn a_second_process_is_refused() {
    let bench = Bench::new(1);
    let second = Store::open(bench.dir.path(), StoreConfig::default());
    assert!(matches!(second, Err(StoreError::InUse(_))));
}

/// A store with two flushes, closed; and its active journal.
fn two_flushes() -> (Bench, Vec<String>, PathBuf, Vec<u8>) {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(1));
    bench.flush();
    let first = contents(&mut bench.groups[0]);
    apply_to(&mut bench.groups[0], 2, &append(2));
    bench.flush();
    bench.groups.clear();
    bench.store = None;
    let meta = bench.dir.path().join("meta");
    let journals = fs::read_dir(meta)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let journal = journals
        .filter(|path| path.extension().is_some_and(|e| e == "jnl"))
        .max()
        .unwrap();
    let bytes = fs::read(&journal).unwrap();
    (bench, first, journal, bytes)
}

/// The last octets of `needle` in the journal: a value of the first or second batch.
fn find(bytes: &[u8], needle: &[u8], nth: usize) -> usize {
    bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, w)| *w == needle)
        .map(|(at, _)| at)
        .nth(nth)
        .unwrap()
}

#[test]
fn a_torn_last_batch_is_cut_off() {
    let (mut bench, first, journal, mut bytes) = two_flushes();
    // The digest of the second message: inside a value, so that the batch still parses.
    let at = find(&bytes, &[2; 16], 0);
    bytes[at..at + 16].fill(0);
    fs::write(&journal, &bytes).unwrap();
    bench.open(1);
    assert_eq!(bench.groups[0].applied(), (1, 1));
    assert_eq!(contents(&mut bench.groups[0]), first);
    apply_to(&mut bench.groups[0], 2, &append(2));
    bench.flush();
    bench.crash();
    assert_eq!(bench.groups[0].applied(), (2, 1));
}

#[test]
fn damage_before_the_last_batch_is_a_loss() {
    let (bench, _, journal, mut bytes) = two_flushes();
    let at = find(&bytes, &[1; 16], 0);
    bytes[at..at + 16].fill(0);
    fs::write(&journal, &bytes).unwrap();
    let error = Store::open(bench.dir.path(), StoreConfig::default())
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("under a new node id"), "{error}");
    assert_eq!(
        fs::read(&journal).unwrap(),
        bytes,
        "nothing was thrown away"
    );
}

/// A store with three flushes, closed; its active journal, and where each flush ends there.
fn three_flushes() -> (Bench, PathBuf, Vec<u8>, [usize; 3]) {
    let mut bench = Bench::new(1);
    let journal = || {
        let entries = fs::read_dir(bench.dir.path().join("meta")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut journals = paths.filter(|path| path.extension().is_some_and(|e| e == "jnl"));
        journals.next().unwrap()
    };
    let journal = journal();
    let ends = [1, 2, 3].map(|n| {
        apply_to(&mut bench.groups[0], n, &append(n as u8));
        bench.flush();
        let bytes = fs::read(&journal).unwrap();
        1 + bytes.iter().rposition(|octet| *octet != 0).unwrap()
    });
    bench.groups.clear();
    bench.store = None;
    let bytes = fs::read(&journal).unwrap();
    (bench, journal, bytes, ends)
}

/// Where a batch keeps its sequence number, and how far its first item reaches.
const SEQUENCE: std::ops::Range<usize> = 5..13;
const FIRST_ITEM: std::ops::Range<usize> = 13..13 + 21 + 5;

#[test]
fn trap_9_any_flipped_octet_of_a_flush_that_others_follow_is_named() {
    let (_bench, _, bytes, [first, second, third]) = three_flushes();
    let written = &bytes[..third];
    assert_eq!(journal::judge(written, true, &mut 0), Ok(()));
    let starts = journal::starts(written);
    assert!(starts.ends_with(&[first, second]), "{starts:?}");
    for at in 0..second {
        let own = at - starts.iter().rfind(|start| **start <= at).unwrap();
        for bit in [0x01, 0x80] {
            let mut damaged = written.to_vec();
            damaged[at] ^= bit;
            let found = journal::judge(&damaged, true, &mut 0);
            let sealed = journal::judge(&damaged, false, &mut 0);
            // No checksum covers it; what is out of order is noticed.
            if SEQUENCE.contains(&own) {
                continue;
            }
            assert!(sealed.is_err(), "octet {at} of a journal that was sealed");
            // With one flush behind it, what does not look like a flush may be a part that nobody synced.
            let may_be_torn = at >= first && FIRST_ITEM.contains(&own);
            assert!(found.is_err() || may_be_torn, "octet {at} of {second}");
        }
    }
    // The last one is torn, or was damaged: nobody can tell.
    for at in second..third {
        let mut damaged = written.to_vec();
        damaged[at] ^= 0x01;
        let whole = SEQUENCE.contains(&(at - second));
        let sealed = journal::judge(&damaged, false, &mut 0);
        assert!(
            sealed.is_err() || whole,
            "octet {at} of a journal that was sealed"
        );
        let active = journal::judge(&damaged, true, &mut 0);
        assert!(active.is_ok() || whole, "octet {at}: {active:?}");
    }
}

/// fjall would take it for one that is in the tables, if these end with the one before it, and leave it out.
#[test]
fn trap_9_a_flush_with_the_sequence_number_of_the_one_before_it_is_named() {
    let (_bench, _, mut bytes, [first, second, third]) = three_flushes();
    bytes.truncate(third);
    let number = first + SEQUENCE.start..first + SEQUENCE.end;
    bytes.copy_within(number, second + SEQUENCE.start);
    for active in [true, false] {
        let found = journal::judge(&bytes, active, &mut 0);
        assert!(
            found
                .as_ref()
                .is_err_and(|why| why.contains("sequence number")),
            "{found:?}"
        );
    }
}

#[test]
fn trap_9_damage_that_fjall_would_cut_off_with_all_that_follows_stays_where_it_is() {
    let (bench, journal, bytes, [first, ..]) = three_flushes();
    // Tag, count, kind and compression of the first item, its lengths, the checksum, the end.
    for at in [0, 1, 14, 15, 24, 30, first - 10, first - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(&journal, &damaged).unwrap();
        let opened = Store::open(bench.dir.path(), StoreConfig::default());
        let error = opened
            .err()
            .unwrap_or_else(|| panic!("octet {at} is not missed"));
        assert!(matches!(error, StoreError::Lost { .. }), "{at}: {error}");
        assert!(
            fs::read(&journal).unwrap() == damaged,
            "octet {at}: changed"
        );
    }
}

#[test]
fn an_empty_store_takes_hardly_any_room_although_its_journal_is_long() {
    let bench = Bench::new(1);
    let took = bench.store().disk_bytes().unwrap();
    assert!(took < 4 << 20, "{took} octets");
}
