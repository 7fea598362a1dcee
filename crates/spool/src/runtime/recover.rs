//! Opens what a node has on disk and makes its groups from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, Error};
use crate::directory::{node_of, peer_id};
use crate::log::{Log, LogConfig, LogReader, LogWriter, RecoveredGroup};
use crate::node::{Group, GroupConfig, Membership};
use crate::state::{GroupState, Store, StoreConfig};
use crate::storage::{CacheBudget, GroupLog, Hole};

/// Octets of entries that all groups of a node keep in memory (queue.md 3.3).
const CACHE_BYTES: usize = 64 << 20;

/// What the state thread begins with.
pub struct State {
    pub store: Store,
    pub control: GroupState,
    pub shards: BTreeMap<u32, GroupState>,
}

/// What a node begins with.
pub struct Recovered {
    pub writer: LogWriter,
    pub reader: LogReader,
    pub groups: BTreeMap<u32, Group>,
    pub voters: BTreeMap<u32, Vec<u64>>,
    pub state: State,
    pub live: BTreeMap<u64, u64>,
}

/// Opens log and metadata and makes the groups. Blocking.
pub fn recover(config: &Config, incarnation: u128) -> Result<Recovered, Error> {
    let mut log_config = LogConfig::new(config.cluster_id, incarnation);
    log_config.segment_bytes = config.segment_bytes;
    log_config.disk_bytes = config.disk_bytes;
    let (writer, reader, found) = Log::open(&config.dir.join("log"), log_config)?;
    if found.torn_bytes > 0 {
        tracing::info!(
            octets = found.torn_bytes,
            "an unacknowledged end of the log was dropped"
        );
    }
    let store = Store::open(&config.dir, StoreConfig::default())?;
    let budget = CacheBudget::new(CACHE_BYTES);
    let first = Membership {
        voters: config.initial_cluster.keys().map(|n| peer_id(*n)).collect(),
        ..Default::default()
    };
    let mut groups = BTreeMap::new();
    let mut voters = BTreeMap::new();
    let mut rows = BTreeMap::new();
    let empty = RecoveredGroup::default();
    for id in 0..=config.shards {
        let state = store.group(id)?;
        let recovered = found.groups.get(&id).unwrap_or(&empty);
        let members = members(&state, &first)?;
        voters.insert(id, members.voters.iter().map(|p| node_of(*p)).collect());
        let group = group(
            config,
            id,
            recovered,
            members,
            state.applied().0,
            &reader,
            &budget,
        )?;
        groups.insert(id, group);
        rows.insert(id, state);
    }
    let control = rows
        .remove(&crate::CONTROL_GROUP)
        .ok_or_else(|| Error::Recovered("no control group".to_owned()))?;
    let live = store
        .segments_live()
        .into_iter()
        .map(|(segment, live)| (segment, live.count))
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
        },
        live,
    })
}

fn members(state: &GroupState, first: &Membership) -> Result<Membership, Error> {
    let row = state.conf_state();
    if row.is_empty() {
        return Ok(first.clone());
    }
    crate::wire::members::from_bytes(&row)
        .map_err(|e| Error::Recovered(format!("group {}: its members: {e}", state.group())))
}

fn group(
    config: &Config,
    id: u32,
    recovered: &RecoveredGroup,
    members: Membership,
    applied: u64,
    reader: &LogReader,
    budget: &Arc<CacheBudget>,
) -> Result<Group, Error> {
    let log = GroupLog::recovered(recovered, budget.clone(), |entry| {
        let read = reader.read_entry(entry.location, id, entry.index);
        read.map(|e| (e.context, e.data))
            .map_err(|e| Recovery(e.to_string()))
    });
    let log = log.map_err(|e| Error::Recovered(format!("group {id}: {}", e.0)))?;
    let group = GroupConfig::new(id, peer_id(config.node), members);
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
