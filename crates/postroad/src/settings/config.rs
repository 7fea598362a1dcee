//! Flags of the commands about what is declared.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Connection, Output};

/// Writes under this name unless told otherwise.
pub const WRITER: &str = "apply";

/// `postroad apply`.
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    pub connection: Connection,
    /// Directory of resources (*.yaml), with DKIM keys in secrets/NAME/private.key
    #[arg(short = 'f', long = "files", value_name = "DIR")]
    pub files: PathBuf,
    /// Who declares: a document belongs to its writer, and no other changes it
    #[arg(long, default_value = WRITER, value_name = "NAME")]
    pub writer: String,
    /// `complete`: what this writer declared before and DIR does not hold is removed
    #[arg(long, value_enum, value_name = "WHAT")]
    pub prune: Option<Prune>,
    /// Directory of sealing keys; the one whose name sorts last seals DKIM keys [default: that of the `up` in --data]
    #[arg(long, env = "POSTROAD_SEAL", value_name = "DIR")]
    pub seal: Option<PathBuf>,
    /// How long to wait until every node that runs has it; 0: not at all
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub wait: u64,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// See [`Apply::prune`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Prune {
    /// The directory is all that this writer declares
    Complete,
}

/// `postroad get`.
#[derive(Debug, Args)]
pub struct Get {
    #[command(flatten)]
    pub connection: Connection,
    /// RelayDomain, RelayCluster or DkimKey [default: all]
    pub kind: Option<String>,
    /// NAME, or NAMESPACE/NAME
    pub name: Option<String>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// What may be asked about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Who declared how much, and which nodes have it
    Status(ConfigStatus),
}

/// `postroad config status`.
#[derive(Debug, Args)]
pub struct ConfigStatus {
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}
