//! How long a shard takes no mail after the queue node that leads it was killed.
//!
//! A prober for each shard appends one small message after another; beside them some load runs, and a delivery node
//! takes it all away. The queue node that leads most shards is killed (`kill -9`), and for each shard that it led the
//! time to the first append counts that was begun after the kill and got its answer. Then the node starts again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use proto::client::{AppendResult, QueueClient};
use proto::v1::append_request::What;
use serde_json::json;
use tests::process::{Cluster, Sink, Spec};
use tests::queue;

use crate::{GoOn, bare};

/// Between two probes of a shard: the resolution of what is measured.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// A shard without a leader for so long is a failure, not a figure.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a node is back and before the next kill: its replicas catch up, clients connect.
const CALM: Duration = Duration::from_millis(1500);
/// Where all mail goes.
const DOMAIN: &str = "d0.test";

/// What of it, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often the node that leads most is killed
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Shards of the queue
    #[arg(long, default_value_t = 16)]
    shards: u32,
    /// Messages a second beside the probes
    #[arg(long, default_value_t = 200)]
    load: u32,
    /// Octets of a message of the load
    #[arg(long, default_value_t = 10240)]
    octets: usize,
}

/// When each shard accepted an append: when that was begun, and when it was answered.
type Accepted = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// Measures and prints.
pub async fn run(options: &Options, go_on: &GoOn) -> Result<()> {
    let sink = Sink::start().await?;
    let spec = Spec {
        edges: 0,
        deliveries: 1,
        shards: options.shards,
        ..Spec::full(&[(DOMAIN, sink.port)])
    };
    let mut cluster = Cluster::start(spec).await?;
    let client = cluster.appender()?;
    client.ready(PATIENCE).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let accepted: Vec<Accepted> = (0..options.shards).map(|_| Accepted::default()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (shard, accepted) in (0..options.shards).zip(&accepted) {
        tasks.spawn(probe(client.clone(), shard, accepted.clone(), stop.clone()));
    }
    tasks.spawn(load(client.clone(), options.clone(), stop.clone()));
    let mut times = Vec::new();
    for kill in 1..=options.kills {
        ensure!(go_on.yes(), "interrupted");
        tokio::time::sleep(CALM).await;
        let victim = cluster.leads_most(&client).await?;
        let led = cluster.led_by(&client, &victim);
        let at = Instant::now();
        cluster.kill(&victim)?;
        let mut worst = Duration::ZERO;
        for shard in led {
            let of = accepted
                .get(shard as usize)
                .context("a shard has a prober")?;
            let took = first_after(of, at)
                .await
                .with_context(|| format!("shard {shard} after kill {kill} of {victim}"))?;
            worst = worst.max(took);
            times.push(took);
        }
        eprintln!("kill {kill}: {victim}, all its shards after {worst:.2?}");
        cluster.spawn(&victim)?;
        cluster.ready(&victim).await?;
    }
    stop.store(true, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    times.sort();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize].as_secs_f64();
    let all = json!({
        "bench": "failover", "kills": options.kills, "shards": options.shards, "load": options.load,
        "octets": options.octets, "groups_that_changed_leader": times.len(),
        "seconds": {"min": quantile(0.0), "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "max": quantile(1.0)},
    });
    println!("{all}");
    Ok(())
}

/// How long after `at` a shard accepted an append that was begun since.
async fn first_after(accepted: &Accepted, at: Instant) -> Result<Duration> {
    loop {
        {
            let mut all = accepted.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, answered)) = all.iter().find(|(begun, _)| *begun >= at) {
                return Ok(*answered - at);
            }
            all.clear();
        }
        ensure!(at.elapsed() < PATIENCE, "it takes nothing for {PATIENCE:?}");
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

async fn probe(client: QueueClient, shard: u32, accepted: Accepted, stop: Arc<AtomicBool>) {
    let body = Bytes::from_static(b"Subject: probe\r\nX-Id: 0\r\n\r\n");
    let view = client.view();
    while !stop.load(Ordering::Relaxed) {
        // Of any shard's ids one in `shards` is this one's: the client draws for those with a leader that it knows.
        let id = loop {
            let id = proto::Ulid::from_parts(queue::wall_ms(), rand::random());
            if view.shard_of(id) == shard {
                break id;
            }
        };
        let recipient = format!("probe@{DOMAIN}");
        let what = What::Append(queue::message(id, &recipient, &body));
        let begun = Instant::now();
        let outcome = client.append(shard, what).await;
        // As good as created: the answer to the first try was lost.
        if matches!(outcome, AppendResult::Created | AppendResult::AlreadyQueued) {
            let mut all = accepted.lock().unwrap_or_else(PoisonError::into_inner);
            all.push((begun, Instant::now()));
            // Only what comes after a kill is looked at, and it is looked at within moments.
            if all.len() > 10_000 {
                all.drain(..5_000);
            }
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

async fn load(client: QueueClient, options: Options, stop: Arc<AtomicBool>) {
    let mut body = b"Subject: load\r\nX-Id: 1\r\n\r\n".to_vec();
    body.extend(bare::noise(options.octets));
    let body = Bytes::from(body);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / options.load.max(1));
    let mut under_way = tokio::task::JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        while under_way.try_join_next().is_some() {}
        // As a client with a bounded number of connections would: no more while so many wait.
        if under_way.len() < 256 {
            let (client, body) = (client.clone(), body.clone());
            under_way.spawn(async move {
                queue::append(&client, &format!("load@{DOMAIN}"), &body).await
            });
        }
    }
}
