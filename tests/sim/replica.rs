//! One queue node of the simulation: a real `Group`, a simulated disk, rows in memory, and what a leader keeps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mail::Ulid;
use queue::{ItemId, LeaseSessionId, MemoryRows, Token};
use spool::log::HardState;
use spool::node::{Committed, Group, GroupConfig, Limits, Membership};
use spool::storage::{CacheBudget, GroupLog, Hole};

use crate::disk::Disk;
use crate::net::Actor;
use crate::rng::Rng;

/// What waits for a proposal.
#[derive(Clone, Debug)]
pub enum Pending {
    Append {
        edge: Actor,
        id: Ulid,
    },
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
    /// Cluster time and own clock at the beginning.
    pub base: (u64, u64),
    pub time: u64,
    /// Own clock when a lease session's last keepalive was applied.
    pub heard: BTreeMap<LeaseSessionId, u64>,
    pub keepalives: BTreeMap<LeaseSessionId, (Actor, u64)>,
    pub credit: BTreeMap<LeaseSessionId, usize>,
    pub granting: BTreeSet<ItemId>,
    pub expiring: BTreeSet<LeaseSessionId>,
    pub appending: BTreeSet<Ulid>,
}

/// How one seed's replicas are sized: small enough that every bound is met in a short run.
#[derive(Clone)]
pub struct Knobs {
    pub limits: Limits,
    pub cache_bytes: usize,
    /// An apply worker does something in one of so many steps.
    pub apply_pause: u64,
    pub flush_state_pause: u64,
}

impl Knobs {
    pub fn draw(rng: &mut Rng) -> Knobs {
        let pick = |rng: &mut Rng, of: [u64; 3]| of[rng.below(3) as usize];
        let limits = Limits {
            message_bytes: pick(rng, [0, 400, 2048]),
            inflight_messages: pick(rng, [1, 4, 16]) as usize,
            uncommitted_bytes: pick(rng, [2048, 8192, 1 << 20]),
            committed_bytes_per_ready: pick(rng, [0, 2048, 1 << 20]),
            unapplied_bytes: pick(rng, [2048, 16384, 1 << 20]),
            proposal_entries: pick(rng, [1, 8, 64]) as usize,
            proposal_bytes: pick(rng, [256, 4096, 1 << 20]) as usize,
            ..Limits::default()
        };
        Knobs {
            limits,
            cache_bytes: pick(rng, [0, 4096, 1 << 20]) as usize,
            apply_pause: pick(rng, [1, 2, 6]),
            flush_state_pause: pick(rng, [40, 150, 400]),
        }
    }
}

pub struct Replica {
    pub peer: u64,
    /// `None`: the process is down.
    pub group: Option<Group>,
    pub disk: Disk,
    pub rows: MemoryRows,
    pub applied: u64,
    /// The state store as of its last flush.
    pub flushed: (MemoryRows, u64),
    pub to_apply: VecDeque<Committed>,
    pub fetching: VecDeque<(u64, Vec<spool::node::FetchEntry>)>,
    pub down_until: u64,
    pub slow_until: u64,
    pub next_tick: u64,
    /// Own clock in units of 1/1000 step: clocks differ by up to 1 %.
    pub clock_rate: u64,
    pub clock_offset: u64,
    pub lead: Option<Lead>,
    /// With the command that was proposed.
    pub tickets: BTreeMap<u64, (Bytes, Pending)>,
    pub by_index: BTreeMap<u64, Pending>,
    pub next_ticket: u64,
    pub next_window: u64,
}

impl Replica {
    pub fn new(peer: u64, rng: &mut Rng) -> Replica {
        Replica {
            peer,
            group: None,
            disk: Disk::default(),
            rows: MemoryRows::default(),
            applied: 0,
            flushed: (MemoryRows::default(), 0),
            to_apply: VecDeque::new(),
            fetching: VecDeque::new(),
            down_until: 0,
            slow_until: 0,
            next_tick: 0,
            clock_rate: rng.within(990, 1010),
            clock_offset: rng.below(3000),
            lead: None,
            tickets: BTreeMap::new(),
            by_index: BTreeMap::new(),
            next_ticket: 1,
            next_window: 0,
        }
    }

    /// Own monotonic clock, steps.
    pub fn clock(&self, now: u64) -> u64 {
        now * self.clock_rate / 1000
    }

    /// Own wall clock, ms; the clocks of replicas differ by some seconds.
    pub fn wall(&self, now: u64) -> u64 {
        crate::world::EPOCH_MS + self.clock_offset + self.clock(now) * crate::world::STEP_MS
    }

    /// A process starts on what the disk holds.
    pub fn start(
        &mut self,
        members: &Membership,
        knobs: &Knobs,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let found = self.disk.recovered();
        let hard_state: HardState = found.hard_state;
        let budget = CacheBudget::new(knobs.cache_bytes);
        let log = GroupLog::recovered(&found, Arc::clone(&budget), |entry| {
            Err::<_, Hole>(Hole {
                index: entry.index,
                last: 0,
            })
        })
        .map_err(|error| error.to_string())?;
        (self.rows, self.applied) = self.flushed.clone();
        let timeout = rng.within(10, 17) as usize;
        let config = GroupConfig {
            election_ticks: timeout..timeout + 1,
            limits: knobs.limits.clone(),
            ..GroupConfig::new(1, self.peer, members.clone())
        };
        let group = Group::new(config, log, hard_state, self.applied);
        self.group = Some(group.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// The process, and all that was not flushed, is gone.
    pub fn crash(&mut self, until: u64) {
        self.group = None;
        self.disk.queue.clear();
        self.to_apply.clear();
        self.fetching.clear();
        self.lead = None;
        self.tickets.clear();
        self.by_index.clear();
        self.down_until = until;
    }
}
