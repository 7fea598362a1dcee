//! A group's rows out of one store and into another, with the death of the process between any two steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use queue::Extent;
use tempfile::TempDir;

use super::life::apply_to;
use super::recovery::{append, drop_item};
use super::{Bench, contents};
use crate::collect::BodyIndex;
use crate::log::Location;
use crate::state::{Cleaner, Import, Store, StoreConfig, StoreError};

fn location(segment: u64) -> Location {
    Location {
        segment,
        offset: 0,
        context_len: 0,
        data_len: 100,
    }
}

/// Rows up to entry 40, one in two of the messages gone again, two bodies.
fn sender() -> Bench {
    let mut bench = Bench::new(2);
    let group = &mut bench.groups[1];
    for m in 0..20 {
        apply_to(group, u64::from(2 * m) + 1, &append(m));
        let index = u64::from(2 * m) + 2;
        match m % 2 {
            0 => apply_to(group, index, &drop_item(m)),
            _ => apply_to(group, index, &append(100 + m)),
        };
    }
    for index in [3, 7] {
        let extent = Extent {
            index,
            offset: 0,
            length: 90,
        };
        group.body_kept(extent, location(5));
    }
    group.set_conf_state(bytes::Bytes::from_static(b"new members"));
    group.set_applied(40, 4);
    bench.flush();
    bench
}

/// Steps of an install; after each one the process may die.
fn import(from: &Store, to: &Store, step: impl FnMut(&str)) -> Result<(), StoreError> {
    import_as(2, from, to, step)
}

/// The same into a replica that the log and the metadata call so.
fn import_as(
    replica: u32,
    from: &Store,
    to: &Store,
    mut step: impl FnMut(&str),
) -> Result<(), StoreError> {
    let export = from.export(2)?.expect("it has rows");
    assert_eq!(export.applied, (40, 4));
    let mut import: Import = to.importer().begin(replica)?;
    step("begun");
    export.rows(|table, key, value| {
        import.row(table, key, value)?;
        step("row");
        Ok::<_, StoreError>(())
    })?;
    export.bodies(|body| {
        import.body(body.index, body.extents, body.bytes, location(77))?;
        step("body");
        Ok::<_, StoreError>(())
    })?;
    let switched = import.switch(export.applied)?;
    step("switched");
    to.switched(switched);
    let cleaner = Cleaner::new(to, Arc::new(AtomicBool::new(false)))?;
    cleaner.run()?;
    step("cleaned");
    Ok(())
}

/// What a start finds in a copy of the directory as it is now.
fn look(dir: &Path, clean: bool) -> (u64, Vec<String>, usize) {
    let copy = TempDir::new().unwrap();
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(dir)
        .arg(copy.path().join("meta"))
        .status();
    assert!(done.unwrap().success());
    let store = Store::open(copy.path(), StoreConfig::default()).unwrap();
    if clean {
        let cleaner = Cleaner::new(&store, Arc::new(AtomicBool::new(false))).unwrap();
        cleaner.run().unwrap();
    }
    let mut group = store.group(2).unwrap();
    let (applied, bodies) = (group.applied().0, group.kept_from(0, 100).len());
    assert_eq!(store.durable_applied(2), applied);
    (applied, contents(&mut group), bodies)
}

