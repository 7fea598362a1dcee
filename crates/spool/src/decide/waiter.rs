//! What waits for the entry of a ticket: answered when the entry is applied, or when its fate is unknown.

use mail::Ulid;
use proto::v1;
use queue::{Effect, ItemId, LeaseSessionId};
use tokio::sync::oneshot;

use super::grants::Reserved;
use super::{Leader, Streams, admin, append, settle};
use crate::event::{AppendReply, Failure, SettleReply, StreamId};

/// What waits for an entry.
pub(super) enum Waiter {
    /// An Append that is answered at commit; only the note of it goes.
    Fast(Ulid, Reserved),
    /// An Append of chunks.
    Append(AppendReply, Ulid, Reserved),
    Chunk(AppendReply),
    Settle(Vec<SettleReply>),
    /// Of which stream, and which of its requests.
    Open(StreamId, u64),
    Window(Vec<(LeaseSessionId, u64)>, Reserved),
    Admin(oneshot::Sender<v1::ActResponse>),
    Timer(ItemId),
    Expire(LeaseSessionId),
    /// A VerifyDigest.
    Digest,
    Internal,
}

impl Leader {
    /// The entry was applied.
    pub(super) fn answer(&mut self, waiter: Waiter, effects: &[Effect], streams: &mut Streams) {
        match waiter {
            Waiter::Fast(_, reserved) => self.grants.applied(reserved),
            Waiter::Internal | Waiter::Expire(_) => {}
            Waiter::Digest => self.pass.under_way = false,
            Waiter::Append(reply, _, reserved) => {
                self.grants.applied(reserved);
                reply.send(append::outcome(effects));
            }
            Waiter::Chunk(reply) => {
                self.chunks.ended();
                reply.send(append::chunk_outcome(effects));
            }
            Waiter::Settle(replies) => settle::answer(replies, effects),
            Waiter::Open(stream, sequence) => self.opened(stream, sequence, effects, streams),
            Waiter::Window(keepalives, reserved) => {
                self.grants.applied(reserved);
                self.kept_alive(&keepalives, effects, streams);
            }
            Waiter::Admin(reply) => {
                let _ = reply.send(admin::outcome(effects));
            }
            Waiter::Timer(item) => {
                self.timers_busy.remove(&item);
            }
        }
    }

    /// The entry was not written, or nobody knows.
    pub(super) fn fail(
        &mut self,
        waiter: Waiter,
        why: Failure,
        leader_address: &str,
        streams: &mut Streams,
    ) {
        let append = match why {
            Failure::NotLeader => v1::AppendOutcome::NotLeader,
            Failure::Busy => v1::AppendOutcome::Busy,
            Failure::Unknown => v1::AppendOutcome::Unknown,
        };
        let settle = match why {
            Failure::NotLeader => v1::SettleOutcome::NotLeader,
            Failure::Busy => v1::SettleOutcome::Busy,
            Failure::Unknown => v1::SettleOutcome::Unknown,
        };
        let not_leader = || v1::NotLeader {
            leader_address: leader_address.to_owned(),
        };
        match waiter {
            Waiter::Fast(message, reserved) => {
                self.in_flight.remove(&message);
                self.grants.undone(reserved, &mut self.scheduler);
            }
            Waiter::Append(reply, message, reserved) => {
                self.in_flight.remove(&message);
                self.grants.undone(reserved, &mut self.scheduler);
                reply.send_with(append, leader_address.to_owned(), String::new());
            }
            Waiter::Chunk(reply) => {
                self.chunks.ended();
                reply.send_with(append, leader_address.to_owned(), String::new());
            }
            Waiter::Settle(replies) => {
                for reply in replies {
                    reply.send(settle, leader_address.to_owned());
                }
            }
            // The node asks again at once, with a later sequence, in place of waiting for its patience to end.
            Waiter::Open(stream, sequence) => {
                if let Some(stream) = streams.get(stream) {
                    let failed = v1::SessionNotOpened {
                        sequence,
                        leader_address: leader_address.to_owned(),
                    };
                    stream.send(self.shard, v1::lease_event::What::NotOpened(failed));
                }
            }
            // Settled again by the next scan.
            Waiter::Internal => {}
            Waiter::Digest => self.pass.under_way = false,
            // The grants of this window were not made; its keepalives are asked again by the nodes.
            Waiter::Window(_, reserved) => self.grants.undone(reserved, &mut self.scheduler),
            Waiter::Timer(item) => {
                self.timers_busy.remove(&item);
            }
            Waiter::Expire(session) => {
                if let Some(liveness) = self.sessions.get_mut(&session) {
                    liveness.ending = false;
                }
            }
            Waiter::Admin(reply) => {
                let _ = reply.send(v1::ActResponse {
                    not_leader: Some(not_leader()),
                    ..Default::default()
                });
            }
        }
    }
}
