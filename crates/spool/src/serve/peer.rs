//! The Peer service: what other replicas send.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;
use proto::v1::peer_server::Peer;
use proto::v1::snapshot_chunk::What::Begin;
use proto::{Rare, Right, require};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, PeerRunning, PeerServices};
use crate::event::{RaftEvent, StateEvent};

/// Of refused frames one in so long is written to the log: a replica that is refused tries ten times a second.
const REFUSED_LOGGED: Duration = Duration::from_secs(10);

static REFUSED: Rare = Rare::new(REFUSED_LOGGED);

/// How long the first chunk of a snapshot may take.
const FIRST_CHUNK: std::time::Duration = std::time::Duration::from_secs(10);

#[tonic::async_trait]
impl Peer for PeerServices {
    type ExchangeStream = Answers<v1::PeerAck>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let identity = require(&request, Right::Peer)?;
        if self.running.get().is_none() {
            return Err(Status::unavailable("this node is still starting"));
        }
        let mut frames = request.into_inner();
        let (to, answers) = mpsc::channel(1);
        let services = self.clone();
        tokio::spawn(async move {
            let Some(running) = services.running.get() else {
                return;
            };
            loop {
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    () = to.closed() => return,
                };
                let Ok(Some(frame)) = frame else { return };
                if let Err(status) = services.take(running, &identity.name, frame) {
                    metrics::counter!("postroad_peer_refused_total").increment(1);
                    if let Some(withheld) = REFUSED.pass(Instant::now()) {
                        tracing::warn!(
                            from = identity.name,
                            error = status.message(),
                            withheld,
                            "a replica's frame is refused"
                        );
                    }
                    let _ = to.send(Err(status)).await;
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(
            answers,
        )))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotStaged>, Status> {
        let identity = require(&request, Right::Peer)?;
        let Some(running) = self.running.get() else {
            return Err(Status::unavailable("this node is still starting"));
        };
        let mut chunks = request.into_inner();
        let first = tokio::time::timeout(FIRST_CHUNK, chunks.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no chunk came"))??;
        let Some(Begin(frame)) = first.and_then(|chunk| chunk.what) else {
            return Err(Status::invalid_argument("the first chunk says who sends"));
        };
        self.introducer
            .check_frame(&identity.name, &frame)
            .map_err(Status::failed_precondition)?;
        if let Some(reason) = running.health.stopped() {
            return Err(Status::unavailable(format!(
                "this replica node has stopped: {reason}"
            )));
        }
        let staged = running.snapshots.receive(frame, chunks).await;
        let refusal = staged.err().unwrap_or_default();
        if !refusal.is_empty() {
            tracing::warn!(from = identity.name, refusal, "a snapshot is refused");
        }
        Ok(Response::new(v1::SnapshotStaged { refusal }))
    }

    async fn introduce(
        &self,
        request: Request<v1::Introduction>,
    ) -> Result<Response<v1::Introduction>, Status> {
        let identity = require(&request, Right::Peer)?;
        let introduction = request.into_inner();
        if identity.name != introduction.node.to_string() {
            let text = format!(
                "the certificate is of queue node {}, the introduction of node {}",
                identity.name, introduction.node
            );
            return Err(Status::permission_denied(text));
        }
        Ok(Response::new(self.introducer.answer(&introduction)))
    }

    async fn fetch_entry(
        &self,
        request: Request<v1::FetchEntryRequest>,
    ) -> Result<Response<v1::FetchEntryResponse>, Status> {
        let identity = require(&request, Right::Peer)?;
        let request = request.into_inner();
        let Some(running) = self.running.get() else {
            return Err(Status::unavailable("this node is still starting"));
        };
        // The same questions as for a frame: of this cluster, for this node, from a store that is known.
        let frame = v1::PeerFrame {
            cluster_id: request.cluster_id,
            from_node: request.from_node,
            to_node: request.to_node,
            from_incarnation: request.from_incarnation,
            ..v1::PeerFrame::default()
        };
        self.introducer
            .check_frame(&identity.name, &frame)
            .map_err(Status::failed_precondition)?;
        if let Some(reason) = running.health.stopped() {
            return Err(Status::unavailable(format!(
                "this replica node has stopped: {reason}"
            )));
        }
        let given = Self::give(running, request.group, request.index, request.whole).await?;
        Ok(Response::new(given))
    }
}

impl PeerServices {
    /// The octets of a committed entry: from the log while it holds the entry, else from wherever its data is kept.
    async fn give(
        running: &PeerRunning,
        group: u32,
        index: u64,
        whole: bool,
    ) -> Result<v1::FetchEntryResponse, Status> {
        let ended = |_| Status::unavailable("this node ends");
        let _permit = running.fetches.acquire().await;
        let (reply, in_log) = oneshot::channel();
        let _ = running.mail.raft.send(RaftEvent::Locate {
            group,
            index,
            reply,
        });
        let mut places = vec![in_log.await.map_err(ended)?];
        if !whole {
            let (reply, kept) = oneshot::channel();
            let _ = running.mail.state.send(StateEvent::LocateBody {
                group,
                index,
                reply,
            });
            places.push(kept.await.map_err(ended)?);
        }
        for location in places.into_iter().flatten() {
            let reader = running.reader.clone();
            let read =
                tokio::task::spawn_blocking(move || reader.read_entry(location, group, index))
                    .await;
            match read {
                Ok(Ok(entry)) => {
                    let context = if whole { entry.context } else { Bytes::new() };
                    return Ok(v1::FetchEntryResponse {
                        found: true,
                        term: entry.term,
                        digest: crate::runtime::digest(&context, &entry.data),
                        context,
                        data: entry.data,
                    });
                }
                Ok(Err(error)) => {
                    tracing::warn!(group, index, %error, "cannot read an entry for another replica");
                }
                Err(error) => return Err(Status::internal(error.to_string())),
            }
        }
        Ok(v1::FetchEntryResponse::default())
    }

    fn take(&self, running: &PeerRunning, name: &str, frame: v1::PeerFrame) -> Result<(), Status> {
        self.introducer
            .check_frame(name, &frame)
            .map_err(Status::failed_precondition)?;
        if let Some(reason) = running.health.stopped() {
            return Err(Status::unavailable(format!(
                "this replica node has stopped: {reason}"
            )));
        }
        if running
            .directory
            .heard(frame.from_node, frame.wall_ms, frame.full, Instant::now())
        {
            let _ = running.mail.raft.send(RaftEvent::Full {
                node: frame.from_node,
                full: frame.full,
            });
        }
        running
            .directory
            .heard_state_machine(frame.from_node, frame.state_machine);
        for found in &frame.digests {
            let Ok(digest) = <[u8; 16]>::try_from(&found.digest[..]) else {
                return Err(Status::invalid_argument("a digest of rows has 16 octets"));
            };
            let judgement =
                running
                    .directory
                    .digested(found.group, found.index, frame.from_node, digest);
            if running.health.judge(found.group, &judgement) {
                let _ = running.mail.raft.send(RaftEvent::Stop);
                let text = "this replica node has stopped: its rows differ from the others'";
                return Err(Status::unavailable(text));
            }
        }
        if frame.messages.is_empty() {
            return Ok(());
        }
        let mut messages = Vec::with_capacity(frame.messages.len());
        for message in frame.messages {
            let (group, message) = crate::wire::raft::from_wire(message)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            if crate::directory::node_of(message.from) != frame.from_node {
                return Err(Status::invalid_argument(
                    "a Raft message names another node than its frame",
                ));
            }
            messages.push((group, message));
        }
        let _ = running.mail.raft.send(RaftEvent::Peer(messages));
        Ok(())
    }
}