#[test]
fn the_rows_are_the_old_ones_or_the_new_ones_wherever_the_process_dies() {
    let mut sender = sender();
    let mut receiver = Bench::new(2);
    for m in 50..55 {
        let group = &mut receiver.groups[1];
        apply_to(group, u64::from(m) - 49, &append(m));
    }
    receiver.groups[1].body_kept(
        Extent {
            index: 1,
            offset: 0,
            length: 5,
        },
        location(900),
    );
    apply_to(&mut receiver.groups[0], 1, &append(1));
    receiver.flush();
    let (old, new) = (
        contents(&mut receiver.groups[1]),
        contents(&mut sender.groups[1]),
    );
    let bodies_of = |bench: &Bench| bench.groups[1].kept_from(0, 100).len();
    let (old_bodies, new_bodies) = (bodies_of(&receiver), bodies_of(&sender));
    assert!(old_bodies > 0 && new_bodies > old_bodies);
    let other = contents(&mut receiver.groups[0]);
    let dir = receiver.store().dir().to_owned();
    let mut steps = 0_usize;
    let outcome = import(sender.store(), receiver.store(), |step| {
        steps += 1;
        if step == "row" && !steps.is_multiple_of(25) {
            return;
        }
        for clean in [false, true] {
            let (applied, rows, bodies) = look(&dir, clean);
            match step {
                "switched" | "cleaned" => {
                    assert_eq!((applied, bodies), (40, new_bodies), "{step}");
                    assert_eq!(rows, new, "replaced, not merged");
                }
                _ => {
                    assert_eq!((applied, bodies), (5, old_bodies), "{step}");
                    assert_eq!(rows, old);
                }
            }
        }
    });
    outcome.unwrap();
    assert!(steps > 50, "{steps}");
    // In the same life: the group is asked for again, the others go on.
    let store = receiver.store();
    let mut rows = store.group(2).unwrap();
    assert_eq!(contents(&mut rows), new);
    assert_eq!(&rows.conf_state()[..], b"new members");
    assert_eq!(rows.locate(7), Some(location(77)));
    assert_eq!(store.installed(2).unwrap(), Some((40, 4)));
    assert_eq!(store.segments_live()[&77].count, new_bodies as u64);
    assert!(
        !store.segments_live().contains_key(&900),
        "the old body is nobody's"
    );
    receiver.groups[1] = rows;
    apply_to(&mut receiver.groups[1], 41, &append(90));
    receiver.flush();
    let after = contents(&mut receiver.groups[1]);
    receiver.crash();
    assert_eq!(contents(&mut receiver.groups[1]), after);
    assert_eq!(contents(&mut receiver.groups[0]), other);
    // And once more over it.
    import(sender.store(), receiver.store(), |_| {}).unwrap();
    receiver.crash();
    assert_eq!(contents(&mut receiver.groups[1]), new);
}

#[test]
fn a_snapshot_whose_rows_are_of_another_entry_changes_nothing() {
    let sender = sender();
    let mut receiver = Bench::new(2);
    apply_to(&mut receiver.groups[1], 1, &append(1));
    receiver.flush();
    let old = contents(&mut receiver.groups[1]);
    let export = sender.store().export(2).unwrap().unwrap();
    let mut import = receiver.store().importer().begin(2).unwrap();
    export
        .rows(|table, key, value| import.row(table, key, value))
        .unwrap();
    assert!(import.switch((41, 4)).is_err());
    receiver.crash();
    assert_eq!(contents(&mut receiver.groups[1]), old);
    let mut import = receiver.store().importer().begin(2).unwrap();
    assert!(
        import.row(200, b"key", b"value").is_err(),
        "a table that nobody knows"
    );
}

#[test]
fn a_replica_that_comes_back_and_the_rows_of_a_snapshot_never_share_keys() {
    let mut sender = sender();
    let new = contents(&mut sender.groups[1]);
    let receiver = Bench::new(2);
    let store = receiver.store();
    let again = crate::directory::log_group(2, crate::directory::peer_id(9, 1));
    // The first replica is filled by a snapshot, and given up.
    store.create(2, b"first members", 0).unwrap();
    import(sender.store(), store, |_| {}).unwrap();
    assert_eq!(store.replicas().unwrap(), BTreeMap::from([(2, Some(0))]));
    store.bury(2).unwrap();
    // The second one is made, and filled too, before what the first one left is removed.
    store.create(again, b"first members", 9).unwrap();
    let mut rows = store.group(again).unwrap();
    let nothing = contents(&mut store.group(99).unwrap());
    assert_eq!(contents(&mut rows), nothing, "none of the first one's");
    assert_eq!(&rows.conf_state()[..], b"first members");
    import_as(again, sender.store(), store, |_| {}).unwrap();
    assert!(store.sweep(2).run(|| false).unwrap() > 0);
    let both = BTreeMap::from([(2, None), (again, Some(9))]);
    for open_again in [false, true] {
        let opened = open_again.then(|| {
            let dir = store.dir().parent().unwrap();
            let copy = TempDir::new().unwrap();
            let done = std::process::Command::new("cp")
                .arg("-a")
                .arg(dir.join("meta"))
                .arg(copy.path())
                .status();
            assert!(done.unwrap().success());
            (
                Store::open(copy.path(), StoreConfig::default()).unwrap(),
                copy,
            )
        });
        let store = opened.as_ref().map_or(store, |(store, _)| store);
        assert_eq!(store.replicas().unwrap(), both);
        let mut rows = store.group(again).unwrap();
        assert_eq!(contents(&mut rows), new);
        assert_eq!(&rows.conf_state()[..], b"new members");
        assert_eq!(contents(&mut store.group(2).unwrap()), nothing);
        assert_eq!(store.segments_live().keys().collect::<Vec<_>>(), [&77]);
        let bodies = store.bodies();
        assert_eq!(bodies.replica_of(2), Some(again));
        assert_eq!(bodies.replica_of(3), None);
        assert_eq!(bodies.locate(again, 3).unwrap(), Some(location(77)));
        assert_eq!(
            bodies.locate(2, 3).unwrap(),
            None,
            "of the one that is gone"
        );
        let found = bodies.rows((0, 0), 100).unwrap();
        assert!(!found.is_empty() && found.iter().all(|(replica, ..)| *replica == again));
    }
}

