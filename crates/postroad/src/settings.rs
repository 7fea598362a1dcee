//! What the command line and the environment say. Every setting of a node has a flag and a variable `POSTROAD_*`; the flag
//! wins.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use spool::identity::ClusterId;

mod admin;
mod config;
mod tls;
mod value;

pub use admin::{
    Action, Check, Connection, DomainRecords, Filter, List, MembersCommand, MembersList,
    MembersRemove, Output, PkiCommand, QueueCommand, Salvage, Send, Show, Status, Summary,
};
pub use config::{Apply, ConfigCommand, ConfigStatus, Get, Prune};
pub use tls::MailTls;
pub use value::{InitialNode, Listener, Octets};

/// A distributed SMTP relay: mail is accepted, appended to a replicated queue, leased, delivered and settled.
#[derive(Debug, Parser)]
#[command(name = "postroad", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub logs: Logs,
    #[command(subcommand)]
    pub command: Command,
}

/// How to log. `POSTROAD_LOG` holds the filter, as `info` or `info,delivery=debug`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Form of the log lines on standard error
    #[arg(
        long,
        env = "POSTROAD_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_enum,
        hide_env_values = true
    )]
    pub log_format: LogFormat,
}

/// See [`Logs::log_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in this process: an edge, the queue and a delivery node
    Up(Up),
    /// Run an edge node: accepts mail
    Edge(Edge),
    /// Run a queue node, or ask the queue and act on it
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Queue(Box<Queue>),
    /// Run a delivery node: leases mail and delivers it
    Delivery(Delivery),
    /// How the cluster is: nodes, shards, leaders, disks
    Status(Status),
    /// The nodes of the queue: who there is, who comes, who goes
    #[command(subcommand)]
    Members(MembersCommand),
    /// Send a test message
    Send(Send),
    /// Declare a directory of resources: write it to the queue, from where every node has it
    Apply(Apply),
    /// What is declared in the queue
    Get(Get),
    /// Who declared how much, and which nodes have it
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The records that a domain needs, on Kubernetes: asks the kubectl in PATH
    Dns(DomainRecords),
    /// Check a directory of resources without using it
    Check(Check),
    /// Make certificates for the nodes of a cluster
    #[command(subcommand)]
    Pki(PkiCommand),
}

impl Command {
    /// It runs until it is told to stop, and logs what it does.
    pub fn is_node(&self) -> bool {
        match self {
            Command::Up(_) | Command::Edge(_) | Command::Delivery(_) => true,
            Command::Queue(queue) => queue.command.is_none(),
            _ => false,
        }
    }
}

/// Settings of `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Directory of resources (*.yaml): what is relayed for whom [default: what `postroad apply` writes to the queue]
    #[arg(
        short = 'f',
        long = "files",
        env = "POSTROAD_FILES",
        value_name = "DIR"
    )]
    pub files: Option<PathBuf>,
    /// Where everything is kept: queue, journal, certificates. Made at the first start
    #[arg(
        long,
        env = "POSTROAD_DATA",
        default_value = DATA_DEFAULT,
        value_name = "DIR"
    )]
    pub data: PathBuf,
    /// Where to accept mail
    #[arg(
        long,
        env = "POSTROAD_LISTEN",
        value_delimiter = ',',
        default_value = "127.0.0.1:2525",
        value_name = "ADDRESS:PORT"
    )]
    pub listen: Vec<SocketAddr>,
    /// Replicas of the queue, each with its own directory: 1, 3 or 5. Fixed at the first start [default: 1]
    #[arg(long, env = "POSTROAD_REPLICAS", value_name = "N")]
    pub replicas: Option<u32>,
    #[command(flatten)]
    pub tls: MailTls,
    #[command(flatten)]
    pub mail: MailName,
    #[command(flatten)]
    pub resolver: ResolverFlags,
    #[command(flatten)]
    pub disk: Disk,
    /// Where to serve /livez, /readyz and /metrics over HTTP, or `off`
    #[arg(
        long,
        env = "POSTROAD_ADMIN_LISTEN",
        default_value = "127.0.0.1:8025",
        value_name = "ADDRESS:PORT"
    )]
    pub admin_listen: Listener,
}

/// Where `up` keeps everything unless told otherwise: beside the user's files, easy to see and to remove.
pub const DATA_DEFAULT: &str = "postroad-data";

/// Settings of an edge node.
#[derive(Debug, Args)]
pub struct Edge {
    #[command(flatten)]
    pub node: ClientNode,
    /// Where to accept mail
    #[arg(
        long,
        env = "POSTROAD_LISTEN",
        value_delimiter = ',',
        default_value = "0.0.0.0:25",
        value_name = "ADDRESS:PORT"
    )]
    pub listen: Vec<SocketAddr>,
    /// Clients come with the address of a proxy or a load balancer: their own decides nothing, and no network may send
    #[arg(long, env = "POSTROAD_CLIENTS_HIDDEN")]
    pub clients_hidden: bool,
    #[command(flatten)]
    pub tls: MailTls,
    #[command(flatten)]
    pub mail: MailName,
    #[command(flatten)]
    pub admin: AdminListen,
}

