//! What a million messages that wait cost: memory of a queue process, the rate at which more are taken beside the rate when
//! the queue was empty, and the time from a restart to the first grant.
//!
//! One queue node with its own disk; nobody delivers, so all of it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use proto::client::{AppendResult, QueueClient};
use serde_json::json;
use tests::process::{Cluster, Sink, Spec};
use tests::queue;

use crate::{GoOn, bare};

/// Appends that wait for their answer at a time.
const IN_FLIGHT: usize = 128;
/// How long a rate is measured.
const MEASURED: Duration = Duration::from_secs(5);
/// For the restart.
const PATIENCE: Duration = Duration::from_secs(120);
/// Domains of the mail that waits.
const DESTINATIONS: u64 = 1_000;

/// What of it, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Messages that wait
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Octets of a message
    #[arg(long, default_value_t = 2048)]
    octets: usize,
    /// Queue nodes
    #[arg(long, default_value_t = 1)]
    replicas: u32,
}

/// Measures and prints.
pub async fn run(options: &Options, go_on: &GoOn) -> Result<()> {
    let sink = Sink::start().await?;
    let spec = Spec {
        queues: options.replicas,
        edges: 0,
        deliveries: 1,
        ..Spec::full(&[("d0.test", sink.port)])
    };
    let mut cluster = Cluster::start_without(spec, "delivery").await?;
    let client = cluster.appender()?;
    client.ready(PATIENCE).await?;
    let mut body = b"Subject: parked\r\nX-Id: 1\r\n\r\n".to_vec();
    body.extend(bare::noise(options.octets.saturating_sub(body.len())));
    let body = Bytes::from(body);
    let done = Arc::new(AtomicU64::new(0));
    let mut appending = appenders(&client, &body, &done);
    let empty = rate(&done, go_on).await?;
    let rss_empty = rss(&mut cluster)?;
    while done.load(Ordering::Relaxed) < options.messages {
        ensure!(go_on.yes(), "interrupted");
        if let Some(ended) = appending.try_join_next() {
            bail!("an append ended with {ended:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let full = rate(&done, go_on).await?;
    appending.shutdown().await;
    // What is under way is flushed, compaction calms down.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let rss_full = rss(&mut cluster)?;
    let queued = cluster.admin()?.admin().summary(1).await?.messages;
    for name in cluster.names("queue-") {
        cluster.kill(&name)?;
    }
    // It waits for the queue: the first delivery is the first grant.
    cluster.spawn("delivery-1")?;
    let begun = Instant::now();
    for name in cluster.names("queue-") {
        cluster.spawn(&name)?;
    }
    while sink.count() == 0 {
        ensure!(
            begun.elapsed() < PATIENCE,
            "nothing is granted after {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = begun.elapsed();
    let all = json!({
        "bench": "parked", "messages": queued, "octets": options.octets, "replicas": options.replicas,
        "rss_empty": rss_empty, "rss_full": rss_full, "peak": cluster.memory_peaks()?,
        "per_second_empty": empty, "per_second_full": full, "share": full / empty,
        "restart_to_first_delivery_seconds": first.as_secs_f64(),
    });
    println!("{all}");
    Ok(())
}

fn appenders(
    client: &QueueClient,
    body: &Bytes,
    done: &Arc<AtomicU64>,
) -> tokio::task::JoinSet<AppendResult> {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..IN_FLIGHT as u64 {
        let (client, body, done) = (client.clone(), body.clone(), done.clone());
        tasks.spawn(async move {
            for n in worker.. {
                // One in a thousand domains is relayed; the rest waits for a delivery node that is not there.
                let recipient = format!("parked@d{}.test", n % DESTINATIONS);
                match queue::append(&client, &recipient, &body).await.1 {
                    // As good: the answer to the first try was lost.
                    AppendResult::Created | AppendResult::AlreadyQueued => {
                        done.fetch_add(1, Ordering::Relaxed)
                    }
                    other => return other,
                };
            }
            AppendResult::Created
        });
    }
    tasks
}

/// Messages a second over [`MEASURED`].
async fn rate(done: &AtomicU64, go_on: &GoOn) -> Result<f64> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(go_on.yes(), "interrupted");
    let (before, begun) = (done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(MEASURED).await;
    let count = done.load(Ordering::Relaxed) - before;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Memory of the largest queue process, octets.
fn rss(cluster: &mut Cluster) -> Result<u64> {
    let mut most = 0;
    for name in cluster.names("queue-") {
        most = most.max(cluster.process(&name)?.memory()?);
    }
    Ok(most)
}
