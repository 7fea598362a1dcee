//! Lease sessions: opened, attached to streams, kept alive, expired; and the deadlines of what they hold.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;
use proto::v1::lease_event::What;
use proto::v1::lease_request::What as Request;
use queue::{Command, Effect, GrantBatch, ItemId, LeaseSessionId, OpenSession, Timestamp};
use rand::RngExt;

use super::lease::{DEADLINE, item_id, item_ref};
use super::waiter::Waiter;
use super::{Leader, Liveness, ShardRows, Streams, Turn};
use crate::event::StreamId;

/// A lease session ends this long after its last applied keepalive, or after the leader began (queue.md's argument:
/// an answered keepalive was committed, so a later leader knows of it; the node itself stops at 20 s).
pub const SESSION_TTL: Duration = Duration::from_secs(30);

/// In-flight rows that one scan looks at.
const SLOW_SCANNED: usize = 1_000;

/// Items that one OpenSession names at most: twice what a delivery node holds over all shards, and in the log some
/// 120 KiB of the 256 that a context may have.
const HOLDING_MAX: usize = 4_000;

/// Items whose deadlines one entry moves at most, for the same reason.
const EXTENDS_PER_ENTRY_MAX: usize = 4_000;

impl Leader {
    /// A request on a Lease stream.
    pub fn lease_request(
        &mut self,
        id: StreamId,
        request: Request,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        match request {
            Request::Open(open) => self.open(id, &open, turn),
            Request::Reattach(r) => self.reattach(id, &r, turn),
            Request::Keepalive(k) => self.keepalive(id, &k, turn.streams, turn.now),
            Request::Extend(e) => self.extend(&e, turn.now),
            // Belong to the stream, not to a shard.
            Request::Hello(_) | Request::Credit(_) | Request::Window(_) | Request::Busy(_) => {}
        }
    }

    fn open(&mut self, id: StreamId, open: &v1::OpenSession, turn: &mut Turn<'_, impl ShardRows>) {
        let Some(stream) = turn.streams.get(id) else {
            return;
        };
        if !self.ready {
            return stream.send(self.shard, What::NotLeader(v1::NotLeader::default()));
        }
        if open.holding.len() > HOLDING_MAX {
            tracing::error!(node = %stream.node, shard = self.shard, items = open.holding.len(), HOLDING_MAX,
                "a delivery node opens a lease session and says that it holds more than one can; what is beyond counts as lost");
        }
        let ids = |past_dot: bool| {
            let held = open.holding.iter().take(HOLDING_MAX);
            held.filter(|h| h.past_dot == past_dot)
                .filter_map(|h| item_id(h.item.as_ref()?))
                .collect()
        };
        let retry = self.lost_retry(turn.now);
        let command = Command::OpenSession(OpenSession {
            node: stream.node.clone(),
            incarnation: stream.incarnation,
            sequence: open.sequence,
            boot_id: stream.boot_id.clone(),
            past_dot: ids(true),
            handed_back: ids(false),
            retry,
        });
        self.propose(command, Bytes::new(), Waiter::Open(id, open.sequence), turn);
    }

    /// When items that lost an attempt for the second time or more are due again.
    pub(super) fn lost_retry(&mut self, now: Instant) -> Timestamp {
        let jitter = self.rng.random_range(-1.0..=1.0);
        let time = self.time(now);
        self.policy.retry.lost(time, jitter)
    }

