//! Requests become commands: what a leader decides before the log (Rule B).
//!
//! A [`Leader`] exists for each shard that this node leads, and only for the term that it leads in. It answers from
//! applied rows and from what it has itself proposed; whatever needs time, policy or chance is decided here and
//! written into the command. It does no I/O: what it wants done lies in [`Out`] when a call returns.
//!
//! Before it has applied an entry of its own term it does not know what its predecessor left, and answers Busy.

mod admin;
mod append;
mod bodies;
mod chunks;
mod clock;
mod depth;
mod grants;
mod lease;
mod report;
mod session;
mod settle;
mod streams;
#[cfg(test)]
mod tests;
mod timer;
mod turn;
mod upkeep;
mod waiter;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::Ulid;
use queue::scheduler::Scheduler;
use queue::{Command, Effect, Facts, ItemId, LeaseSessionId, Rows, Timestamp};
use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use bodies::BodyCache;
pub use clock::{ClusterClock, WALL_TOLERANCE, WallIgnored};
pub use lease::item_id;
pub use report::Pending;
pub use streams::{LeaseStream, Streams};
pub use turn::{Outside, Turn};

use chunks::Chunks;
use grants::Grants;
use waiter::Waiter;

use crate::event::{AppendReply, Failure, Piece, SettleReply, Ticket};
use crate::node::{Ack, Proposal};

/// A shard's rows, and where this node's log has the entries that they refer to.
pub trait ShardRows: Rows {
    /// Where the log has the entry at `index`; `None` when nothing live refers to it.
    fn locate(&self, index: u64) -> Option<crate::log::Location>;
}

/// How a leader decides, from settings.
#[derive(Clone, Debug)]
pub struct Policy {
    /// When deferred mail is due again, and when it is given up.
    pub retry: queue::retry::Policy,
    /// The name that reports are signed with.
    pub reporting_mta: Arc<str>,
}

/// Keepalives, grants and settles gather this long before they become an entry: long enough that a busy shard writes
/// few entries, short beside a round trip to another machine.
pub const WINDOW: Duration = Duration::from_millis(2);

/// What a leader wants done.
#[derive(Default)]
pub struct Out {
    /// To be proposed, in order.
    pub proposals: Vec<Proposal>,
    /// The replies to proposals that are answered at commit.
    pub replies: Vec<(Ticket, AppendReply)>,
    /// Header blocks to be read; the work goes on when they are there.
    pub reads: Vec<(Pending, Vec<Piece>)>,
}

/// What the leader keeps of a lease session beside its row.
struct Liveness {
    /// Of the last applied keepalive, or the beginning of this leader.
    heard: Instant,
    /// An ExpireSession is on its way.
    ending: bool,
}

/// A shard's leader, for one term.
pub struct Leader {
    /// The Raft group.
    pub group: u32,
    /// The shard.
    pub shard: u32,
    /// Its term.
    pub term: u64,
    ready: bool,
    clock: ClusterClock,
    policy: Policy,
    rng: SmallRng,
    next_ticket: Arc<std::sync::atomic::AtomicU64>,
    scheduler: Scheduler,
    in_flight: HashSet<Ulid>,
    waiters: HashMap<Ticket, Waiter>,
    sessions: BTreeMap<LeaseSessionId, Liveness>,
    keepalives: BTreeMap<LeaseSessionId, u64>,
    extends: Vec<queue::GrantBatch>,
    settles: Vec<(queue::SettleItem, SettleReply)>,
    settle_data: Vec<Bytes>,
    asked: HashMap<ItemId, Instant>,
    timers_busy: HashSet<ItemId>,
    /// More timers were due than are worked on at once.
    timers_left: bool,
    next_timer_scan: Instant,
    window_since: Option<Instant>,
    slow_cursor: Option<(LeaseSessionId, ItemId)>,
    grants: Grants,
    chunks: Chunks,
    pass: upkeep::Pass,
    depth: depth::Depth,
}

/// What a leader is made from.
pub struct LeaderConfig {
    /// The Raft group.
    pub group: u32,
    /// The term that it leads in.
    pub term: u64,
    /// How it decides.
    pub policy: Policy,
    /// Chance: jitter and ids of reports.
    pub seed: u64,
    /// Tickets are unique within the process.
    pub tickets: Arc<std::sync::atomic::AtomicU64>,
}

