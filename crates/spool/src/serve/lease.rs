//! The Lease stream: requests to the state thread, events back; bodies that are no longer in RAM are read here, so
//! that neither the state thread nor another node's stream waits for the disk.

use std::sync::atomic::Ordering;

use proto::v1;
use proto::v1::lease_event::What;
use proto::v1::lease_request;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{Answers, FRAMES_AHEAD, Services};
use crate::event::{LeaseCall, Outgoing, Piece, StateEvent, StreamId};

/// Octets of events in one frame.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Events in one frame.
const EVENTS_PER_FRAME: usize = 128;

impl Services {
    pub(super) fn lease_stream(
        &self,
        frames: Streaming<v1::LeaseFrame>,
    ) -> Answers<v1::LeaseEvents> {
        let (events, answers) = mpsc::channel(FRAMES_AHEAD);
        tokio::spawn(self.clone().take_leases(frames, events));
        tokio_stream::wrappers::ReceiverStream::new(answers)
    }

    async fn take_leases(
        self,
        mut frames: Streaming<v1::LeaseFrame>,
        events: mpsc::Sender<Result<v1::LeaseEvents, Status>>,
    ) {
        let Ok(Some(first)) = frames.message().await else {
            return;
        };
        let mut requests = first.requests.into_iter();
        let hello = match requests.next().and_then(|r| r.what) {
            Some(lease_request::What::Hello(hello))
                if hello.incarnation.len() == 16 && !hello.node.is_empty() =>
            {
                hello
            }
            _ => {
                let text = "a Lease stream begins with a hello: node, incarnation, boot id";
                let _ = events.send(Err(Status::invalid_argument(text))).await;
                return;
            }
        };
        let stream: StreamId = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let (to, outgoing) = mpsc::unbounded_channel();
        self.tell(stream, LeaseCall::Connected { hello, to });
        tokio::spawn(self.clone().send_events(outgoing, events));
        for request in requests {
            self.tell(stream, LeaseCall::Request(request));
        }
        while let Ok(Some(frame)) = frames.message().await {
            for request in frame.requests {
                self.tell(stream, LeaseCall::Request(request));
            }
        }
        self.tell(stream, LeaseCall::Disconnected);
    }

    fn tell(&self, stream: StreamId, call: LeaseCall) {
        let _ = self.mail.state.send(StateEvent::Lease(stream, call));
    }

    async fn send_events(
        self,
        mut events: mpsc::UnboundedReceiver<Outgoing>,
        to: mpsc::Sender<Result<v1::LeaseEvents, Status>>,
    ) {
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, EVENTS_PER_FRAME).await > 0 {
            let mut frame = v1::LeaseEvents::default();
            let mut size = 0;
            for outgoing in batch.drain(..) {
                let Some(event) = self.with_body(outgoing).await else {
                    continue;
                };
                size += body_len(&event);
                frame.events.push(event);
                if size >= FRAME_BYTES_MAX {
                    size = 0;
                    if to.send(Ok(std::mem::take(&mut frame))).await.is_err() {
                        return;
                    }
                }
            }
            if !frame.events.is_empty() && to.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    }

    /// The event with its body. A body that cannot be read is not handed out: its item stays leased until it expires
    /// or another replica leads, and the log says which.
    async fn with_body(&self, outgoing: Outgoing) -> Option<v1::LeaseEvent> {
        let (mut event, pieces) = match outgoing {
            Outgoing::Event(event) => return Some(*event),
            Outgoing::Read { event, pieces } => (event, pieces),
        };
        let wanted: u64 = pieces.iter().map(|p| p.length).sum();
        match self.read(event.shard + 1, pieces).await {
            Ok(body) if body.len() as u64 == wanted => {
                if let Some(What::Handout(handout)) = &mut event.what {
                    handout.body = body;
                }
                Some(*event)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::error!(
                    shard = event.shard,
                    error,
                    "a body cannot be read for its handout"
                );
                None
            }
        }
    }

    pub(super) async fn read(
        &self,
        group: u32,
        pieces: Vec<Piece>,
    ) -> Result<bytes::Bytes, String> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || {
            crate::runtime::read_pieces(&reader, group, &pieces)
        });
        read.await.unwrap_or_else(|e| Err(e.to_string()))
    }
}

fn body_len(event: &v1::LeaseEvent) -> usize {
    match &event.what {
        Some(What::Handout(handout)) => handout.body.len() + 256,
        _ => 64,
    }
}
