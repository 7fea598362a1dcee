//! Requests become commands: what a leader decides before the log (Rule B).
//!
//! A [`Leader`] exists for each shard that this node leads, and only for the term that it leads in. It answers from
//! applied rows and from what it has itself proposed; whatever needs time, policy or chance is decided here and
//! written into the command. It does no I/O: what it wants done lies in [`Out`] when a call returns.
//!
//! Before it has applied an entry of its own term it does not know what its predecessor left, and answers Busy.

mod admin;
mod append;
mod clock;
mod lease;
mod report;
mod settle;
mod streams;
mod timer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::Ulid;
use queue::scheduler::Scheduler;
use queue::{Command, Effect, Facts, ItemId, LeaseSessionId, Rows, Timestamp};
use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use clock::{ClusterClock, WALL_TOLERANCE, WallIgnored};
pub use report::Pending;
pub use streams::{LeaseStream, Streams};

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

/// A lease session ends this long after its last applied keepalive, or after the leader began (queue.md's argument:
/// an answered keepalive was committed, so a later leader knows of it; the node itself stops at 20 s).
pub const SESSION_TTL: Duration = Duration::from_secs(30);

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

/// What waits for the entry of a ticket to be applied.
enum Waiter {
    /// Answered at commit; only the note of it goes.
    Fast(Ulid, Vec<ItemId>),
    Append(AppendReply, Ulid, Vec<ItemId>),
    Chunk(AppendReply),
    Settle(Vec<SettleReply>),
    Open(crate::event::StreamId),
    Window(Vec<(LeaseSessionId, u64)>, Vec<ItemId>),
    Admin(tokio::sync::oneshot::Sender<proto::v1::ActResponse>),
    Timer(ItemId),
    Expire(LeaseSessionId),
    Internal,
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
    keepalives: Vec<(LeaseSessionId, u64)>,
    extends: Vec<queue::GrantBatch>,
    settles: Vec<(queue::SettleItem, SettleReply)>,
    settle_data: Vec<Bytes>,
    asked: HashMap<ItemId, Instant>,
    timers_busy: HashSet<ItemId>,
    next_timer_scan: Instant,
    window_since: Option<Instant>,
    slow_cursor: Option<(LeaseSessionId, ItemId)>,
    /// Credit taken for grants that are on their way: given back when a grant comes to nothing.
    taken: HashMap<ItemId, (LeaseSessionId, u64)>,
    /// Credit to be given back at the next [`Leader::run`].
    refunds: Vec<(LeaseSessionId, u64)>,
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
        if let Some(ignored) = ignored {
            tracing::error!(
                group = config.group,
                own_ms = ignored.own_ms,
                used_ms = ignored.used_ms,
                "the wall clock of this node is more than a minute from the other voters' and is ignored; set it right (NTP)"
            );
        }
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
            keepalives: Vec::new(),
            extends: Vec::new(),
            settles: Vec::new(),
            settle_data: Vec::new(),
            asked: HashMap::new(),
            timers_busy: HashSet::new(),
            next_timer_scan: now,
            window_since: None,
            slow_cursor: None,
            taken: HashMap::new(),
            refunds: Vec::new(),
        }
    }

    /// Whether it has applied an entry of its own term.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Cluster time.
    pub fn time(&mut self, now: Instant) -> Timestamp {
        self.clock.now(now)
    }

    /// The first entry of its own term was applied: the rows are whole.
    pub fn begin(&mut self, rows: &mut impl ShardRows, streams: &mut Streams, now: Instant) {
        self.ready = true;
        let time = self.time(now);
        self.scheduler = Scheduler::start(rows, queue::scheduler::Limits::default());
        self.scheduler.load(rows, time);
        for (id, _) in rows.sessions().range(None, SESSIONS_MAX) {
            self.sessions.insert(
                id,
                Liveness {
                    heard: now,
                    ending: false,
                },
            );
        }
        streams.leader_changed(self.shard);
    }

    fn ticket(&self) -> Ticket {
        self.next_ticket
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Puts a command into `out` as a proposal that is answered when it is applied.
    fn propose(
        &mut self,
        command: Command,
        data: Bytes,
        urgent: bool,
        waiter: Waiter,
        now: Instant,
        out: &mut Out,
    ) {
        let ticket = self.ticket();
        self.waiters.insert(ticket, waiter);
        let context = crate::wire::log::encode(&Facts {
            time: self.time(now),
            command,
        });
        out.proposals.push(Proposal {
            ticket,
            context,
            data,
            ack: Ack::Apply,
            urgent,
        });
    }

    /// A proposal that has no known index.
    pub fn failed(&mut self, ticket: Ticket, why: Failure, leader_address: &str) {
        let Some(waiter) = self.waiters.remove(&ticket) else {
            return;
        };
        waiter.fail(why, leader_address, self);
    }

    /// Leadership is over: all that waits has an unknown fate, and the clients ask the next leader.
    pub fn ended(mut self, streams: &mut Streams, leader_address: &str) {
        let waiters: Vec<Waiter> = self.waiters.drain().map(|(_, w)| w).collect();
        for waiter in waiters {
            waiter.fail(Failure::Unknown, leader_address, &mut self);
        }
        for (session, bytes) in self
            .refunds
            .drain(..)
            .chain(self.taken.drain().map(|(_, t)| t))
        {
            streams.give_back(self.shard, session, bytes);
        }
        for (_, reply) in std::mem::take(&mut self.settles) {
            reply.send(
                proto::v1::SettleOutcome::NotLeader,
                leader_address.to_owned(),
            );
        }
    }

    /// A grant that was not made: the item waits again, and the node has its credit back.
    fn unpick(&mut self, item: ItemId) {
        self.scheduler.unpick(item);
        self.refund(item);
    }

    fn refund(&mut self, item: ItemId) {
        self.refunds.extend(self.taken.remove(&item));
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
    /// expiry of lease sessions, notices and expiries of items.
    pub fn run(
        &mut self,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &mut BodyCache,
        now: Instant,
        out: &mut Out,
    ) {
        if !self.ready {
            return;
        }
        for (session, bytes) in std::mem::take(&mut self.refunds) {
            streams.give_back(self.shard, session, bytes);
        }
        if self.scheduler.wants_load() {
            let time = self.time(now);
            self.scheduler.load(rows, time);
        }
        self.run_settles(now, out);
        self.run_window(rows, streams, now, out);
        if now >= self.next_timer_scan {
            self.next_timer_scan = now + TIMER_SCAN;
            self.expire_sessions(now, out);
            self.run_timers(rows, bodies, now, out);
            self.expire_uploads(rows, now, out);
            self.ask_the_slow(rows, streams, now);
        }
    }

    /// What an applied entry did, to whoever waited for it and to the scheduler. `ticket`: this node proposed it.
    pub fn applied(
        &mut self,
        ticket: Option<Ticket>,
        effects: &[Effect],
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &mut BodyCache,
        now: Instant,
    ) {
        for effect in effects {
            self.on_effect(effect, rows, streams, bodies, now);
        }
        let Some(waiter) = ticket.and_then(|t| self.waiters.remove(&t)) else {
            return;
        };
        self.answer(waiter, effects, streams);
    }

    fn on_effect(
        &mut self,
        effect: &Effect,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &mut BodyCache,
        now: Instant,
    ) {
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
                self.taken.remove(item);
                self.hand_out(
                    *item, *session, *token, *deadline, rows, streams, bodies, now,
                );
            }
            Effect::GrantSkipped { item, .. } => self.refund(*item),
            Effect::Ungranted { item, .. } => {
                self.asked.remove(item);
            }
            Effect::Revoke { item, session } => streams.revoke(self.shard, *session, *item),
            Effect::SessionOpened { session, .. } => {
                self.sessions.insert(
                    *session,
                    Liveness {
                        heard: now,
                        ending: false,
                    },
                );
            }
            Effect::KeptAlive { session } => {
                if let Some(liveness) = self.sessions.get_mut(session) {
                    liveness.heard = now;
                }
            }
            Effect::SessionEnded { session, reason } => {
                self.sessions.remove(session);
                streams.session_ended(self.shard, *session, reason);
            }
            Effect::Finished { message } => bodies.remove(message),
            Effect::PossibleDuplicate { item, why } => {
                metrics::counter!("postroad_possible_duplicates_total", "why" => *why).increment(1);
                tracing::warn!(message = %item.message, number = item.number, why, "may be delivered twice");
            }
            _ => {}
        }
    }

    fn answer(&mut self, waiter: Waiter, effects: &[Effect], streams: &mut Streams) {
        match waiter {
            Waiter::Fast(_, reserved) => reserved.into_iter().for_each(|item| self.refund(item)),
            Waiter::Internal | Waiter::Expire(_) => {}
            Waiter::Append(reply, _, reserved) => {
                reserved.into_iter().for_each(|item| self.refund(item));
                reply.send(append::outcome(effects));
            }
            Waiter::Chunk(reply) => reply.send(append::chunk_outcome(effects)),
            Waiter::Settle(replies) => settle::answer(replies, effects),
            Waiter::Open(stream) => self.opened(stream, effects, streams),
            Waiter::Window(keepalives, _) => self.kept_alive(&keepalives, effects, streams),
            Waiter::Admin(reply) => {
                let _ = reply.send(admin::outcome(effects));
            }
            Waiter::Timer(item) => {
                self.timers_busy.remove(&item);
            }
        }
    }
}

