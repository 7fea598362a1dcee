//! One queue node of the simulation: a real `Group`, a simulated disk, rows in memory, and what a leader keeps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mail::Ulid;
use queue::{ItemId, LeaseSessionId, MemoryRows, Token};
use spool::decide::ClusterClock;
use spool::log::{HardState, Location};
use spool::node::{Committed, Group, GroupConfig, Limits, Membership};
use spool::oversee::{Hosted, log_group};
use spool::storage::{CacheBudget, GroupLog, Hole};

use crate::sim::churn::GROUP;
use crate::sim::disk::{Disk, Trouble};
use crate::sim::net::Actor;
use crate::sim::planted::Planted;
use crate::sim::profile::Faults;
use crate::sim::real_log::RealLog;
use crate::sim::rng::Rng;
use crate::sim::snapshots::Snapshots;

/// What waits for a proposal.
#[derive(Clone, Debug)]
pub enum Pending {
    Append {
        edge: Actor,
        id: Ulid,
    },
    Chunk {
        edge: Actor,
        id: Ulid,
        seq: u32,
    },
    /// A notice or an expiry of an item.
    Timer {
        item: ItemId,
    },
    Uploads,
    /// Nobody waits.
    Nobody,
    Open {
        node: Actor,
        incarnation: u64,
        sent: u64,
    },
    Window {
        keepalives: Vec<(LeaseSessionId, Actor, u64)>,
        grants: Vec<ItemId>,
    },
    Expire {
        session: LeaseSessionId,
    },
    Settle {
        node: Actor,
        item: ItemId,
        token: Token,
    },
}

/// What a leader knows beyond the rows. A new one begins with nothing.
pub struct Lead {
    pub noop: u64,
    /// Cluster time, by the code of a real leader.
    pub time: ClusterClock,
    /// Own clock when a lease session's last keepalive was applied.
    pub heard: BTreeMap<LeaseSessionId, u64>,
    pub keepalives: BTreeMap<LeaseSessionId, (Actor, u64)>,
    pub credit: BTreeMap<LeaseSessionId, usize>,
    pub granting: BTreeSet<ItemId>,
    pub expiring: BTreeSet<LeaseSessionId>,
    pub appending: BTreeSet<Ulid>,
    pub timing: BTreeSet<ItemId>,
    pub expiring_uploads: bool,
    pub next_upkeep: u64,
    pub digest_from: Vec<u8>,
}

/// How one seed's replicas are sized: small enough that every bound is met in a short run.
#[derive(Clone)]
pub struct Knobs {
    pub limits: Limits,
    pub cache_bytes: usize,
    /// An apply worker does something in one of so many steps.
    pub apply_pause: u64,
    pub flush_state_pause: u64,
    /// Milliseconds of cluster time until what is left of a message fails.
    pub expiry_ms: u64,
}

impl Knobs {
    pub fn draw(rng: &mut Rng, faults: &Faults) -> Knobs {
        const DAYS_5: u64 = 5 * 24 * 3600 * 1000;
        let pick = |rng: &mut Rng, of: [u64; 3]| of[rng.below(3) as usize];
        let mut limits = Limits {
            message_bytes: pick(rng, [0, 400, 2048]),
            inflight_messages: pick(rng, [1, 4, 16]) as usize,
            uncommitted_bytes: pick(rng, [2048, 8192, 1 << 20]),
            committed_bytes_per_ready: pick(rng, [0, 2048, 1 << 20]),
            unapplied_bytes: pick(rng, [2048, 16384, 1 << 20]),
            proposal_entries: pick(rng, [1, 8, 64]) as usize,
            proposal_bytes: pick(rng, [256, 4096, 1 << 20]) as usize,
            hung_disk_ticks: pick(rng, [100, 300, 600]),
            ..Limits::default()
        };
        if faults.churn > 0 {
            limits.silent_ticks = 60;
            limits.caught_up_entries = 8;
        }
        Knobs {
            limits,
            cache_bytes: pick(rng, [0, 4096, 1 << 20]) as usize,
            apply_pause: pick(rng, [1, 2, 6]),
            flush_state_pause: pick(rng, [40, 150, 400]),
            expiry_ms: pick(rng, [DAYS_5, DAYS_5, 6000]),
        }
    }
}

