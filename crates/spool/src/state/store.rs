//! The database of a node: opening, flushing, what is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};

use super::bodies::SegmentLive;
use super::codec::{self, put_number};
use super::durable::Durable;
use super::flush::{Flush, Flushed};
use super::group::{Fixed, GroupState};
use super::index::StoredBodies;
use super::sweep::Sweep;
use super::{BLOCK_CACHE_BYTES, JOURNAL_BYTES, MEMTABLE_BYTES, StoreError, journal, key};

/// Octets of a blob in one value, so that values stay below [`super::ROW_MAX`].
const BLOB_PART: usize = 2048;

/// fjall's own threads: flushes of memtables and compaction.
const WORKERS: usize = 2;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Octets of fjall's block cache.
    pub block_cache_bytes: u64,
    /// Octets of a table's memtable.
    pub memtable_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            block_cache_bytes: BLOCK_CACHE_BYTES,
            memtable_bytes: MEMTABLE_BYTES,
        }
    }
}

/// The tables.
#[derive(Clone)]
pub(super) struct Keyspaces {
    pub(super) messages: Keyspace,
    pub(super) items: Keyspace,
    pub(super) recipients: Keyspace,
    pub(super) due: Keyspace,
    pub(super) inflight: Keyspace,
    pub(super) held: Keyspace,
    pub(super) destinations: Keyspace,
    pub(super) finished: Keyspace,
    pub(super) forgets: Keyspace,
    pub(super) uploads: Keyspace,
    pub(super) sessions: Keyspace,
    pub(super) timers: Keyspace,
    /// Documents of the control group.
    pub(super) config: Keyspace,
    /// Body locations; local.
    pub(super) kept: Keyspace,
    /// Live octets a segment; local.
    pub(super) segments: Keyspace,
    /// Applied index, ConfState, shard row, blob.
    pub(super) fixed: Keyspace,
}

/// The metadata of all replicas on this node.
pub struct Store {
    dir: PathBuf,
    pub(super) database: Database,
    pub(super) keyspaces: Keyspaces,
    durable: Arc<Mutex<Durable>>,
}

impl Store {
    /// Opens `<dir>/meta`, or makes it. What is found is exactly what the last complete flush wrote. The caller
    /// compares each group's applied index with the first index of its log: a gap between them means that durable
    /// metadata were lost, which is [`StoreError::Lost`] for that node too.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NoSpace`] (close nothing, try again later), [`StoreError::Lost`] when what
    /// was durable cannot be read (a torn last batch is no loss: it is cut off and Raft replays it), otherwise
    /// [`StoreError::Fatal`].
    pub fn open(dir: &Path, config: StoreConfig) -> Result<Store, StoreError> {
        let dir = dir.join("meta");
        let lost = |reason| StoreError::Lost {
            dir: dir.clone(),
            reason,
        };
        if dir.is_dir() {
            journal::believe_only_the_device(&dir)?;
            // Before fjall, which throws away what it cannot read.
            journal::check(&dir)?.map_err(lost)?;
        }
        let database = match database(&dir, &config) {
            Err(fjall::Error::JournalRecovery(problem)) => {
                let cut = journal::cut_torn_batch(&dir)?
                    .map_err(|reason| lost(format!("{problem}; {reason}")))?;
                tracing::warn!(journal = %cut.path.display(), octets = cut.octets,
                    "cut a torn batch off the metadata journal; Raft replays what it held");
                database(&dir, &config)
            }
            other => other,
        };
        let database = database.map_err(|error| StoreError::opening(&dir, error))?;
        let keyspaces = Keyspaces::open(&database, &config)
            .map_err(|error| StoreError::opening(&dir, error))?;
        let store = Store {
            dir,
            database,
            keyspaces,
            durable: Arc::default(),
        };
        store.load()?;
        Ok(store)
    }

    /// The work of removing the rows of a replica that was buried, for a helper thread. Not while a flush with rows of it
    /// is under way. From now on nothing of it keeps a segment.
    pub fn sweep(&self, replica: u32) -> Sweep {
        let mut durable = self.durable();
        durable.applied.remove(&replica);
        durable.segments.remove(&replica);
        let slot = durable.slots.remove(&replica).unwrap_or(replica);
        Sweep {
            database: self.database.clone(),
            keyspaces: self.keyspaces.clone(),
            replica,
            slot,
        }
    }

    /// The groups that have rows here.
    pub fn groups(&self) -> BTreeSet<u32> {
        self.durable().applied.keys().copied().collect()
    }

