//! A power cut in the middle of a flush of real fjall: any subset of the journal's unsynced pages reached the disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::life::apply_to;
use super::recovery::append;
use super::{Bench, contents};
use crate::state::{Store, StoreConfig};

/// What a disk writes as one.
const PAGE: usize = 4096;
/// As much of a journal as these tests write; the rest of its length is a hole.
const WRITTEN: usize = 1 << 20;

/// A directory's files: length, and the octets up to [`WRITTEN`].
type Image = BTreeMap<PathBuf, (u64, Vec<u8>)>;

fn image(dir: &Path) -> Image {
    let mut files = Image::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut octets = vec![0; WRITTEN.min(meta.len() as usize)];
            let file = fs::File::open(&path).unwrap();
            file.read_exact_at(&mut octets, 0).unwrap();
            files.insert(
                path.strip_prefix(dir).unwrap().to_owned(),
                (meta.len(), octets),
            );
        }
    }
    files
}

fn put(image: &Image, dir: &Path) {
    for (path, (length, octets)) in image {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::File::create(&path).unwrap();
        file.write_all_at(octets, 0).unwrap();
        file.set_len(*length).unwrap();
    }
}

/// Opening the real store takes a tenth of a second and more.
fn seeds() -> u64 {
    match std::env::var("SIZE").is_ok_and(|size| size == "full") {
        true => 100,
        false => 4,
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// nats#7564: a coordinated power cut; queue.md 4.4. The state is the one before the flush or the one after it, whole, and
/// goes on from there: Raft applies the rest again.
#[test]
fn trap_8_a_power_cut_in_a_flush_leaves_the_rows_before_it_or_after_it() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..seeds() {
        let mut chance = Chance(seed);
        let mut bench = Bench::new(1);
        let mut index = 0;
        let mut more = |bench: &mut Bench, chance: &mut Chance| {
            for _ in 0..1 + chance.below(20) {
                index += 1;
                apply_to(&mut bench.groups[0], index, &append(index as u8));
            }
            // The longest values that there are.
            let blob = vec![index as u8; chance.below(9_000) as usize];
            bench.groups[0].set_blob(blob.into());
            bench.flush();
            (
                index,
                contents(&mut bench.groups[0]),
                image(bench.dir.path()),
            )
        };
        for _ in 0..chance.below(3) {
            more(&mut bench, &mut chance);
        }
        let (old_index, old_rows, old) = more(&mut bench, &mut chance);
        let (new_index, new_rows, new) = more(&mut bench, &mut chance);
        for _ in 0..6 {
            let mixed = mix(&old, &new, &mut chance);
            let mut cut = Bench {
                dir: tempfile::tempdir().unwrap(),
                store: None,
                groups: Vec::new(),
            };
            put(&mixed, cut.dir.path());
            cut.open(1);
            let applied = cut.groups[0].applied().0;
            let rows = contents(&mut cut.groups[0]);
            match applied {
                a if a == old_index => {
                    assert_eq!(rows, old_rows);
                    before += 1;
                    for index in old_index + 1..=new_index {
                        apply_to(&mut cut.groups[0], index, &append(index as u8));
                    }
                }
                a => {
                    assert_eq!((a, &rows), (new_index, &new_rows), "seed {seed}");
                    after += 1;
                }
            }
            cut.flush();
            cut.crash();
            assert_eq!(contents(&mut cut.groups[0]), new_rows);
        }
    }
    assert!(
        before > 0 && after > 0,
        "{before} before, {after} after: the test proves little"
    );
}

/// Of the pages in which the journals differ, each is the old one or the new one; now and then all are new.
fn mix(old: &Image, new: &Image, chance: &mut Chance) -> Image {
    let mut mixed = new.clone();
    let all = chance.below(4) == 0;
    for (path, (_, octets)) in &mut mixed {
        let journal = path.extension().is_some_and(|e| e == "jnl");
        let Some((_, before)) = old.get(path).filter(|_| journal && !all) else {
            continue;
        };
        for (now, then) in octets.chunks_mut(PAGE).zip(before.chunks(PAGE)) {
            if now != then && chance.below(2) == 0 {
                now.copy_from_slice(then);
            }
        }
    }
    mixed
}

/// The store reads its files from the device after a failed sync, not from pages that count as clean.
#[test]
fn trap_10_a_store_opens_after_its_pages_were_dropped() {
    let mut bench = Bench::new(1);
    apply_to(&mut bench.groups[0], 1, &append(1));
    bench.flush();
    let rows = contents(&mut bench.groups[0]);
    bench.groups.clear();
    bench.store = None;
    let store = Store::open(bench.dir.path(), StoreConfig::default()).unwrap();
    assert_eq!(contents(&mut store.group(1).unwrap()), rows);
}
