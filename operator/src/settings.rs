//! What the command line and the environment say. Every setting has a flag and a variable; the flag wins.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The operator of Postroad: pools, membership, certificates and configuration on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "postroad-operator", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// See [`Cli`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the cluster and work
    Run(Run),
    /// Print the custom resource definitions, for kubectl apply --server-side -f -
    Crds,
}

/// Settings of [`Command::Run`].
#[derive(Debug, Args)]
pub struct Run {
    /// Image of the nodes of clusters that name none
    #[arg(long, env = "POSTROAD_NODE_IMAGE", value_name = "IMAGE")]
    pub node_image: String,
    /// Namespace of this operator, where its Lease lies
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub namespace: String,
    /// Name of this pod, in the Lease
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod: String,
    /// The one namespace to work in [default: all]
    #[arg(long, env = "POSTROAD_WATCH_NAMESPACE", value_name = "NAME")]
    pub watch_namespace: Option<String>,
    /// Directory for this program's own certificates, which it makes at each start
    #[arg(
        long,
        env = "POSTROAD_STATE",
        default_value = "/run/postroad",
        value_name = "DIR"
    )]
    pub state: std::path::PathBuf,
    /// Where to serve /livez, /readyz and /metrics over HTTP
    #[arg(
        long,
        env = "POSTROAD_ADMIN_LISTEN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS:PORT"
    )]
    pub admin_listen: SocketAddr,
    /// Take the annotation postroad.dev/test-clock-divisor of RelayDomains: for tests, since it makes keys as often as it says
    #[arg(long, env = "POSTROAD_TEST_CLOCK", hide = true)]
    pub test_clock: bool,
    /// Form of the log lines on standard error; POSTROAD_LOG holds the filter
    #[arg(long, env = "POSTROAD_LOG_FORMAT", default_value = "json", value_enum)]
    pub log_format: LogFormat,
}

/// See [`Run::log_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