#[test]
fn an_export_does_not_see_what_comes_later() {
    let mut sender = sender();
    let export = sender.store().export(2).unwrap().unwrap();
    let count = |export: &crate::state::Export| {
        let mut rows = 0;
        let counted = export.rows(|_, _, _| {
            rows += 1;
            Ok::<_, StoreError>(())
        });
        counted.map(|()| rows).unwrap()
    };
    let before = count(&export);
    for m in 200..220 {
        apply_to(&mut sender.groups[1], u64::from(m) - 100, &append(m));
    }
    sender.flush();
    assert_eq!(count(&export), before);
    assert_eq!(export.applied, (40, 4));
    assert!(export.segments.contains(&5) && export.body_bytes >= 180);
}

/// Other threads look bodies up beside it: what they find is of the rows that are the group's, under whatever slot.
#[test]
fn bodies_are_found_after_a_snapshot_and_in_the_order_of_groups() {
    let sender = sender();
    let mut receiver = Bench::new(2);
    let extent = |index| Extent {
        index,
        offset: 0,
        length: 90,
    };
    for group in &mut receiver.groups {
        apply_to(group, 1, &append(1));
    }
    // Group 1 has its rows from a snapshot, so its slot stands behind that of group 2.
    receiver.groups[0].body_kept(extent(50), location(900));
    receiver.groups[1].body_kept(extent(60), location(6));
    receiver.flush();
    let bodies = receiver.store().bodies();
    assert_eq!(bodies.locate(1, 50).unwrap(), Some(location(900)));
    let export = sender.store().export(2).unwrap().unwrap();
    let mut import = receiver.store().importer().begin(1).unwrap();
    export
        .rows(|table, key, value| import.row(table, key, value))
        .unwrap();
    let mut sent = Vec::new();
    export
        .bodies(|body| {
            sent.push(body.index);
            import.body(body.index, body.extents, body.bytes, location(77))
        })
        .unwrap();
    let before = bodies.rows((0, 0), 100).unwrap();
    assert!(
        before.iter().all(|(_, _, at)| at.segment != 77),
        "staged: {before:?}"
    );
    let switched = import.switch(export.applied).unwrap();
    receiver.store().switched(switched);
    assert_eq!(bodies.locate(1, 3).unwrap(), Some(location(77)));
    assert_eq!(bodies.locate(1, 50).unwrap(), None, "of the old rows");
    assert_eq!(bodies.locate(2, 60).unwrap(), Some(location(6)));
    let all = bodies.rows((0, 0), 100).unwrap();
    assert!(all.is_sorted_by_key(|(group, index, _)| (*group, *index)));
    assert!(all.contains(&(2, 60, location(6))));
    let of_first = all.iter().filter(|(group, ..)| *group == 1);
    assert!(of_first.clone().all(|(_, _, at)| *at == location(77)));
    assert_eq!(of_first.count(), sent.len());
    // One at a time, as the collector goes on.
    let (mut from, mut paged) = ((0, 0), Vec::new());
    while let Some(&(group, index, at)) = bodies.rows(from, 1).unwrap().first() {
        paged.push((group, index, at));
        from = (group, index + 1);
    }
    assert_eq!(paged, all);
    // Copied whole, so counted whole, as where they were appended.
    let live = receiver.store().segments_live()[&77];
    assert_eq!(live.count, sent.len() as u64);
    assert_eq!(live.bytes, 100 * sent.len() as u64);
}