/// Settings of a delivery node.
#[derive(Debug, Args)]
pub struct Delivery {
    #[command(flatten)]
    pub node: ClientNode,
    /// Directory of this node's journal
    #[arg(long, env = "POSTROAD_DATA", value_name = "DIR")]
    pub data: PathBuf,
    #[command(flatten)]
    pub mail: MailName,
    #[command(flatten)]
    pub resolver: ResolverFlags,
    /// Directory of sealing keys, 32 octets each: they open DKIM keys that are declared in the queue
    #[arg(long, env = "POSTROAD_SEAL", value_name = "DIR")]
    pub seal: Option<PathBuf>,
    /// Addresses at which this cluster accepts mail: a mail host with one of them would be a loop
    #[arg(
        long,
        env = "POSTROAD_OWN_ADDRESSES",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub own_addresses: Vec<IpAddr>,
    /// Names by which MX records call this cluster's edges, beside --hostname and the EdgePool's: they would be a loop
    #[arg(
        long,
        env = "POSTROAD_OWN_NAMES",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub own_names: Vec<String>,
    #[command(flatten)]
    pub admin: AdminListen,
}

/// What edge and delivery nodes have in common.
#[derive(Debug, Args)]
pub struct ClientNode {
    /// Client addresses of some queue nodes; the others are learned from them
    #[arg(
        long,
        env = "POSTROAD_QUEUE",
        value_delimiter = ',',
        required = true,
        value_name = "HOST:PORT"
    )]
    pub queue: Vec<String>,
    /// Directory with this node's ca.crt, tls.crt and tls.key
    #[arg(long, env = "POSTROAD_PKI", value_name = "DIR")]
    pub pki: PathBuf,
    /// Directory of resources (*.yaml), read again when it changes [default: what is declared in the queue]
    #[arg(
        short = 'f',
        long = "files",
        env = "POSTROAD_FILES",
        value_name = "DIR"
    )]
    pub files: Option<PathBuf>,
    /// Directory with this node's EdgePool or DeliveryPool (*.yaml), where the rest is declared in the queue
    #[arg(
        long,
        env = "POSTROAD_POOL",
        value_name = "DIR",
        conflicts_with = "files"
    )]
    pub pool: Option<PathBuf>,
    /// This node's name in logs and in the queue [default: the host name]
    #[arg(long, env = "POSTROAD_NAME")]
    pub name: Option<String>,
}

/// What a node calls itself in SMTP.
#[derive(Debug, Args)]
pub struct MailName {
    /// Name to say in the greeting, EHLO, trace headers and reports [default: the host name]
    #[arg(long, env = "POSTROAD_HOSTNAME", value_name = "DOMAIN")]
    pub hostname: Option<String>,
}

/// How next hops are found, and trusted.
#[derive(Debug, Args)]
pub struct ResolverFlags {
    /// Name servers [default: the resources', else the system's]
    #[arg(
        long,
        env = "POSTROAD_RESOLVER",
        value_delimiter = ',',
        value_name = "ADDRESS:PORT"
    )]
    pub resolver: Vec<SocketAddr>,
    /// CAs in PEM, beside the well-known ones, that servers may have where TLS is required
    #[arg(long, env = "POSTROAD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Port of mail hosts found by MX
    #[arg(long, env = "POSTROAD_SMTP_PORT", default_value_t = delivery::SMTP_PORT, hide = true)]
    pub smtp_port: u16,
}

/// What of the disk the queue may use.
#[derive(Debug, Args)]
pub struct Disk {
    /// What the queue may use of its disk, as 20GiB [default: the file system]
    #[arg(long, env = "POSTROAD_DISK_BYTES", value_name = "SIZE")]
    pub disk_bytes: Option<Octets>,
    /// What the log may write a second, as 50MiB, on a disk that is shared [default: no limit]
    #[arg(long, env = "POSTROAD_DISK_BYTES_PER_SECOND", value_name = "SIZE")]
    pub disk_bytes_per_second: Option<Octets>,
    /// Size of a log segment [default: 64MiB, `up`: 16MiB]
    #[arg(long, env = "POSTROAD_SEGMENT_BYTES", value_name = "SIZE")]
    pub segment_bytes: Option<Octets>,
    /// Log kept for replicas that lag, before they get a snapshot [default: a tenth of the disk, at most 20GiB]
    #[arg(long, env = "POSTROAD_RETAIN_LOG_BYTES", value_name = "SIZE")]
    pub retain_log_bytes: Option<Octets>,
    /// How long a silent replica keeps the log beyond that size [default: 60]
    #[arg(long, env = "POSTROAD_RETAIN_LOG_SECONDS", value_name = "SECONDS")]
    pub retain_log_seconds: Option<u64>,
}

/// Where a separate node serves its health.
#[derive(Debug, Args)]
pub struct AdminListen {
    /// Where to serve /livez, /readyz and /metrics over HTTP
    #[arg(
        long,
        env = "POSTROAD_ADMIN_LISTEN",
        default_value = "off",
        value_name = "ADDRESS:PORT"
    )]
    pub admin_listen: Listener,
}

