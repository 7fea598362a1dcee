//! The client of the queue: finds each shard's leader, follows it, and retries by message id.
//!
//! Appends and settles each travel over one long-lived stream for each node, many in a frame and answered in any
//! order; a caller sees only the outcome. All that a caller has to know of leaders is [`TopologyView`].
//!
//! # Diagnostics
//! A node that cannot be reached or that refuses is logged once for each new reason; callers go on trying until
//! [`GIVE_UP`]. Dropping a future cancels the call: a request that was written may still take effect.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::transport::Channel;
use ulid::Ulid;

use crate::tls::{Connector, NodeTls, causes, endpoint};
use crate::v1::{NotLeader, append_request};

mod admin;
mod append;
mod config;
mod control;
mod fetch;
mod lane;
mod lease;
mod members;
mod settle;
mod topology;

pub use admin::{AdminClient, Summary};
pub use append::AppendResult;
pub use config::{
    ConfigClient, ConfigNews, ConfigStream, ConfigView, PUT_DOCUMENTS_MAX, PUT_OCTETS_MAX,
    PutChange, PutError,
};
pub use lease::LeaseStream;
pub use settle::SettleOutcome;
pub use topology::TopologyView;

use append::Appends;
use lane::Lane;
use settle::Settles;

/// An append is given up after this long: a client of ours waits 10 min for our reply to its final dot (RFC 5321
/// section 4.5.3.2.6), and a cluster without a leader for two minutes needs a person.
pub const GIVE_UP: Duration = Duration::from_secs(120);
/// After the first retry, which is immediate, the next ones are this far apart.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A person at a command line waits this long for a shard's leader.
const ASK_GIVE_UP: Duration = Duration::from_secs(15);
/// One unary call; a node that says nothing for this long is not asked again at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// After so many tries of one request, topology is asked of another node: ours may be cut off.
const TRIES_BEFORE_ELSEWHERE: u32 = 5;

/// Where the queue is and who asks.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of some queue nodes; the others are learned from them.
    pub endpoints: Vec<String>,
    /// Our certificate and the CA.
    pub tls: Arc<NodeTls>,
    /// The name of this node, for the queue's log.
    pub name: String,
}

/// Why a call to a shard's leader, or to one node, came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No leader answered in time.
    #[error("no answer from the queue for {seconds} s; the last try: {last}")]
    GaveUp {
        /// How long it was tried.
        seconds: u64,
        /// What the last try met.
        last: String,
    },
    /// The queue has it no more.
    #[error("the queue has it no more")]
    Gone,
    /// The request was understood and not done.
    #[error("{text}")]
    Declined {
        /// Why, and what to do.
        text: String,
    },
    /// Asking again would change nothing.
    #[error("the queue node {address} refuses: {text}")]
    Refused {
        /// Who said so.
        address: String,
        /// Why.
        text: String,
    },
}

/// A handle to the whole queue; cloning is cheap, and the last one dropped closes all connections.
#[derive(Clone)]
pub struct QueueClient {
    inner: Arc<Inner>,
}

struct Inner {
    nodes: Arc<Nodes>,
    view: watch::Receiver<Arc<TopologyView>>,
    elsewhere: Arc<Notify>,
    give_up: Duration,
    follower: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The connections: one HTTP/2 channel for each address, whatever is asked over it.
pub(crate) struct Nodes {
    config: ClientConfig,
    by_address: Mutex<HashMap<String, Arc<Node>>>,
}

/// One queue node as a client sees it.
pub(crate) struct Node {
    address: String,
    channel: Channel,
    appends: OnceLock<Lane<Appends>>,
    settles: OnceLock<Lane<Settles>>,
}

impl Nodes {
    fn get(&self, address: &str) -> Result<Arc<Node>, String> {
        let mut nodes = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(address) {
            return Ok(node.clone());
        }
        let connector = Connector::new(self.config.tls.clone());
        let node = Arc::new(Node {
            address: address.to_owned(),
            channel: endpoint(address)?.connect_with_connector_lazy(connector),
            appends: OnceLock::new(),
            settles: OnceLock::new(),
        });
        nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }

    /// Lets go of nodes that are neither configured nor in the cluster any more and that nobody asks.
    fn retain(&self, view: &TopologyView) {
        let mut nodes = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|address, node| {
            self.config.endpoints.contains(address)
                || view.has_address(address)
                || Arc::strong_count(node) > 1
        });
    }
}

impl QueueClient {
    /// Starts to follow the queue's topology. Must be called inside a tokio runtime.
    pub fn new(config: ClientConfig) -> QueueClient {
        QueueClient::giving_up_after(config, GIVE_UP)
    }

    /// [`QueueClient::new`] with another [`GIVE_UP`], for tests.
    pub fn giving_up_after(config: ClientConfig, give_up: Duration) -> QueueClient {
        let nodes = Arc::new(Nodes {
            config,
            by_address: Mutex::default(),
        });
        let (publish, view) = watch::channel(Arc::new(TopologyView::default()));
        let elsewhere = Arc::new(Notify::new());
        let follower = tokio::spawn(topology::follow(nodes.clone(), publish, elsewhere.clone()));
        let follower = follower.abort_handle();
        QueueClient {
            inner: Arc::new(Inner {
                nodes,
                view,
                elsewhere,
                give_up,
                follower,
            }),
        }
    }

    /// Who leads, as far as known; changes with every message of the queue about it.
    pub fn topology(&self) -> watch::Receiver<Arc<TopologyView>> {
        self.inner.view.clone()
    }

