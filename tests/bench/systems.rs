//! The systems that are measured, each in its own network namespace with its data under the same directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use tests::child::Process;
use tests::netns::Namespace;
use tests::postfix::{Postfix, Setup};
use tests::program::{Cluster, DISK_BYTES, relay_to, start};

use crate::load::{SINK_PORT, SYSTEM};

/// Where the queue nodes of a cluster listen.
const QUEUE_PORT: u16 = 7100;
/// As `up` has, so that the two are compared.
const SHARDS: u32 = 4;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Postfix as an expert sets it up for relaying, fsync included
    Postfix,
    /// Postfix as Debian installs it, with a relayhost and as many processes as the load needs
    PostfixPlain,
    /// `postroad up`: one replica
    Up1,
    /// `postroad up --replicas 3`: three replicas in one process, over mutual TLS
    Up3,
    /// Three queue nodes, an edge and a delivery node, each a process
    Cluster3,
}

impl Kind {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Postfix => "postfix",
            Kind::PostfixPlain => "postfix plain",
            Kind::Up1 => "postroad up",
            Kind::Up3 => "postroad up x3",
            Kind::Cluster3 => "postroad 3+1+1",
        }
    }
}

/// A system that runs. Dropped, it is stopped; its directory is removed.
pub struct System {
    running: Running,
    // After what uses it.
    _dir: tempfile::TempDir,
}

enum Running {
    Postfix(Postfix),
    Up(Process),
    Cluster(Cluster),
}

impl System {
    /// Starts it.
    pub fn start(
        kind: Kind,
        program: &Path,
        parent: &Path,
        namespace: &Namespace,
    ) -> Result<System> {
        let dir = tempfile::Builder::new()
            .prefix("postroad-bench-")
            .tempdir_in(parent)?;
        // Postfix's processes are other users.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let files = || {
            relay_to(
                &dir.path().join("files"),
                "example.com",
                "127.0.0.1",
                SINK_PORT,
            )
        };
        let command = || namespace.command(program);
        let running = match kind {
            Kind::Postfix | Kind::PostfixPlain => {
                let setup = match kind {
                    Kind::Postfix => postfix(plain()),
                    _ => plain(),
                };
                Running::Postfix(Postfix::start(dir.path(), &setup, |name| {
                    namespace.command(name)
                })?)
            }
            Kind::Up1 => Running::Up(up(dir.path(), &files()?, 1, command())?),
            Kind::Up3 => Running::Up(up(dir.path(), &files()?, 3, command())?),
            Kind::Cluster3 => Running::Cluster(
                Cluster::queue(dir.path(), 3, SHARDS, QUEUE_PORT, &command)?
                    .with_edge_and_delivery(SYSTEM, &files()?, &command)?,
            ),
        };
        Ok(System { running, _dir: dir })
    }

    /// All its processes, or those from which they descend.
    pub fn pids(&self) -> Vec<u32> {
        match &self.running {
            Running::Postfix(postfix) => vec![postfix.pid()],
            Running::Up(process) => vec![process.pid()],
            Running::Cluster(cluster) => cluster.pids(),
        }
    }
}

fn up(dir: &Path, files: &Path, replicas: u32, mut command: Command) -> Result<Process> {
    command
        .args(["up", "--listen", SYSTEM, "--admin-listen", "off"])
        .args(["--hostname", "postroad.test"])
        .args(["--replicas", &replicas.to_string()])
        .args(["--disk-bytes", DISK_BYTES])
        .arg("-f")
        .arg(files)
        .arg("--data")
        .arg(dir.join("data"));
    start(dir, "up", &mut command)
}

/// Postfix with its defaults, which stop neither 100 sessions nor one client.
fn plain() -> Setup {
    Setup::new(SYSTEM)
        .set("relayhost", &format!("[127.0.0.1]:{SINK_PORT}"))
        .set("default_process_limit", "150")
        .set("smtpd_client_connection_count_limit", "0")
        .set("smtpd_relay_restrictions", "permit_mynetworks, reject")
        .set("smtpd_recipient_restrictions", "permit_mynetworks, reject")
}

/// Postfix for a relay under load: 100 deliveries at a time, processes that live long, no pause when mail comes in
/// faster than it leaves. Durability is untouched: a file and its fsync for each message.
fn postfix(plain: Setup) -> Setup {
    plain
        .set("default_process_limit", "300")
        .set("default_destination_concurrency_limit", "100")
        .set("initial_destination_concurrency", "20")
        .set("max_use", "1000")
        .set("in_flow_delay", "0")
}
