//! The state thread: applies committed entries, decides for the shards that this node leads, flushes the state.
//!
//! Deciding and applying share a thread on purpose: a decision reads applied rows, and so needs no lock and sees no
//! half of an entry. Raft and the disk have threads of their own and never wait for this one.

mod apply;
mod calls;
mod flush;
mod lead;
mod moved;
mod placed;
mod snapshot;

pub use apply::account;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::control::{Control, ControlSettings};
use super::recover::State;
use crate::config::{Config, Error};
use crate::decide::{BodyCache, Leader, Policy, ShardRows, Streams};
use crate::directory::Directory;
use crate::event::{LogEvent, Mailboxes, RaftEvent, StateEvent, Ticket};
use crate::log::LogReader;
use crate::node::Membership;
use crate::state::{GroupState, Store};
use crate::storage::CacheBudget;

/// Events taken from the mailbox before leaders run: what one burst brings shares entries.
const BURST: usize = 4096;

/// The state is flushed this often, or when it holds [`FLUSH_BYTES`]: what a restart replays at most, and how long a
/// message must live before its rows reach the metadata store.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// See [`FLUSH_EVERY`]; octets, estimated.
const FLUSH_BYTES: usize = 64 << 20;

/// Octets of bodies of young messages, for handouts and reports. They are the very octets that the Raft entry cache
/// holds, as far as it still does.
const BODY_CACHE_BYTES: usize = 48 << 20;

/// How often cluster time is published to clients.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// The longest sleep without events.
const IDLE: Duration = Duration::from_millis(500);

/// One shard on this node.
pub struct Shard {
    pub rows: GroupState,
    pub leader: Option<Leader>,
    /// Tickets whose entries are committed and not yet applied, by index.
    pub tickets: BTreeMap<u64, Ticket>,
    /// Changes of membership that came with an entry not yet applied.
    pub conf: BTreeMap<u64, Membership>,
}

impl Shard {
    /// A shard as its rows were recovered.
    pub fn new(rows: GroupState) -> Shard {
        Shard {
            rows,
            leader: None,
            tickets: BTreeMap::new(),
            conf: BTreeMap::new(),
        }
    }
}

/// What the state thread holds.
pub struct StateThread {
    pub store: Store,
    pub shards: BTreeMap<u32, Shard>,
    /// Present while this node has a replica of the control group.
    pub control: Option<Control>,
    pub control_settings: ControlSettings,
    /// Changes of the control group's members that came with an entry not yet applied.
    pub control_conf: BTreeMap<u64, Membership>,
    /// The version of the placement that a replica was made for, by what the log calls it.
    pub made_at: BTreeMap<u32, u64>,
    /// See [`crate::node::Limits::silent_ticks`].
    pub silent_ticks: u64,
    /// Groups whose replica is on its way out.
    pub leaving: BTreeSet<u32>,
    /// Replicas that this node had, by what the log calls them: they must not come back.
    pub gone: BTreeSet<u32>,
    /// Those of them whose rows are still to be removed.
    pub to_sweep: BTreeSet<u32>,
    pub sweeping: bool,
    /// Rows that snapshots left behind are being removed; and there are more since.
    pub cleaning: bool,
    pub to_clean: bool,
    pub budget: Arc<CacheBudget>,
    pub shard_count: u32,
    pub streams: Streams,
    pub bodies: BodyCache,
    pub mail: Receiver<StateEvent>,
    pub to: Mailboxes,
    pub log: Sender<LogEvent>,
    pub reader: LogReader,
    pub headers: Sender<super::questions::HeaderRead>,
    pub directory: Directory,
    pub health: super::Health,
    pub policy: Policy,
    /// What of it changes.
    pub retry: watch::Receiver<queue::retry::Policy>,
    pub seed: u64,
    /// Versions of the state machine that this program says it knows.
    pub known: u32,
    pub tickets: Arc<AtomicU64>,
    pub snapshots: super::Snapshots,
    pub helpers: super::Helpers,
    /// Groups whose rows are being replaced by a snapshot; with it until that has begun.
    pub installing: BTreeMap<u32, Option<crate::node::Made>>,
    /// Replicas that are gone for Raft while a snapshot is still being written into them: by group, the peer id.
    pub parted: BTreeMap<u32, u64>,
    pub flushing: bool,
    /// The collector's moves.
    pub moved: moved::Moved,
    pub next_flush: Instant,
    pub next_publish: Instant,
    /// Pins of bodies that were mended since the last freeze, and before it.
    pub mended: Vec<u64>,
    pub mending: Vec<u64>,
}

