//! The raw Lease stream: requests out in frames, events in one by one. Lease sessions, keepalives and credit are
//! the business of whoever holds it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{CALL_TIMEOUT, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::v1::queue_client::QueueClient as Stub;
use crate::v1::{LeaseEvent, LeaseEvents, LeaseFrame, LeaseHello, LeaseRequest, lease_request};

/// Requests that wait to be written; a stream that is this far behind stops whoever asks.
const REQUESTS_WAITING_MAX: usize = 1024;
/// Requests in one frame.
const FRAME_REQUESTS_MAX: usize = 32;

impl QueueClient {
    /// Opens a Lease stream to a queue node. `hello` goes out with the call itself: a queue node answers a stream only when
    /// it knows whose it is. Dropping the sender ends it in order; dropping the events breaks it.
    pub async fn lease(
        &self,
        address: &str,
        hello: LeaseHello,
    ) -> Result<(mpsc::Sender<LeaseRequest>, LeaseStream), Status> {
        let node = self
            .inner
            .nodes
            .get(address)
            .map_err(Status::invalid_argument)?;
        let (ask, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let what = Some(lease_request::What::Hello(hello));
        // The first of REQUESTS_WAITING_MAX places, and the receiver is in scope.
        let _ = ask.try_send(LeaseRequest { what });
        let mut stub = Stub::new(node.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = tokio::time::timeout(CALL_TIMEOUT, stub.lease(Requests { requests }));
        let frames = opened.await.map_err(|_| {
            Status::unavailable(format!(
                "{address} gave no Lease stream for {} s",
                CALL_TIMEOUT.as_secs()
            ))
        })??;
        Ok((
            ask,
            LeaseStream {
                frames: frames.into_inner(),
                events: VecDeque::new(),
            },
        ))
    }
}

/// Takes what is there into one frame.
struct Requests {
    requests: mpsc::Receiver<LeaseRequest>,
}

impl Stream for Requests {
    type Item = LeaseFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LeaseFrame>> {
        let mut requests = Vec::new();
        self.requests
            .poll_recv_many(cx, &mut requests, FRAME_REQUESTS_MAX)
            .map(|count| (count > 0).then_some(LeaseFrame { requests }))
    }
}

/// Events of a queue node; ends with the stream, after an error if it broke.
#[derive(Debug)]
pub struct LeaseStream {
    frames: Streaming<LeaseEvents>,
    events: VecDeque<LeaseEvent>,
}

impl Stream for LeaseStream {
    type Item = Result<LeaseEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match Pin::new(&mut self.frames).poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => self.events = frame.events.into(),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