    /// The rows of a group, as of its last flush; a group that is not known is empty. To be called once a group: two
    /// states of one group would overwrite each other.
    ///
    /// # Errors
    /// [`StoreError`] when its small values cannot be read.
    pub fn group(&self, group: u32) -> Result<GroupState, StoreError> {
        let fixed = read_fixed(group, &self.keyspaces.fixed)?;
        let segments = self
            .durable()
            .segments
            .get(&group)
            .cloned()
            .unwrap_or_default();
        let slot = self.slot(group);
        Ok(GroupState::new(
            (group, slot),
            &self.keyspaces,
            fixed,
            segments,
        ))
    }

    /// The first octets of the keys of a group's rows.
    pub(super) fn slot(&self, group: u32) -> u32 {
        self.durable().slot(group)
    }

    pub(super) fn is_flushing(&self, group: u32) -> bool {
        self.durable().flushing.contains(&group)
    }

    /// What the bodies of one group need of each segment, as of its last flush.
    pub(super) fn segments_of(&self, group: u32) -> BTreeMap<u64, SegmentLive> {
        let durable = self.durable();
        durable.segments.get(&group).cloned().unwrap_or_default()
    }

    /// A snapshot took the place of a group's rows, durably: what was made of them before is to be dropped, and
    /// [`Store::group`] to be asked again.
    pub fn switched(&self, switched: super::Switched) {
        let mut durable = self.durable();
        durable.slots.insert(switched.group, switched.slot);
        durable.applied.insert(switched.group, switched.index);
        durable.segments.insert(switched.group, switched.segments);
    }

    /// Begins a flush of what these groups (all of the node) changed; `None`: nothing did, or a flush is under way.
    /// Not while an entry is being applied: the rows and the applied index must agree.
    pub fn freeze<'a>(
        &self,
        groups: impl IntoIterator<Item = &'a mut GroupState>,
    ) -> Option<Flush> {
        let mut groups: Vec<_> = groups.into_iter().collect();
        if groups.iter().any(|group| group.is_flushing()) {
            return None;
        }
        let groups: Vec<_> = groups
            .iter_mut()
            .filter_map(|group| group.freeze())
            .collect();
        let frozen = groups.iter().map(|group| group.group);
        self.durable().flushing.extend(frozen);
        let (database, keyspaces) = (self.database.clone(), self.keyspaces.clone());
        (!groups.is_empty()).then_some(Flush {
            database,
            keyspaces,
            groups,
        })
    }

    /// Ends it: drops the frozen overlays and moves on what is durable.
    pub fn flushed<'a>(
        &self,
        flushed: Flushed,
        groups: impl IntoIterator<Item = &'a mut GroupState>,
    ) {
        let mut done = BTreeSet::new();
        let mut durable = self.durable();
        for (group, applied, segments) in flushed.groups {
            done.insert(group);
            durable.flushing.remove(&group);
            durable.applied.insert(group, applied);
            durable.segments.insert(group, segments);
        }
        groups
            .into_iter()
            .filter(|group| done.contains(&group.group()))
            .for_each(GroupState::thaw);
    }

    /// The index up to which a group's rows would survive a crash: its log may be truncated up to here. 0: none.
    pub fn durable_applied(&self, group: u32) -> u64 {
        self.durable().applied.get(&group).copied().unwrap_or(0)
    }

    /// [`Store::durable_applied`] of every replica that has rows.
    pub fn all_applied(&self) -> BTreeMap<u32, u64> {
        self.durable().applied.clone()
    }

    /// What the bodies of all groups need of each segment, as of each group's last flush. A segment that is not named
    /// holds nothing live among entries up to the groups' [`Store::durable_applied`]; later entries may lie in it.
    pub fn segments_live(&self) -> BTreeMap<u64, SegmentLive> {
        let mut sum: BTreeMap<u64, SegmentLive> = BTreeMap::new();
        for (segment, live) in self.durable().segments.values().flatten() {
            let total = sum.entry(*segment).or_default();
            total.bytes += live.bytes;
            total.count += live.count;
        }
        sum
    }

    /// Where bodies lie, for other threads.
    pub fn bodies(&self) -> StoredBodies {
        StoredBodies {
            kept: self.keyspaces.kept.clone(),
            messages: self.keyspaces.messages.clone(),
            durable: self.durable.clone(),
        }
    }

    /// Octets of the metadata on disk. fjall makes its journals sparse and long, so theirs are counted in blocks: on a
    /// small disk their length alone would count as full.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when the file system does not tell.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        let tables: u64 = self.keyspaces.all().map(Keyspace::disk_space).sum();
        Ok(tables + journal::blocks(&self.dir)?)
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn durable(&self) -> MutexGuard<'_, Durable> {
        Durable::of(&self.durable)
    }

    fn load(&self) -> Result<(), StoreError> {
        let replicas = self.replicas()?;
        let gone = |replica: u32| replicas.get(&replica) == Some(&None);
        let mut durable = self.durable();
        for guard in self.keyspaces.fixed.iter() {
            let (key, value) = guard.into_inner().map_err(StoreError::of)?;
            match fixed_key(&key) {
                Some((replica, FIXED_APPLIED)) if !gone(replica) => {
                    let (index, _) = read_applied(&value)
                        .ok_or_else(|| StoreError::unreadable("fixed", replica, &key))?;
                    durable.applied.insert(replica, index);
                }
                // Of one that is gone too: its sweep must find its rows.
                Some((replica, FIXED_SLOT)) => {
                    let slot = value.first_chunk().map(|slot| u32::from_be_bytes(*slot));
                    let slot =
                        slot.ok_or_else(|| StoreError::unreadable("fixed", replica, &key))?;
                    durable.slots.insert(replica, slot);
                }
                _ => {}
            }
        }
        let slot_of = |replica: &u32| durable.slots.get(replica).copied().unwrap_or(*replica);
        let replicas = durable.applied.keys();
        let of: BTreeMap<u32, u32> = replicas
            .map(|replica| (slot_of(replica), *replica))
            .collect();
        for guard in self.keyspaces.segments.iter() {
            let (bytes, value) = guard.into_inner().map_err(StoreError::of)?;
            let parsed = bytes
                .first_chunk()
                .map(|slot| u32::from_be_bytes(*slot))
                .zip(key::parse::<u64>(&bytes));
            let row = parsed.zip(codec::decode::<SegmentLive>(&value));
            let ((slot, segment), live) =
                row.ok_or_else(|| StoreError::unreadable("segments", 0, &bytes))?;
            let Some(replica) = of.get(&slot) else {
                // Of a replica that is gone, of a snapshot that was never installed, or of the rows before one: about to
                // be removed.
                continue;
            };
            let segments = durable.segments.entry(*replica).or_default();
            segments.insert(segment, live);
        }
        Ok(())
    }
}