/// An entry with bodies that live: how many octets of it, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub octets: u64,
    pub at: Location,
}

/// The state store: rows, the index up to which they are applied, and where bodies lie, written down as one.
#[derive(Clone, Default)]
pub struct Flushed {
    pub rows: MemoryRows,
    pub applied: u64,
    pub live: BTreeMap<u64, Place>,
    /// The members as of the applied index.
    pub members: Membership,
    /// Index and term of the last snapshot that was installed.
    pub installed: Option<(u64, u64)>,
}

pub struct Replica {
    pub peer: u64,
    /// The last entry that its disk held when it started: up to here it reads what it applies from the disk.
    pub replays_to: u64,
    /// `None`: the process is down.
    pub group: Option<Group>,
    pub disk: Disk,
    pub rows: MemoryRows,
    /// Newest version of the state machine that its program knows.
    pub knows: u32,
    pub applied: u64,
    /// Where the entries lie whose bodies live: what the state store knows of the log.
    pub live: BTreeMap<u64, Place>,
    /// The state store as of its last flush.
    pub flushed: Flushed,
    /// The members as of the applied index, and those that came with entries after it.
    pub members: Membership,
    pub conf: BTreeMap<u64, Membership>,
    /// The members that were handed out last.
    pub now: Option<Membership>,
    /// The replica that the node has, durably; `None`: none.
    pub hosted: Option<Hosted>,
    /// Those that it had, as the log calls them.
    pub gone: BTreeSet<u32>,
    /// Rises with each process.
    pub process: u64,
    /// The highest term of the control group that it was told something in, since its start.
    pub steer_term: u64,
    pub snapshots: Snapshots,
    pub to_apply: VecDeque<Committed>,
    pub fetching: VecDeque<(u64, Vec<spool::node::FetchEntry>)>,
    pub down_until: u64,
    /// It stands still until then.
    pub paused_until: u64,
    pub slow_until: u64,
    /// A slow disk flushes in one of so many steps.
    pub slow_by: u64,
    /// Its disk does not answer until then.
    pub hung_until: u64,
    /// Something else fills its disk until then.
    pub full_until: u64,
    /// What the others were last told of its disk.
    pub told_full: bool,
    /// Step since which a write finds no room.
    pub no_room_since: Option<u64>,
    /// Its disk failed; the process never starts again.
    pub dead: bool,
    pub next_tick: u64,
    /// Own clock in units of 1/1000 step.
    pub clock_rate: u64,
    /// Of the wall clock, ms.
    pub wall_offset: i64,
    /// What the wall clocks of the others said, and the own monotonic clock then (steps).
    pub walls: BTreeMap<u64, (u64, u64)>,
    /// Time that passed in leaps, steps.
    pub leapt: u64,
    pub lead: Option<Lead>,
    /// With the command that was proposed.
    pub tickets: BTreeMap<u64, (Bytes, Pending)>,
    pub by_index: BTreeMap<u64, Pending>,
    pub next_ticket: u64,
    pub next_window: u64,
}

impl Replica {
    /// Of the first `members`, if `peer` is one of them; otherwise of a node without a replica.
    pub fn new(peer: u64, members: &Membership, faults: &Faults, rng: &mut Rng) -> Replica {
        let seed = rng.next();
        let mut disk = Disk::default();
        let group = log_group(GROUP, peer);
        disk.real = faults
            .real_log
            .then(|| RealLog::new(seed, group, faults.collect));
        Replica {
            peer,
            group: None,
            disk,
            rows: MemoryRows::default(),
            knows: queue::version::NEWEST,
            applied: 0,
            replays_to: 0,
            live: BTreeMap::new(),
            flushed: Flushed {
                members: members.clone(),
                ..Flushed::default()
            },
            members: members.clone(),
            conf: BTreeMap::new(),
            now: None,
            hosted: members.voters.contains(&peer).then_some(Hosted {
                peer,
                made_at: 0,
                leaving: false,
            }),
            gone: BTreeSet::new(),
            process: 1,
            steer_term: 0,
            snapshots: Snapshots::default(),
            to_apply: VecDeque::new(),
            fetching: VecDeque::new(),
            down_until: 0,
            paused_until: 0,
            slow_until: 0,
            slow_by: 30,
            hung_until: 0,
            full_until: 0,
            told_full: false,
            no_room_since: None,
            dead: false,
            next_tick: 0,
            clock_rate: rng.within(1000 - faults.drift, 1000 + faults.drift),
            wall_offset: rng.below(3000) as i64,
            walls: BTreeMap::new(),
            leapt: 0,
            lead: None,
            tickets: BTreeMap::new(),
            by_index: BTreeMap::new(),
            next_ticket: 1,
            next_window: 0,
        }
    }