    /// The entry of an OpenSession was applied: its node hears which lease session it has, or that a later request of
    /// its own was there before.
    pub(super) fn opened(
        &mut self,
        id: StreamId,
        sequence: u64,
        effects: &[Effect],
        streams: &mut Streams,
    ) {
        for effect in effects {
            match effect {
                Effect::SessionOpened { session, kept, .. } => {
                    self.attach(id, *session, streams);
                    let kept = kept
                        .iter()
                        .map(|kept| v1::HeldItem {
                            item: Some(item_ref(kept.item)),
                            token: kept.token.0,
                            past_dot: true,
                        })
                        .collect();
                    let opened = v1::SessionOpened {
                        session: session.0,
                        ttl_ms: SESSION_TTL.as_millis() as u32,
                        kept,
                        sequence,
                    };
                    streams.send(self.shard, *session, What::Opened(opened));
                }
                Effect::OpenRefused { node } => {
                    tracing::info!(%node, shard = self.shard, sequence,
                        "an OpenSession came after a later one of the same node and is void");
                    if let Some(stream) = streams.get(id) {
                        let refused = v1::SessionNotOpened {
                            sequence,
                            leader_address: String::new(),
                        };
                        stream.send(self.shard, What::NotOpened(refused));
                    }
                }
                _ => {}
            }
        }
    }

    /// A stream speaks for a lease session from now on.
    fn attach(&mut self, id: StreamId, session: LeaseSessionId, streams: &mut Streams) {
        streams.attach(id, self.shard, session);
        let Some(stream) = streams.get(id) else {
            return;
        };
        self.scheduler.connect(session, stream.classes.clone());
        for (destination, items) in &stream.windows {
            self.scheduler.window(session, destination, *items);
        }
    }

    /// The stream of a lease session is gone.
    pub fn detached(&mut self, session: LeaseSessionId) {
        self.scheduler.disconnect(session);
    }

    /// A node says how many unsettled items of a destination it wants.
    pub fn window(&mut self, session: LeaseSessionId, destination: &mail::Destination, items: u32) {
        self.scheduler.window(session, destination, items);
    }

    /// A node says which classes it takes; empty: all.
    pub fn classes(&mut self, session: LeaseSessionId, classes: &[Arc<str>]) {
        self.scheduler.connect(session, classes.to_vec());
    }

    /// The same lease session on a new stream: it gets again what the node does not list (a grant that was committed
    /// just before a change of leader must not be stuck), and loses what is no longer its own.
    fn reattach(
        &mut self,
        id: StreamId,
        request: &v1::Reattach,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let session = LeaseSessionId(request.session);
        let Some(stream) = turn.streams.get(id) else {
            return;
        };
        if !self.ready {
            return stream.send(self.shard, What::NotLeader(v1::NotLeader::default()));
        }
        let row = turn.rows.sessions().get(&session);
        if row.is_none_or(|row| row.incarnation != stream.incarnation) {
            let reason = "the queue does not know this lease session (any more)";
            return stream.send(self.shard, ended(session, reason));
        }
        self.attach(id, session, turn.streams);
        let listed: HashSet<ItemId> = request
            .holding
            .iter()
            .filter_map(|h| item_id(h.item.as_ref()?))
            .collect();
        let granted = self.hand_out_unlisted(session, &listed, turn);
        for item in listed.difference(&granted) {
            turn.streams.revoke(self.shard, session, *item);
        }
    }

    /// Hands out what a lease session holds and its node does not list. Gives all that it holds.
    fn hand_out_unlisted(
        &mut self,
        session: LeaseSessionId,
        listed: &HashSet<ItemId>,
        turn: &mut Turn<'_, impl ShardRows>,
    ) -> HashSet<ItemId> {
        let mut granted = HashSet::new();
        let first = ItemId {
            message: mail::Ulid::nil(),
            number: 0,
        };
        let mut from = (session, first);
        loop {
            let page = turn.rows.inflight().range(Some(&from), SLOW_SCANNED);
            let full = page.len() == SLOW_SCANNED;
            let mut others = false;
            for ((of, item), row) in page {
                if of != session {
                    others = true;
                    break;
                }
                from.1 = ItemId {
                    message: item.message,
                    number: item.number.saturating_add(1),
                };
                granted.insert(item);
                if !listed.contains(&item) {
                    self.hand_out(item, session, (row.token, row.deadline), false, turn);
                }
            }
            if !full || others {
                return granted;
            }
        }
    }

