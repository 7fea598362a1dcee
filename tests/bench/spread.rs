//! What more queue nodes bring: six beside three, each with a disk that takes only so many octets a second.
//!
//! Every group has three replicas however many nodes there are, so twice the nodes carry half of the groups each and
//! write half of the octets: twice the appends is the most that six disks can give. One machine's processor is shared by
//! all of them, so the limit of the disks must be low enough that they, and not the processor, are what is full: the
//! table says how busy it was.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tests::program::Cluster;

use crate::append::drive;
use crate::bare::Rate;
use crate::report::{Table, median};
use crate::{Common, GoOn, machine};

/// Client ports of the queue nodes; their peer ports follow. Below those that Linux gives to outgoing connections.
const PORT: u16 = 27_300;
/// How many queue nodes are held against each other.
const NODES: [u16; 2] = [3, 6];
/// As a cluster of the chart has: enough that six nodes can share them evenly.
const SHARDS: u32 = 16;

/// With what load.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Octets of a message
    #[arg(long, default_value_t = 10240)]
    octets: usize,
    /// Messages that wait for their answer at a time
    #[arg(long, default_value_t = 1024)]
    in_flight: usize,
    /// MiB a second that each queue node's disk takes
    #[arg(long, default_value_t = 8)]
    disk_mib_per_second: u64,
}

/// Measures and prints.
pub fn run(options: &Options, go_on: &GoOn, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let common = &options.common;
    let facts = machine::facts(&common.dir)?;
    let mut rates: [Vec<Rate>; NODES.len()] = Default::default();
    for _ in 0..common.runs() {
        for (nodes, rates) in NODES.iter().zip(&mut rates) {
            rates.push(runtime.block_on(one(options, *nodes, go_on))?);
        }
    }
    println!(
        "{} octets, {} in flight, {SHARDS} shards, three replicas of each, {} MiB/s a disk",
        options.octets, options.in_flight, options.disk_mib_per_second
    );
    let table = Table::new(&["nodes", "entries/s", "CPU us/entry", "cores busy", "ratio"]);
    println!("{}", table.head());
    let of = |rates: &[Rate], what: fn(&Rate) -> f64| median(rates.iter().map(what).collect());
    let base = of(&rates[0], |rate| rate.per_second);
    let mut cells: Vec<Value> = Vec::new();
    for (nodes, rates) in NODES.iter().zip(&rates) {
        let per_second = of(rates, |rate| rate.per_second);
        let cpu_us = of(rates, |rate| rate.cpu_us);
        println!(
            "{}",
            table.row(&[
                nodes.to_string(),
                format!("{per_second:.0}"),
                format!("{cpu_us:.1}"),
                format!("{:.2}", per_second * cpu_us / 1e6),
                format!("{:.2}", per_second / base),
            ])
        );
        let each: Vec<f64> = rates.iter().map(|rate| rate.per_second).collect();
        cells.push(json!({
            "nodes": nodes, "per_second": per_second, "cpu_us": cpu_us, "ratio": per_second / base, "each": each,
        }));
    }
    let all = json!({
        "bench": "spread", "machine": facts, "octets": options.octets, "in_flight": options.in_flight,
        "shards": SHARDS, "disk_mib_per_second": options.disk_mib_per_second, "runs": common.runs(), "cells": cells,
    });
    println!("{all}");
    Ok(())
}

/// One run with so many queue nodes.
async fn one(options: &Options, nodes: u16, go_on: &GoOn) -> Result<Rate> {
    let common = &options.common;
    let program = common.program()?;
    let dir = tempfile::Builder::new()
        .prefix("postroad-bench-")
        .tempdir_in(&common.dir)?;
    let limit = options.disk_mib_per_second << 20;
    let command = || {
        let mut command = std::process::Command::new(&program);
        command.env("POSTROAD_DISK_BYTES_PER_SECOND", limit.to_string());
        command
    };
    let cluster = Cluster::queue(dir.path(), nodes, SHARDS, PORT, &command)?;
    let (rate, _) = drive(&cluster, common, options.octets, options.in_flight, go_on).await?;
    Ok(rate)
}