    /// The topology now; empty (no shards) before the first node answered.
    pub fn view(&self) -> Arc<TopologyView> {
        self.inner.view.borrow().clone()
    }

    /// The topology as soon as a queue node has told it.
    pub async fn ready(&self, within: Duration) -> Result<Arc<TopologyView>, CallError> {
        let mut view = self.inner.view.clone();
        let found = tokio::time::timeout(within, view.wait_for(|view| view.shards() > 0)).await;
        match found {
            Ok(Ok(view)) => Ok(view.clone()),
            // The follower lives as long as this client: in effect only the timeout.
            Ok(Err(_)) | Err(_) => Err(CallError::GaveUp {
                seconds: within.as_secs(),
                last: self
                    .inner
                    .view
                    .borrow()
                    .trouble()
                    .unwrap_or("no queue node answered")
                    .to_owned(),
            }),
        }
    }

    /// A new message id whose shard has a leader that is known, when there is one: from then on the message never
    /// tries another shard. `random` should have 80 random bits.
    pub fn new_message_id(&self, now_ms: u64, random: u128) -> Ulid {
        self.inner.view.borrow().choose_id(now_ms, random)
    }

    /// Appends a message or a chunk of one and waits for the outcome; retries with the same id until [`GIVE_UP`].
    pub async fn append(&self, shard: u32, what: append_request::What) -> AppendResult {
        append::append(self, shard, what).await
    }

    /// Everything of the service Admin, over all shards.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(self.clone())
    }

    /// What is declared: documents in the control group.
    pub fn config(&self) -> ConfigClient {
        ConfigClient::new(self.clone())
    }

    fn tries(&self, shard: u32, give_up: Option<Duration>) -> Tries<'_> {
        Tries {
            client: self,
            shard,
            count: 0,
            hint: None,
            started: Instant::now(),
            give_up,
        }
    }

    /// Asks one node.
    async fn ask_node<R, F>(
        &self,
        address: &str,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<R, Asked>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let node = self.inner.nodes.get(address).map_err(Asked::Again)?;
        match tokio::time::timeout(CALL_TIMEOUT, call(node.channel.clone())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if is_final(&status) => {
                let (address, text) = (address.to_owned(), explain(&status));
                Err(Asked::Never(CallError::Refused { address, text }))
            }
            Ok(Err(status)) => Err(Asked::Again(format!("{address}: {}", explain(&status)))),
            Err(_) => Err(Asked::Again(format!(
                "{address}: no answer for {} s",
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Asks the leader of a shard, whoever that is by then.
    async fn ask_leader<R, F>(
        &self,
        shard: u32,
        give_up: Duration,
        call: impl Fn(Channel) -> F,
        redirect: impl Fn(&R) -> Option<&NotLeader>,
    ) -> Result<R, CallError>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let mut tries = self.tries(shard, Some(give_up));
        let mut last;
        loop {
            let address = tries.target();
            match self.ask_node(&address, &call).await {
                Ok(answer) => match redirect(&answer) {
                    None => return Ok(answer),
                    Some(not_leader) => {
                        last = format!("{address} does not lead shard {shard}");
                        tries.hint(&not_leader.leader_address);
                    }
                },
                Err(Asked::Never(error)) => return Err(error),
                Err(Asked::Again(why)) => last = why,
            }
            if !tries.again().await {
                return Err(CallError::GaveUp {
                    seconds: give_up.as_secs(),
                    last,
                });
            }
        }
    }
}

/// What one try came to when it gave no answer.
enum Asked {
    Again(String),
    Never(CallError),
}

/// Codes with which a node says that it understood and will never do it.
fn is_final(status: &Status) -> bool {
    use tonic::Code::*;
    matches!(
        status.code(),
        InvalidArgument | PermissionDenied | Unauthenticated | Unimplemented | NotFound
    )
}

/// A status as a person needs it: the innermost reason, not "transport error".
pub fn explain(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

/// The tries of one request: whom to ask next, and when.
struct Tries<'a> {
    client: &'a QueueClient,
    shard: u32,
    count: u32,
    hint: Option<String>,
    started: Instant,
    give_up: Option<Duration>,
}

impl Tries<'_> {
    /// Where the next try goes: where the last answer pointed, to the leader that topology names, or, every second
    /// try, to the next node: what we believe may be what is wrong.
    fn target(&mut self) -> String {
        if let Some(hint) = self.hint.take() {
            return hint;
        }
        let view = self.client.inner.view.borrow();
        if let Some(leader) = view.known_leader(self.shard)
            && self.count.is_multiple_of(2)
        {
            return leader.to_owned();
        }
        let addresses = view.addresses(&self.client.inner.nodes.config.endpoints);
        let turn = (self.shard as usize).wrapping_add(self.count as usize);
        // Without any address there is nobody to ask; the empty one is refused as such.
        addresses
            .get(turn % addresses.len().max(1))
            .cloned()
            .unwrap_or_default()
    }

    /// Takes the address from a NotLeader; empty when the node knows none.
    fn hint(&mut self, address: &str) {
        self.hint = (!address.is_empty()).then(|| address.to_owned());
    }

    fn deadline(&self) -> Option<Instant> {
        self.give_up.map(|give_up| self.started + give_up)
    }

    /// Waits until the next try is due; `false` when it is time to give up.
    async fn again(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        if self.count.is_multiple_of(TRIES_BEFORE_ELSEWHERE) {
            self.client.inner.elsewhere.notify_one();
        }
        if self.count > 1 {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        self.deadline()
            .is_none_or(|deadline| Instant::now() < deadline)
    }
}