impl Leader {
    /// A leader that was elected just now. `own_ms` and `others`: wall clocks of this node and of the other voters.
    pub fn elected(
        config: LeaderConfig,
        rows: &mut impl ShardRows,
        own_ms: u64,
        others: &[u64],
        now: Instant,
    ) -> Leader {
        let (clock, ignored) = ClusterClock::elected(rows.shard().time, own_ms, others, now);
        clock::say(config.group, ignored.as_ref());
        let shard = config.group.saturating_sub(1);
        Leader {
            group: config.group,
            shard,
            term: config.term,
            ready: false,
            clock,
            policy: config.policy,
            rng: SmallRng::seed_from_u64(
                config.seed ^ (u64::from(config.group) << 48) ^ config.term,
            ),
            next_ticket: config.tickets,
            scheduler: Scheduler::default(),
            in_flight: HashSet::new(),
            waiters: HashMap::new(),
            sessions: BTreeMap::new(),
            keepalives: BTreeMap::new(),
            extends: Vec::new(),
            settles: Vec::new(),
            settle_data: Vec::new(),
            asked: HashMap::new(),
            timers_busy: HashSet::new(),
            timers_left: false,
            next_timer_scan: now,
            window_since: None,
            slow_cursor: None,
            grants: Grants::default(),
            chunks: Chunks::default(),
            pass: upkeep::Pass::new(now),
            depth: depth::Depth::new(config.group),
        }
    }

    /// Whether it has applied an entry of its own term.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Decides by these retry times from now on.
    pub fn set_retry(&mut self, retry: queue::retry::Policy) {
        self.policy.retry = retry;
    }

    /// Cluster time.
    pub fn time(&mut self, now: Instant) -> Timestamp {
        self.clock.now(now)
    }

    /// The first entry of its own term was applied: the rows are whole.
    pub fn begin(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        self.ready = true;
        let time = self.time(turn.now);
        self.scheduler = Scheduler::start(turn.rows, queue::scheduler::Limits::default());
        self.scheduler.load(turn.rows, time);
        for (id, _) in turn.rows.sessions().range(None, SESSIONS_MAX) {
            self.heard_of(id, turn.now);
        }
        turn.streams.leader_changed(self.shard);
    }

    fn heard_of(&mut self, session: LeaseSessionId, now: Instant) {
        let liveness = Liveness {
            heard: now,
            ending: false,
        };
        self.sessions.insert(session, liveness);
    }

