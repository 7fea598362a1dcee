//! The Lease stream: requests to the state thread, events back; bodies that are no longer in RAM are read here, so
//! that neither the state thread nor another node's stream waits for the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message as _;
use proto::v1;
use proto::v1::lease_event::What;
use proto::v1::lease_request;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::{Answers, FRAMES_AHEAD, Services};
use crate::event::{LeaseCall, Outgoing, Piece, StateEvent, StreamId, Unreadable};

/// Requests of one stream that wait for the state thread. A delivery node sends one or two a shard in five seconds and
/// one a change of a destination, so it never meets this; each is at most a gRPC message of 4 MiB.
const LEASE_REQUESTS_MAX: usize = 1_024;

/// Octets of events in one frame, but for a single one that has more: a quarter of what gRPC takes. A stream that is given more
/// ends, and the node that opens it again would get the same frame.
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
        let waiting = Arc::new(Semaphore::new(LEASE_REQUESTS_MAX));
        self.take_requests(stream, requests, &waiting).await;
        while let Ok(Some(frame)) = frames.message().await {
            self.take_requests(stream, frame.requests, &waiting).await;
        }
        self.tell(stream, LeaseCall::Disconnected);
    }

    /// Passes requests on, as fast as the state thread takes them: beyond [`LEASE_REQUESTS_MAX`] the stream is not
    /// read, and HTTP/2's window tells its client.
    async fn take_requests(
        &self,
        stream: StreamId,
        requests: impl IntoIterator<Item = v1::LeaseRequest>,
        waiting: &Arc<Semaphore>,
    ) {
        for request in requests {
            if let Some(what) = &request.what {
                metrics::counter!("postroad_lease_requests_total", "kind" => kind(what))
                    .increment(1);
            }
            let Ok(permit) = waiting.clone().acquire_owned().await else {
                return;
            };
            self.tell(stream, LeaseCall::Request(request, permit));
        }
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
            let mut frame = Frame::default();
            for outgoing in batch.drain(..) {
                let Some(event) = self.with_body(outgoing).await else {
                    continue;
                };
                let full = frame.push(event);
                if let Some(full) = full
                    && to.send(Ok(full)).await.is_err()
                {
                    return;
                }
            }
            let rest = frame.events;
            if !rest.events.is_empty() && to.send(Ok(rest)).await.is_err() {
                return;
            }
        }
    }

    /// The event with its body. A handout whose body cannot be read, or is not what the edge sent, does not go out: the
    /// leader hears of it, and looks again or takes the item back.
    async fn with_body(&self, outgoing: Outgoing) -> Option<v1::LeaseEvent> {
        let (mut event, pieces, again) = match outgoing {
            Outgoing::Event(event) => return Some(*event),
            Outgoing::Read {
                event,
                pieces,
                again,
            } => (event, pieces, again),
        };
        let Some(What::Handout(handout)) = &mut event.what else {
            return Some(*event);
        };
        let read = self.read(event.shard + 1, pieces).await;
        match read.and_then(|body| checked(handout, body)) {
            Ok(body) => {
                handout.body = body;
                Some(*event)
            }
            Err(reason) => {
                let item = handout.item.as_ref().and_then(crate::decide::item_id)?;
                tracing::warn!(message = %item.message, number = item.number, shard = event.shard, again, reason,
                    "a body cannot be read for its handout");
                let what = Unreadable {
                    shard: event.shard,
                    item,
                    token: queue::Token(handout.token),
                    session: queue::LeaseSessionId(handout.session),
                    again,
                    reason,
                };
                let _ = self.mail.state.send(StateEvent::Unreadable(what));
                None
            }
        }
    }

    pub(super) async fn read(
        &self,
        group: u32,
        pieces: Vec<Piece>,
    ) -> Result<bytes::Bytes, String> {
        let (reader, asked) = (self.bodies.clone(), pieces.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = |piece| crate::runtime::read_piece(&reader, group, piece);
            asked.iter().map(read).collect::<Vec<_>>()
        });
        let read = read.await.map_err(|e| e.to_string())?;
        let mut whole = Vec::with_capacity(read.len());
        for (piece, read) in pieces.iter().zip(read) {
            whole.push(match read {
                Ok(octets) => octets,
                // Another replica has it.
                Err(unread) => self.mender.piece_instead(group, piece, &unread).await?,
            });
        }
        Ok(match &whole[..] {
            [one] => one.clone(),
            many => many.concat().into(),
        })
    }
}

/// The body that was read, when it is the one that the edge sent.
fn checked(handout: &v1::Handout, body: bytes::Bytes) -> Result<bytes::Bytes, String> {
    let Some(message) = &handout.message else {
        return Err("the handout has no message".to_owned());
    };
    if body.len() as u64 != message.size {
        let (read, size) = (body.len(), message.size);
        return Err(format!("the log has {read} of its {size} octets"));
    }
    if mail::Digest::of(&body).0[..] != message.digest[..] {
        metrics::counter!("postroad_bodies_damaged_total").increment(1);
        return Err("it does not have the digest that it was accepted with".to_owned());
    }
    Ok(body)
}

/// The next frame of a stream.
#[derive(Default)]
struct Frame {
    events: v1::LeaseEvents,
    bytes: usize,
}

impl Frame {
    /// Takes an event. What was there comes back when both together would be too much.
    fn push(&mut self, event: v1::LeaseEvent) -> Option<v1::LeaseEvents> {
        // All of it: a hundred long addresses are more than the body of most mail.
        let bytes = event.encoded_len();
        let is_full = self.bytes > 0 && self.bytes + bytes > FRAME_BYTES_MAX;
        let full = is_full.then(|| std::mem::take(self).events);
        self.bytes += bytes;
        self.events.events.push(event);
        full
    }
}

/// The name of a request in the metric.
fn kind(what: &lease_request::What) -> &'static str {
    match what {
        lease_request::What::Hello(_) => "hello",
        lease_request::What::Open(_) => "open",
        lease_request::What::Reattach(_) => "reattach",
        lease_request::What::Credit(_) => "credit",
        lease_request::What::Window(_) => "window",
        lease_request::What::Busy(_) => "busy",
        lease_request::What::Keepalive(_) => "keepalive",
        lease_request::What::Extend(_) => "extend",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame counted bodies alone: with many long addresses it was more than gRPC takes, and the stream ended at every try.
    #[test]
    fn a_frame_counts_the_addresses_of_its_handouts_too() {
        let recipient = v1::HandoutRecipient {
            address: "a".repeat(254),
            ..v1::HandoutRecipient::default()
        };
        let handout = v1::Handout {
            recipients: vec![recipient; 100],
            body: vec![b'x'; 7_000].into(),
            ..v1::Handout::default()
        };
        let event = v1::LeaseEvent {
            what: Some(What::Handout(handout)),
            ..v1::LeaseEvent::default()
        };
        let (mut frame, mut frames) = (Frame::default(), Vec::new());
        for _ in 0..EVENTS_PER_FRAME {
            frames.extend(frame.push(event.clone()));
        }
        frames.push(frame.events);
        assert_eq!(
            frames.iter().map(|f| f.events.len()).sum::<usize>(),
            EVENTS_PER_FRAME
        );
        assert!(frames.iter().all(|f| f.encoded_len() < 2 * FRAME_BYTES_MAX));
    }
}
