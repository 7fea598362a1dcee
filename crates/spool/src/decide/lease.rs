//! Leases: lease sessions, keepalives, grants and handouts.
//!
//! Nothing is handed out before its grant is applied: a deposed leader cannot commit one, so no two nodes ever hold
//! the same item by the log, without any lease of the leader's own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;
use proto::v1::lease_event::What;
use proto::v1::lease_request::What as Request;
use queue::{
    Command, Effect, GrantBatch, ItemId, LeaseSessionId, MessageFacts, OpenSession, RecipientId,
    State, Timestamp, Token, Verdict, Window,
};
use rand::RngExt;

use super::{BodyCache, Leader, Liveness, Out, SESSION_TTL, ShardRows, Streams, Waiter};
use crate::event::{Outgoing, Piece, StreamId};

/// Items that one entry grants at most: about 10 KiB of entry.
const GRANTS_PER_ENTRY_MAX: usize = 256;

/// A body up to this size travels in its handout; a larger one is fetched by ranges.
pub const HANDOUT_BODY_MAX: u64 = 1 << 20;

/// After this long (10 minutes, RFC 5321 4.5.3.2.6 wants ten after the final dot) the leader asks whether a node still works on a small item.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a slow receiver is expected to take, octets a second: it moves the deadline of big mail.
const DEADLINE_RATE: u64 = 20_000;

/// In-flight rows that one scan looks at for passed deadlines.
const SLOW_SCANNED: usize = 1_000;

