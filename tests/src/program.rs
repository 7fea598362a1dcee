//! The program `postroad` as a user runs it: built, started with its arguments, stopped by a signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use proto::{Role, pki};

use crate::child::Process;

/// The cluster id of all tests.
const CLUSTER: &str = "6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a09";
/// For `--disk-bytes`: what a queue node keeps free is a share of it, and a large disk may be nearly full of other things.
pub const DISK_BYTES: &str = "32GiB";

/// Resources that relay all mail to `domain` to one mail server, and let one client have many sessions.
///
/// # Errors
/// When the file cannot be written.
pub fn relay_to(dir: &Path, domain: &str, host: &str, port: u16) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let text = format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: test}}\nspec:\n  domain: {domain}\n  \
         inbound:\n    targets:\n      - {{host: {host}, port: {port}}}\n---\n\
         apiVersion: postroad.dev/v1alpha1\nkind: EdgePool\nmetadata: {{name: edge}}\n\
         spec: {{limits: {{connectionsPerSource: 1000}}}}\n"
    );
    fs::write(dir.join("test.yaml"), text)?;
    Ok(dir.to_owned())
}

/// Starts a node whose output goes to `DIR/NAME.log`.
///
/// # Errors
/// The system's.
pub fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Process> {
    fs::create_dir_all(dir)?;
    let log = fs::File::create(dir.join(format!("{name}.log")))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::start(name, command)
}

/// A cluster of separate processes on loopback: queue nodes, an edge and a delivery node. Dropped, all are stopped: the
/// edge first, the queue last.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order.
    nodes: Vec<Process>,
    queue: Vec<Process>,
    endpoints: Vec<String>,
    dir: PathBuf,
}

impl Cluster {
    /// Starts the queue nodes, with client ports from `port` and peer ports after them. `command` makes a command of the
    /// program `postroad`.
    ///
    /// # Errors
    /// The system's, or that of `pki`.
    pub fn queue(
        dir: &Path,
        replicas: u16,
        shards: u32,
        port: u16,
        command: &dyn Fn() -> Command,
    ) -> Result<Cluster> {
        pki::init("test", &dir.join("ca"))?;
        let peer = |node: u16| format!("127.0.0.1:{}", port + replicas + node);
        let client = |node: u16| format!("127.0.0.1:{}", port + node);
        let initial: Vec<String> = (1..=replicas)
            .map(|node| format!("{node}={}", peer(node)))
            .collect();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            queue: Vec::new(),
            endpoints: (1..=replicas).map(client).collect(),
            dir: dir.to_owned(),
        };
        for node in 1..=replicas {
            let pki = cluster.issue(Role::Queue, &node.to_string())?;
            let mut command = command();
            command
                .args(["queue", "--cluster-id", CLUSTER])
                .args(["--node-id", &node.to_string()])
                .args(["--initial-cluster", &initial.join(",")])
                .args(["--shards", &shards.to_string()])
                .args(["--disk-bytes", DISK_BYTES])
                .args(["--listen-peer", &peer(node), "--listen", &client(node)])
                .arg("--pki")
                .arg(pki)
                .arg("--data")
                .arg(dir.join(format!("queue-{node}")));
            let process = start(dir, &format!("queue-{node}"), &mut command)?;
            cluster.queue.push(process);
        }
        Ok(cluster)
    }

    /// Adds an edge that listens at `listen`, and a delivery node.
    ///
    /// # Errors
    /// The system's, or that of `pki`.
    pub fn with_edge_and_delivery(
        mut self,
        listen: &str,
        files: &Path,
        command: &dyn Fn() -> Command,
    ) -> Result<Cluster> {
        let queue = self.endpoints.join(",");
        for role in [Role::Edge, Role::Delivery] {
            let pki = self.issue(role, role.as_str())?;
            let mut command = command();
            command
                .args([role.as_str(), "--queue", &queue])
                .arg("--pki")
                .arg(pki)
                .arg("-f")
                .arg(files);
            if role == Role::Edge {
                command.args(["--listen", listen]);
            } else {
                command.arg("--data").arg(self.dir.join("delivery"));
            }
            self.nodes
                .push(start(&self.dir, role.as_str(), &mut command)?);
        }
        Ok(self)
    }

    /// A certificate for another node of the cluster: the folder that `--pki` names.
    ///
    /// # Errors
    /// That of `pki`.
    pub fn issue(&self, role: Role, name: &str) -> Result<PathBuf> {
        let out = self.dir.join(format!("pki-{role}-{name}"));
        pki::issue(&self.dir.join("ca"), role, name, &out)?;
        Ok(out)
    }

    /// Client addresses of the queue nodes.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .chain(&self.queue)
            .map(Process::pid)
            .collect()
    }
}