impl Waiter {
    fn fail(self, why: Failure, leader_address: &str, leader: &mut Leader) {
        let append = match why {
            Failure::NotLeader => proto::v1::AppendOutcome::NotLeader,
            Failure::Busy => proto::v1::AppendOutcome::Busy,
            Failure::Unknown => proto::v1::AppendOutcome::Unknown,
        };
        let settle = match why {
            Failure::NotLeader => proto::v1::SettleOutcome::NotLeader,
            Failure::Busy => proto::v1::SettleOutcome::Busy,
            Failure::Unknown => proto::v1::SettleOutcome::Unknown,
        };
        match self {
            Waiter::Fast(message, reserved) => {
                leader.in_flight.remove(&message);
                reserved.into_iter().for_each(|item| leader.unpick(item));
            }
            Waiter::Append(reply, message, reserved) => {
                leader.in_flight.remove(&message);
                reserved.into_iter().for_each(|item| leader.unpick(item));
                reply.send_with(append, leader_address.to_owned(), String::new());
            }
            Waiter::Chunk(reply) => {
                reply.send_with(append, leader_address.to_owned(), String::new())
            }
            Waiter::Settle(replies) => {
                for reply in replies {
                    reply.send(settle, leader_address.to_owned());
                }
            }
            // Asked again by their next keepalive, or by a new stream.
            Waiter::Open(_) | Waiter::Internal => {}
            // The grants of this window were not made.
            Waiter::Window(_, picked) => picked.into_iter().for_each(|item| leader.unpick(item)),
            Waiter::Timer(item) => {
                leader.timers_busy.remove(&item);
            }
            Waiter::Expire(session) => {
                if let Some(liveness) = leader.sessions.get_mut(&session) {
                    liveness.ending = false;
                }
            }
            Waiter::Admin(reply) => {
                let not_leader = proto::v1::NotLeader {
                    leader_address: leader_address.to_owned(),
                };
                let _ = reply.send(proto::v1::ActResponse {
                    not_leader: Some(not_leader),
                    ..Default::default()
                });
            }
        }
    }
}