impl Leader {
    /// A request on a Lease stream.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a node's state thread, each borrowed for itself"
    )]
    pub fn lease_request(
        &mut self,
        id: StreamId,
        request: Request,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &BodyCache,
        now: Instant,
        out: &mut Out,
    ) {
        match request {
            Request::Open(open) => self.open(id, open, streams, now, out),
            Request::Reattach(r) => self.reattach(id, &r, rows, streams, bodies, now),
            Request::Keepalive(k) => self.keepalive(id, &k, streams, now),
            Request::Extend(e) => self.extend(&e, now),
            // Belong to the stream, not to a shard.
            Request::Hello(_) | Request::Credit(_) | Request::Window(_) | Request::Busy(_) => {}
        }
    }

    fn open(
        &mut self,
        id: StreamId,
        open: v1::OpenSession,
        streams: &mut Streams,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(stream) = streams.get(id) else {
            return;
        };
        if !self.ready {
            let not_leader = v1::NotLeader {
                leader_address: String::new(),
            };
            return stream.send(self.shard, What::NotLeader(not_leader));
        }
        let (past_dot, handed_back): (Vec<_>, Vec<_>) =
            open.holding.iter().partition(|h| h.past_dot);
        let ids = |held: Vec<&v1::HeldItem>| {
            held.iter()
                .filter_map(|h| item_id(h.item.as_ref()?))
                .collect()
        };
        let retry = self.lost_retry(now);
        let command = Command::OpenSession(OpenSession {
            node: stream.node.clone(),
            incarnation: stream.incarnation,
            boot_id: stream.boot_id.clone(),
            past_dot: ids(past_dot),
            handed_back: ids(handed_back),
            retry,
        });
        self.propose(command, Bytes::new(), true, Waiter::Open(id), now, out);
    }

    /// When items that lost an attempt for the second time or more are due again.
    fn lost_retry(&mut self, now: Instant) -> Timestamp {
        let jitter = self.rng.random_range(-1.0..=1.0);
        let time = self.time(now);
        self.policy.retry.lost(time, jitter)
    }

    pub(super) fn opened(&mut self, id: StreamId, effects: &[Effect], streams: &mut Streams) {
        for effect in effects {
            let Effect::SessionOpened { session, kept, .. } = effect else {
                continue;
            };
            self.attach(id, *session, streams);
            let kept = kept
                .iter()
                .map(|kept| held(kept.item, kept.token))
                .collect();
            let ttl_ms = SESSION_TTL.as_millis() as u32;
            streams.send(
                self.shard,
                *session,
                What::Opened(v1::SessionOpened {
                    session: session.0,
                    ttl_ms,
                    kept,
                }),
            );
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
    pub fn classes(&mut self, session: LeaseSessionId, classes: &[std::sync::Arc<str>]) {
        self.scheduler.connect(session, classes.to_vec());
    }

    /// The same lease session on a new stream: it gets again what the node does not list (a grant that was committed
    /// just before a change of leader must not be stuck), and loses what is no longer its own.
    fn reattach(
        &mut self,
        id: StreamId,
        request: &v1::Reattach,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &BodyCache,
        now: Instant,
    ) {
        let session = LeaseSessionId(request.session);
        let Some(stream) = streams.get(id) else {
            return;
        };
        if !self.ready {
            let not_leader = v1::NotLeader {
                leader_address: String::new(),
            };
            return stream.send(self.shard, What::NotLeader(not_leader));
        }
        let own = rows
            .sessions()
            .get(&session)
            .is_some_and(|s| s.incarnation == stream.incarnation);
        if !own {
            let reason = "the queue does not know this lease session (any more)".to_owned();
            return stream.send(
                self.shard,
                What::Ended(v1::SessionEnded {
                    session: session.0,
                    reason,
                }),
            );
        }
        self.attach(id, session, streams);
        let listed: std::collections::HashSet<ItemId> = request
            .holding
            .iter()
            .filter_map(|h| item_id(h.item.as_ref()?))
            .collect();
        let mut granted = std::collections::HashSet::new();
        let mut from = (
            session,
            ItemId {
                message: mail::Ulid::nil(),
                number: 0,
            },
        );
        loop {
            let page = rows.inflight().range(Some(&from), SLOW_SCANNED);
            let full = page.len() == SLOW_SCANNED;
            for ((of, item), row) in page {
                if of != session {
                    break;
                }
                from = (
                    of,
                    ItemId {
                        message: item.message,
                        number: item.number.saturating_add(1),
                    },
                );
                granted.insert(item);
                if !listed.contains(&item) {
                    self.hand_out(
                        item,
                        session,
                        row.token,
                        row.deadline,
                        rows,
                        streams,
                        bodies,
                        now,
                    );
                }
            }
            if !full || from.0 != session {
                break;
            }
        }
        for item in listed.difference(&granted) {
            streams.revoke(self.shard, session, *item);
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
                let reason = "the lease session has expired".to_owned();
                stream.send(
                    self.shard,
                    What::Ended(v1::SessionEnded {
                        session: session.0,
                        reason,
                    }),
                );
            }
            return;
        }
        self.keepalives.push((session, keepalive.sequence));
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
        let deadline = Timestamp(self.time(now).0 + DEADLINE.as_millis() as u64);
        let items: Vec<_> = extend
            .items
            .iter()
            .filter_map(|h| Some((item_id(h.item.as_ref()?)?, deadline)))
            .collect();
        if !items.is_empty() && self.ready {
            self.extends.push(GrantBatch {
                session: LeaseSessionId(extend.session),
                items,
            });
            self.gather(now);
        }
    }

    /// Grants for whoever has room, and the entry of this window.
    pub(super) fn run_window(
        &mut self,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        now: Instant,
        out: &mut Out,
    ) {
        let grants = self.pick(rows, streams, now);
        let due = self
            .window_since
            .is_some_and(|since| now >= since + super::WINDOW);
        if grants.is_empty() && !due {
            return;
        }
        self.window_since = None;
        let keepalives = std::mem::take(&mut self.keepalives);
        let mut window = Window {
            keepalives: Vec::new(),
            grants,
            extends: std::mem::take(&mut self.extends),
        };
        window.keepalives = keepalives.iter().map(|(s, _)| *s).collect();
        window.keepalives.dedup();
        if window.keepalives.is_empty() && window.grants.is_empty() && window.extends.is_empty() {
            return;
        }
        let picked = window
            .grants
            .iter()
            .flat_map(|g| g.items.iter().map(|(item, _)| *item))
            .collect();
        self.propose(
            Command::Window(window),
            Bytes::new(),
            true,
            Waiter::Window(keepalives, picked),
            now,
            out,
        );
    }

    fn pick(
        &mut self,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        now: Instant,
    ) -> Vec<GrantBatch> {
        let time = self.time(now);
        let mut grants = Vec::new();
        for session in streams.sessions_of(self.shard) {
            let Some(stream) = streams.of(self.shard, session) else {
                continue;
            };
            if stream.credit_items == 0 || stream.credit_bytes <= 0 || self.is_ending(session) {
                continue;
            }
            let credit = queue::scheduler::Credit {
                items: (stream.credit_items as usize).min(GRANTS_PER_ENTRY_MAX),
                bytes: u64::try_from(stream.credit_bytes).unwrap_or(0),
            };
            let picked = self.scheduler.pick(time, session, credit, |item| {
                rows.messages()
                    .get(&item.message)
                    .map_or(0, |m| m.size.min(HANDOUT_BODY_MAX))
            });
            let mut items = Vec::with_capacity(picked.len());
            for item in picked {
                let size = rows.messages().get(&item.message).map_or(0, |m| m.size);
                stream.credit_items = stream.credit_items.saturating_sub(1);
                let bytes = size.min(HANDOUT_BODY_MAX);
                stream.credit_bytes -= bytes as i64;
                self.taken.insert(item, (session, bytes));
                items.push((item, deadline(time, size)));
            }
            if !items.is_empty() {
                grants.push(GrantBatch { session, items });
            }
        }
        grants
    }

    fn is_ending(&self, session: LeaseSessionId) -> bool {
        self.sessions.get(&session).is_none_or(|l| l.ending)
    }

    /// Express lane: a grant in the Append's own entry, for a destination where nothing waits.
    pub(super) fn express(
        &mut self,
        facts: &MessageFacts,
        streams: &mut Streams,
        time: Timestamp,
    ) -> Vec<queue::ExpressGrant> {
        let mut grants = Vec::new();
        let sessions = streams.sessions_of(self.shard);
        if sessions.is_empty() {
            return grants;
        }
        // Begins with another session each time: messages spread over the delivery nodes.
        let first = (facts.message.random() >> 8) as usize % sessions.len();
        for (number, item) in facts.items.iter().enumerate() {
            for n in 0..sessions.len() {
                let session = sessions[(first + n) % sessions.len()];
                if self.is_ending(session) {
                    continue;
                }
                let Some(stream) = streams.of(self.shard, session) else {
                    continue;
                };
                let room = stream.credit_items > 0 && stream.credit_bytes > 0;
                if room
                    && self
                        .scheduler
                        .express(session, &item.destination, &facts.class, time)
                {
                    let id = ItemId {
                        message: facts.message,
                        number: number as u32,
                    };
                    self.scheduler.reserve(session, id, &item.destination);
                    stream.credit_items -= 1;
                    let bytes = facts.size.min(HANDOUT_BODY_MAX);
                    stream.credit_bytes -= bytes as i64;
                    self.taken.insert(id, (session, bytes));
                    let deadline = deadline(time, facts.size);
                    grants.push(queue::ExpressGrant {
                        number: number as u32,
                        session,
                        deadline,
                    });
                    break;
                }
            }
        }
        grants
    }

    /// Sends an item with its envelope and body to the node that holds it now.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a node's state thread, each borrowed for itself"
    )]
    pub(super) fn hand_out(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        token: Token,
        deadline: Timestamp,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        bodies: &BodyCache,
        now: Instant,
    ) {
        let time = self.time(now);
        let Some(stream) = streams.of(self.shard, session) else {
            return;
        };
        let Some(message) = rows.messages().get(&item.message) else {
            return;
        };
        let Some(row) = rows.items().get(&item) else {
            return;
        };
        let from = RecipientId { item, number: 0 };
        let recipients = rows
            .recipients()
            .range(Some(&from), row.recipients as usize);
        let open = |r: &queue::Recipient| {
            !r.result
                .as_ref()
                .is_some_and(|r| matches!(r.verdict, Verdict::Delivered | Verdict::Failed))
        };
        let recipients = recipients
            .into_iter()
            .filter(|(id, r)| id.item == item && open(r));
        let recipients = recipients.map(|(id, r)| v1::HandoutRecipient {
            recipient: id.number,
            address: r.address.to_string(),
        });
        let body = bodies
            .get(&item.message)
            .filter(|_| message.size <= HANDOUT_BODY_MAX);
        let read = body.is_none() && message.size <= HANDOUT_BODY_MAX && message.size > 0;
        let handout = v1::Handout {
            item: Some(item_ref(item)),
            token: token.0,
            session: session.0,
            deadline_ms: deadline.0,
            cluster_time_ms: time.0,
            attempts: row.attempts,
            recipients: recipients.collect(),
            body: body.unwrap_or_default(),
            message: Some(v1::HandoutMessage {
                tenant: message.tenant.to_string(),
                class: message.class.to_string(),
                priority: message.priority.into(),
                return_path: message.return_path.to_string(),
                destination: row.destination.to_string(),
                size: message.size,
                digest: Bytes::copy_from_slice(&message.digest.0),
                eight_bit: message.eight_bit,
                smtputf8: message.smtputf8,
                trace_context: message.trace_context.to_string(),
                arrived_ms: message.arrived.0,
            }),
        };
        let event = v1::LeaseEvent {
            shard: self.shard,
            what: Some(What::Handout(handout)),
        };
        let outgoing = if read {
            let pieces = pieces(rows, &message.body);
            Outgoing::Read {
                event: Box::new(event),
                pieces,
            }
        } else {
            Outgoing::Event(Box::new(event))
        };
        let _ = stream.to.send(outgoing);
    }

    /// Lease sessions that were not heard of.
    pub(super) fn expire_sessions(&mut self, now: Instant, out: &mut Out) {
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
            self.propose(
                command,
                Bytes::new(),
                true,
                Waiter::Expire(session),
                now,
                out,
            );
        }
    }

    /// A passed deadline frees nothing (slow SMTP that lives must not be doubled); it asks.
    pub(super) fn ask_the_slow(
        &mut self,
        rows: &mut impl ShardRows,
        streams: &mut Streams,
        now: Instant,
    ) {
        let time = self.time(now);
        let page = rows
            .inflight()
            .range(self.slow_cursor.as_ref(), SLOW_SCANNED);
        let last = page.last().map(|(key, _)| *key);
        self.slow_cursor = if page.len() == SLOW_SCANNED {
            last
        } else {
            None
        };
        for ((session, item), row) in page {
            if row.deadline > time
                || self
                    .asked
                    .get(&item)
                    .is_some_and(|at| now < *at + DEADLINE / 10)
            {
                continue;
            }
            self.asked.insert(item, now);
            tracing::warn!(message = %item.message, number = item.number, "an attempt has passed its deadline; asking its node");
            metrics::counter!("postroad_deadlines_passed_total").increment(1);
            let ask = v1::StillWorking {
                item: Some(item_ref(item)),
                token: row.token.0,
            };
            streams.send(self.shard, session, What::StillWorking(ask));
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

/// Where the log has the parts of a body. A part that it has not is left out: the read then ends short and says so.
pub(super) fn pieces(rows: &mut impl ShardRows, body: &[queue::Extent]) -> Vec<Piece> {
    let at = |e: &queue::Extent| {
        Some(Piece {
            index: e.index,
            location: rows.locate(e.index)?,
            offset: e.offset,
            length: e.length,
        })
    };
    body.iter().filter_map(at).collect()
}

fn deadline(time: Timestamp, size: u64) -> Timestamp {
    Timestamp(time.0 + DEADLINE.as_millis() as u64 + size * 1000 / DEADLINE_RATE)
}

/// To the wire.
pub fn item_ref(item: ItemId) -> v1::ItemRef {
    v1::ItemRef {
        message: proto::ulid_bytes(item.message),
        number: item.number,
    }
}

/// From the wire; `None` when the id has not 16 octets.
pub fn item_id(item: &v1::ItemRef) -> Option<ItemId> {
    Some(ItemId {
        message: proto::ulid(&item.message)?,
        number: item.number,
    })
}

fn held(item: ItemId, token: Token) -> v1::HeldItem {
    v1::HeldItem {
        item: Some(item_ref(item)),
        token: token.0,
        past_dot: true,
    }
}

/// Whether an item is Leased by this very grant.
pub(super) fn is_granted(state: &State, token: Token) -> bool {
    matches!(state, State::Leased { token: t, .. } if *t == token)
}
