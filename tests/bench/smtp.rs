//! End to end by SMTP: every system takes the same mail from smtp-source and hands it to smtp-sink.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use tests::netns::Namespace;

use crate::load::{Bench, Run, Shape, Sink};
use crate::report::{Table, median};
use crate::systems::{Kind, System};
use crate::{Common, GoOn, machine};

/// A system that has been started takes mail after this long at most.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Sent before it is measured, to fill caches and find the rate; at least this many a session.
const WARM_UP: u64 = 300;
/// More would measure the same thing, for longer.
const MESSAGES_MAX: u64 = 200_000;

/// What of it, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Systems to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "postfix,up1,up3,cluster3"
    )]
    systems: Vec<Kind>,
    /// Octets of content [default: 4096,10240; quick: 10240]
    #[arg(long, value_delimiter = ',')]
    octets: Vec<u32>,
    /// SMTP sessions at a time [default: 1,20,100; quick: 100]
    #[arg(long, value_delimiter = ',')]
    sessions: Vec<u32>,
    /// Whether connections are kept [default: true,false; quick: true]
    #[arg(long, value_delimiter = ',')]
    keep: Vec<bool>,
    /// Send this many messages in a run, instead of as many as take `--seconds`
    #[arg(long)]
    messages: Option<u64>,
}

impl Options {
    fn shapes(&self) -> Vec<Shape> {
        fn or<T: Clone>(given: &[T], quick: bool, short: &[T], all: &[T]) -> Vec<T> {
            let chosen = match (given.is_empty(), quick) {
                (false, _) => given,
                (true, true) => short,
                (true, false) => all,
            };
            chosen.to_vec()
        }
        let quick = self.common.quick;
        let mut shapes = Vec::new();
        for octets in or(&self.octets, quick, &[10240], &[4096, 10240]) {
            for sessions in or(&self.sessions, quick, &[100], &[1, 20, 100]) {
                for keep in or(&self.keep, quick, &[true], &[true, false]) {
                    shapes.push(Shape {
                        octets,
                        sessions,
                        keep,
                    });
                }
            }
        }
        shapes
    }
}

/// One system under one shape of load, medians of its runs.
struct Cell {
    rate: f64,
    accepted_rate: f64,
    cpu_ms: f64,
    tools_ms: f64,
    messages: u64,
    extra: u64,
    rates: Vec<f64>,
}

/// Measures and prints.
pub fn run(options: &Options, go_on: &GoOn) -> Result<()> {
    tests::postfix::installed()?;
    let common = &options.common;
    let program = common.program()?;
    let facts = machine::facts(&common.dir)?;
    let table = Table::new(&[
        "octets",
        "sessions",
        "kept",
        "system",
        "msg/s",
        "accepted/s",
        "CPU ms/msg",
        "tools ms",
        "x Postfix",
        "msgs",
        "twice",
    ]);
    println!("{}", table.head());
    let (mut cells, mut failed) = (Vec::new(), 0);
    for shape in options.shapes() {
        let mut base = None;
        for &kind in &options.systems {
            ensure!(go_on.yes(), "interrupted");
            let cell = match cell(kind, shape, options, &program, go_on) {
                Ok(cell) => cell,
                Err(error) if go_on.yes() => {
                    failed += 1;
                    println!("{} with {shape:?} failed: {error:#}", kind.name());
                    continue;
                }
                Err(error) => return Err(error),
            };
            if kind == Kind::Postfix {
                base = Some(cell.rate);
            }
            let ratio = base.map(|base| cell.rate / base);
            println!("{}", table.row(&texts(kind, shape, &cell, ratio)));
            cells.push(figures(kind, shape, &cell, ratio));
        }
    }
    let all = json!({"bench": "smtp", "machine": facts, "runs": common.runs(), "cells": cells});
    println!("{all}");
    ensure!(failed == 0, "{failed} measurement(s) failed");
    Ok(())
}

fn texts(kind: Kind, shape: Shape, cell: &Cell, ratio: Option<f64>) -> Vec<String> {
    vec![
        shape.octets.to_string(),
        shape.sessions.to_string(),
        if shape.keep { "yes" } else { "no" }.to_owned(),
        kind.name().to_owned(),
        format!("{:.0}", cell.rate),
        format!("{:.0}", cell.accepted_rate),
        format!("{:.3}", cell.cpu_ms),
        format!("{:.3}", cell.tools_ms),
        ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        cell.messages.to_string(),
        cell.extra.to_string(),
    ]
}

fn figures(kind: Kind, shape: Shape, cell: &Cell, ratio: Option<f64>) -> Value {
    json!({
        "system": kind.name(), "octets": shape.octets, "sessions": shape.sessions, "kept": shape.keep,
        "per_second": cell.rate, "accepted_per_second": cell.accepted_rate, "cpu_ms": cell.cpu_ms,
        "tools_ms": cell.tools_ms, "times_postfix": ratio, "messages": cell.messages, "twice": cell.extra,
        "each": cell.rates,
    })
}

fn cell(
    kind: Kind,
    shape: Shape,
    options: &Options,
    program: &std::path::Path,
    go_on: &GoOn,
) -> Result<Cell> {
    let common = &options.common;
    let namespace = Namespace::new()?;
    let sink = Sink::start(&namespace)?;
    let system = System::start(kind, program, &common.dir, &namespace)?;
    let bench = Bench {
        namespace: &namespace,
        sink: &sink,
        pids: system.pids(),
        go_on,
    };
    bench.first(START_LIMIT)?;
    // Twice what it should take, and what a slow machine needs beside.
    let limit = common.duration() * 4 + Duration::from_secs(60);
    let warm = bench
        .send(shape, WARM_UP + u64::from(shape.sessions) * 5, limit)
        .context("while it was warmed up")?;
    let fitting = warm.messages as f64 / warm.seconds * common.duration().as_secs_f64();
    let mut messages = options
        .messages
        .unwrap_or((fitting as u64).clamp(WARM_UP, MESSAGES_MAX));
    let mut runs = Vec::new();
    for _ in 0..common.runs() {
        let run = bench.send(shape, messages, limit)?;
        // The short first try is slower than what follows.
        if options.messages.is_none() {
            let fitting = messages as f64 / run.seconds * common.duration().as_secs_f64();
            messages = (fitting as u64).clamp(WARM_UP, MESSAGES_MAX);
        }
        runs.push(run);
    }
    Ok(summed(&runs))
}

fn summed(runs: &[Run]) -> Cell {
    let of = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    Cell {
        rate: of(|run| run.messages as f64 / run.seconds),
        accepted_rate: of(|run| run.messages as f64 / run.accepted_seconds),
        cpu_ms: of(|run| run.cpu * 1e3 / run.messages as f64),
        tools_ms: of(|run| run.tools * 1e3 / run.messages as f64),
        messages: runs.iter().map(|run| run.messages).sum(),
        extra: runs.iter().map(|run| run.extra).sum(),
        rates: runs
            .iter()
            .map(|run| run.messages as f64 / run.seconds)
            .collect(),
    }
}
