//! What the scrubber meets: each damaged octet of each record of a sealed segment, and nothing else.

use std::path::PathBuf;

use super::super::record::{BLOCK, HEADER, RecordHeader, RecordType, segment_name};
use super::super::{Found, LogWriter, Segments, SimDisk, Walk, WriteError};
use super::{entry, open, task, voted};

/// Some sealed segments, with votes, entries and STATE records.
fn sealed(disk: &SimDisk) -> Result<LogWriter, WriteError> {
    let (mut writer, ..) = open(disk);
    for index in 1..=60 {
        let tasks = [
            voted(1, index, index, 1),
            task(1, 100 + index, vec![entry(index, index, 3_000, 0)]),
            task(2, index, vec![entry(index, 1, 700, 0)]),
        ];
        writer.write(&tasks)?;
    }
    Ok(writer)
}

/// The octets of each record: kind, first and last.
fn records(octets: &[u8]) -> Vec<(RecordType, usize, usize)> {
    let mut records = Vec::new();
    let mut at = BLOCK as usize;
    while let Some(header) = octets.get(at..at + HEADER).and_then(RecordHeader::decode) {
        let next = at + HEADER + header.len as usize;
        records.push((header.kind, at, next));
        at = match header.kind {
            RecordType::BatchEnd => next.next_multiple_of(BLOCK as usize),
            _ => next,
        };
    }
    records
}

fn meets_damage(segments: &Segments, segment: u64) -> bool {
    let mut walk = Walk::begin_on_device(segments, segment).unwrap().unwrap();
    let mut met = false;
    let mut left = 10_000;
    walk.go(|found| {
        left -= 1;
        assert!(left > 0, "it does not come to an end");
        met |= matches!(found, Found::Gap | Found::Entry { intact: false, .. });
        found != Found::End
    })
    .unwrap();
    met
}

#[test]
fn a_flipped_octet_of_any_record_of_a_sealed_segment_is_met() {
    let disk = SimDisk::new(4 << 20, 1);
    let writer = sealed(&disk).unwrap();
    let segments = writer.segments();
    let ids: Vec<u64> = segments
        .list()
        .iter()
        .filter(|it| it.sealed)
        .map(|it| it.id)
        .collect();
    assert!(ids.len() >= 2, "{ids:?}");
    let mut kinds = std::collections::BTreeMap::<u8, usize>::new();
    for id in ids {
        let path = PathBuf::from("/log").join(segment_name(id));
        let octets = disk.contents()[&path].clone();
        let records = records(&octets);
        assert!(!meets_damage(&segments, id), "segment {id} is whole");
        // Behind the page cache, where only a read of the device meets it.
        let flip = |at: usize| {
            assert!(disk.rot(&path, at, 1 << (at % 8)));
            let met = meets_damage(&segments, id);
            assert!(disk.rot(&path, at, 1 << (at % 8)));
            assert!(!meets_damage(&segments, id), "it is whole again");
            met
        };
        for &(kind, from, to) in &records {
            // Every octet of the small ones, some of a body.
            let step = if to - from > 200 { 97 } else { 1 };
            for at in (from..to).step_by(step) {
                // A byte of padding within a header that its checksum does not cover would be harmless; there is none.
                assert!(flip(at), "segment {id}, {kind:?} at {from}, octet {at}");
                *kinds.entry(kind as u8).or_default() += 1;
            }
        }
        assert!(flip(40), "the segment's own header");
        // Behind a batch, and behind the last one.
        let end = records.last().unwrap().2;
        assert!(!flip(end + 1) && !flip(octets.len() - 1));
    }
    let all = [
        RecordType::Entry,
        RecordType::HardState,
        RecordType::State,
        RecordType::BatchEnd,
    ];
    assert!(
        all.iter().all(|kind| kinds.contains_key(&(*kind as u8))),
        "{kinds:?}"
    );
}

#[test]
fn the_end_of_a_segment_is_known_after_a_start_too() {
    let disk = SimDisk::new(4 << 20, 1);
    drop(sealed(&disk).unwrap());
    disk.kill_process();
    let (writer, ..) = open(&disk);
    let segments = writer.segments();
    let path = PathBuf::from("/log").join(segment_name(1));
    let records = records(&disk.contents()[&path]);
    // The first record of the last batch: nothing behind it can be found by reading on from block to block.
    let begins: Vec<usize> = records
        .iter()
        .map(|(_, from, _)| *from)
        .filter(|from| from % BLOCK as usize == 0)
        .collect();
    assert!(!meets_damage(&segments, 1));
    assert!(disk.flip(&path, begins[begins.len() - 1] + 9));
    assert!(meets_damage(&segments, 1));
}
