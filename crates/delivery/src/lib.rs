//! A delivery node: leases items from the queue, delivers them to the next hop, and settles them with the replies.
//!
//! What it promises: nothing is lost when it dies, for the queue keeps each item until it is settled; and nothing is
//! sent twice but where SMTP forces it (the node or the connection dies between the final dot and the reply). For that it
//! keeps a journal of what it said to whom ([`journal`](JournalError)), and it falls silent by itself when the queue does
//! not answer, before the queue gives its items to another node.
//!
//! ```text
//!  queue ══ Lease ══► lease ──► hand ──► site ──► worker (a task a connection) ══ SMTP ══► next hop
//!    ▲                            ▲        │        │
//!    ╚═══════ Settle ═══ settle ◄─┴────────┴────────┘──► journal
//! ```
//!
//! Deliberately absent so far: MTA-STS and DANE, rates of a site over the whole cluster.

mod attempt;
mod body;
mod config;
mod connection;
mod describe;
mod dkim;
mod hand;
mod item;
mod journal;
mod lease;
mod leases;
mod node;
mod resolve;
mod route;
mod settle;
mod site;
mod tls;
mod window;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use dns::Resolver;
use proto::{QueueClient, v1};
use resource::Catalog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Config, IDLE_DEFAULT, SMTP_PORT};
pub use describe::describe_metrics;
pub use dkim::{Algorithm, KeyError, MissingKey, SigningKey, SigningKeys, watch_keys};
pub use journal::Error as JournalError;
pub use tls::CaError;

use crate::dkim::Signatures;
use crate::hand::Stage;
use crate::item::ItemId;
use crate::journal::{Journal, Replay};
use crate::lease::Leases;
use crate::node::Node;
use crate::tls::NextHopTls;

/// How long a leaving node waits for the outcome of what it hands back and settles after its drain time.
const LAST_SETTLES: Duration = Duration::from_secs(3);
/// How often a leaving node looks whether its hand is empty.
const LEAVING_POLL: Duration = Duration::from_millis(20);
/// Where Linux says which boot this is: the same one proves that an earlier process with our directory is dead.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a delivery node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The CAs for next hops cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The host name is neither a domain nor an address literal.
    #[error(
        "the host name {0:?} cannot be said in EHLO: {1}; set one that the next hops can resolve"
    )]
    Hostname(String, mail::AddressError),
}

/// Delivers until `shutdown` is cancelled and what was begun is done, or its drain time is over. `ready` becomes true when
/// every shard has a lease session, and false when one has lost it.
///
/// # Errors
/// See [`Error`]; all of them come at the start.
pub async fn run(
    config: Config,
    queue: QueueClient,
    mut catalog: watch::Receiver<Option<Arc<Catalog>>>,
    resolver: Resolver,
    keys: watch::Receiver<Arc<SigningKeys>>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let host = mail::Host::parse(&config.hostname)
        .map_err(|error| Error::Hostname(config.hostname.clone(), error))?;
    let tls = NextHopTls::new(config.tls_ca.as_deref())?;
    let signatures = Signatures::new(keys);
    let (journal, replay) = Journal::open(&config.data_dir)?;
    // Without a catalog there is no route: mail for a declared server would go by MX.
    let waited = shutdown
        .run_until_cancelled(catalog.wait_for(Option::is_some))
        .await
        .is_some_and(|found| found.is_ok());
    if !waited {
        return Ok(());
    }
    let hello = v1::LeaseHello {
        node: config.name.clone(),
        incarnation: bytes::Bytes::copy_from_slice(&incarnation()),
        boot_id: place(&config.data_dir),
    };
    let (node, ways) = Node::new(
        config, host, queue, resolver, tls, signatures, catalog, journal,
    );
    let mut leases = Leases::new(node.config.keepalive_every);
    replayed(&node, &mut leases, replay);
    let over = CancellationToken::new();
    let settling = settle::run(node.clone(), ways.settles);
    tokio::spawn(over.clone().run_until_cancelled_owned(settling));
    let leasing = leases::run(
        node.clone(),
        leases,
        hello,
        ways.said,
        ready.clone(),
        over.clone(),
    );
    tokio::spawn(leasing);
    tracing::info!(name = node.config.name, "delivering");
    let _over = over.drop_guard();
    shutdown.cancelled().await;
    ready.send_replace(false);
    leave(&node).await;
    Ok(())
}

/// New for each process, and greater than that of any earlier process under the same boot id: the uptime of the kernel,
/// which no clock setting moves, then chance.
fn incarnation() -> [u8; 16] {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(uptime.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(uptime.tv_nsec).unwrap_or_default();
    let mut octets: [u8; 16] = rand::random();
    octets[..8].copy_from_slice(&(seconds * 1_000_000_000 + nanoseconds).to_be_bytes());
    octets
}

/// Takes up what an earlier process left in the journal.
fn replayed(node: &Node, leases: &mut Leases, replay: Replay) {
    if !(replay.got.is_empty() && replay.past_dot.is_empty()) {
        tracing::info!(
            results = replay.got.len(),
            unknown = replay.past_dot.len(),
            "the journal holds what an earlier process did not settle"
        );
    }
    for request in replay.got {
        let Some(item) = ItemId::from_wire(request.item.as_ref()) else {
            continue;
        };
        node.hand().recall(item, &request, Stage::Settling);
        leases.settle_first(request.shard);
        node.settle_first(item, request);
    }
    for request in replay.past_dot {
        let Some(item) = ItemId::from_wire(request.item.as_ref()) else {
            continue;
        };
        node.hand().recall(item, &request, Stage::PastDot);
        leases.recall(request.shard, item, request);
    }
}

/// Stops taking, finishes what is begun, hands back the rest. What is past its final dot is never handed back: another node
/// would send it again at once.
async fn leave(node: &Arc<Node>) {
    let drain = node.settings().drain;
    tracing::info!(
        in_hand = node.hand().len(),
        ?drain,
        "leaving: no new work; what is in a transaction is finished"
    );
    node.leaving.cancel();
    node.hand_back();
    if tokio::time::timeout(drain, empty(node)).await.is_err() {
        tracing::warn!(
            in_hand = node.hand().len(),
            "the drain time is over: connections are cut, what has not passed its final dot is handed back, the rest is settled as perhaps delivered"
        );
    }
    node.cut_off.cancel();
    node.tasks.close();
    node.tasks.wait().await;
    let before_dot = node.hand().before_dot();
    for item in before_dot {
        node.give_up(item, hand::Stop::Fenced);
    }
    let in_doubt = node.hand().in_doubt();
    for item in in_doubt {
        node.settle_in_doubt(item);
    }
    let _ = tokio::time::timeout(LAST_SETTLES, empty(node)).await;
}

/// Until nothing is in hand and nothing is being handed back.
async fn empty(node: &Node) {
    while !node.hand().is_empty() {
        tokio::time::sleep(LEAVING_POLL).await;
    }
}

/// What proves to the queue that an older process of this node is dead: the same running kernel and the same data
/// directory, which only one process can have locked. Two nodes that share a name and a machine have two directories.
fn place(data_dir: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    match std::fs::metadata(data_dir) {
        Ok(dir) => format!("{} {}:{}", boot.trim(), dir.dev(), dir.ino()),
        // Unknown, so equal to no other: the former lease session runs out instead.
        Err(_) => format!("{} {:032x}", boot.trim(), rand::random::<u128>()),
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn two_directories_of_one_machine_are_two_places() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(place(one.path()), place(one.path()));
        assert_ne!(place(one.path()), place(two.path()));
    }
}
