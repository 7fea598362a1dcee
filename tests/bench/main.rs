//! How fast Postroad is and what it costs, beside Postfix and beside its own log alone.
//!
//! ```text
//! smtp.rs     smtp-source -> Postroad or Postfix -> smtp-sink; systems.rs starts them, load.rs sends and counts
//! failover.rs kill -9 on the leader of most shards, and how long each takes no mail
//! parked.rs   memory, rate and restart with a million messages that wait
//! spread.rs   six queue nodes beside three, each with a disk that takes only so much a second
//! append.rs   a client -> gRPC -> three queue processes, beside bare.rs: raft and log alone in one process
//! machine.rs  what the figures were measured on; report.rs prints them
//! ```
//!
//! Figures of different runs are not compared: the machine and above all its disk are never the same twice.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

mod append;
mod bare;
mod failover;
mod load;
mod machine;
mod parked;
mod report;
mod smtp;
mod spread;
mod systems;

// As the program has it: raft and log alone must not lose or win by another allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "bench",
    about = "Measures Postroad beside Postfix and beside its own log"
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Messages a second and CPU per message, end to end by SMTP, Postroad and Postfix alike. Needs root and Postfix
    Smtp(smtp::Options),
    /// Entries a second and CPU per entry, through gRPC and mutual TLS, beside raft and log alone
    Append(append::Options),
    /// How long a shard takes no mail after the node that leads it was killed
    Failover(failover::Options),
    /// Memory, rate and restart with a million messages that wait
    Parked(parked::Options),
    /// What six queue nodes take beside three, when each one's disk takes only so much a second
    Spread(spread::Options),
}

/// What both have in common.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Where the systems keep their data: the same disk for all, and no memory file system
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    dir: PathBuf,
    /// Runs of each measurement; the median is told
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long one run should take
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// One short run of what matters most, for a first look
    #[arg(long)]
    quick: bool,
    /// The program to measure [default: it is built, and stands beside this one]
    #[arg(long, value_name = "FILE")]
    postroad: Option<PathBuf>,
}

impl Common {
    /// Runs of each measurement.
    fn runs(&self) -> usize {
        if self.quick { 1 } else { self.runs.max(1) }
    }

    /// How long one run should take.
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(if self.quick { 3.0 } else { self.seconds })
    }

    /// The program to measure.
    fn program(&self) -> Result<PathBuf> {
        match &self.postroad {
            Some(path) => path
                .canonicalize()
                .with_context(|| format!("there is no {}", path.display())),
            None => Ok(tests::process::node::program()?.to_owned()),
        }
    }
}

/// False as soon as someone wants it to end: what waits looks at it, and all that was started is taken away in order.
#[derive(Clone, Debug)]
struct GoOn(Arc<AtomicBool>);

impl GoOn {
    fn yes(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let go_on = GoOn(Arc::new(AtomicBool::new(true)));
    let stop = go_on.clone();
    runtime.spawn(async move {
        if interrupted().await.is_ok() {
            eprintln!("bench: interrupted; what was started is taken away");
            stop.0.store(false, Ordering::Relaxed);
        }
    });
    match cli.what {
        What::Smtp(options) => smtp::run(&options, &go_on),
        What::Append(options) => append::run(&options, &go_on, &runtime),
        What::Failover(options) => runtime.block_on(failover::run(&options, &go_on)),
        What::Parked(options) => runtime.block_on(parked::run(&options, &go_on)),
        What::Spread(options) => spread::run(&options, &go_on, &runtime),
    }
}

async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