/// The compression of journals is off, so that [`journal`] can check them, and rows are small.
fn database(dir: &Path, config: &StoreConfig) -> fjall::Result<Database> {
    Database::builder(dir)
        .cache_size(config.block_cache_bytes)
        .max_journaling_size(JOURNAL_BYTES)
        .journal_compression(CompressionType::None)
        .worker_threads(WORKERS)
        .open()
}

impl Keyspaces {
    /// The tables whose rows are the same on all replicas, with the numbers by which snapshots name them: these never
    /// change, and a new table gets a new one. The small values (`fixed`) are table 0.
    pub(super) fn replicated(&self) -> [(u8, &Keyspace); 13] {
        [
            (MESSAGES, &self.messages),
            (2, &self.items),
            (3, &self.recipients),
            (4, &self.due),
            (5, &self.inflight),
            (6, &self.held),
            (7, &self.destinations),
            (8, &self.finished),
            (9, &self.forgets),
            (10, &self.uploads),
            (11, &self.sessions),
            (12, &self.timers),
            (13, &self.config),
        ]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Keyspace> {
        let messages = [&self.messages, &self.items, &self.recipients];
        let scheduling = [&self.due, &self.inflight, &self.held, &self.destinations];
        let remembered = [&self.finished, &self.forgets, &self.uploads];
        let rest = [&self.sessions, &self.timers, &self.config];
        let local = [&self.kept, &self.segments, &self.fixed];
        let shared = messages.into_iter().chain(scheduling).chain(remembered);
        shared.chain(rest).chain(local)
    }

    fn open(database: &Database, config: &StoreConfig) -> fjall::Result<Keyspaces> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(config.memtable_bytes);
        let open = |name| database.keyspace(name, options);
        Ok(Keyspaces {
            messages: open("messages")?,
            items: open("items")?,
            recipients: open("recipients")?,
            due: open("due")?,
            inflight: open("inflight")?,
            held: open("held")?,
            destinations: open("destinations")?,
            finished: open("finished")?,
            forgets: open("forgets")?,
            uploads: open("uploads")?,
            sessions: open("sessions")?,
            timers: open("timers")?,
            config: open("config")?,
            kept: open("bodies")?,
            segments: open("segments")?,
            fixed: open("fixed")?,
        })
    }
}

/// Number of the table of messages in snapshots.
pub const MESSAGES: u8 = 1;

