//! A delivery node of a test: leases everything, and settles all of it as delivered.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use proto::client::{QueueClient, SettleOutcome};
use proto::v1::{self, LeaseEvent, lease_event, lease_request};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Nothing settled for this long: something is wrong. A disk that takes no write for ten seconds, and the election after it, are not.
const SILENCE: Duration = Duration::from_secs(30);
/// No event for this long: whoever led leads no more, or an answer is lost.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Leaders are there after this.
const READY: Duration = Duration::from_secs(10);

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

/// What it took to deliver everything.
#[derive(Debug)]
pub struct Delivered {
    /// Items that were given out, each time counted.
    pub handouts: usize,
    /// How often lease sessions were opened on all shards: more than once when leaders changed, or a node began again.
    pub openings: usize,
}

/// Leases and settles as delivered, until `expected` items are. Lease sessions are opened again and settles retried, as a
/// delivery node does.
///
/// # Errors
/// Nothing came for 30 s, or a body is not as long as its message says.
pub async fn deliver_all(client: &QueueClient, shards: u32, expected: usize) -> Result<Delivered> {
    let (done, mut all) = mpsc::unbounded_channel();
    let mut leases = Leases::new(client, shards, done);
    leases.open().await;
    let mut handouts = 0;
    let mut settles = JoinSet::new();
    let mut settled = HashSet::new();
    let mut since = Instant::now();
    while settled.len() < expected {
        let (count, opened) = (settled.len(), leases.openings);
        ensure!(
            since.elapsed() < SILENCE,
            "{count} of {expected} items are delivered, after {handouts} handouts and {opened} times opened lease sessions"
        );
        tokio::select! {
            Some(item) = settles.join_next() => {
                settled.extend(item?);
                since = Instant::now();
            }
            Some(event) = all.recv() => {
                if let Some(request) = answer(event)? {
                    handouts += 1;
                    settles.spawn(settle(client.clone(), request));
                }
            }
            () = tokio::time::sleep(AGAIN_AFTER) => leases.open().await,
        }
    }
    let openings = leases.openings;
    leases.streams.shutdown().await;
    Ok(Delivered { handouts, openings })
}

/// The settle that an event asks for.
fn answer(event: LeaseEvent) -> Result<Option<v1::SettleRequest>> {
    let Some(lease_event::What::Handout(handout)) = event.what else {
        return Ok(None);
    };
    let size = handout.message.as_ref().map_or(0, |m| m.size);
    ensure!(
        handout.body.len() as u64 == size,
        "a body of {} octets, not {size}",
        handout.body.len()
    );
    Ok(Some(v1::SettleRequest {
        request: 0,
        shard: event.shard,
        item: handout.item,
        token: handout.token,
        session: handout.session,
        release: false,
        results: vec![delivered()],
    }))
}

/// The item, when it is settled now.
async fn settle(client: QueueClient, request: v1::SettleRequest) -> Option<(Bytes, u32)> {
    let item = request.item.clone()?;
    let outcome = client.settle(request).await;
    (outcome != SettleOutcome::Fenced).then_some((item.message, item.number))
}

/// Streams to the leaders, with a lease session for each shard.
struct Leases<'a> {
    client: &'a QueueClient,
    shards: u32,
    done: mpsc::UnboundedSender<LeaseEvent>,
    incarnation: Bytes,
    openings: usize,
    streams: JoinSet<()>,
}

impl<'a> Leases<'a> {
    fn new(client: &'a QueueClient, shards: u32, done: mpsc::UnboundedSender<LeaseEvent>) -> Self {
        // Later ones compare greater.
        let begun = crate::queue::wall_ms().to_be_bytes();
        Leases {
            client,
            shards,
            done,
            incarnation: Bytes::copy_from_slice(&[begun, rand::random()].concat()),
            openings: 0,
            streams: JoinSet::new(),
        }
    }

    /// Opens all that can be opened, in place of what was.
    async fn open(&mut self) {
        self.openings += 1;
        self.streams.shutdown().await;
        let Ok(view) = self.client.ready(READY).await else {
            return;
        };
        for (address, groups) in view.leaders() {
            // A node that is not there is asked again.
            let _ = self.open_at(address, groups).await;
        }
    }

    async fn open_at(&mut self, address: &str, groups: Vec<u32>) -> Result<()> {
        let hello = v1::LeaseHello {
            node: "d1".into(),
            incarnation: self.incarnation.clone(),
            boot_id: "boot".into(),
        };
        let (to, mut events) = self.client.lease(address, hello).await?;
        for shard in groups.into_iter().filter(|g| *g < self.shards) {
            let open = v1::OpenSession {
                shard,
                sequence: self.openings as u64,
                ..Default::default()
            };
            to.send(say(lease_request::What::Open(open))).await?;
        }
        to.send(say(lease_request::What::Credit(CREDIT))).await?;
        let done = self.done.clone();
        self.streams.spawn(async move {
            let _keep = to;
            while let Some(Ok(event)) = events.next().await {
                if done.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}