    fn ticket(&self) -> Ticket {
        self.next_ticket
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Puts a command into `out` as a proposal that is answered when it is applied. Bodies wait for others to share
    /// their entry's batch; whatever else is decided goes out at once.
    fn propose<R>(
        &mut self,
        command: Command,
        data: Bytes,
        waiter: Waiter,
        turn: &mut Turn<'_, R>,
    ) {
        let urgent = !matches!(command, Command::Append(_) | Command::BodyChunk { .. });
        let ticket = self.ticket();
        self.waiters.insert(ticket, waiter);
        let context = crate::wire::log::encode(&Facts {
            time: self.time(turn.now),
            command,
        });
        turn.out.proposals.push(Proposal {
            ticket,
            context,
            data,
            ack: Ack::Apply,
            urgent,
        });
    }

    /// A proposal that has no known index.
    pub fn failed(
        &mut self,
        ticket: Ticket,
        why: Failure,
        leader_address: &str,
        streams: &mut Streams,
    ) {
        if let Some(waiter) = self.waiters.remove(&ticket) {
            self.fail(waiter, why, leader_address, streams);
        }
    }

    /// Leadership is over: all that waits has an unknown fate, and the clients ask the next leader.
    pub fn ended(mut self, streams: &mut Streams, leader_address: &str) {
        let waiters: Vec<Waiter> = self.waiters.drain().map(|(_, w)| w).collect();
        for waiter in waiters {
            self.fail(waiter, Failure::Unknown, leader_address, streams);
        }
        for (session, bytes) in self.grants.end() {
            streams.give_back(self.shard, session, bytes);
        }
        for (_, reply) in std::mem::take(&mut self.settles) {
            let not_leader = proto::v1::SettleOutcome::NotLeader;
            reply.send(not_leader, leader_address.to_owned());
        }
        for chunk in self.chunks.drain() {
            let not_leader = proto::v1::AppendOutcome::NotLeader;
            let address = leader_address.to_owned();
            chunk.reply.send_with(not_leader, address, String::new());
        }
    }

    /// Something of the next window is there.
    fn gather(&mut self, now: Instant) {
        self.window_since.get_or_insert(now);
    }

    /// When [`Leader::run`] has something to do without any event.
    pub fn next_wake(&mut self, streams: &Streams, now: Instant) -> Instant {
        let mut wake = self.next_timer_scan;
        if let Some(since) = self.window_since {
            wake = wake.min(since + WINDOW);
        }
        if streams.has_credit() && self.ready {
            let time = self.time(now);
            if let Some(due) = self.scheduler.next_wake() {
                let left = Duration::from_millis(due.0.saturating_sub(time.0));
                // A due time may be as far as a clock can tell; nobody sleeps that long.
                wake = wake.min(now + left.min(TIMER_SCAN));
            }
        }
        wake
    }

    /// What is done after each burst of events and at [`Leader::next_wake`]: grants, the window's entry, settles,
    /// chunks, expiry of lease sessions, notices and expiries of items.
    pub fn run(&mut self, outside: Outside, turn: &mut Turn<'_, impl ShardRows>) {
        if !self.ready {
            return;
        }
        for (session, bytes) in self.grants.refunds() {
            turn.streams.give_back(self.shard, session, bytes);
        }
        if self.scheduler.wants_load() {
            let time = self.time(turn.now);
            self.scheduler.load(turn.rows, time);
        }
        self.run_settles(turn);
        self.run_chunks(turn);
        self.run_window(turn);
        if self.wants_timers() {
            self.run_timers(turn);
        }
        if turn.now >= self.next_timer_scan {
            self.next_timer_scan = turn.now + TIMER_SCAN;
            if let Some(changed) = self.clock.check(outside.wall_ms, turn.now) {
                clock::say(self.group, changed.as_ref());
            }
            self.depth.show(&turn.rows.shard());
            self.expire_sessions(turn);
            self.run_timers(turn);
            self.expire_uploads(turn);
            self.ask_the_slow(turn);
            self.raise_version(outside.members_know, turn);
            self.compare_replicas(turn);
        }
    }

    /// What an applied entry did, to whoever waited for it and to the scheduler. `ticket`: this node proposed it.
    pub fn applied(
        &mut self,
        ticket: Option<Ticket>,
        effects: &[Effect],
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        for effect in effects {
            self.on_effect(effect, turn);
        }
        if let Some(waiter) = ticket.and_then(|t| self.waiters.remove(&t)) {
            self.answer(waiter, effects, turn.streams);
        }
    }

    fn on_effect(&mut self, effect: &Effect, turn: &mut Turn<'_, impl ShardRows>) {
        self.scheduler.observe(effect);
        match effect {
            Effect::Created { message }
            | Effect::AlreadyQueued { message }
            | Effect::UploadGone { message } => {
                self.in_flight.remove(message);
            }
            Effect::Conflict { message } => {
                self.in_flight.remove(message);
                tracing::error!(%message, "two different bodies came under one message id; the first is kept");
            }
            Effect::Granted {
                item,
                session,
                token,
                deadline,
                ..
            } if self.ready => {
                self.grants.granted(*item);
                self.hand_out(*item, *session, (*token, *deadline), false, turn);
            }
            Effect::GrantSkipped { item, .. } => self.grants.skipped(*item),
            Effect::Ungranted { item, .. } => {
                self.asked.remove(item);
            }
            Effect::Revoke { item, session } => turn.streams.revoke(self.shard, *session, *item),
            Effect::SessionOpened { session, .. } => self.heard_of(*session, turn.now),
            Effect::KeptAlive { session } => {
                if let Some(liveness) = self.sessions.get_mut(session) {
                    liveness.heard = turn.now;
                }
            }
            Effect::SessionEnded { session, reason } => {
                self.sessions.remove(session);
                turn.streams.session_ended(self.shard, *session, reason);
            }
            Effect::Finished { message } => turn.bodies.remove(message),
            Effect::PossibleDuplicate { item, why } => {
                metrics::counter!("postroad_possible_duplicates_total", "why" => *why).increment(1);
                tracing::warn!(message = %item.message, number = item.number, why, "may be delivered twice");
            }
            _ => {}
        }
    }
}

/// How often notices, expiries, uploads and lease sessions are looked at: none of them is needed to the second.
const TIMER_SCAN: Duration = Duration::from_secs(1);

/// Lease sessions of one shard that are looked at: a pool of delivery nodes is far smaller.
const SESSIONS_MAX: usize = 10_000;
