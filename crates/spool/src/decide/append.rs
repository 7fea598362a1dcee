//! Append and chunks: what a leader can tell before it proposes, and what `apply` tells.

use std::time::Instant;

use bytes::Bytes;
use mail::Ulid;
use proto::v1::AppendOutcome;
use queue::{Append, Command, Effect, Facts, MessageFacts};

use super::chunks::Chunk;
use super::grants::Reserved;
use super::waiter::Waiter;
use super::{Leader, ShardRows, Turn};
use crate::event::{AppendReply, AppendWhat};
use crate::node::{Ack, Proposal};

/// A ULID older or newer than this against cluster time, and unknown, is refused: within it a finished message's id
/// is still remembered (30 minutes), so a late retry can never be taken for a new message.
pub const STALE_MS: u64 = 15 * 60 * 1000;

/// Octets of unfinished uploads that a shard keeps; beyond them new chunks get UPLOAD_GONE. Ten of the largest
/// messages a shard: uploads are not yet owed to anyone, and the disk is.
pub const UPLOAD_BYTES_MAX: u64 = 512 << 20;

/// An upload expires this long after its last chunk, in milliseconds: an edge sends one every two minutes at least.
const UPLOAD_IDLE_MS: u64 = 10 * 60 * 1000;

/// Uploads looked at in one scan.
const UPLOADS_SCANNED: usize = 1_000;

impl Leader {
    /// Decides on a message or a chunk. `full`: a majority of the group's disks takes no more.
    pub fn append(
        &mut self,
        what: AppendWhat,
        reply: AppendReply,
        full: bool,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        if !self.ready {
            return reply.send(AppendOutcome::Busy);
        }
        match what {
            AppendWhat::Message { facts, body } => {
                if let Some(known) = self.known(facts.message, facts.digest, turn.rows) {
                    return reply.send(known);
                }
                if full {
                    return reply.send(AppendOutcome::Full);
                }
                if facts.chunks == 0 && self.is_stale(facts.message, turn.now) {
                    return reply.send(AppendOutcome::Stale);
                }
                self.append_message(*facts, body, reply, turn);
            }
            AppendWhat::Chunk { message, seq, data } => {
                let rows = &mut *turn.rows;
                let known_upload = rows.uploads().get(&message).is_some();
                if rows.finished().get(&message).is_some()
                    || rows.messages().get(&message).is_some()
                {
                    // The message exists: a retried chunk of it was stored.
                    return reply.send(AppendOutcome::ChunkStored);
                }
                if full {
                    return reply.send(AppendOutcome::Full);
                }
                if !known_upload && (seq > 0 || self.is_stale(message, turn.now)) {
                    let gone = if seq > 0 {
                        AppendOutcome::UploadGone
                    } else {
                        AppendOutcome::Stale
                    };
                    return reply.send(gone);
                }
                if turn.rows.shard().upload_bytes + data.len() as u64 > UPLOAD_BYTES_MAX {
                    return reply.send(AppendOutcome::UploadGone);
                }
                let chunk = Chunk {
                    message,
                    seq,
                    data,
                    reply,
                };
                self.chunks.push(chunk);
                self.run_chunks(turn);
            }
            AppendWhat::Abandon(message) => self.abandon(message, reply, turn),
        }
    }

    /// The client of an upload left before its end. Else it would count against [`UPLOAD_BYTES_MAX`] until it is idle for
    /// [`UPLOAD_IDLE_MS`], and a handful of clients that break off would keep all big mail out.
    fn abandon(&mut self, message: Ulid, reply: AppendReply, turn: &mut Turn<'_, impl ShardRows>) {
        if turn.rows.uploads().get(&message).is_none() || self.in_flight.contains(&message) {
            return reply.send(AppendOutcome::UploadGone);
        }
        // An Append that does not fit its chunks drops them, in every version of the state machine.
        let facts = MessageFacts {
            message,
            tenant: "".into(),
            class: "".into(),
            priority: 0,
            return_path: "".into(),
            items: Vec::new(),
            size: 0,
            digest: mail::Digest([0; 16]),
            header_size: 0,
            eight_bit: false,
            smtputf8: false,
            chunks: u32::MAX,
            origin: Default::default(),
            trace_context: "".into(),
            arrived: self.time(turn.now),
        };
        let append = Append {
            expires: facts.arrived,
            notice: None,
            grant_to: Vec::new(),
            facts,
        };
        let command = Command::Append(Box::new(append));
        let waiter = Waiter::Append(reply, message, Reserved::default());
        self.propose(command, Bytes::new(), waiter, turn);
    }

