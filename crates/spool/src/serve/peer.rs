//! The Peer service: what other replicas send.

use std::time::Instant;

use proto::v1;
use proto::v1::peer_server::Peer;
use proto::v1::snapshot_chunk::What::Begin;
use proto::{Right, require};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, PeerRunning, PeerServices};
use crate::event::RaftEvent;

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
                    tracing::warn!(
                        from = identity.name,
                        error = status.message(),
                        "a replica's frame is refused"
                    );
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
}

impl PeerServices {
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