/// How often notices, expiries, uploads and lease sessions are looked at: none of them is needed to the second.
const TIMER_SCAN: Duration = Duration::from_secs(1);

/// Lease sessions of one shard that are looked at: a pool of delivery nodes is far smaller.
const SESSIONS_MAX: usize = 10_000;

/// Bodies of young messages, so that a handout needs no read. First in, first out, by octets; shared by all shards
/// of a node. The octets are those of the Raft entry cache (one allocation), so this mostly costs the map.
pub struct BodyCache {
    limit: usize,
    bytes: usize,
    bodies: HashMap<Ulid, Bytes>,
    order: std::collections::VecDeque<(Ulid, usize)>,
}

impl BodyCache {
    /// Holds at most `limit` octets.
    pub fn new(limit: usize) -> BodyCache {
        BodyCache {
            limit,
            bytes: 0,
            bodies: HashMap::new(),
            order: std::collections::VecDeque::new(),
        }
    }

    /// Keeps a body for a while.
    pub fn insert(&mut self, message: Ulid, body: Bytes) {
        let size = body.len();
        if size == 0 || size > self.limit {
            return;
        }
        if self.bodies.insert(message, body).is_none() {
            self.bytes += size;
            self.order.push_back((message, size));
        }
        while self.bytes > self.limit || self.order.len() > 2 * self.bodies.len() + 64 {
            let Some((oldest, size)) = self.order.pop_front() else {
                break;
            };
            if self.bodies.remove(&oldest).is_some() {
                self.bytes -= size;
            }
        }
    }

    /// A body that is still here.
    pub fn get(&self, message: &Ulid) -> Option<Bytes> {
        self.bodies.get(message).cloned()
    }

    /// A message that is finished.
    pub fn remove(&mut self, message: &Ulid) {
        if let Some(body) = self.bodies.remove(message) {
            self.bytes -= body.len();
        }
    }
}
