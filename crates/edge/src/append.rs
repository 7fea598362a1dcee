//! Streams a message to the queue; 250 only after the outcome.
//!
//! ```text
//! begin ── push, push … ── finish
//!            │               ├─ the whole is at most 1 MiB: one AppendMessage with the body in it
//!            └─ a full chunk,│
//!               2 min, or     └─ else: AppendMessage that names how many chunks went before it
//!               memory short: AppendChunk
//! ```
//!
//! A message has a bounded number of chunks, so they may be as small as time and memory want only at first: see [`Cuts`].
//!
//! The trace header is the only thing that is put before the content; every octet of the content stays as it came.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use mail::trace::{Protocol, Received};
use mail::{Digest, Digester, Envelope, Reply, Ulid};
use proto::client::{AppendResult, GIVE_UP, QueueClient};
use proto::v1::append_request::What;
use proto::v1::{AppendAbandon, AppendChunk, AppendMessage, MessageFacts};
use smtp::server::Commit;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::cuts::Cuts;
use crate::facts::{self, Needs};
use crate::memory::{Memory, Share};
use crate::policy::Admission;
use crate::tls::TlsFacts;

/// Octets of one chunk, and of the largest body that goes as a whole (queue.proto, AppendChunk).
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// A chunk that is too small to be sent for its age waits so many times longer: eight minutes, before the queue takes the
/// upload for abandoned after ten.
const SMALL_CHUNK_WAITS: u32 = 4;
/// The text of an id that is not drawn yet: as long as the real one, which is written over it.
const ID_OCTETS: usize = 26;

/// What a node needs to append.
#[derive(Clone)]
pub(crate) struct Appender {
    pub queue: QueueClient,
    pub memory: Memory,
    /// Name of this node.
    pub node: Arc<str>,
    /// Our name in trace headers.
    pub hostname: Arc<str>,
    pub chunk_after: Duration,
}

/// Who brings a message.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub address: IpAddr,
    pub helo: String,
    pub protocol: Protocol,
    pub listener: Arc<str>,
    /// `None`: it came in clear.
    pub tls: Option<TlsFacts>,
}

/// How a message ended at the edge.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is on a majority of disks.
    Queued(Ulid),
    /// It is not, and the client is told so.
    Refused(Option<Ulid>, Reply, &'static str),
    /// Nobody knows; to say anything would be a lie.
    Unknown(Ulid),
}

/// A message on its way in.
pub(crate) struct Incoming {
    appender: Appender,
    envelope: Arc<Envelope>,
    admission: Admission,
    client: Client,
    arrived_ms: u64,
    /// Octets of the trace header; they lead the body.
    trace_bytes: usize,
    /// It has no octets above 127.
    trace_ascii: bool,
    /// Where the id stands in the trace header.
    id_at: usize,
    /// What was not sent yet; with chunks sent, only what came after them.
    gathered: BytesMut,
    share: Share,
    since: Instant,
    cuts: Cuts,
    upload: Option<Upload>,
    /// The outcome is decided already; what still comes is thrown away, because the client hears us only at the dot.
    failed: Option<(Reply, &'static str)>,
}

/// A message of which chunks were sent.
struct Upload {
    id: Ulid,
    shard: u32,
    digester: Digester,
    sent: u32,
    octets: u64,
    /// One at a time: the queue keeps chunks in the order of their numbers.
    in_flight: Option<JoinHandle<AppendResult>>,
}

impl Drop for Incoming {
    /// The client left, or its message is refused: the queue need not keep the chunks until it finds them too old. Sent once
    /// and behind the last chunk; if it does not arrive, time does the same.
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let (queue, runtime) = (self.appender.queue.clone(), Handle::try_current());
        let Ok(runtime) = runtime else { return };
        runtime.spawn(async move {
            if let Some(task) = upload.in_flight.take() {
                let _ = task.await;
            }
            let message = proto::ulid_bytes(upload.id);
            let abandon = What::Abandon(AppendAbandon { message });
            queue.append(upload.shard, abandon).await;
        });
    }
}

