//! A disk in memory that loses what was not synced: any subset of 4 KiB sectors, torn sectors, late directory entries.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::file::SimFile;
use super::{Disk, DiskFile};

/// What a disk writes as one; a torn one is cut at a multiple of [`TORN_AT`].
const SECTOR: usize = 4096;
const TORN_AT: usize = 512;

/// The disk; clones share it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    chance: u64,
    capacity: u64,
    /// Taken by something else, bytes.
    foreign: u64,
    files: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending: Vec<Change>,
    /// Handles of an earlier life are dead.
    life: u64,
    crash_in: Option<u64>,
    down: bool,
    /// The sync, of a file or a directory, that fails after this many more.
    fail_sync: Option<u64>,
    fail_write: Option<io::ErrorKind>,
    /// Octets of files that the device does not give back.
    unreadable: Vec<(usize, Range<u64>)>,
}

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Sectors of which the page cache has other octets than the device.
    rotten: BTreeSet<usize>,
}

#[derive(Debug)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl SimDisk {
    /// An empty disk of `capacity` bytes; `seed` decides what a crash loses.
    pub fn new(capacity: u64, seed: u64) -> Self {
        let state = State {
            chance: seed,
            capacity,
            foreign: 0,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            life: 0,
            crash_in: None,
            down: false,
            fail_sync: None,
            fail_write: None,
            unreadable: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The power fails in the middle of the operation after `operations` more; all fail until [`SimDisk::restart`].
    pub fn crash_after(&self, operations: u64) {
        self.lock().crash_in = Some(operations);
    }

    /// Did the power fail?
    pub fn is_down(&self) -> bool {
        self.lock().down
    }

    /// Power is back; what was not synced is lost in part. Without a failure before, it fails now.
    pub fn restart(&self) {
        self.lock().lose_unsynced();
    }

    /// The process died, the system did not: all that was written stays, open files close. After
    /// [`SimDisk::crash_after`] struck, it was the process that died in the middle of the operation.
    pub fn kill_process(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.down = false;
        state.crash_in = None;
        state.fail_sync = None;
        state.fail_write = None;
    }

    /// The next sync fails with EIO and the pages that it should have written are lost.
    pub fn fail_next_sync(&self) {
        self.fail_sync_after(0);
    }

    /// After so many more syncs, of files or directories, one fails with EIO: what it should have written is lost, and
    /// all further syncs succeed.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.lock().fail_sync = Some(syncs);
    }

    /// Did the sync fail that [`SimDisk::fail_sync_after`] asked for?
    pub fn sync_failed(&self) -> bool {
        self.lock().fail_sync.is_none()
    }

    /// The next write fails after half of its bytes.
    pub fn fail_next_write(&self, kind: io::ErrorKind) {
        self.lock().fail_write = Some(kind);
    }

    /// Every read of any of these octets of a file fails with EIO from now on, until they are written again or the disk is
    /// filled anew. False when there is no such file.
    pub fn fail_read(&self, path: &Path, octets: Range<u64>) -> bool {
        let mut state = self.lock();
        let inode = state.names.get(path).copied();
        state.unreadable.extend(inode.map(|inode| (inode, octets)));
        inode.is_some()
    }

    /// Turns over the bits of a byte of the device that `mask` names, and not of the page cache: it is seen once the cache is
    /// dropped. False when there is no such byte.
    pub fn rot(&self, path: &Path, at: usize, mask: u8) -> bool {
        let mut state = self.lock();
        let inode = state.names.get(path).copied();
        let Some(file) = inode.map(|inode| &mut state.files[inode]) else {
            return false;
        };
        file.rotten.insert(at / SECTOR);
        let octet = file.durable.get_mut(at);
        octet.map(|octet| *octet ^= mask).is_some()
    }

    /// Something else takes this much of the disk, bytes.
    pub fn set_foreign_bytes(&self, bytes: u64) {
        self.lock().foreign = bytes;
    }

    /// Turns one bit of a file over, behind everybody's back. False when there is no such byte.
    pub fn flip(&self, path: &Path, at: usize) -> bool {
        self.damage(path, at, 1)
    }

    /// Turns over the bits of a byte that `mask` names, behind everybody's back. False when there is no such byte.
    pub fn damage(&self, path: &Path, at: usize, mask: u8) -> bool {
        let mut state = self.lock();
        let Some(inode) = state.names.get(path).copied() else {
            return false;
        };
        let file = &mut state.files[inode];
        let (Some(now), Some(durable)) = (file.now.get_mut(at), file.durable.get_mut(at)) else {
            return false;
        };
        *now ^= mask;
        *durable ^= mask;
        true
    }

    /// What a process that starts now would find: each file with its octets.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.lock();
        let now =
            |(path, inode): (&PathBuf, &usize)| (path.clone(), state.files[*inode].now.clone());
        state.names.iter().map(now).collect()
    }

    /// Puts these files in the place of everything, durably; open files close.
    pub fn put_back(&self, contents: &BTreeMap<PathBuf, Vec<u8>>) {
        let mut state = self.lock();
        state.life += 1;
        state.pending.clear();
        state.files.clear();
        state.names.clear();
        state.unreadable.clear();
        for (path, octets) in contents {
            let inode = state.files.len();
            state.files.push(Inode {
                now: octets.clone(),
                durable: octets.clone(),
                ..Inode::default()
            });
            state.names.insert(path.clone(), inode);
        }
        state.durable_names = state.names.clone();
    }

    /// Everything is gone, as on a new disk.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.names.clear();
        state.durable_names.clear();
        state.pending.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; `Err(())` when the power fails during it.
    fn step(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.lock();
        if state.down {
            return Err(power());
        }
        let fails = state.crash_in == Some(0);
        state.crash_in = state.crash_in.map(|left| left.saturating_sub(1));
        Ok((state, fails))
    }

    fn change(&self, check: impl FnOnce(&mut State) -> io::Result<Change>) -> io::Result<()> {
        let (mut state, fails) = self.step()?;
        let change = check(&mut state)?;
        apply(&mut state.names, &change);
        state.pending.push(change);
        if fails { state.fail() } else { Ok(()) }
    }

    fn handle(&self, inode: usize) -> Arc<dyn DiskFile> {
        let life = self.lock().life;
        Arc::new(SimFile {
            disk: self.clone(),
            inode,
            life,
        })
    }
}