/// `postroad queue`: a node, or with a subcommand a question to the whole queue.
#[derive(Debug, Args)]
pub struct Queue {
    #[command(flatten)]
    pub node: QueueNode,
    #[command(subcommand)]
    pub command: Option<QueueCommand>,
}

/// Settings of a queue node. What is required is so only without a subcommand, hence the options.
#[derive(Debug, Args)]
pub struct QueueNode {
    /// The cluster's id, the same on all its nodes
    #[arg(
        long,
        env = "POSTROAD_CLUSTER_ID",
        required = true,
        value_name = "UUID"
    )]
    pub cluster_id: Option<ClusterId>,
    /// Names this node's disk, 1 to 4294967295; never used again for another disk
    #[arg(long, env = "POSTROAD_NODE_ID", required = true, value_name = "N")]
    pub node_id: Option<u32>,
    /// The first nodes with the addresses at which other replicas reach them; the same on each of them
    #[arg(
        long,
        env = "POSTROAD_INITIAL_CLUSTER",
        value_delimiter = ',',
        required = true,
        value_name = "ID=HOST:PORT"
    )]
    pub initial_cluster: Vec<InitialNode>,
    /// What an empty data directory means
    #[arg(
        long,
        env = "POSTROAD_INITIAL_CLUSTER_STATE",
        value_enum,
        default_value = "new"
    )]
    pub initial_cluster_state: InitialClusterState,
    /// Directory with this node's ca.crt, tls.crt and tls.key
    #[arg(long, env = "POSTROAD_PKI", required = true, value_name = "DIR")]
    pub pki: Option<PathBuf>,
    /// Directory of log and metadata
    #[arg(long, env = "POSTROAD_DATA", required = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where other replicas connect
    #[arg(
        long,
        env = "POSTROAD_LISTEN_PEER",
        default_value = "0.0.0.0:7101",
        value_name = "ADDRESS:PORT"
    )]
    pub listen_peer: SocketAddr,
    /// Where edge and delivery nodes and people connect
    #[arg(
        long,
        env = "POSTROAD_LISTEN",
        default_value = "0.0.0.0:7100",
        value_name = "ADDRESS:PORT"
    )]
    pub listen: SocketAddr,
    /// What other replicas connect to [default: this node's address in --initial-cluster]
    #[arg(long, env = "POSTROAD_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// What clients connect to [default: the host of --advertise, the port of --listen]
    #[arg(long, env = "POSTROAD_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,
    /// Shards of the queue, a power of two up to 256; fixed when the cluster is made
    #[arg(long, env = "POSTROAD_SHARDS", default_value_t = 16, value_name = "N")]
    pub shards: u32,
    /// Copies of each shard when the cluster is made: 1, 3 or 5; `postroad members copies` changes them [default: 3; 1 with one
    /// initial node]
    #[arg(long, env = "POSTROAD_REPLICATION_FACTOR", value_name = "N")]
    pub replication_factor: Option<u32>,
    #[command(flatten)]
    pub disk: Disk,
    /// Zone of this node
    #[arg(long, env = "POSTROAD_ZONE", default_value = "")]
    pub zone: String,
    #[command(flatten)]
    pub mail: MailName,
    /// Directory of resources (*.yaml) with a RelayCluster's retry times [default: those declared in the queue]
    #[arg(
        short = 'f',
        long = "files",
        env = "POSTROAD_FILES",
        value_name = "DIR"
    )]
    pub files: Option<PathBuf>,
    #[command(flatten)]
    pub admin: AdminListen,
}

/// See [`QueueNode::initial_cluster_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitialClusterState {
    /// A first start: this node is one of those of the initial cluster
    New,
    /// This node joins a cluster that exists
    Existing,
}

impl QueueNode {
    /// The first nodes by id.
    pub fn initial(&self) -> BTreeMap<u64, String> {
        self.initial_cluster
            .iter()
            .map(|node| (node.id, node.address.clone()))
            .collect()
    }
}

/// Parses with [`FromStr`], for settings that arrive outside clap.
pub fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn queue_is_a_node_or_a_question() {
        let node = "postroad queue --cluster-id 6f2d2f1e-0000-4000-8000-000000000001 --node-id 2 \
                    --initial-cluster 1=a:7101,2=b:7101,3=c:7101 --pki p --data d";
        let cli = Cli::try_parse_from(node.split_whitespace()).unwrap();
        assert!(cli.command.is_node());
        let Command::Queue(queue) = cli.command else {
            panic!("not a queue")
        };
        assert_eq!(queue.node.initial()[&3], "c:7101");

        let question = Cli::try_parse_from("postroad queue list --state Held".split(' ')).unwrap();
        assert!(!question.command.is_node());

        let error = Cli::try_parse_from(["postroad", "queue"]).unwrap_err();
        assert!(error.to_string().contains("--cluster-id"), "{error}");
    }
}
