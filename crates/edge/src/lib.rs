//! Accept: SMTP in, append to the queue, 250 only after the append committed.
//!
//! An edge node holds no state that outlives a connection. It promises one thing: a client that hears 250 hears it because
//! a majority of queue replicas has the message on disk. What it cannot know it does not say: an append whose outcome is
//! unknown ends the connection without a reply. Deliberately absent: mail knowledge (that is `smtp` and `mail`) and
//! retries by leader (that is `proto::client`).
//!
//! ```text
//! listen.rs ── a permit ── session.rs ── asks ──► policy.rs     (pure: who may relay what)
//!                             └─ content ──► append.rs ──► proto::client ──► the shard's leader
//! ```
//!
//! The two types to know are [`Config`] and [`Edge`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use proto::client::QueueClient;
use resource::Catalog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod append;
mod certificates;
mod config;
mod cuts;
mod describe;
mod dir;
mod facts;
mod listen;
mod memory;
mod node;
mod permit;
pub mod policy;
mod ready;
mod session;
mod tls;

pub use append::CHUNK_BYTES_MAX;
pub use certificates::{CertificateError, Certificates, PAIRS_MAX};
pub use config::{BODY_BYTES_MAX, Config, HANDSHAKE_TIMEOUT, StartTlsUse};
pub use cuts::CHUNKS_MAX;
pub use describe::describe_metrics;
pub use dir::{DirError, read_dir, read_files, watch_dir};
pub use ready::Readiness;

use append::Appender;
use memory::Memory;
use node::Node;

/// The node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A listening socket cannot be opened.
    #[error(
        "cannot listen on {address}: {source}; is another program listening there, or is the port below 1024?"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Connections that begin with TLS need a certificate, and so do mails that need STARTTLS.
    #[error("TLS is wanted but there is no certificate; name a directory of them (--tls)")]
    NoCertificate,
    /// The TLS library refuses its own settings: a defect.
    #[error("TLS cannot be set up: {0}")]
    Tls(io::Error),
    /// Nothing to do.
    #[error("no listen address is configured; name at least one")]
    NoListener,
}

/// A running edge node.
pub struct Edge {
    addresses: Vec<SocketAddr>,
    readiness: watch::Receiver<Readiness>,
    node: Arc<Node>,
    accepting: TaskTracker,
    sessions: TaskTracker,
}

/// Binds all listeners and starts to accept. Must be called inside a tokio runtime. When `shutdown` is cancelled the node
/// stops accepting and tells its sessions; [`Edge::drained`] waits for them.
pub fn start(
    config: Config,
    queue: QueueClient,
    catalog: watch::Receiver<Option<Arc<Catalog>>>,
    shutdown: CancellationToken,
) -> Result<Edge, EdgeError> {
    let tls = config.certificates.clone().map(tls::server_config);
    let tls = tls.transpose().map_err(EdgeError::Tls)?;
    let needed = config.starttls == StartTlsUse::Required || !config.listen_tls.is_empty();
    if tls.is_none() && needed {
        return Err(EdgeError::NoCertificate);
    }
    let mut listeners = Vec::new();
    let plain = config.listen.iter().map(|address| (*address, false));
    for (address, implicit) in plain.chain(config.listen_tls.iter().map(|a| (*a, true))) {
        let listener =
            listen::bind(address).map_err(|source| EdgeError::Listen { address, source })?;
        listeners.push((listener, implicit));
    }
    let addresses: Vec<SocketAddr> = listeners
        .iter()
        .filter_map(|(listener, _)| listener.local_addr().ok())
        .collect();
    if addresses.is_empty() {
        return Err(EdgeError::NoListener);
    }
    let appender = Appender {
        queue,
        memory: Memory::new(config.body_bytes),
        node: config.name.as_str().into(),
        hostname: config.hostname.as_str().into(),
        chunk_after: config.chunk_after,
    };
    let node = Arc::new(Node {
        config,
        tls,
        appender,
        catalog,
        permits: Arc::default(),
        draining: shutdown,
        cut_off: CancellationToken::new(),
    });
    let (tell, readiness) = watch::channel(Readiness::NotReady("starting".into()));
    let (accepting, sessions) = (TaskTracker::new(), TaskTracker::new());
    accepting.spawn(ready::watch(node.clone(), tell));
    if let Some(certificates) = &node.config.certificates {
        accepting.spawn(certificates.clone().follow(node.draining.clone()));
    }
    for (listener, implicit) in listeners {
        let listener = listen::Listener::new(listener, implicit);
        accepting.spawn(listen::accept(node.clone(), listener, sessions.clone()));
    }
    tracing::info!(name = %node.config.name, listen = ?addresses, "edge started");
    Ok(Edge {
        addresses,
        readiness,
        node,
        accepting,
        sessions,
    })
}

/// [`start`], and then until `shutdown` is cancelled and the sessions ended.
pub async fn run(
    config: Config,
    queue: QueueClient,
    catalog: watch::Receiver<Option<Arc<Catalog>>>,
    shutdown: CancellationToken,
) -> Result<(), EdgeError> {
    start(config, queue, catalog, shutdown)?.drained().await;
    Ok(())
}

impl Edge {
    /// Where it listens, in the order of [`Config::listen`] and then of [`Config::listen_tls`], with the ports that were taken for 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether it should get connections.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// Waits for the shutdown and then for the SMTP sessions: a message in progress gets its reply, an idle session 421 4.3.2.
    /// Those that are left after the drain time are cut off; their clients send again.
    pub async fn drained(self) {
        self.node.draining.cancelled().await;
        self.accepting.close();
        self.accepting.wait().await;
        self.sessions.close();
        let patience = self.node.settings().drain;
        tracing::info!(
            sessions = self.sessions.len(),
            seconds = patience.as_secs(),
            "draining"
        );
        if tokio::time::timeout(patience, self.sessions.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                sessions = self.sessions.len(),
                "SMTP sessions did not end in time and are cut off; their clients will send again"
            );
            self.node.cut_off.cancel();
            self.sessions.wait().await;
        }
    }
}
