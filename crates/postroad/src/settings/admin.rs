//! Flags of the administration commands.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use proto::{Role, Ulid};

use super::DATA_DEFAULT;

/// How to reach the queue: by default the one of a `postroad up` in the default data directory.
#[derive(Debug, Args)]
pub struct Connection {
    /// Client addresses of some queue nodes [default: those of the `up` in --data]
    #[arg(
        long,
        env = "POSTROAD_QUEUE",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub queue: Vec<String>,
    /// Directory with a certificate of role admin [default: that of the `up` in --data]
    #[arg(long, env = "POSTROAD_PKI", value_name = "DIR")]
    pub pki: Option<PathBuf>,
    /// Data directory of an `up`
    #[arg(
        long,
        env = "POSTROAD_DATA",
        default_value = DATA_DEFAULT,
        value_name = "DIR"
    )]
    pub data: PathBuf,
}

/// In what form to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `postroad status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Show each shard
    #[arg(short, long)]
    pub verbose: bool,
}

/// What may be asked of the queue, and done to it.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// How much mail waits, by destination
    Summary(Summary),
    /// Where each shard is: its leader, its nodes, and where it is to move
    Groups(MembersList),
    /// Items: one message to one destination each
    List(List),
    /// Everything about one message
    Show(Show),
    /// Stop items from being delivered until they are released
    Hold(Action),
    /// Let held items be delivered
    Release(Action),
    /// Deliver waiting items now
    Retry(Action),
    /// Remove items; nobody is told
    Drop(Action),
    /// Write out what is readable in the data directory of a lost queue node that was the only copy
    Salvage(Salvage),
}

/// `postroad members`.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// All nodes of the queue
    List(MembersList),
    /// Let a node join; of one that is known, change the address
    Add(MembersAdd),
    /// Let a node go: its replicas move to others first
    Remove(MembersRemove),
    /// Let others lead what a node leads, until its process starts anew or for 10 minutes
    MoveLeaders(MembersMove),
    /// Give every group another number of copies; they come and go one by one
    Copies(MembersCopies),
}

/// `postroad members list`, `postroad queue groups`.
#[derive(Debug, Args)]
pub struct MembersList {
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `postroad members copies`.
#[derive(Debug, Args)]
pub struct MembersCopies {
    /// Copies of every group: 1, 3 or 5
    #[arg(value_name = "COPIES")]
    pub factor: u32,
    #[command(flatten)]
    pub connection: Connection,
}

/// `postroad members add`.
#[derive(Debug, Args)]
pub struct MembersAdd {
    /// Its node id: above all that were ever used
    #[arg(value_name = "NODE")]
    pub node: u32,
    /// Where other queue nodes reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: String,
    /// Where clients reach it [default: what it says itself]
    #[arg(long, value_name = "HOST:PORT")]
    pub client: Option<String>,
    /// Zone that it runs in
    #[arg(long, default_value = "", value_name = "NAME")]
    pub zone: String,
    #[command(flatten)]
    pub connection: Connection,
}

/// `postroad members remove`.
#[derive(Debug, Args)]
pub struct MembersRemove {
    /// Its node id; it is never used again
    #[arg(value_name = "NODE")]
    pub node: u32,
    /// Wait until it is gone
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// `postroad members move-leaders`.
#[derive(Debug, Args)]
pub struct MembersMove {
    /// The node that should not lead
    #[arg(value_name = "NODE")]
    pub node: u32,
    #[command(flatten)]
    pub connection: Connection,
}

/// `postroad queue summary`.
#[derive(Debug, Args)]
pub struct Summary {
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Destinations to show
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: u32,
}

/// `postroad queue salvage`.
#[derive(Debug, Args)]
pub struct Salvage {
    /// Data directory of the queue node, which must not run; it is not changed
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// New or empty directory: MESSAGE.eml with the octets as they were accepted, MESSAGE.json with the envelope,
    /// salvage.json with all that could not be read
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Which items. All that are given must match.
#[derive(Debug, Args)]
pub struct Filter {
    /// Message ids
    #[arg(value_name = "MESSAGE", value_parser = message_id)]
    pub messages: Vec<Ulid>,
    /// Return path: a whole address; <> is the null one
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// A recipient: a whole address
    #[arg(long, value_name = "ADDRESS")]
    pub recipient: Option<String>,
    /// Domain or address literal that the mail goes to
    #[arg(long, value_name = "DOMAIN")]
    pub destination: Option<String>,
    /// Tenant that answers for the mail
    #[arg(long)]
    pub tenant: Option<String>,
    /// waiting, leased or held
    #[arg(long, value_enum, ignore_case = true)]
    pub state: Option<ItemState>,
}

/// States of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ItemState {
    /// For its due time
    Waiting,
    /// A delivery node has it
    Leased,
    /// For a person
    Held,
}

impl ItemState {
    /// As the queue calls it.
    pub fn name(self) -> &'static str {
        match self {
            ItemState::Waiting => "Waiting",
            ItemState::Leased => "Leased",
            ItemState::Held => "Held",
        }
    }
}

/// `postroad queue list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    pub filter: Filter,
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Items to show
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
}

/// `postroad queue show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Message id
    #[arg(value_parser = message_id)]
    pub message: Ulid,
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `postroad queue hold|release|retry|drop`.
#[derive(Debug, Args)]
pub struct Action {
    #[command(flatten)]
    pub filter: Filter,
    /// All items of the queue, instead of a filter
    #[arg(long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Why; kept with a hold
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `postroad send`.
#[derive(Debug, Args)]
pub struct Send {
    /// Server to give the message to
    #[arg(
        long,
        env = "POSTROAD_SERVER",
        default_value = "127.0.0.1:2525",
        value_name = "HOST:PORT"
    )]
    pub server: String,
    /// Return path; <> is the null one
    #[arg(long, value_name = "ADDRESS")]
    pub from: String,
    /// Recipients
    #[arg(long, required = true, value_delimiter = ',', action = ArgAction::Append, value_name = "ADDRESS")]
    pub to: Vec<String>,
    /// Subject of the default message
    #[arg(long, default_value = "A test message", value_name = "TEXT")]
    pub subject: String,
    /// Take the whole message, header and body, from standard input
    #[arg(long)]
    pub stdin: bool,
    /// What to say in EHLO [default: the host name]
    #[arg(long, env = "POSTROAD_HOSTNAME", value_name = "DOMAIN")]
    pub hostname: Option<String>,
}

/// `postroad check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Directory of resources (*.yaml)
    #[arg(short = 'f', long = "files", value_name = "DIR")]
    pub files: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `postroad dns`.
#[derive(Debug, Args)]
pub struct DomainRecords {
    /// The domain, as in spec.domain of its RelayDomain
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
    /// Namespace of the RelayDomain [default: all]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `postroad pki`.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the CA of a cluster: ca.crt and ca.key
    Init {
        /// Name of the cluster, as mail.example
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a certificate of a node or a person: ca.crt, tls.crt and tls.key
    Issue {
        /// edge, queue, delivery, operator or admin
        #[arg(long)]
        role: Role,
        /// Node id of a queue node
        #[arg(long, value_name = "N", conflicts_with = "name")]
        node: Option<u32>,
        /// Name of any other node or person [default: the role]
        #[arg(long)]
        name: Option<String>,
        /// Directory of the CA
        #[arg(long, default_value = ".", value_name = "DIR")]
        ca: PathBuf,
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

fn message_id(text: &str) -> Result<Ulid, String> {
    text.parse().map_err(|_| {
        "a message id has 26 letters and digits, as `postroad queue list` shows them".to_owned()
    })
}
