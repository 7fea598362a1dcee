//! A message's body on its way to the next hop: in bounded pieces, and checked before its end.

use std::time::Instant;

use bytes::Bytes;
use mail::{Digest, Digester};

use crate::attempt::Work;
use crate::connection::now;
use crate::node::Node;

/// A range of a large body: what one Fetch gives at most.
const FETCH_BYTES: u32 = 1024 * 1024;

/// The body, from the hand-out or fetched piece by piece.
pub(crate) struct Body {
    digester: Digester,
    offset: u64,
    size: u64,
    started: Instant,
}

impl Body {
    pub(crate) fn new(work: &Work) -> Body {
        let size = work
            .handout
            .message
            .as_ref()
            .map_or(0, |message| message.size);
        Body {
            digester: Digester::default(),
            offset: 0,
            size,
            started: now(),
        }
    }

    /// The next piece, and whether it is the last one.
    pub(crate) async fn next(&mut self, node: &Node, work: &Work) -> Result<(Bytes, bool), String> {
        let inline = &work.handout.body;
        let bytes = if !inline.is_empty() || self.size == 0 {
            inline.clone()
        } else {
            let length = u32::try_from(self.size - self.offset)
                .unwrap_or(u32::MAX)
                .min(FETCH_BYTES);
            let fetched = node
                .queue
                .fetch(work.shard, work.item.message, self.offset, length)
                .await;
            fetched.map_err(|error| format!("the body cannot be read from the queue: {error}"))?
        };
        self.digester.update(&bytes);
        self.offset += bytes.len() as u64;
        if bytes.is_empty() && self.offset < self.size {
            return Err(format!(
                "the queue's body ends at {} of {} octets",
                self.offset, self.size
            ));
        }
        Ok((bytes, self.offset >= self.size))
    }

    /// Everything written so far is the message that the edge took.
    pub(crate) fn check(&self, work: &Work) -> Result<(), String> {
        let declared = work
            .handout
            .message
            .as_ref()
            .and_then(|message| Digest::from_slice(&message.digest));
        if declared == Some(self.digester.finish()) && self.offset == self.size {
            return Ok(());
        }
        metrics::counter!("postroad_bodies_damaged_total").increment(1);
        tracing::error!(item = %work.item, shard = work.shard, octets = self.offset, seconds = (now() - self.started).as_secs(),
            "the body does not have the digest that it was accepted with: it is not sent; check the queue nodes' disks");
        Err("the message's body is damaged in the queue".into())
    }
}