/// The rows of a flush are visible before the store is told that they are durable: an export in between would pin the
/// segments of the flush before, and a body that was moved could be recycled while it is sent.
#[test]
fn nothing_is_exported_while_a_flush_is_under_way() {
    let mut sender = sender();
    let group = &mut sender.groups[1];
    let from = group.locate(3).unwrap();
    assert!(group.relocate(3, from, location(9)));
    let flush = sender.freeze().expect("a row moved");
    assert!(sender.store().export(2).unwrap().is_none(), "frozen");
    let flushed = flush.run().unwrap();
    assert!(sender.store().export(2).unwrap().is_none(), "visible");
    let (store, groups) = (sender.store.as_ref().unwrap(), &mut sender.groups);
    store.flushed(flushed, groups);
    let export = sender.store().export(2).unwrap().unwrap();
    assert!(export.segments.contains(&9), "{:?}", export.segments);
    // A group that had nothing to flush is not held up by the others.
    let group = &mut sender.groups[1];
    let from = group.locate(7).unwrap();
    assert!(group.relocate(7, from, location(9)));
    apply_to(&mut sender.groups[0], 1, &append(1));
    sender.flush();
    apply_to(&mut sender.groups[0], 2, &append(2));
    let flush = sender.freeze().expect("group 1 changed");
    assert!(sender.store().export(2).unwrap().is_some());
    assert!(sender.store().export(1).unwrap().is_none());
    sender.finish(flush);
}

/// A node that closes while the rows of a replica are removed must let go of the store, and the rest goes the next time.
#[test]
fn a_sweep_ends_when_it_is_told_to_and_goes_on_the_next_time() {
    let mut bench = Bench::new(1);
    for m in 0..200_u8 {
        apply_to(&mut bench.groups[0], u64::from(m) + 1, &append(m));
    }
    bench.flush();
    bench.store().create(1, b"members", 0).unwrap();
    bench.store().bury(1).unwrap();
    let looks = std::cell::Cell::new(0);
    let must_end = || {
        looks.set(looks.get() + 1);
        looks.get() > 2
    };
    let some = bench.store().sweep(1).run(must_end).unwrap();
    assert_eq!(looks.get(), 3, "nothing more is looked at");
    bench.crash();
    let rest = bench.store().sweep(1).run(|| false).unwrap();
    assert!(some > 0 && rest > 0, "{some} {rest}");
    assert_eq!(bench.store().sweep(1).run(|| false).unwrap(), 0);
}

/// For repairs: which messages an entry is of, also in a replica whose rows came with a snapshot.
#[test]
fn messages_are_found_by_the_entries_that_they_consist_of() {
    let sender = sender();
    let receiver = Bench::new(2);
    let all = |store: &Store, replica: u32, wanted: &[u64]| {
        let wanted = wanted.iter().map(|index| (replica, *index)).collect();
        let found = store.bodies().sworn(&wanted, || false).unwrap();
        let of = found.get(&replica).cloned().unwrap_or_default();
        let entries = of.iter().flat_map(|sworn| &sworn.extents);
        entries.map(|extent| extent.index).collect::<Vec<_>>()
    };
    let (store, into) = (sender.store(), receiver.store());
    assert_eq!(all(store, 2, &[1, 3, 999]), [3], "the first is gone");
    assert_eq!(all(store, 1, &[3]), [] as [u64; 0]);
    assert_eq!(all(into, 2, &[3]), [] as [u64; 0]);
    import(store, into, |_| {}).unwrap();
    assert_eq!(all(into, 2, &[3, 7]), [3, 7]);
    let found = store.bodies().sworn(&[(2, 3)].into(), || true).unwrap();
    assert!(found.is_empty(), "it ends when it is told to");
}