impl Appender {
    /// The content of `envelope` is next, of at most `octets_max`.
    pub fn begin(
        &self,
        envelope: Arc<Envelope>,
        admission: Admission,
        client: Client,
        octets_max: u64,
    ) -> Incoming {
        let arrived_ms = unix_millis();
        let placeholder = [b'0'; ID_OCTETS];
        let tls = client.tls.as_ref();
        let tls = tls.map(|tls| format!("{} {}", tls.version, tls.cipher));
        let trace = Received {
            helo: &client.helo,
            client: client.address,
            client_name: None,
            by: &self.hostname,
            protocol: client.protocol,
            tls: tls.as_deref(),
            id: std::str::from_utf8(&placeholder).unwrap_or_default(),
            recipients: &envelope.recipients,
            unix_millis: arrived_ms,
        }
        .compose();
        let marker = b" id 00000000000000000000000000";
        // The first one: what stands before it has no space in it, and the recipient behind it may have this in quotes.
        let id_at = trace
            .windows(marker.len())
            .position(|w| w == marker)
            .map_or(0, |at| at + marker.len() - ID_OCTETS);
        let mut gathered = BytesMut::with_capacity(crate::memory::GRAIN);
        gathered.extend_from_slice(&trace);
        Incoming {
            appender: self.clone(),
            envelope,
            admission,
            client,
            arrived_ms,
            trace_bytes: trace.len(),
            trace_ascii: trace.is_ascii(),
            id_at,
            gathered,
            share: self.memory.share(),
            since: Instant::now(),
            cuts: Cuts::new(octets_max.saturating_add(trace.len() as u64)),
            upload: None,
            failed: None,
        }
    }
}

impl Incoming {
    /// Takes content. Waits while the node's memory is in use or a chunk is on its way: that is the back-pressure.
    pub async fn push(&mut self, mut content: &[u8]) {
        while !content.is_empty() && self.failed.is_none() {
            if self.gathered.len() >= CHUNK_BYTES_MAX {
                self.send_chunk().await;
                continue;
            }
            let mut part = content.len().min(CHUNK_BYTES_MAX - self.gathered.len());
            let least = self.cuts.least();
            // Whoever waits for memory must hold none, or all wait for each other.
            if self.gathered.is_empty() {
                let wanted = part.max(least);
                if !self.share.grow_now(wanted) {
                    self.share.grow(wanted).await;
                }
            } else if !self.share.grow_now(self.gathered.len() + part) {
                if self.gathered.len() < least {
                    // So much was taken before the chunk began.
                    part = part.min(least - self.gathered.len());
                } else if self.gathered.len() > self.trace_bytes || self.upload.is_some() {
                    self.send_chunk().await;
                    continue;
                } else {
                    self.share.grow(self.gathered.len() + part).await;
                }
            }
            self.gathered.extend_from_slice(&content[..part]);
            content = &content[part..];
        }
    }

