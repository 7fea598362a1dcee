//! Snapshots that are whole, cut, flipped and mixed up.

use std::io;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = |most: usize| proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from);
    let row = (0_u8..13, bytes(40), bytes(80));
    let row = row.prop_map(|(table, key, value)| Record::Row { table, key, value });
    let body = (any::<u64>(), any::<u32>(), any::<u64>(), bytes(200));
    let body = body.prop_map(|(index, extents, octets, data)| Record::Body {
        index,
        extents,
        octets,
        data,
    });
    proptest::collection::vec(prop_oneof![row, body], 0..12)
}

fn encode(id: u64, records: &[Record]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for record in records {
        match record {
            Record::Row { table, key, value } => encoder.row(*table, key, value),
            Record::Body {
                index,
                extents,
                octets,
                data,
            } => encoder.body(*index, *extents, *octets, data),
            Record::End => {}
        }
    }
    encoder.end(id);
    encoder.take().to_vec()
}

/// What a receiver makes of it.
fn check(id: u64, octets: Vec<u8>) -> Result<Vec<Record>, Damage> {
    let mut chunk = Bytes::from(octets);
    let mut checker = Checker::new(id);
    let mut out = Vec::new();
    while let Some(record) = checker.next(&mut chunk)? {
        out.push(record);
    }
    checker.finish()?;
    assert_eq!(out.pop(), Some(Record::End));
    Ok(out)
}

proptest! {
    #[test]
    fn what_is_sent_arrives(id: u64, records in records()) {
        prop_assert_eq!(check(id, encode(id, &records)), Ok(records));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(records in records(), at: prop::sample::Index, bit in 0..8_u8) {
        let mut octets = encode(7, &records);
        let at = at.index(octets.len());
        octets[at] ^= 1_u8 << bit;
        prop_assert!(check(7, octets).is_err());
    }

    #[test]
    fn a_cut_anywhere_is_noticed(records in records(), at: prop::sample::Index) {
        let mut octets = encode(7, &records);
        octets.truncate(at.index(octets.len()));
        prop_assert!(check(7, octets).is_err());
    }
}

#[test]
fn the_end_of_another_snapshot_does_not_fit() {
    let row = |key: &'static [u8]| Record::Row {
        table: 1,
        key: Bytes::from_static(key),
        value: Bytes::new(),
    };
    let (one, two) = ([row(b"a"), row(b"b")], [row(b"b"), row(b"a")]);
    assert!(matches!(
        check(8, encode(7, &one)),
        Err(Damage::Mixed { .. })
    ));
    // The same records in another order, with the end of the first.
    let (first, second) = (encode(7, &one), encode(7, &two));
    let end = first.len() - record::HEADER - 40;
    let mixed = [&second[..end], &first[end..]].concat();
    assert!(matches!(check(7, mixed), Err(Damage::Mixed { .. })));
}

#[test]
fn what_is_staged_is_read_back_and_its_damage_noticed() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let staging = Staging::new(dir.path());
    let row = Record::Row {
        table: 3,
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"value"),
    };
    let mut staged = staging.begin(5, 7)?;
    staged.write(&encode(7, std::slice::from_ref(&row)))?;
    staged.finish()?;
    let read = |staging: &Staging| {
        let mut out = Vec::new();
        let took = staging.read::<io::Error>(5, 7, |record| {
            out.push(record);
            Ok(())
        });
        took.map(|()| out)
    };
    assert_eq!(read(&staging)?, [row, Record::End]);
    let path = dir.path().join("snap-in/5/0000000000000007");
    let mut octets = std::fs::read(&path)?;
    let last = octets.len() - 1;
    octets[last] ^= 1;
    std::fs::write(&path, &octets)?;
    let error = read(&staging).expect_err("it is damaged");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // A new one takes its place; a start removes all.
    staging.begin(5, 8)?;
    assert!(!path.exists());
    staging.clear()?;
    staging.clear()?;
    assert!(!dir.path().join("snap-in").exists());
    Ok(())
}

/// A snapshot of messages, each with its extents; what `places` knows of it, and its file.
fn messages(dir: &std::path::Path, sent: &[Record]) -> Places {
    let staging = Staging::new(dir);
    let mut staged = staging.begin(1, 7).expect("a file");
    let mut chunk = Bytes::from(encode(7, sent));
    let whole = chunk.len();
    staged.write(&chunk).expect("written");
    let (mut checker, mut places) = (Checker::new(7), Places::default());
    while let Some(record) = checker.next(&mut chunk).expect("every checksum is right") {
        places.add(&record, (whole - chunk.len()) as u64);
    }
    staged.finish().expect("durable");
    places
}

/// A body rots where the checksum of the snapshot is still to be taken: all checksums are right, and it is not what the edge
/// took.
#[test]
fn bodies_that_are_not_what_their_edges_took_are_refused_before_anything_is_installed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("snap-in/1/0000000000000007");
    let body = |index: u64| Bytes::from(vec![index as u8; 700_000]);
    let record = |index, data| Record::Body {
        index,
        extents: 1,
        octets: 700_000,
        data,
    };
    // Message 1 in entry 10; message 2 in 11 and 13, of which it has a part; message 3, which is older than its entry is.
    let extents: [&[(u64, u64, u64)]; 3] = [
        &[(10, 0, 700_000)],
        &[(11, 0, 700_000), (13, 5, 400)],
        &[(12, 0, 700_000)],
    ];
    let row = |at: usize| {
        let whole = extents[at].iter().flat_map(|(index, from, len)| {
            body(*index)
                .slice(*from as usize..(from + len) as usize)
                .to_vec()
        });
        let digest = mail::Digest::of(&whole.collect::<Vec<u8>>());
        let (key, value) = crate::state::message_row(at as u128, digest, extents[at]);
        Record::Row {
            table: crate::state::MESSAGES,
            key: key.into(),
            value: value.into(),
        }
    };
    let rows = [row(2), row(0), row(1)];
    let other = Record::Row {
        table: 5,
        key: Bytes::from_static(b"another table"),
        value: Bytes::new(),
    };
    let snapshot = |bodies: &[(u64, Bytes)]| {
        let mut sent = rows.to_vec();
        sent.push(other.clone());
        sent.extend(
            bodies
                .iter()
                .map(|(index, data)| record(*index, data.clone())),
        );
        sent
    };
    let bodies: Vec<_> = (10..=14).map(|index| (index, body(index))).collect();
    let verify =
        |bodies: &[(u64, Bytes)]| messages(dir.path(), &snapshot(bodies)).verify(&path, || false);
    verify(&bodies).expect("all is as it was taken");
    for at in 0..4 {
        let mut rotten = bodies.clone();
        let mut octets = rotten[at].1.to_vec();
        octets[100] ^= 1;
        rotten[at].1 = octets.into();
        let refused = verify(&rotten).expect_err("it is damaged");
        assert!(matches!(refused, NotSworn::Body { .. }), "{refused}");
        let mut missing = bodies.clone();
        missing.remove(at);
        let refused = verify(&missing).expect_err("it is missing");
        assert!(matches!(refused, NotSworn::Missing { .. }), "{refused}");
    }
    let mut spare = bodies.clone();
    spare[4].1 = Bytes::from_static(b"of an upload, for which nobody vouches yet");
    verify(&spare).expect("no message refers to it");
    let mut mixed = bodies;
    mixed.swap(1, 3);
    assert!(matches!(verify(&mixed), Err(NotSworn::Malformed(_))));
}
