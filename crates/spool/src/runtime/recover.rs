//! Opens what a node has on disk and makes its groups from it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use queue::control::{Placement, first_peers};

use super::mend::DAMAGED_MAX;
use crate::collect::BodyIndex as _;
use crate::config::{Config, Error, InitialState};
use crate::directory::{group_of, log_group, node_of, peer_of};
use crate::log::{
    Damaged, Log, LogConfig, LogReader, LogWriter, RecoveredGroup, WriteError, WriteTask,
};
use crate::node::{Group, GroupConfig, Membership};
use crate::state::{GroupState, Store, StoreConfig, StoreError};
use crate::storage::{CacheBudget, GroupLog, Hole};

/// Octets of entries that all groups of a node keep in memory (queue.md 3.3).
const CACHE_BYTES: usize = 64 << 20;

/// Rows that are looked at at once for what lay in a segment that is missing.
const ROWS_AT_ONCE: usize = 4_096;

/// Stands among the replicas that are gone as a sign that this directory has started before. No group has this number.
const NO_REPLICA: u32 = u32::MAX;

/// What the state thread begins with.
pub struct State {
    pub store: Store,
    pub control: Option<GroupState>,
    pub shards: BTreeMap<u32, GroupState>,
    /// The version of the placement that a replica was made for, by what the log calls it.
    pub made_at: BTreeMap<u32, u64>,
    /// Replicas that this node had, by what the log calls them.
    pub gone: BTreeSet<u32>,
    pub budget: Arc<CacheBudget>,
}

/// What a node begins with.
pub struct Recovered {
    pub writer: LogWriter,
    pub reader: LogReader,
    pub groups: BTreeMap<u32, Group>,
    pub voters: BTreeMap<u32, Vec<u64>>,
    pub state: State,
    /// Entries whose octets must come from another replica if anything needs them.
    pub damaged: Vec<Damaged>,
}

/// Begins the log of a store that is about to take part for the first time. Blocking.
pub fn begin(config: &Config, incarnation: u128) -> Result<(), Error> {
    first_replicas(config, &Store::open(&config.dir, StoreConfig::default())?)?;
    let mut log_config = log_config(config, incarnation);
    // Opened for a moment only: no thread of it may prepare segments when it is opened again.
    log_config.background = false;
    let (mut writer, _, _) = Log::open(&config.dir.join("log"), log_config)?;
    writer.begin().map_err(|e| match e {
        WriteError::NoSpace { .. } => Error::Store(StoreError::NoSpace(
            "the log cannot be begun: there is no room for its first segment".to_owned(),
        )),
        fatal => Error::Stopped(fatal.to_string()),
    })
}

fn log_config(config: &Config, incarnation: u128) -> LogConfig {
    let mut log_config = LogConfig::new(config.cluster_id, incarnation);
    log_config.segment_bytes = config.segment_bytes;
    log_config.disk_bytes = config.disk_bytes;
    log_config
}

/// Opens metadata and log and makes the groups. Blocking.
///
/// # Errors
/// [`Error::Damaged`]: what this node promised is damaged or gone; the text says what and where.
pub fn recover(config: &Config, incarnation: u128) -> Result<Recovered, Error> {
    open(config, incarnation).map_err(|error| match error {
        Error::Log(error) if error.is_damage() => Error::Damaged {
            node: config.node,
            source: Box::new(Error::Log(error)),
        },
        // Names the node: whoever reads this has several, and one of them is to be replaced.
        Error::Store(StoreError::Lost { .. }) | Error::Group(_) | Error::Recovered(_) => {
            Error::Damaged {
                node: config.node,
                source: Box::new(error),
            }
        }
        other => other,
    })
}

/// Recovery gave up in a way that nobody foresaw: the metadata store may panic over files that are not what it wrote.
pub fn panicked(config: &Config, how: &str) -> Error {
    let text = format!(
        "recovery of {} failed ({how}; its message stands above): what is on the disk cannot be used. Keep the directory for \
         inspection, remove this node from the cluster and add a new node id on an empty directory; the other replicas \
         have the mail and keep serving",
        config.dir.display()
    );
    Error::Damaged {
        node: config.node,
        source: Box::new(Error::Recovered(text)),
    }
}

