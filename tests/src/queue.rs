//! Queue nodes in this process, with real mutual TLS, real disks and their own directories.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use proto::client::{AppendResult, ClientConfig, QueueClient};
use proto::v1::{self, append_request::What};
use proto::{NodeTls, Role, Ulid, pki};
use spool::identity::ClusterId;
use spool::{Config, InitialState};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How the nodes are started.
#[derive(Clone)]
pub struct Options {
    /// How many.
    pub replicas: u64,
    /// How many shards.
    pub shards: u32,
    /// See [`Config::disk_bytes`].
    pub disk_bytes: Option<u64>,
    /// See [`Config::segment_bytes`].
    pub segment_bytes: u64,
    /// See [`Config::retry`].
    pub retry: queue::retry::Policy,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            replicas: 1,
            shards: 4,
            disk_bytes: None,
            segment_bytes: 4 << 20,
            retry: queue::retry::Policy::default(),
        }
    }
}

/// Queue nodes of one cluster.
pub struct Queue {
    dir: PathBuf,
    options: Options,
    peers: BTreeMap<u64, String>,
    clients: BTreeMap<u64, String>,
    running: BTreeMap<u64, Node>,
}

struct Node {
    stop: CancellationToken,
    ready: watch::Receiver<bool>,
    task: JoinHandle<Result<(), spool::Error>>,
}

/// The cluster id of all tests.
const CLUSTER: &str = "6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a09";

impl Queue {
    /// Starts a cluster under `dir` and waits until every group has a leader.
    pub async fn start(dir: &Path, options: Options) -> Result<Queue> {
        pki::init("test", &dir.join("ca"))?;
        let mut queue = Queue {
            dir: dir.to_owned(),
            peers: BTreeMap::new(),
            clients: BTreeMap::new(),
            running: BTreeMap::new(),
            options,
        };
        for node in 1..=queue.options.replicas {
            pki::issue(
                &dir.join("ca"),
                Role::Queue,
                &node.to_string(),
                &queue.pki(node),
            )?;
            queue.peers.insert(node, free_address()?);
            queue.clients.insert(node, free_address()?);
        }
        for (role, name) in [
            (Role::Edge, "edge"),
            (Role::Delivery, "delivery"),
            (Role::Admin, "admin"),
        ] {
            pki::issue(&dir.join("ca"), role, name, &dir.join(name))?;
        }
        for node in 1..=queue.options.replicas {
            queue.start_node(node)?;
        }
        for node in 1..=queue.options.replicas {
            queue.ready(node).await?;
        }
        Ok(queue)
    }

    fn pki(&self, node: u64) -> PathBuf {
        self.dir.join(format!("pki-{node}"))
    }

    /// The data directory of a node.
    pub fn data(&self, node: u64) -> PathBuf {
        self.dir.join(format!("data-{node}"))
    }

    /// Client addresses.
    pub fn endpoints(&self) -> Vec<String> {
        self.clients.values().cloned().collect()
    }

    /// Starts a node that does not run.
    pub fn start_node(&mut self, node: u64) -> Result<()> {
        let config = Config {
            dir: self.data(node),
            node,
            cluster_id: CLUSTER.parse::<ClusterId>()?,
            listen_peer: self.peers[&node].parse()?,
            listen_client: self.clients[&node].parse()?,
            advertise_peer: self.peers[&node].clone(),
            advertise_client: self.clients[&node].clone(),
            initial_cluster: self.peers.clone(),
            initial_state: InitialState::New,
            shards: self.options.shards,
            replication_factor: self.options.replicas as u32,
            tls: Arc::new(NodeTls::load(&self.pki(node))?),
            disk_bytes: self.options.disk_bytes,
            disk_bytes_per_second: None,
            segment_bytes: self.options.segment_bytes,
            retention: spool::Retention::default(),
            retry: tokio::sync::watch::channel(self.options.retry).1,
            hostname: "queue.test".to_owned(),
            zone: String::new(),
            state_machine: spool::wire::log::STATE_MACHINE_VERSION,
        };
        let stop = CancellationToken::new();
        let (to, ready) = watch::channel(false);
        let task = tokio::spawn(spool::run(config, stop.clone(), to));
        self.running.insert(node, Node { stop, ready, task });
        Ok(())
    }

    /// Waits until a node knows a leader of every group.
    pub async fn ready(&mut self, node: u64) -> Result<()> {
        let running = self.running.get_mut(&node).context("it does not run")?;
        let waited =
            tokio::time::timeout(Duration::from_secs(20), running.ready.wait_for(|r| *r)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        drop(waited);
        if running.task.is_finished() {
            self.running
                .remove(&node)
                .context("it does not run")?
                .task
                .await??;
        }
        bail!("node {node} has no leaders after 20 s")
    }

    /// Stops a node in order and gives what it ended with.
    pub async fn stop_node(&mut self, node: u64) -> Result<Result<(), spool::Error>> {
        let running = self.running.remove(&node).context("it does not run")?;
        running.stop.cancel();
        let ended = running.task.await?;
        // A call that was answered last may hold the directory for a moment longer than `run` does; a process that ends
        // gives it back at once.
        for _ in 0..100 {
            if spool::identity::Lock::take(&self.data(node)).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(ended)
    }

    /// Waits until a node ends by itself.
    pub async fn ended(&mut self, node: u64) -> Result<Result<(), spool::Error>> {
        let running = self.running.remove(&node).context("it does not run")?;
        Ok(tokio::time::timeout(Duration::from_secs(20), running.task).await??)
    }

    /// A client with the rights of `role` (`edge`, `delivery`, `admin`).
    pub fn client(&self, role: &str) -> Result<QueueClient> {
        let tls = Arc::new(NodeTls::load(&self.dir.join(role))?);
        Ok(QueueClient::new(ClientConfig {
            endpoints: self.endpoints(),
            tls,
            name: role.to_owned(),
        }))
    }
}

/// An address of this machine that was free a moment ago.
pub fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A message with one recipient.
pub fn message(id: Ulid, recipient: &str, body: &Bytes) -> v1::AppendMessage {
    let destination = recipient.rsplit('@').next().unwrap_or_default().to_owned();
    let recipients = vec![v1::RecipientFacts {
        address: recipient.to_owned(),
    }];
    let header = body
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(body.len(), |at| at + 4);
    v1::AppendMessage {
        facts: Some(v1::MessageFacts {
            message: proto::ulid_bytes(id),
            tenant: "default".to_owned(),
            class: "default".to_owned(),
            return_path: "sender@origin.test".to_owned(),
            items: vec![v1::ItemFacts {
                destination,
                recipients,
            }],
            size: body.len() as u64,
            digest: Bytes::copy_from_slice(&mail::Digest::of(body).0),
            header_size: header as u32,
            origin: Some(v1::Origin::default()),
            arrived_ms: wall_ms(),
            ..Default::default()
        }),
        body: body.clone(),
    }
}

/// Appends one message to `recipient`; its id and the outcome.
pub async fn append(client: &QueueClient, recipient: &str, body: &Bytes) -> (Ulid, AppendResult) {
    let id = client.new_message_id(wall_ms(), rand::random());
    let shard = client.view().shard_of(id);
    (
        id,
        client
            .append(shard, What::Append(message(id, recipient, body)))
            .await,
    )
}

/// The wall clock in milliseconds.
pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