    /// When what was gathered goes to the queue although it is no full chunk.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.failed.is_none() && !self.gathered.is_empty();
        let patience = match self.gathered.len() < self.cuts.least() {
            true => self.appender.chunk_after * SMALL_CHUNK_WAITS,
            false => self.appender.chunk_after,
        };
        waiting.then(|| self.since + patience)
    }

    /// Sends what was gathered, if it is due.
    pub async fn flush_if_due(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.send_chunk().await;
        }
    }

    /// The final dot: appends, and says what became of it.
    pub async fn finish(mut self, commit: &Commit) -> Outcome {
        if self.upload.is_some() {
            if !self.gathered.is_empty() {
                self.send_chunk().await;
            }
            self.chunk_stored().await;
        }
        if let Some((reply, why)) = self.failed.take() {
            return Outcome::Refused(self.upload.as_ref().map(|upload| upload.id), reply, why);
        }
        let drawn = match self.upload.as_ref() {
            Some(upload) => Some((upload.id, upload.shard)),
            None => self.draw_id().await,
        };
        let Some((id, shard)) = drawn else {
            return Outcome::Refused(None, Reply::queue_unreachable(), "unreachable");
        };
        let mut facts = self.facts(id, commit);
        let body = match &self.upload {
            Some(upload) => {
                (facts.size, facts.chunks) = (upload.octets, upload.sent);
                facts.digest = Bytes::copy_from_slice(&upload.digester.finish().0);
                Bytes::new()
            }
            None => {
                let body = std::mem::take(&mut self.gathered).freeze();
                facts.size = body.len() as u64;
                facts.digest = Bytes::copy_from_slice(&Digest::of(&body).0);
                body
            }
        };
        let append = What::Append(AppendMessage {
            facts: Some(facts),
            body,
        });
        let result = self.appender.queue.append(shard, append).await;
        let outcome = outcome(id, result);
        if let Outcome::Queued(_) = outcome {
            self.upload = None;
        }
        outcome
    }

    /// Hands what was gathered to the queue as the next chunk, after the one before it was stored.
    async fn send_chunk(&mut self) {
        self.chunk_stored().await;
        self.since = Instant::now();
        if self.failed.is_some() || self.gathered.is_empty() {
            return;
        }
        if self.upload.is_none() {
            let Some((id, shard)) = self.draw_id().await else {
                return self.fail(Reply::queue_unreachable(), "unreachable");
            };
            let digester = Digester::default();
            self.upload = Some(Upload {
                id,
                shard,
                digester,
                sent: 0,
                octets: 0,
                in_flight: None,
            });
        }
        let Some(upload) = self.upload.as_mut() else {
            return;
        };
        let data = std::mem::take(&mut self.gathered).freeze();
        self.cuts.cut(data.len());
        upload.digester.update(&data);
        upload.octets += data.len() as u64;
        let chunk = AppendChunk {
            message: proto::ulid_bytes(upload.id),
            seq: upload.sent,
            data,
        };
        upload.sent += 1;
        let (queue, shard) = (self.appender.queue.clone(), upload.shard);
        let share = std::mem::replace(&mut self.share, self.appender.memory.share());
        upload.in_flight = Some(tokio::spawn(async move {
            let result = queue.append(shard, What::Chunk(chunk)).await;
            drop(share);
            result
        }));
    }

    /// Waits for the chunk on its way.
    async fn chunk_stored(&mut self) {
        let Some(task) = self
            .upload
            .as_mut()
            .and_then(|upload| upload.in_flight.take())
        else {
            return;
        };
        let refused = match task.await {
            Ok(result) => chunk_refused(result),
            Err(error) => {
                tracing::error!(%error, "the task that sends a chunk ended; the message is refused");
                Some((Reply::try_again(), "error"))
            }
        };
        if let Some((reply, why)) = refused {
            self.fail(reply, why);
        }
    }

    /// Nothing of this message is needed any more but the reply.
    fn fail(&mut self, reply: Reply, why: &'static str) {
        self.failed = Some((reply, why));
        self.gathered = BytesMut::new();
        self.share = self.appender.memory.share();
    }

    /// Draws the message's id and writes it into the trace header, which is still unsent. The id fixes the shard for good,
    /// so it needs the count of shards; `None`: no queue node told it in time.
    async fn draw_id(&mut self) -> Option<(Ulid, u32)> {
        let mut view = self.appender.queue.view();
        if view.shards() == 0 {
            view = self.appender.queue.ready(GIVE_UP).await.ok()?;
        }
        let id = self
            .appender
            .queue
            .new_message_id(unix_millis(), rand::random());
        if let Some(place) = self.gathered.get_mut(self.id_at..self.id_at + ID_OCTETS) {
            place.copy_from_slice(id.to_string().as_bytes());
        }
        Some((id, view.shard_of(id)))
    }

    fn facts(&self, id: Ulid, commit: &Commit) -> MessageFacts {
        let header = &commit.header;
        let needs = Needs::of(commit, self.trace_ascii);
        let mut facts = facts::message(id, &self.envelope, needs, &self.admission);
        facts.header_size = (self.trace_bytes + header.size) as u32;
        facts.arrived_ms = self.arrived_ms;
        facts.origin = Some(facts::origin(
            &self.client,
            &self.admission,
            header,
            &self.appender.node,
        ));
        facts
    }
}

/// Outcomes to replies: the table of the queue's idempotent append.
fn outcome(id: Ulid, result: AppendResult) -> Outcome {
    match result {
        AppendResult::Created | AppendResult::AlreadyQueued => Outcome::Queued(id),
        AppendResult::GaveUp { unknown: true } => Outcome::Unknown(id),
        other => {
            let (reply, why) = chunk_refused(other).unwrap_or((Reply::try_again(), "error"));
            Outcome::Refused(Some(id), reply, why)
        }
    }
}

/// What a client hears when a chunk was not stored. A chunk alone makes no message, so an unknown outcome may be told.
fn chunk_refused(result: AppendResult) -> Option<(Reply, &'static str)> {
    match result {
        AppendResult::ChunkStored => None,
        AppendResult::Full => Some((Reply::queue_full(), "full")),
        AppendResult::GaveUp { .. } => Some((Reply::queue_unreachable(), "unreachable")),
        AppendResult::Stale => Some((Reply::try_again(), "stale")),
        AppendResult::UploadGone => Some((Reply::try_again(), "upload_gone")),
        AppendResult::Conflict => {
            tracing::error!(
                "the queue holds another message under a fresh id: a bug or an attack; the message was refused"
            );
            Some((Reply::try_again(), "conflict"))
        }
        other => {
            tracing::error!(answer = ?other, "the queue does not understand this edge; compare their versions");
            Some((Reply::try_again(), "invalid"))
        }
    }
}

fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