    /// Own monotonic clock, steps.
    pub fn clock(&self, now: u64) -> u64 {
        (now + self.leapt) * self.clock_rate / 1000
    }

    /// Own wall clock, ms; the clocks of replicas differ by some seconds at least.
    pub fn wall(&self, now: u64) -> u64 {
        let true_ms = crate::sim::world::EPOCH_MS + (now + self.leapt) * crate::sim::world::STEP_MS;
        true_ms.saturating_add_signed(self.wall_offset)
    }

    /// The wall clocks of the others, carried forward.
    pub fn other_walls(&self, now: u64) -> Vec<u64> {
        let clock = self.clock(now);
        let walls = self.walls.values();
        let elapsed = |heard: u64| (clock - heard) * crate::sim::world::STEP_MS;
        walls.map(|(wall, heard)| wall + elapsed(*heard)).collect()
    }

    /// A process starts on what the disk holds.
    pub fn start(
        &mut self,
        knobs: &Knobs,
        planted: &Planted,
        rng: &mut Rng,
    ) -> Result<(), Trouble> {
        let mut found = self.disk.recovered(rng, &self.flushed.live)?;
        if let Some(begin) = self.flushed.installed
            && begin.0 == self.flushed.applied
            && !planted.half_installed
        {
            self.disk.finish_install(begin, &mut found)?;
        }
        let hard_state: HardState = found.hard_state;
        let budget = CacheBudget::new(knobs.cache_bytes);
        let disk = &self.disk;
        // Changes of membership are read at once; whatever else stays where it lies.
        let log = GroupLog::recovered(&found, Arc::clone(&budget), |entry| {
            let hole = Hole {
                index: entry.index,
                last: 0,
            };
            let stored = disk.read(entry.index, entry.location).ok_or(hole)?;
            Ok::<_, Hole>((stored.context, stored.data))
        })
        .map_err(|error| Trouble::Wrong(error.to_string()))?;
        Flushed {
            rows: self.rows,
            applied: self.applied,
            live: self.live,
            members: self.members,
            ..
        } = self.flushed.clone();
        let timeout = rng.within(10, 17) as usize;
        let config = GroupConfig {
            election_ticks: timeout..timeout + 1,
            limits: knobs.limits.clone(),
            log_group: log_group(GROUP, self.peer),
            ..GroupConfig::new(GROUP, self.peer, self.members.clone())
        };
        self.replays_to = log.last();
        let group = Group::new(config, log, hard_state, self.applied);
        self.group = Some(group.map_err(|error| Trouble::Wrong(error.to_string()))?);
        Ok(())
    }

    /// The process, and all that was not flushed, is gone.
    pub fn crash(&mut self, until: u64, rng: &mut Rng, power: bool, in_write: bool) {
        self.group = None;
        self.disk.crash(rng, power, in_write);
        self.no_room_since = None;
        self.told_full = false;
        self.walls.clear();
        self.paused_until = 0;
        self.to_apply.clear();
        self.conf.clear();
        self.now = None;
        self.snapshots = Snapshots::default();
        self.process += 1;
        self.steer_term = 0;
        self.fetching.clear();
        self.lead = None;
        self.tickets.clear();
        self.by_index.clear();
        self.down_until = until;
    }
}