impl StateThread {
    /// A state thread over what was recovered.
    ///
    /// # Errors
    /// [`Error::Recovered`]: the control group's row is damaged.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a node meet here, once"
    )]
    pub fn new(
        state: State,
        config: &Config,
        mail: Receiver<StateEvent>,
        to: Mailboxes,
        log: Sender<LogEvent>,
        reader: LogReader,
        headers: Sender<super::questions::HeaderRead>,
        collect: Sender<crate::collect::CollectEvent>,
        directory: Directory,
        health: super::Health,
        control_settings: ControlSettings,
        snapshots: super::Snapshots,
        helpers: super::Helpers,
    ) -> Result<StateThread, Error> {
        let tickets = control_settings.tickets.clone();
        let damaged = |e| Error::Recovered(format!("the control group's state is damaged: {e}"));
        let control = state
            .control
            .map(|rows| Control::new(rows, control_settings.clone()));
        let control = control.transpose().map_err(damaged)?;
        if let Some(control) = &control {
            control.publish(&directory);
        }
        for (group, rows) in &state.shards {
            check_version(*group, rows, config.state_machine)?;
        }
        let now = Instant::now();
        Ok(StateThread {
            snapshots,
            helpers,
            installing: BTreeMap::new(),
            parted: BTreeMap::new(),
            store: state.store,
            shards: state
                .shards
                .into_iter()
                .map(|(id, rows)| (id, Shard::new(rows)))
                .collect(),
            control,
            control_settings,
            control_conf: BTreeMap::new(),
            made_at: state.made_at,
            silent_ticks: config.retention.silent_ticks(),
            leaving: BTreeSet::new(),
            to_sweep: state.gone.clone(),
            gone: state.gone,
            sweeping: false,
            cleaning: false,
            to_clean: false,
            budget: state.budget,
            shard_count: config.shards,
            streams: Streams::default(),
            bodies: BodyCache::new(BODY_CACHE_BYTES),
            mail,
            to,
            log,
            reader,
            headers,
            directory,
            health,
            policy: Policy {
                retry: *config.retry.borrow(),
                reporting_mta: config.hostname.as_str().into(),
            },
            retry: config.retry.clone(),
            seed: rand::random(),
            known: config.state_machine,
            tickets,
            flushing: false,
            moved: moved::Moved::new(collect),
            next_flush: now + FLUSH_EVERY,
            next_publish: now,
            mended: Vec::new(),
            mending: Vec::new(),
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        self.clean();
        loop {
            let now = Instant::now();
            let wake = self.next_wake(now);
            let mut more = match self.mail.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            for _ in 0..BURST {
                let Ok(event) = self.mail.try_recv() else {
                    break;
                };
                more &= self.take(event);
            }
            if !more {
                return self.finish();
            }
            self.follow_retry();
            self.run_leaders();
            self.flush_if_due();
            self.sweep_if_due();
            if let Some(error) = self.shards.values().find_map(|s| s.rows.error()) {
                self.health
                    .stop_for_good(&format!("the metadata store failed: {error}"));
                let _ = self.to.raft.send(RaftEvent::Stop);
                return;
            }
        }
    }

    fn next_wake(&mut self, now: Instant) -> Instant {
        let mut wake = now + IDLE;
        if !self.flushing {
            wake = wake.min(self.next_flush);
        }
        for shard in self.shards.values_mut() {
            if let Some(leader) = &mut shard.leader {
                wake = wake.min(leader.next_wake(&self.streams, now));
            }
        }
        wake
    }

    /// Takes an event; `false` ends the thread.
    fn take(&mut self, event: StateEvent) -> bool {
        match event {
            StateEvent::Committed {
                group,
                tickets,
                entries,
            } => self.committed(group, tickets, entries),
            StateEvent::Failed { group, ticket, why } => {
                let address = self.directory.leader_address(group);
                if group == crate::CONTROL_GROUP {
                    if let Some(control) = &mut self.control {
                        control.failed(ticket);
                    }
                } else if let Some(leader) =
                    self.shards.get_mut(&group).and_then(|s| s.leader.as_mut())
                {
                    leader.failed(ticket, why, &address, &mut self.streams);
                }
            }
            StateEvent::Role {
                group,
                leader,
                term,
            } => self.role(group, leader, term),
            StateEvent::ConfChanged {
                group,
                index,
                members,
            } => {
                if let Some(shard) = self.shards.get_mut(&group) {
                    shard.conf.insert(index, members);
                } else if group == crate::CONTROL_GROUP {
                    self.control_conf.insert(index, members);
                }
            }
            StateEvent::Appends(calls) => self.appends(calls),
            StateEvent::Settles(calls) => self.settles(calls),
            StateEvent::Lease(stream, call) => self.lease(stream, call),
            StateEvent::Ask(question) => self.ask(question),
            StateEvent::HeaderRead(pending, header) => {
                let group = pending.group(self.shard_count);
                self.with_leader(group, |leader, turn| {
                    leader.header_read(pending, &header, turn);
                });
            }
            StateEvent::Unreadable(what) => {
                self.with_leader(what.shard + 1, |leader, turn| leader.unreadable(what, turn));
            }
            StateEvent::Orders(orders) => self.orders(orders),
            StateEvent::Destroyed { group, peer } => self.destroyed(group, peer),
            StateEvent::Needed { group } => self.needed(group),
            StateEvent::Heard { node, report } => {
                if let Some(control) = &mut self.control {
                    control.heard(node, report, Instant::now());
                }
            }
            StateEvent::Members(call) => self.members_call(call),
            StateEvent::Put(call) => self.put_call(call),
            StateEvent::Swept(result) => self.swept(result),
            StateEvent::Cleaned(result) => self.cleaned(result),
            StateEvent::Moved { moves, hurry } => self.relocate(moves, hurry),
            StateEvent::LocateBody {
                group,
                index,
                reply,
            } => {
                let rows = self.shards.get(&group).map(|shard| &shard.rows);
                let found = rows.and_then(|rows| Some((rows.group(), rows.locate(index)?)));
                let _ = reply.send(found);
            }
            StateEvent::Mended {
                replica,
                index,
                from,
                to,
                pin,
            } => {
                // A body that was settled or collected meanwhile needs none of it; its pin goes with the next flush too.
                self.move_row(replica, index, from, to);
                self.mended.push(pin);
            }
            StateEvent::Snapshot { group, work } => self.snapshot(group, work),
            StateEvent::Flushed(result) => return self.flushed(result),
            StateEvent::Stop => return false,
        }
        true
    }
}

/// Whether this program knows the version of the state machine that a group has come to.
fn check_version(group: u32, rows: &GroupState, known: u32) -> Result<(), Error> {
    let in_force = queue::Rows::shard(rows).version_in_force();
    match in_force <= known {
        true => Ok(()),
        false => Err(Error::Recovered(format!(
            "group {group} has come to version {in_force} of the state machine, and this program knows those up to {known}: \
             start the version of postroad that ran here before, or a newer one"
        ))),
    }
}

impl ShardRows for GroupState {
    fn locate(&self, index: u64) -> Option<crate::log::Location> {
        GroupState::locate(self, index)
    }
}

/// The wall clock in milliseconds since the epoch; a clock before it counts as 0.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
