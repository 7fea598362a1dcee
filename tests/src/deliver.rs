//! A delivery node of a test: leases everything, and settles all of it as delivered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use proto::client::QueueClient;
use proto::v1::{self, LeaseEvent, lease_event, lease_request};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// No handout for this long: something is wrong.
const SILENCE: Duration = Duration::from_secs(15);

/// More than any test appends.
const CREDIT: v1::Credit = v1::Credit {
    items: 10_000,
    bytes: 256 << 20,
    classes: Vec::new(),
};

/// A request of a Lease stream.
pub fn say(what: lease_request::What) -> v1::LeaseRequest {
    v1::LeaseRequest { what: Some(what) }
}

/// A result that ends a message with one recipient.
pub fn delivered() -> v1::RecipientResult {
    v1::RecipientResult {
        recipient: 0,
        verdict: v1::Verdict::Delivered as i32,
        code: 250,
        ..Default::default()
    }
}

/// Leases `expected` items from all shards and settles them as delivered. Settles are retried as a delivery node does.
///
/// # Errors
/// Nothing came for 15 s, or a body is not as long as its message says.
pub async fn deliver_all(client: &QueueClient, shards: u32, expected: usize) -> Result<()> {
    let (done, mut all) = mpsc::unbounded_channel();
    let mut streams = lease_everything(client, shards, done).await?;
    let mut settles = JoinSet::new();
    for seen in 0..expected {
        let (event, handout) = loop {
            let event: LeaseEvent = tokio::time::timeout(SILENCE, all.recv())
                .await
                .with_context(|| format!("{seen} of {expected} handouts came"))?
                .context("the streams ended")?;
            if let Some(lease_event::What::Handout(h)) = &event.what {
                let handout = h.clone();
                break (event, handout);
            }
        };
        let size = handout.message.as_ref().map_or(0, |m| m.size);
        ensure!(
            handout.body.len() as u64 == size,
            "a body of {} octets, not {size}",
            handout.body.len()
        );
        let request = v1::SettleRequest {
            request: 0,
            shard: event.shard,
            item: handout.item,
            token: handout.token,
            session: handout.session,
            release: false,
            results: vec![delivered()],
        };
        let client = client.clone();
        settles.spawn(async move { client.settle(request).await });
    }
    while let Some(settled) = settles.join_next().await {
        settled?;
    }
    streams.shutdown().await;
    Ok(())
}

/// A stream to each leader, with a lease session for each of its shards and credit; events go to `done`.
async fn lease_everything(
    client: &QueueClient,
    shards: u32,
    done: mpsc::UnboundedSender<LeaseEvent>,
) -> Result<JoinSet<()>> {
    let view = client
        .ready(Duration::from_secs(10))
        .await
        .context("no leaders")?;
    let mut streams = JoinSet::new();
    for (address, groups) in view.leaders() {
        let hello = v1::LeaseHello {
            node: "d1".into(),
            incarnation: Bytes::from_static(&[7; 16]),
            boot_id: "boot".into(),
        };
        let (to, mut events) = client.lease(address, hello).await?;
        for shard in groups.into_iter().filter(|g| *g < shards) {
            let open = v1::OpenSession {
                shard,
                ..Default::default()
            };
            to.send(say(lease_request::What::Open(open))).await?;
        }
        to.send(say(lease_request::What::Credit(CREDIT))).await?;
        let done = done.clone();
        streams.spawn(async move {
            let _keep = to;
            while let Some(Ok(event)) = events.next().await {
                if done.send(event).is_err() {
                    return;
                }
            }
        });
    }
    Ok(streams)
}
