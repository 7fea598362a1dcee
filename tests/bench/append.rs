//! Appends through gRPC and mutual TLS to three queue processes, without SMTP, beside raft and log alone.
//!
//! Nobody leases here, so that the queue keeps all it takes and must write into new segments, each filled with zeros
//! beforehand. Raft and log alone are therefore measured twice: recycling their segments, and keeping everything too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use proto::client::{AppendResult, ClientConfig, QueueClient};
use proto::{NodeTls, Role};
use serde_json::{Value, json};
use tests::child;
use tests::program::Cluster;
use tests::queue;

use crate::bare::{self, Load, Rate};
use crate::report::{Table, median};
use crate::{Common, GoOn, machine};

/// Client ports of the queue nodes; their peer ports follow. Below those that Linux gives to outgoing connections.
const PORT: u16 = 27_100;
/// The queue nodes have a leader of every shard within this time.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Not counted: connections, caches, the first segments.
const WARM_UP: Duration = Duration::from_secs(2);
/// Mail goes to this many domains.
const DESTINATIONS: usize = 16;

/// What of it, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Octets of a message
    #[arg(long, default_value_t = 10240)]
    octets: usize,
    /// Messages that wait for their answer at a time
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    /// Shards of the queue
    #[arg(long, default_value_t = 4)]
    shards: u32,
}

/// Medians and all figures of one system.
struct Figures {
    name: &'static str,
    rates: Vec<Rate>,
    client_us: Vec<f64>,
}

impl Figures {
    fn new(name: &'static str) -> Figures {
        Figures {
            name,
            rates: Vec::new(),
            client_us: Vec::new(),
        }
    }

    fn per_second(&self) -> f64 {
        median(self.rates.iter().map(|rate| rate.per_second).collect())
    }

    fn cpu_us(&self) -> f64 {
        median(self.rates.iter().map(|rate| rate.cpu_us).collect())
    }

    fn json(&self, base: f64, kept: f64) -> Value {
        let each: Vec<f64> = self.rates.iter().map(|rate| rate.per_second).collect();
        json!({
            "system": self.name, "per_second": self.per_second(), "cpu_us": self.cpu_us(),
            "share_of_bare": self.per_second() / base, "share_of_bare_kept": self.per_second() / kept,
            "each": each,
        })
    }
}

/// Measures and prints.
pub fn run(options: &Options, go_on: &GoOn, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let common = &options.common;
    let facts = machine::facts(&common.dir)?;
    let program = common.program()?;
    let (mut bare, mut kept, mut grpc) = (
        Figures::new("raft and log"),
        Figures::new("same, kept"),
        Figures::new("postroad gRPC"),
    );
    // In turns, so that a slow minute of the disk is everybody's.
    for _ in 0..common.runs() {
        for (figures, recycle) in [(&mut bare, true), (&mut kept, false)] {
            let dir = directory(common)?;
            let load = Load {
                octets: options.octets,
                in_flight: options.in_flight,
                warm_up: WARM_UP,
                measured: common.duration(),
                recycle,
            };
            figures.rates.push(bare::run(dir.path(), load, go_on)?);
        }
        let (rate, client_us) = runtime.block_on(through_grpc(options, &program, go_on))?;
        grpc.rates.push(rate);
        grpc.client_us.push(client_us);
    }
    let (base, base_kept) = (bare.per_second(), kept.per_second());
    let table = Table::new(&[
        "system",
        "entries/s",
        "CPU us/entry",
        "of raft and log",
        "of it, kept",
    ]);
    println!(
        "{} octets, {} in flight, 3 replicas",
        options.octets, options.in_flight
    );
    println!("{}", table.head());
    for figures in [&bare, &kept, &grpc] {
        println!(
            "{}",
            table.row(&[
                figures.name.to_owned(),
                format!("{:.0}", figures.per_second()),
                format!("{:.1}", figures.cpu_us()),
                format!("{:.0} %", figures.per_second() / base * 100.0),
                format!("{:.0} %", figures.per_second() / base_kept * 100.0),
            ])
        );
    }
    let client = median(grpc.client_us.clone());
    println!("the client of gRPC beside: {client:.1} us CPU an entry");
    let cells: Vec<Value> = [&bare, &kept, &grpc]
        .map(|f| f.json(base, base_kept))
        .into();
    let all = json!({
        "bench": "append", "machine": facts, "octets": options.octets, "in_flight": options.in_flight,
        "shards": options.shards, "runs": common.runs(), "client_us": client, "cells": cells,
    });
    println!("{all}");
    Ok(())
}

