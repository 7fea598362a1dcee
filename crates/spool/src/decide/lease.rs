//! Leases: grants and handouts.
//!
//! Nothing is handed out before its grant is applied: a deposed leader cannot commit one, so no two nodes ever hold
//! the same item by the log, without any lease of the leader's own.

use std::time::Duration;

use bytes::Bytes;
use proto::v1;
use proto::v1::lease_event::What;
use queue::{
    Command, GrantBatch, ItemId, LeaseSessionId, MessageFacts, RecipientId, SettleItem, State,
    Timestamp, Token, Verdict, Window,
};

use super::grants::Reserved;
use super::waiter::Waiter;
use super::{Leader, ShardRows, Streams, Turn};
use crate::event::{Outgoing, Piece, Unreadable};

/// Items that one entry grants at most: about 10 KiB of entry.
const GRANTS_PER_ENTRY_MAX: usize = 256;

/// A body up to this size travels in its handout; a larger one is fetched by ranges.
pub const HANDOUT_BODY_MAX: u64 = 1 << 20;

/// After this long (10 minutes, RFC 5321 4.5.3.2.6 wants ten after the final dot) the leader asks whether a node still works on a small item.
pub(super) const DEADLINE: Duration = Duration::from_secs(600);

/// What a slow receiver is expected to take, octets a second: it moves the deadline of big mail.
const DEADLINE_RATE: u64 = 20_000;

impl Leader {
    /// Grants for whoever has room, and the entry of this window.
    pub(super) fn run_window(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        let mut reserved = Reserved::default();
        let grants = self.pick(&mut reserved, turn);
        let due = self
            .window_since
            .is_some_and(|since| turn.now >= since + super::WINDOW);
        if grants.is_empty() && !due {
            return self.grants.applied(reserved);
        }
        // Settles that were gathered since go when the window ends; without it nothing would wake us for them.
        if due || self.settles.is_empty() {
            self.window_since = None;
        }
        let keepalives: Vec<_> = std::mem::take(&mut self.keepalives).into_iter().collect();
        let window = Window {
            keepalives: keepalives.iter().map(|(s, _)| *s).collect(),
            grants,
            extends: std::mem::take(&mut self.extends),
        };
        if window.keepalives.is_empty() && window.grants.is_empty() && window.extends.is_empty() {
            return self.grants.applied(reserved);
        }
        let waiter = Waiter::Window(keepalives, reserved);
        self.propose(Command::Window(window), Bytes::new(), waiter, turn);
    }