    fn keepalive(
        &mut self,
        id: StreamId,
        keepalive: &v1::Keepalive,
        streams: &mut Streams,
        now: Instant,
    ) {
        let session = LeaseSessionId(keepalive.session);
        if !self.ready {
            return;
        }
        if !self.sessions.contains_key(&session) {
            if let Some(stream) = streams.get(id) {
                stream.send(self.shard, ended(session, "the lease session has expired"));
            }
            return;
        }
        // The latest of a window answers for those before it.
        self.keepalives.insert(session, keepalive.sequence);
        self.gather(now);
    }

    pub(super) fn kept_alive(
        &mut self,
        keepalives: &[(LeaseSessionId, u64)],
        effects: &[Effect],
        streams: &mut Streams,
    ) {
        for (session, sequence) in keepalives {
            let applied = effects
                .iter()
                .any(|e| matches!(e, Effect::KeptAlive { session: s } if s == session));
            if applied {
                let kept = v1::KeptAlive {
                    session: session.0,
                    sequence: *sequence,
                };
                streams.send(self.shard, *session, What::KeptAlive(kept));
            }
        }
    }

    fn extend(&mut self, extend: &v1::ExtendItems, now: Instant) {
        let gathered: usize = self.extends.iter().map(|batch| batch.items.len()).sum();
        let deadline = Timestamp(self.time(now).0 + DEADLINE.as_millis() as u64);
        // What does not fit in this window's entry is asked again: a deadline frees nothing by itself.
        let items: Vec<_> = extend
            .items
            .iter()
            .filter_map(|h| Some((item_id(h.item.as_ref()?)?, deadline)))
            .take(EXTENDS_PER_ENTRY_MAX.saturating_sub(gathered))
            .collect();
        if !items.is_empty() && self.ready {
            self.extends.push(GrantBatch {
                session: LeaseSessionId(extend.session),
                items,
            });
            self.gather(now);
        }
    }

    /// Lease sessions that were not heard of.
    pub(super) fn expire_sessions(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        let now = turn.now;
        let silent =
            |l: &Liveness| !l.ending && now.saturating_duration_since(l.heard) > SESSION_TTL;
        let silent: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, l)| silent(l))
            .map(|(s, _)| *s)
            .collect();
        for session in silent {
            if let Some(liveness) = self.sessions.get_mut(&session) {
                liveness.ending = true;
            }
            let retry = self.lost_retry(now);
            let command = Command::ExpireSession { session, retry };
            self.propose(command, Bytes::new(), Waiter::Expire(session), turn);
        }
    }

    /// A passed deadline frees nothing (slow SMTP that lives must not be doubled); it asks.
    pub(super) fn ask_the_slow(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        let (time, now) = (self.time(turn.now), turn.now);
        let page = turn
            .rows
            .inflight()
            .range(self.slow_cursor.as_ref(), SLOW_SCANNED);
        let last = page.last().map(|(key, _)| *key);
        self.slow_cursor = if page.len() == SLOW_SCANNED {
            last
        } else {
            None
        };
        for ((session, item), row) in page {
            let asked = self.asked.get(&item);
            if row.deadline > time || asked.is_some_and(|at| now < *at + DEADLINE / 10) {
                continue;
            }
            self.asked.insert(item, now);
            tracing::warn!(message = %item.message, number = item.number, "an attempt has passed its deadline; asking its node");
            metrics::counter!("postroad_deadlines_passed_total").increment(1);
            let ask = v1::StillWorking {
                item: Some(item_ref(item)),
                token: row.token.0,
            };
            turn.streams
                .send(self.shard, session, What::StillWorking(ask));
        }
    }

    /// A destination that a node backs off from: it leaves the ring of that node until its time.
    pub fn busy(
        &mut self,
        session: LeaseSessionId,
        destination: &mail::Destination,
        for_ms: u32,
        now: Instant,
    ) {
        let until = Timestamp(self.time(now).0 + u64::from(for_ms));
        self.scheduler.busy(session, destination, until);
    }
}

fn ended(session: LeaseSessionId, reason: &str) -> What {
    What::Ended(v1::SessionEnded {
        session: session.0,
        reason: reason.to_owned(),
    })
}
