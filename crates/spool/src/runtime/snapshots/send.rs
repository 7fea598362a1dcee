//! Sending a snapshot: a thread reads rows and bodies, a task carries them over a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;
use proto::v1::peer_client::PeerClient;
use proto::v1::snapshot_chunk::What;
use raft::eraftpb::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Report, Snapshots};
use crate::collect::read_whole;
use crate::directory::node_of;
use crate::log::{Location, LogReader};
use crate::node::SnapshotInput;
use crate::runtime::Helper;
use crate::snapshot::{CHUNK_BYTES, Encoder};
use crate::state::{Export, StoreError};

/// Octets a second that one snapshot takes at most: the disk and the network belong to mail first (queue.md 4.5).
const BYTES_PER_SECOND: u64 = 200_000_000;

/// A connection that stands, and takes nothing for so long, is given up; so is an answer that does not come.
const STALL: Duration = Duration::from_secs(60);

/// Octets a second at which a receiver compares its bodies with what edges took, at least, once it has them all: for so long
/// its answer may take beyond [`STALL`].
const VERIFIED_PER_SECOND: u64 = 32_000_000;

/// How often it is looked at whether anything moves.
const LOOK: Duration = Duration::from_secs(1);

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Chunks ahead of the HTTP/2 window.
const CHUNKS_AHEAD: usize = 2;

/// Sends one snapshot and reports.
pub(super) async fn send(hub: Snapshots, mut report: Report, message: Message) {
    let begun = Instant::now();
    let (group, node, id) = (report.group, node_of(report.to), report.id);
    let taken = {
        let mut outgoing = hub.outgoing();
        let taken = outgoing.get_mut(&id);
        taken.and_then(|it| Some((it.export.take()?, it.sent.clone(), it.dropped.clone())))
    };
    let Some((export, sent, dropped)) = taken else {
        return;
    };
    let index = export.applied.0;
    let sending = stream(&hub, group, id, node, message, export, &sent);
    let outcome = tokio::select! {
        outcome = sending => outcome,
        () = dropped.cancelled() => Err("this replica leads no longer, or ends".to_owned()),
    };
    let octets = sent.load(Ordering::Relaxed);
    match outcome {
        Ok(()) => {
            report.staged = true;
            let took = begun.elapsed();
            tracing::info!(
                group,
                node,
                index,
                octets,
                ?took,
                "a replica has its snapshot"
            );
        }
        Err(error) => {
            tracing::warn!(
                group,
                node,
                index,
                octets,
                error,
                "a snapshot did not arrive; it is tried again"
            );
        }
    }
}

async fn stream(
    hub: &Snapshots,
    group: u32,
    id: u64,
    node: u64,
    message: Message,
    export: Export,
    sent: &Arc<AtomicU64>,
) -> Result<(), String> {
    let route = hub.0.peers.route(node);
    let route = route.ok_or_else(|| format!("node {node} is not known here"))?;
    let mut frame = route.frame();
    frame.messages = crate::wire::raft::to_wire(group, message)
        .into_iter()
        .collect();
    let connecting = tokio::time::timeout(CONNECT, route.connect()).await;
    let channel = connecting.map_err(|_| "no connection within 5 s".to_owned())??;
    let mut client =
        PeerClient::new(channel).max_encoding_message_size(proto::tls::MESSAGE_BYTES_MAX);
    let (to, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let begin = What::Begin(frame);
    let _ = to.send(v1::SnapshotChunk { what: Some(begin) }).await;
    let producer = Producer {
        to,
        group,
        hub: hub.clone(),
        reader: hub.0.reader.clone(),
        helper: hub.helper(),
        sent: sent.clone(),
        begun: Instant::now(),
        left: 0,
        encoder: Encoder::default(),
        moved: Arc::default(),
    };
    let moved = producer.moved.clone();
    let producing = tokio::task::spawn_blocking(move || producer.run(id, &export));
    let mut call = std::pin::pin!(client.snapshot(ReceiverStream::new(chunks)));
    let (mut last, mut since) = (0, Instant::now());
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            () = tokio::time::sleep(LOOK) => {
                let now = moved.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() >= patience(producing.is_finished(), sent) {
                    return Err(format!("nothing moved for {:.0?}", since.elapsed()));
                }
            }
        }
    };
    let refusal = match answer {
        Ok(staged) => staged.into_inner().refusal,
        Err(status) => status.message().to_owned(),
    };
    if refusal.is_empty() {
        return Ok(());
    }
    // What went wrong here explains what went wrong there.
    match producing.await {
        Ok(Err(Broken::Here(error))) => Err(error),
        _ => Err(refusal),
    }
}