fn directory(common: &Common) -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("postroad-bench-")
        .tempdir_in(&common.dir)?)
}

/// One run: its rate, and the client's own CPU per entry in microseconds.
async fn through_grpc(
    options: &Options,
    program: &std::path::Path,
    go_on: &GoOn,
) -> Result<(Rate, f64)> {
    // Before the cluster, and so removed after it has ended.
    let dir = directory(&options.common)?;
    let command = || std::process::Command::new(program);
    let cluster = Cluster::queue(dir.path(), 3, options.shards, PORT, &command)?;
    let (octets, in_flight) = (options.octets, options.in_flight);
    drive(&cluster, &options.common, octets, in_flight, go_on).await
}

/// Appends to a cluster as fast as `in_flight` waiting messages allow: the rate, and the client's own CPU per entry in
/// microseconds.
pub(crate) async fn drive(
    cluster: &Cluster,
    common: &Common,
    octets: usize,
    in_flight: usize,
    go_on: &GoOn,
) -> Result<(Rate, f64)> {
    let client = QueueClient::new(ClientConfig {
        endpoints: cluster.endpoints().to_vec(),
        tls: Arc::new(NodeTls::load(&cluster.issue(Role::Edge, "bench")?)?),
        name: "bench".to_owned(),
    });
    let body = body(octets);
    led(&client, &body).await?;
    let done = Arc::new(AtomicU64::new(0));
    let mut appending = tokio::task::JoinSet::new();
    for worker in 0..in_flight {
        let (client, body, done) = (client.clone(), body.clone(), done.clone());
        let recipient = format!("someone@destination-{}.test", worker % DESTINATIONS);
        appending.spawn(async move {
            loop {
                match queue::append(&client, &recipient, &body).await.1 {
                    // As good: the answer to the first try was lost.
                    AppendResult::Created | AppendResult::AlreadyQueued => {
                        done.fetch_add(1, Ordering::Relaxed)
                    }
                    other => return other,
                };
            }
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let pids = cluster.pids();
    let look = || {
        let done = done.load(Ordering::Relaxed);
        (done, child::cpu(&pids), child::own_cpu())
    };
    let ((before, cpu_before, own_before), begun) = (look(), Instant::now());
    while begun.elapsed() < common.duration() {
        ensure!(go_on.yes(), "interrupted");
        tokio::select! {
            ended = appending.join_next() => bail!("an append ended with {ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let ((after, cpu_after, own_after), seconds) = (look(), begun.elapsed().as_secs_f64());
    appending.shutdown().await;
    let entries = (after - before) as f64;
    ensure!(entries > 0.0, "nothing was appended");
    let us = |time: Duration| time.as_secs_f64() * 1e6 / entries;
    let rate = Rate {
        per_second: entries / seconds,
        cpu_us: us(cpu_after - cpu_before),
    };
    Ok((rate, us(own_after - own_before)))
}

/// Waits until every shard takes an append.
async fn led(client: &QueueClient, body: &Bytes) -> Result<()> {
    let view = client.ready(START_LIMIT).await?;
    for shard in 0..view.shards() {
        let id = loop {
            let id = client.new_message_id(queue::wall_ms(), rand::random());
            if view.shard_of(id) == shard {
                break id;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let first = queue::message(id, "first@destination.test", body);
        let what = proto::v1::append_request::What::Append(first);
        let outcome = tokio::time::timeout(START_LIMIT, client.append(shard, what)).await;
        ensure!(
            matches!(outcome, Ok(AppendResult::Created)),
            "shard {shard} takes nothing after {} s: {outcome:?}",
            START_LIMIT.as_secs()
        );
    }
    Ok(())
}

fn body(octets: usize) -> Bytes {
    let mut body = b"Subject: measured\r\n\r\n".to_vec();
    let rest = octets.saturating_sub(body.len());
    body.extend(bare::noise(rest));
    body.into()
}