/// The metadata come first: how far they reach says which damage of the log can be mended.
fn open(config: &Config, incarnation: u128) -> Result<Recovered, Error> {
    let store = Store::open(&config.dir, StoreConfig::default())?;
    let replicas = store.replicas()?;
    if replicas.is_empty() {
        return Err(Error::Recovered(format!(
            "{}: the metadata are empty, but this store took part in the cluster: nobody knows what it held. Keep the \
             directory for inspection, remove this node from the cluster and add a new node id on an empty directory; the \
             other replicas have the mail and keep serving",
            store.dir().display()
        )));
    }
    let made_at: BTreeMap<u32, u64> = replicas
        .iter()
        .filter_map(|(id, made_at)| Some((*id, (*made_at)?)))
        .collect();
    let here = || made_at.keys().copied();
    let mut log_config = log_config(config, incarnation);
    log_config.applied = here().map(|id| (id, store.durable_applied(id))).collect();
    log_config.replicas = Some(here().collect());
    let dir = config.dir.join("log");
    let (mut writer, reader, mut found) = Log::open(&dir, log_config)?;
    if found.segments == 0 {
        return Err(Error::Recovered(format!(
            "log {}: there is no segment, but this store took part in the cluster: its votes and its mail are lost. Keep \
             the directory for inspection, remove this node from the cluster and add a new node id on an empty \
             directory; the other replicas have the mail and keep serving",
            dir.display()
        )));
    }
    report(&found);
    found.damaged.extend(lost(&store, &writer)?);
    let budget = CacheBudget::new(CACHE_BYTES);
    let mut groups = BTreeMap::new();
    let mut voters = BTreeMap::new();
    let mut rows = BTreeMap::new();
    for replica in here() {
        let id = group_of(replica);
        let state = store.group(replica)?;
        let recovered = found.groups.entry(replica).or_default();
        finish_install(&store, replica, state.applied(), recovered, &mut writer)?;
        let members = members(&state)?;
        voters.insert(id, members.voters.iter().map(|p| node_of(*p)).collect());
        let group = group(
            config,
            replica,
            recovered,
            members,
            state.applied().0,
            &reader,
            &budget,
        )?;
        groups.insert(id, group);
        rows.insert(id, state);
    }
    let control = rows.remove(&crate::CONTROL_GROUP);
    let gone = replicas.iter().filter(|(_, made_at)| made_at.is_none());
    let gone = gone
        .map(|(id, _)| *id)
        .filter(|id| *id != NO_REPLICA)
        .collect();
    Ok(Recovered {
        writer,
        reader,
        groups,
        voters,
        state: State {
            store,
            control,
            shards: rows,
            made_at,
            gone,
            budget,
        },
        damaged: found.damaged,
    })
}

/// Bodies whose segment is not there: the log does not miss one of which all entries are truncated, or one of the
/// collector, but the rows do. There is no table of rows by segment, so all are passed by, where something is missing.
fn lost(store: &Store, writer: &LogWriter) -> Result<Vec<Damaged>, StoreError> {
    let there: BTreeSet<u64> = writer.segments().list().iter().map(|it| it.id).collect();
    let mut lost = store.segments_live();
    lost.retain(|segment, _| !there.contains(segment));
    let mut damaged = Vec::new();
    if lost.is_empty() {
        return Ok(damaged);
    }
    for (segment, live) in &lost {
        tracing::error!(
            segment,
            bodies = live.count,
            octets = live.bytes,
            "a segment of the log is missing, and mail that lives lies in it: its bodies come from the other replicas. \
             Who or what removed it? Look at the disk"
        );
    }
    let bodies = store.bodies();
    let mut from = (0, 0);
    loop {
        let rows = bodies.rows(from, ROWS_AT_ONCE)?;
        let Some(&(replica, index, _)) = rows.last() else {
            return Ok(damaged);
        };
        from = (replica, index.saturating_add(1));
        let of_lost = rows
            .iter()
            .filter(|(.., location)| lost.contains_key(&location.segment));
        damaged.extend(of_lost.map(|&(group, index, location)| Damaged {
            group,
            index,
            term: 0,
            location,
            copy: true,
        }));
        if damaged.len() >= DAMAGED_MAX {
            return Ok(damaged);
        }
    }
}