    /// The answer for an id that this shard knows, or has in flight.
    fn known(
        &self,
        message: Ulid,
        digest: mail::Digest,
        rows: &mut impl ShardRows,
    ) -> Option<AppendOutcome> {
        if self.in_flight.contains(&message) {
            return Some(AppendOutcome::Busy);
        }
        let before = match rows.messages().get(&message) {
            Some(row) => Some(row.digest),
            None => rows.finished().get(&message).map(|row| row.digest),
        }?;
        Some(if before == digest {
            AppendOutcome::AlreadyQueued
        } else {
            AppendOutcome::Conflict
        })
    }

    fn is_stale(&mut self, message: Ulid, now: Instant) -> bool {
        message.timestamp_ms().abs_diff(self.time(now).0) > STALE_MS
    }

    fn append_message(
        &mut self,
        facts: MessageFacts,
        body: Bytes,
        reply: AppendReply,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let message = facts.message;
        if facts.chunks > 0
            && turn
                .rows
                .uploads()
                .get(&message)
                .is_none_or(|u| u.chunks.len() != facts.chunks as usize)
        {
            return reply.send(AppendOutcome::UploadGone);
        }
        let time = self.time(turn.now);
        let mut reserved = Reserved::default();
        let fast = facts.chunks == 0;
        let grant_to = self.express(&facts, turn.streams, time, &mut reserved);
        let append = Append {
            expires: self.policy.retry.expires(time),
            notice: self.policy.retry.notice(time),
            grant_to,
            facts,
        };
        self.in_flight.insert(message);
        turn.bodies.insert(message, body.clone());
        let command = Command::Append(Box::new(append));
        if !fast {
            let waiter = Waiter::Append(reply, message, reserved);
            return self.propose(command, body, waiter, turn);
        }
        // A one-entry Append has only Created and AlreadyQueued left as outcomes at apply, both a 250: it is answered
        // at commit, which needs neither this node's own fsync nor its apply.
        let ticket = self.ticket();
        self.waiters.insert(ticket, Waiter::Fast(message, reserved));
        let context = crate::wire::log::encode(&Facts { time, command });
        turn.out.proposals.push(Proposal {
            ticket,
            context,
            data: body,
            ack: Ack::Commit,
            urgent: false,
        });
        turn.out.replies.push((ticket, reply));
    }

    /// Chunks whose turn it is.
    pub(super) fn run_chunks<R>(&mut self, turn: &mut Turn<'_, R>) {
        while let Some(chunk) = self.chunks.next() {
            let command = Command::BodyChunk {
                message: chunk.message,
                seq: chunk.seq,
                size: chunk.data.len() as u32,
            };
            self.propose(command, chunk.data, Waiter::Chunk(chunk.reply), turn);
        }
    }

    /// Uploads that nobody continues.
    pub(super) fn expire_uploads(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        if turn.rows.shard().upload_bytes == 0 {
            return;
        }
        let time = self.time(turn.now);
        let idle = |u: &queue::Upload| time.0.saturating_sub(u.last.0) > UPLOAD_IDLE_MS;
        let uploads = turn.rows.uploads().range(None, UPLOADS_SCANNED);
        let messages: Vec<Ulid> = uploads
            .into_iter()
            .filter(|(_, u)| idle(u))
            .map(|(id, _)| id)
            .collect();
        if !messages.is_empty() {
            let command = Command::ExpireUpload { messages };
            self.propose(command, Bytes::new(), Waiter::Internal, turn);
        }
    }
}

/// The answer to an Append of chunks.
pub(super) fn outcome(effects: &[Effect]) -> AppendOutcome {
    let of = |effect: &Effect| match effect {
        Effect::Created { .. } => Some(AppendOutcome::Created),
        Effect::AlreadyQueued { .. } => Some(AppendOutcome::AlreadyQueued),
        Effect::Conflict { .. } => Some(AppendOutcome::Conflict),
        Effect::UploadGone { .. } => Some(AppendOutcome::UploadGone),
        _ => None,
    };
    effects
        .iter()
        .find_map(of)
        .unwrap_or(AppendOutcome::Unknown)
}

/// The answer to a chunk.
pub(super) fn chunk_outcome(effects: &[Effect]) -> AppendOutcome {
    let stored = effects
        .iter()
        .any(|e| matches!(e, Effect::ChunkStored { .. }));
    if stored {
        AppendOutcome::ChunkStored
    } else {
        AppendOutcome::UploadGone
    }
}
