//! A cluster of real processes on loopback.

mod asked;
mod queues;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::client::{ClientConfig, QueueClient};
use proto::v1::{AdminAction, ItemFilter};
use proto::{NodeTls, Role, pki};
use tempfile::TempDir;

use super::cut::{Cut, FIRST_GROUP};
use super::net::{ask, free_port};
use super::node::Process;

const CLUSTER: &str = "6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a0a";
/// How long a node may take to get ready: elections are over in two seconds, on a loaded machine in more.
const READY: Duration = Duration::from_secs(40);
/// A queue is empty when it was seen so this many times in a row.
const EMPTY_LOOKS: usize = 4;
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What a cluster is made of.
#[derive(Clone)]
pub struct Spec {
    /// Queue nodes, from id 1.
    pub queues: u32,
    /// Edges.
    pub edges: u32,
    /// Delivery nodes.
    pub deliveries: u32,
    /// Further arguments, by the node's name (`queue-1`).
    pub more: BTreeMap<String, Vec<String>>,
    /// Data directories that are not the usual ones, by the node's name.
    pub data: BTreeMap<String, PathBuf>,
    /// Where the mail of a domain goes: domain, port on loopback.
    pub relays: Vec<(String, u16)>,
    /// Shards of the queue.
    pub shards: u32,
    /// Nodes read no files: what is relayed is written to the queue ([`Cluster::postroad`]).
    pub declared: bool,
    /// Queue nodes can be cut off from each other ([`Cluster::cut`]). Needs root.
    pub cuttable: bool,
}

impl Spec {
    /// Three queue nodes, two edges and two delivery nodes for mail to these domains.
    pub fn full(relays: &[(&str, u16)]) -> Spec {
        Spec {
            queues: 3,
            edges: 2,
            deliveries: 2,
            more: BTreeMap::new(),
            data: BTreeMap::new(),
            relays: relays.iter().map(|(d, p)| ((*d).to_owned(), *p)).collect(),
            shards: 4,
            declared: false,
            cuttable: false,
        }
    }

    /// Adds arguments for one node.
    pub fn with(mut self, name: &str, args: &[&str]) -> Spec {
        let more = self.more.entry(name.to_owned()).or_default();
        more.extend(args.iter().map(|a| (*a).to_owned()));
        self
    }
}

/// A node with its place: what stays when its process dies.
struct Place {
    args: Vec<String>,
    log: PathBuf,
    admin: u16,
}

/// The processes and their directories.
pub struct Cluster {
    // Before the directory, so that all are dead when it is removed.
    running: BTreeMap<String, Process>,
    places: BTreeMap<String, Place>,
    /// Where each edge accepts mail.
    pub edges: Vec<u16>,
    clients: BTreeMap<u32, String>,
    initial: String,
    peers: BTreeMap<u32, u16>,
    spec: Spec,
    dir: TempDir,
}

impl Cluster {
    /// Starts all nodes and waits until each is ready.
    pub async fn start(spec: Spec) -> Result<Cluster> {
        Cluster::start_without(spec, "nobody").await
    }