impl State {
    /// splitmix64: small, and good enough to choose what is lost.
    fn next(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fail<T>(&mut self) -> io::Result<T> {
        self.down = true;
        Err(power())
    }

    fn fails_this_sync(&mut self) -> bool {
        let fails = self.fail_sync == Some(0);
        self.fail_sync = match self.fail_sync {
            Some(0) | None => None,
            Some(left) => Some(left - 1),
        };
        fails
    }

    fn free(&self) -> u64 {
        let used: u64 = self
            .names
            .values()
            .map(|inode| self.files[*inode].now.len() as u64)
            .sum();
        self.capacity.saturating_sub(used + self.foreign)
    }

    fn lose_unsynced(&mut self) {
        // A file system's journal keeps the order of changes: some prefix of them survives.
        let kept = (self.next() % (self.pending.len() as u64 + 1)) as usize;
        for change in std::mem::take(&mut self.pending).into_iter().take(kept) {
            apply(&mut self.durable_names, &change);
        }
        self.names = self.durable_names.clone();
        for at in 0..self.files.len() {
            let mut file = std::mem::take(&mut self.files[at]);
            if file.durable.len() != file.now.len() && self.next().is_multiple_of(2) {
                file.durable.resize(file.now.len(), 0);
            }
            for sector in std::mem::take(&mut file.dirty) {
                let from = (sector * SECTOR).min(file.now.len());
                let to = (from + SECTOR).min(file.now.len()).min(file.durable.len());
                let keep = match self.next() % 8 {
                    0..=3 => 0,
                    4..=6 => SECTOR,
                    _ => (self.next() as usize % (SECTOR / TORN_AT)) * TORN_AT,
                };
                let to = to.min(from + keep);
                if from < to {
                    file.durable[from..to].copy_from_slice(&file.now[from..to]);
                }
            }
            file.now = file.durable.clone();
            self.files[at] = file;
        }
        self.life += 1;
        self.down = false;
        self.crash_in = None;
        self.fail_sync = None;
        self.fail_write = None;
    }
}

impl Inode {
    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[at..end].copy_from_slice(bytes);
        self.dirty.extend(at / SECTOR..end.div_ceil(SECTOR));
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let from = (sector * SECTOR).min(self.now.len());
            let to = (from + SECTOR).min(self.now.len());
            self.durable[from..to].copy_from_slice(&self.now[from..to]);
        }
    }

    /// What is clean is read from the device again.
    fn drop_cache(&mut self) {
        let dirty = &self.dirty;
        let clean = self.rotten.extract_if(.., |sector| !dirty.contains(sector));
        for sector in clean.collect::<Vec<_>>() {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.now.len()).min(self.durable.len());
            if from < to {
                self.now[from..to].copy_from_slice(&self.durable[from..to]);
            }
        }
    }

    /// What a failed sync does on common file systems: pages count as clean, and are dropped sooner or later.
    fn lose(&mut self) {
        self.dirty.clear();
        self.now = self.durable.clone();
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &Change) {
    match change {
        Change::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        Change::Unlink(path) => {
            names.remove(path);
        }
        Change::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn power() -> io::Error {
    io::Error::other("the power failed")
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inode = 0;
        self.change(|state| {
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            inode = state.files.len();
            state.files.push(Inode::default());
            Ok(Change::Link(path.to_owned(), inode))
        })?;
        Ok(self.handle(inode))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let (state, _) = self.step()?;
        let inode = state
            .names
            .get(path)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(self.handle(inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| match state.names.contains_key(from) {
            true => Ok(Change::Rename(from.to_owned(), to.to_owned())),
            false => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.change(|state| match state.names.contains_key(path) {
            true => Ok(Change::Unlink(path.to_owned())),
            false => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        let (mut state, fails) = self.step()?;
        if fails {
            return state.fail();
        }
        let changes = std::mem::take(&mut state.pending);
        if state.fails_this_sync() {
            // As fsyncgate has it for directories: what is seen stays, what is durable is not known.
            drop(changes);
            return Err(io::Error::other("input/output error"));
        }
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let (state, _) = self.step()?;
        let here = state
            .names
            .keys()
            .filter(|name| name.parent() == Some(path));
        Ok(here
            .filter_map(|name| name.file_name()?.to_str().map(str::to_owned))
            .collect())
    }

    fn space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        let state = self.lock();
        Ok((state.free(), state.capacity))
    }
}