fn report(found: &crate::log::Recovered) {
    if found.torn_bytes > 0 {
        tracing::info!(
            octets = found.torn_bytes,
            "an unacknowledged end of the log was dropped"
        );
    }
}

/// A crash between the rows of a snapshot and the log leaves a log that ends before them, or has other entries there: it
/// begins at the snapshot then, as it would have.
fn finish_install(
    store: &Store,
    replica: u32,
    applied: (u64, u64),
    found: &mut RecoveredGroup,
    writer: &mut LogWriter,
) -> Result<(), Error> {
    // Once anything more is applied, the log was durable.
    if store.installed(replica)? != Some(applied) || found.term_of(applied.0) == Some(applied.1) {
        return Ok(());
    }
    tracing::info!(
        group = group_of(replica),
        index = applied.0,
        "the installation of a snapshot is completed"
    );
    let task = WriteTask {
        group: replica,
        number: 0,
        entries: Vec::new(),
        hard_state: None,
        reset: Some(applied),
        urgent: true,
    };
    writer.write(&[task]).map_err(|e| match e {
        WriteError::NoSpace { .. } => Error::Store(StoreError::NoSpace(
            "the log has no room to begin at a snapshot".to_owned(),
        )),
        fatal => Error::Stopped(fatal.to_string()),
    })?;
    found.truncated = applied;
    found.entries.clear();
    found.hard_state.commit = found.hard_state.commit.max(applied.0);
    Ok(())
}

/// The first replicas of a store that is about to take part for the first time: all first nodes compute the same map. A
/// node that is added gets its replicas from the control group.
fn first_replicas(config: &Config, store: &Store) -> Result<(), Error> {
    if !store.replicas()?.is_empty() {
        return Ok(());
    }
    if config.initial_state == InitialState::New {
        let initial: Vec<u64> = config.initial_cluster.keys().copied().collect();
        for (group, placement) in first_peers(&initial, &config.cluster()) {
            if let Some(peer) = placement.peer_on(config.node) {
                let members = first_members(&placement);
                let row = crate::wire::members::to_bytes(&members);
                store.create(log_group(group, peer), &row, placement.version)?;
            }
        }
    }
    // From now on it is known that the first start is over, whatever becomes of the replicas.
    Ok(store.bury(NO_REPLICA)?)
}

/// What a group's log begins with.
pub fn first_members(placement: &Placement) -> Membership {
    Membership {
        voters: placement.voters.iter().copied().collect(),
        ..Membership::default()
    }
}

fn members(state: &GroupState) -> Result<Membership, Error> {
    let row = state.conf_state();
    crate::wire::members::from_bytes(&row)
        .map_err(|e| Error::Recovered(format!("group {}: its members: {e}", state.group())))
}

fn group(
    config: &Config,
    replica: u32,
    recovered: &RecoveredGroup,
    members: Membership,
    applied: u64,
    reader: &LogReader,
    budget: &Arc<CacheBudget>,
) -> Result<Group, Error> {
    let log = GroupLog::recovered(recovered, budget.clone(), |entry| {
        let read = reader.read_entry(entry.location, replica, entry.index);
        read.map(|e| (e.context, e.data))
            .map_err(|e| Recovery(e.to_string()))
    });
    let id = group_of(replica);
    let log = log.map_err(|e| Error::Recovered(format!("group {id}: {}", e.0)))?;
    let mut group = GroupConfig::new(id, peer_of(config.node, replica), members);
    group.log_group = replica;
    group.limits.silent_ticks = config.retention.silent_ticks();
    group.brings_mail = crate::wire::log::brings_mail;
    Ok(Group::new(group, log, recovered.hard_state, applied)?)
}

/// The two ways in which a group's log can be unusable, as text.
struct Recovery(String);

impl From<Hole> for Recovery {
    fn from(hole: Hole) -> Recovery {
        Recovery(format!(
            "entry {} follows entry {}: the log has a hole. Do not start this replica again; give its node a new id",
            hole.index, hole.last
        ))
    }
}