    /// Starts all nodes but those whose name begins so.
    pub async fn start_without(spec: Spec, prefix: &str) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(spec)?;
        let mut names = cluster.names("");
        names.retain(|name| !name.starts_with(prefix));
        for name in &names {
            cluster.spawn(name)?;
        }
        for name in &names {
            cluster.ready(name).await?;
        }
        Ok(cluster)
    }

    /// Directories, certificates, ports and resources of a cluster of which nothing runs.
    pub fn prepare(spec: Spec) -> Result<Cluster> {
        let dir = tempfile::tempdir()?;
        let mut cluster = Cluster {
            running: BTreeMap::new(),
            places: BTreeMap::new(),
            edges: Vec::new(),
            clients: BTreeMap::new(),
            initial: String::new(),
            peers: BTreeMap::new(),
            spec,
            dir,
        };
        let ca = cluster.dir.path().join("ca");
        pki::init("chaos", &ca)?;
        pki::issue(&ca, Role::Admin, "admin", &cluster.pki("admin"))?;
        std::fs::create_dir(cluster.files())?;
        std::fs::write(cluster.files().join("all.yaml"), cluster.resources())?;
        let peers: Vec<u16> = (0..cluster.spec.queues)
            .map(|_| free_port())
            .collect::<Result<_>>()?;
        let initial: Vec<String> = (1..)
            .zip(&peers)
            .map(|(id, port)| format!("{id}=127.0.0.1:{port}"))
            .collect();
        cluster.initial = initial.join(",");
        for (id, peer) in (1..).zip(&peers) {
            cluster.place_queue(id, *peer, "new")?;
        }
        let queue: Vec<String> = cluster.clients.values().cloned().collect();
        let queue = queue.join(",");
        for n in 1..=cluster.spec.edges {
            let port = free_port()?;
            cluster.edges.push(port);
            let (name, listen) = (format!("edge-{n}"), format!("127.0.0.1:{port}"));
            let hostname = format!("{name}.chaos.test");
            let args = [
                "--queue",
                &queue,
                "--name",
                &name,
                "--listen",
                &listen,
                "--hostname",
                &hostname,
            ];
            cluster.place(Role::Edge, &n.to_string(), &args)?;
        }
        for n in 1..=cluster.spec.deliveries {
            let name = format!("delivery-{n}");
            let hostname = format!("{name}.chaos.test");
            // Nothing is asked of the DNS here, and nothing must be.
            let args = [
                "--queue",
                &queue,
                "--name",
                &name,
                "--hostname",
                &hostname,
                "--resolver",
                "127.0.0.1:1",
            ];
            cluster.place(Role::Delivery, &n.to_string(), &args)?;
        }
        Ok(cluster)
    }

    fn place(&mut self, role: Role, id: &str, args: &[&str]) -> Result<()> {
        let name = format!("{role}-{id}");
        let pki = self.pki(&name);
        // A queue node's certificate names its id.
        let subject = if role == Role::Queue { id } else { &name };
        pki::issue(&self.dir.path().join("ca"), role, subject, &pki)?;
        let admin = free_port()?;
        let mut all = vec![role.to_string()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        all.extend(["--pki".to_owned(), text(&pki)?]);
        if !self.spec.declared {
            all.extend(["--files".to_owned(), text(&self.files())?]);
        }
        all.extend(["--admin-listen".to_owned(), format!("127.0.0.1:{admin}")]);
        if role != Role::Edge {
            all.extend(["--data".to_owned(), text(&self.data(&name))?]);
        }
        all.extend(self.spec.more.get(&name).cloned().unwrap_or_default());
        let log = self.dir.path().join(format!("{name}.log"));
        self.places.insert(
            name,
            Place {
                args: all,
                log,
                admin,
            },
        );
        Ok(())
    }

    fn resources(&self) -> String {
        // The shortest times that a RelayCluster may declare.
        let mut all = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayCluster
metadata: {name: chaos}
spec: {retry: {firstSeconds: 30, maxSeconds: 30}}
---
apiVersion: postroad.dev/v1alpha1
kind: EdgePool
metadata: {name: edge}
spec: {limits: {connectionsPerSource: 1000}}
"
        .to_owned();
        for (n, (domain, port)) in self.spec.relays.iter().enumerate() {
            all += &format!(
                "---\napiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: d{n}}}\n\
                 spec: {{domain: {domain}, inbound: {{targets: [{{host: 127.0.0.1, port: {port}}}]}}}}\n"
            );
        }
        all
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("pki-{name}"))
    }

    /// The directory of resources.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("resources")
    }

    /// The data directory of a node.
    pub fn data(&self, name: &str) -> PathBuf {
        let usual = || self.dir.path().join(format!("data-{name}"));
        self.spec.data.get(name).cloned().unwrap_or_else(usual)
    }

    /// Names of all nodes whose name begins so.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let all = self.places.keys();
        all.filter(|n| n.starts_with(prefix)).cloned().collect()
    }

    /// Starts a node that does not run.
    pub fn spawn(&mut self, name: &str) -> Result<()> {
        let place = self.places.get(name).context("no such node")?;
        let group = queue_id(name)
            .filter(|_| self.spec.cuttable)
            .map(|id| FIRST_GROUP + id);
        let process = Process::start(name, &place.args, &place.log, group)?;
        self.running.insert(name.to_owned(), process);
        Ok(())
    }

    /// The process of a node.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        self.running
            .get_mut(name)
            .with_context(|| format!("{name} does not run"))
    }

    /// Waits until a node says that it is ready.
    pub async fn ready(&mut self, name: &str) -> Result<()> {
        let until = Instant::now() + READY;
        loop {
            self.process(name)?.runs()?;
            let admin = self.places.get(name).context("no such node")?.admin;
            let answer = ask(admin, "/readyz").await;
            if answer.as_ref().is_ok_and(|a| a.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{name} is not ready after {READY:?}: {answer:?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether a node says that it is ready now.
    pub async fn is_ready(&self, name: &str) -> bool {
        let Some(place) = self.places.get(name) else {
            return false;
        };
        let answer = ask(place.admin, "/readyz").await;
        answer.is_ok_and(|a| a.starts_with("HTTP/1.1 200"))
    }

    /// All that a node ever said.
    pub fn all_said(&self, name: &str) -> Result<String> {
        let place = self.places.get(name).context("no such node")?;
        Ok(std::fs::read_to_string(&place.log)?)
    }

    /// What a node says of itself in numbers.
    pub async fn metrics(&self, name: &str) -> Result<String> {
        let admin = self.places.get(name).context("no such node")?.admin;
        ask(admin, "/metrics").await
    }

    /// `kill -9`.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.process(name)?.kill()?;
        self.running.remove(name);
        Ok(())
    }

    /// SIGTERM, and the wait for an orderly end.
    pub async fn terminate(&mut self, name: &str, within: Duration) -> Result<()> {
        let process = self.process(name)?;
        process.terminate()?;
        let status = process.end(within).await?;
        ensure!(
            status.success(),
            "{name} ended with {status}\n{}",
            process.said()
        );
        self.running.remove(name);
        Ok(())
    }

    /// Cuts a queue node off from the other queue nodes, until the value is dropped; clients reach all of them.
    pub fn cut(&self, name: &str) -> Result<Cut> {
        ensure!(self.spec.cuttable, "the cluster was not made for this");
        let id = queue_id(name).with_context(|| format!("{name} is no queue node"))?;
        let others: Vec<u16> = self
            .peers
            .iter()
            .filter(|(other, _)| **other != id)
            .map(|(_, port)| *port)
            .collect();
        let port = self.peers.get(&id).context("no such node")?;
        Cut::off(FIRST_GROUP + id, *port, &others)
    }

    /// Fails when a node that should run does not.
    pub fn all_run(&mut self) -> Result<()> {
        self.running.values_mut().try_for_each(Process::runs)
    }

    /// Peaks of memory by node, octets.
    pub fn memory_peaks(&self) -> Result<BTreeMap<String, u64>> {
        let running = self.running.iter();
        running
            .map(|(name, p)| Ok((name.clone(), p.memory_peak()?)))
            .collect()
    }

    /// A client with all rights of an administrator.
    pub fn admin(&self) -> Result<QueueClient> {
        self.client("admin")
    }

    /// A client that may append, as an edge.
    pub fn appender(&self) -> Result<QueueClient> {
        let ca = self.dir.path().join("ca");
        pki::issue(&ca, Role::Edge, "appender", &self.pki("appender"))?;
        self.client("appender")
    }

    fn client(&self, pki: &str) -> Result<QueueClient> {
        Ok(QueueClient::new(ClientConfig {
            endpoints: self.clients.values().cloned().collect(),
            tls: Arc::new(NodeTls::load(&self.pki(pki))?),
            name: "chaos".to_owned(),
        }))
    }

    /// The queue node that leads most shards now.
    pub async fn leads_most(&self, admin: &QueueClient) -> Result<String> {
        let until = Instant::now() + READY;
        while Instant::now() < until {
            // All shards, so that an election under way does not count as nobody's.
            let led = admin.view().leaders().into_iter().fold(
                BTreeMap::<String, usize>::new(),
                |mut led, (address, shards)| {
                    led.insert(address.to_owned(), shards.len());
                    led
                },
            );
            if led.values().sum::<usize>() == self.spec.shards as usize {
                let most = led.iter().max_by_key(|(_, count)| **count);
                let address = most.map(|(address, _)| address.as_str());
                let of = self
                    .clients
                    .iter()
                    .find(|(_, a)| Some(a.as_str()) == address);
                if let Some((id, _)) = of {
                    return Ok(format!("queue-{id}"));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("not every shard has a leader after {READY:?}")
    }

    /// Messages in the queue.
    pub async fn queued(&self, admin: &QueueClient) -> Result<u64> {
        Ok(admin.admin().summary(10).await?.messages)
    }

    /// The shards that a queue node leads, as far as this client knows.
    pub fn led_by(&self, admin: &QueueClient, name: &str) -> Vec<u32> {
        let address = queue_id(name).and_then(|id| self.clients.get(&id));
        let view = admin.view();
        let mut leaders = view.leaders();
        address
            .and_then(|address| leaders.remove(address.as_str()))
            .unwrap_or_default()
    }

    /// Waits until the queue is empty. What waits because a next hop may have taken it already (its connection ended
    /// after the final dot) is told to go on: nobody wants to wait half an hour here. Returns how many that were.
    pub async fn drained(&mut self, admin: &QueueClient, within: Duration) -> Result<usize> {
        let until = Instant::now() + within;
        let (mut unsure, mut empty) = (0, 0);
        loop {
            self.all_run()?;
            // What is committed is counted once it is applied: one look may come before the last of it.
            let summary = admin.admin().summary(10).await;
            empty = match summary.is_ok_and(|s| s.messages == 0) {
                true => empty + 1,
                false => 0,
            };
            if empty == EMPTY_LOOKS {
                return Ok(unsure);
            }
            let filter = ItemFilter {
                state: "Waiting".to_owned(),
                ..ItemFilter::default()
            };
            // Only when little is left: it is not the test that delivers.
            if let Ok((items, more)) = admin.admin().list(&filter, 500).await
                && !more
            {
                let far = crate::queue::wall_ms() + 60_000;
                let of: Vec<_> = items
                    .iter()
                    .filter(|i| i.due_ms > far && i.attempts > 0)
                    .filter_map(|i| i.item.clone())
                    .collect();
                if !of.is_empty() {
                    unsure += of.len();
                    let _ = admin
                        .admin()
                        .act(AdminAction::Retry, of, "chaos", "the test waits")
                        .await;
                }
            }
            if Instant::now() > until {
                let left = admin.admin().list(&ItemFilter::default(), 20).await;
                bail!("the queue is not empty after {within:?}: {left:#?}");
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

fn queue_id(name: &str) -> Option<u32> {
    name.strip_prefix("queue-")?.parse().ok()
}

fn text(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .context("paths of tests are UTF-8")?
        .to_owned())
}
