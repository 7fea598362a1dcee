//! Documents as rows: long ones in parts, shorter ones in their place, and into another store with a snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Bench;
use crate::state::{ConfigRow, GroupState};

fn name(n: usize) -> Arc<str> {
    format!("Kind/a/{n}").as_str().into()
}

fn documents(group: &GroupState) -> BTreeMap<Arc<str>, Vec<u8>> {
    group.config(ConfigRow::Document)
}

#[test]
fn rows_of_any_length_are_there_again_after_a_start() {
    let mut bench = Bench::new(1);
    let mut wanted: BTreeMap<Arc<str>, Vec<u8>> = BTreeMap::new();
    let lengths = [1, 2047, 2048, 2049, 33_000, 5_000];
    for (n, length) in lengths.into_iter().enumerate() {
        let row: Vec<u8> = (0..length).map(|octet| (octet + n) as u8).collect();
        bench.groups[0].set_config(ConfigRow::Document, &name(n), Some(&row));
        wanted.insert(name(n), row);
    }
    // The same name as a writer is another row.
    bench.groups[0].set_config(ConfigRow::Writer, &name(0), Some(b"writer"));
    let look = |bench: &Bench, wanted: &BTreeMap<Arc<str>, Vec<u8>>| {
        assert_eq!(&documents(&bench.groups[0]), wanted);
        let writers = bench.groups[0].config(ConfigRow::Writer);
        assert_eq!(writers, BTreeMap::from([(name(0), b"writer".to_vec())]));
    };
    look(&bench, &wanted);
    bench.groups[0].set_applied(1, 1);
    bench.flush();
    bench.crash();
    look(&bench, &wanted);

    // Shorter, gone, and longer; over rows that are durable.
    bench.groups[0].set_config(ConfigRow::Document, &name(4), Some(b"short"));
    wanted.insert(name(4), b"short".to_vec());
    bench.groups[0].set_config(ConfigRow::Document, &name(5), None);
    wanted.remove(&name(5));
    bench.groups[0].set_config(ConfigRow::Document, &name(0), Some(&[7; 9_000]));
    wanted.insert(name(0), vec![7; 9_000]);
    look(&bench, &wanted);
    bench.groups[0].set_applied(2, 1);
    bench.flush();
    bench.crash();
    look(&bench, &wanted);
}

#[test]
fn more_rows_than_one_look_takes_and_all_of_them_in_a_snapshot() {
    let mut bench = Bench::new(1);
    for n in 0..2_500 {
        bench.groups[0].set_config(ConfigRow::Document, &name(n), Some(&[1; 2_100]));
    }
    bench.groups[0].set_applied(1, 1);
    bench.flush();
    assert_eq!(documents(&bench.groups[0]).len(), 2_500);

    let receiver = Bench::new(1);
    let export = bench.store().export(1).unwrap().expect("it has rows");
    let mut import = receiver.store().importer().begin(1).unwrap();
    let taken = export.rows(|table, key, value| import.row(table, key, value));
    taken.unwrap();
    let switched = import.switch(export.applied).unwrap();
    receiver.store().switched(switched);
    let group = receiver.store().group(1).unwrap();
    assert_eq!(documents(&group), documents(&bench.groups[0]));
}