    fn pick(
        &mut self,
        reserved: &mut Reserved,
        turn: &mut Turn<'_, impl ShardRows>,
    ) -> Vec<GrantBatch> {
        let time = self.time(turn.now);
        let mut grants = Vec::new();
        for session in turn.streams.sessions_of(self.shard) {
            let Some(stream) = turn.streams.of(self.shard, session) else {
                continue;
            };
            if stream.credit_items == 0 || stream.credit_bytes <= 0 || self.is_ending(session) {
                continue;
            }
            let credit = queue::scheduler::Credit {
                items: (stream.credit_items as usize).min(GRANTS_PER_ENTRY_MAX),
                bytes: u64::try_from(stream.credit_bytes).unwrap_or(0),
            };
            let rows = &mut *turn.rows;
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
                self.grants.take(reserved, item, session, bytes);
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
        reserved: &mut Reserved,
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
                let left = u64::try_from(stream.credit_bytes).unwrap_or(0);
                if room
                    && self
                        .scheduler
                        .express(session, &item.destination, &facts.class, time, left)
                {
                    let id = ItemId {
                        message: facts.message,
                        number: number as u32,
                    };
                    let bytes = facts.size.min(HANDOUT_BODY_MAX);
                    self.scheduler
                        .reserve(session, id, &item.destination, bytes);
                    stream.credit_items -= 1;
                    stream.credit_bytes -= bytes as i64;
                    self.grants.take(reserved, id, session, bytes);
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

    /// Sends an item with its envelope and body to the node that holds it now. `grant`: token and deadline. `again`: its
    /// body could not be read a moment ago.
    pub(super) fn hand_out(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        grant: (Token, Timestamp),
        again: bool,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let time = self.time(turn.now);
        let Some(stream) = turn.streams.of(self.shard, session) else {
            return;
        };
        let rows = &mut *turn.rows;
        let Some(message) = rows.messages().get(&item.message) else {
            return;
        };
        let Some(row) = rows.items().get(&item) else {
            return;
        };
        let recipients = open_recipients(rows, item, &row);
        let inline = message.size <= HANDOUT_BODY_MAX;
        let body = turn.bodies.get(&item.message).filter(|_| inline);
        let read = body.is_none() && inline && message.size > 0;
        let handout = v1::Handout {
            item: Some(item_ref(item)),
            token: grant.0.0,
            session: session.0,
            deadline_ms: grant.1.0,
            cluster_time_ms: time.0,
            attempts: row.attempts,
            recipients,
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
                has_principal: !message.origin.principal.is_empty(),
            }),
        };
        let event = Box::new(v1::LeaseEvent {
            shard: self.shard,
            what: Some(What::Handout(handout)),
        });
        let outgoing = if read {
            let pieces = pieces(rows, &message.body);
            Outgoing::Read {
                event,
                pieces,
                again,
            }
        } else {
            Outgoing::Event(event)
        };
        let _ = stream.to.send(outgoing);
    }

    /// A body could not be read for its handout. Once it is looked up again: it may have been moved between the lookup
    /// and the read. Then the item is taken back, as an attempt that was lost: due at once the first time, later by the
    /// schedule, and after some times Held, so that a damaged body never makes anything spin.
    pub fn unreadable(&mut self, what: Unreadable, turn: &mut Turn<'_, impl ShardRows>) {
        let Some(row) = turn.rows.items().get(&what.item) else {
            return;
        };
        let State::Leased {
            session,
            token,
            deadline,
        } = row.state
        else {
            return;
        };
        if token != what.token || session != what.session || !self.ready {
            return;
        }
        if !what.again {
            return self.hand_out(what.item, session, (token, deadline), true, turn);
        }
        tracing::error!(message = %what.item.message, number = what.item.number, shard = self.shard, reason = what.reason,
            "the body cannot be read for its handout; the item is tried again later, and held after some times. \
             Look at this node's disk; moving the shard's leader to another node lets that one's copy be used");
        metrics::counter!("postroad_bodies_unreadable_total").increment(1);
        // The node never saw it: the credit that it was handed out on is its own again.
        let size = turn.rows.messages().get(&what.item.message);
        let bytes = size.map_or(0, |m| m.size.min(HANDOUT_BODY_MAX));
        turn.streams.give_back(self.shard, session, bytes);
        let settle = SettleItem {
            item: what.item,
            token,
            session,
            release: true,
            results: Vec::new(),
            retry: Some(self.lost_retry(turn.now)),
            give_up: false,
            reports: Vec::new(),
        };
        let command = Command::Settle(vec![settle]);
        self.propose(command, Bytes::new(), Waiter::Internal, turn);
    }
}

/// The recipients of an item that are neither delivered nor failed.
fn open_recipients(
    rows: &mut impl ShardRows,
    item: ItemId,
    row: &queue::Item,
) -> Vec<v1::HandoutRecipient> {
    let from = RecipientId { item, number: 0 };
    let all = rows
        .recipients()
        .range(Some(&from), row.recipients as usize);
    let open = |r: &queue::Recipient| {
        !r.result
            .as_ref()
            .is_some_and(|r| matches!(r.verdict, Verdict::Delivered | Verdict::Failed))
    };
    all.into_iter()
        .filter(|(id, r)| id.item == item && open(r))
        .map(|(id, r)| v1::HandoutRecipient {
            recipient: id.number,
            address: r.address.to_string(),
        })
        .collect()
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

/// Whether an item is Leased by this very grant.
pub(super) fn is_granted(state: &State, token: Token) -> bool {
    matches!(state, State::Leased { token: t, .. } if *t == token)
}