pub(super) const FIXED_APPLIED: u8 = b'a';
const FIXED_BLOB: u8 = b'b';
pub(super) const FIXED_CONF_STATE: u8 = b'c';
/// Local: a replica that this node has or had.
pub(super) const FIXED_REPLICA: u8 = b'r';
const FIXED_SHARD: u8 = b's';
/// Local: where the group's rows lie.
pub(super) const FIXED_SLOT: u8 = b'e';
/// Local, one a slot: rows that belong to nobody and are to be removed.
pub(super) const FIXED_GARBAGE: u8 = b'g';
/// Local: index and term of the last snapshot that was installed.
pub(super) const FIXED_INSTALLED: u8 = b'i';

pub(super) fn fixed_tag(group: u32, tag: u8) -> Vec<u8> {
    [&group.to_be_bytes()[..], &[tag]].concat()
}

/// Whether a key of the fixed values outlives the rows of its replica: the mark of the replica, and those of rows that a
/// [`super::Cleaner`] removes.
pub(super) fn outlives_rows(key: &[u8]) -> bool {
    fixed_key(key).is_some_and(|(_, tag)| [FIXED_REPLICA, FIXED_GARBAGE].contains(&tag))
}

pub(super) fn fixed_key(key: &[u8]) -> Option<(u32, u8)> {
    let (group, rest) = key.split_first_chunk()?;
    Some((u32::from_be_bytes(*group), *rest.first()?))
}

/// A blob is cut into parts; part 0 begins with their count, so that longer ones from before are not read.
fn blob_key(group: u32, part: u16) -> Vec<u8> {
    [&group.to_be_bytes()[..], &[FIXED_BLOB], &part.to_be_bytes()].concat()
}

pub(super) fn encode_fixed(
    group: u32,
    fixed: &Fixed,
    table: &Keyspace,
    batch: &mut OwnedWriteBatch,
) -> usize {
    let key = |tag: u8| [&group.to_be_bytes()[..], &[tag]].concat();
    let mut applied = Vec::with_capacity(20);
    put_number(&mut applied, fixed.applied.0);
    put_number(&mut applied, fixed.applied.1);
    batch.insert(table, key(FIXED_APPLIED), applied);
    batch.insert(table, key(FIXED_SHARD), codec::encode(&fixed.shard));
    batch.insert(table, key(FIXED_CONF_STATE), &fixed.conf_state[..]);
    match fixed.blob_changed {
        true => 3 + encode_blob(group, &fixed.blob, table, batch),
        false => 3,
    }
}

fn encode_blob(group: u32, blob: &[u8], table: &Keyspace, batch: &mut OwnedWriteBatch) -> usize {
    let parts = blob.chunks(BLOB_PART);
    if parts.len() == 0 {
        batch.remove(table, blob_key(group, 0));
        return 1;
    }
    let (total, count) = (parts.len(), (parts.len() as u16).to_be_bytes());
    for (number, part) in (0_u16..).zip(parts) {
        let head: &[u8] = if number == 0 { &count } else { &[] };
        batch.insert(table, blob_key(group, number), [head, part].concat());
    }
    total
}

pub(super) fn read_applied(value: &[u8]) -> Option<(u64, u64)> {
    let mut from = codec::Reader(value);
    Some((from.number()?, from.number()?))
}

fn read_fixed(group: u32, table: &Keyspace) -> Result<Fixed, StoreError> {
    let get = |key: Vec<u8>| {
        table
            .get(&key)
            .map(|value| (key, value))
            .map_err(StoreError::of)
    };
    let key = |tag: u8| [&group.to_be_bytes()[..], &[tag]].concat();
    let mut fixed = Fixed::default();
    if let (key, Some(value)) = get(key(FIXED_APPLIED))? {
        fixed.applied =
            read_applied(&value).ok_or_else(|| StoreError::unreadable("fixed", group, &key))?;
    }
    if let (key, Some(value)) = get(key(FIXED_SHARD))? {
        fixed.shard =
            codec::decode(&value).ok_or_else(|| StoreError::unreadable("fixed", group, &key))?;
    }
    if let (_, Some(value)) = get(key(FIXED_CONF_STATE))? {
        fixed.conf_state = Bytes::copy_from_slice(&value);
    }
    let mut blob = Vec::new();
    if let (key, Some(first)) = get(blob_key(group, 0))? {
        let unreadable = |key: &[u8]| StoreError::unreadable("fixed", group, key);
        let (count, part) = first.split_first_chunk().ok_or_else(|| unreadable(&key))?;
        blob.extend_from_slice(part);
        for number in 1..u16::from_be_bytes(*count) {
            let (key, part) = get(blob_key(group, number))?;
            blob.extend_from_slice(&part.ok_or_else(|| unreadable(&key))?);
        }
    }
    fixed.blob = blob.into();
    Ok(fixed)
}