/// How long nothing may move.
fn patience(all_is_sent: bool, sent: &AtomicU64) -> Duration {
    match all_is_sent {
        true => STALL + Duration::from_secs(sent.load(Ordering::Relaxed) / VERIFIED_PER_SECOND),
        false => STALL,
    }
}

/// Why rows and bodies stopped.
enum Broken {
    /// Something failed on this side.
    Here(String),
    /// The other side takes no more, and says why.
    There,
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken::Here(error.to_string())
    }
}

/// Reads and encodes, in a thread.
struct Producer {
    to: mpsc::Sender<v1::SnapshotChunk>,
    group: u32,
    hub: Snapshots,
    reader: LogReader,
    helper: Helper,
    sent: Arc<AtomicU64>,
    /// For the throttle.
    begun: Instant,
    left: u64,
    encoder: Encoder,
    /// Chunks so far.
    moved: Arc<AtomicU64>,
}

impl Producer {
    fn run(mut self, id: u64, export: &Export) -> Result<(), Broken> {
        export.rows(|table, key, value| {
            self.encoder.row(table, key, value);
            self.send_if_long()
        })?;
        export.bodies(|body| {
            let data = self.data(body.index, body.location)?;
            self.encoder
                .body(body.index, body.extents, body.bytes, &data);
            self.sent.fetch_add(body.bytes, Ordering::Relaxed);
            self.send_if_long()
        })?;
        self.encoder.end(id);
        let last = self.encoder.take();
        self.send(last)
    }

    /// What this disk does not give back comes from another replica, and is mended: else no replica could ever be filled
    /// from here. No segment of it is recycled while it is pinned, so one that is not there is damage as well.
    fn data(&self, index: u64, location: Location) -> Result<Bytes, Broken> {
        let read = read_whole(&self.reader, location, self.group, index);
        let error = match read {
            Ok(body) => return Ok(body.data),
            Err(error) => error,
        };
        let mender = &self.hub.0.mender;
        let instead = mender.body_instead_blocking(self.group, index, location, &error);
        instead.map_err(|why| {
            let text = format!("the body of entry {index} cannot be read: {why}");
            tracing::error!(group = self.group, text, "a snapshot is not complete");
            Broken::Here(text)
        })
    }

    fn send_if_long(&mut self) -> Result<(), Broken> {
        if self.encoder.len() < CHUNK_BYTES {
            return Ok(());
        }
        let chunk = self.encoder.take();
        self.send(chunk)
    }

    fn send(&mut self, records: Bytes) -> Result<(), Broken> {
        if self.helper.must_end() {
            return Err(Broken::Here("this node ends".to_owned()));
        }
        let octets = records.len() as u64;
        let what = Some(What::Records(records));
        let sent = self.to.blocking_send(v1::SnapshotChunk { what });
        sent.map_err(|_| Broken::There)?;
        self.moved.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("postroad_snapshot_bytes_total", "direction" => "sent").increment(octets);
        self.hub
            .tell(self.group, SnapshotInput::Progress { octets });
        self.left += octets;
        let due = Duration::from_secs_f64(self.left as f64 / BYTES_PER_SECOND as f64);
        std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
        Ok(())
    }
}
