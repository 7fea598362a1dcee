//! What an edge node must know before its first connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use resource::EdgeSettings;

use crate::certificates::Certificates;

/// Octets of message content that a node holds at once, over all its SMTP sessions. Above it sockets are no longer read.
pub const BODY_BYTES_MAX: usize = 128 << 20;

/// How long a TLS handshake may take. Honest ones take two round trips; a client that stands still within one holds a
/// connection no longer than this.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// STARTTLS (RFC 3207) on the listeners that begin in clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartTlsUse {
    /// Offered while there is a certificate.
    #[default]
    WithCertificates,
    /// Nothing is taken before it: for private networks only (RFC 3207 section 4).
    Required,
    /// Not offered, whatever certificates there are for listeners that begin with TLS.
    Never,
}

/// Settings of an edge node. What may be relayed comes later and changes: see [`resource::Catalog`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name: in WatchTopology, in each message's origin, in logs.
    pub name: String,
    /// Our name in the greeting, the EHLO reply and trace headers (RFC 5321 section 4.1.1.1).
    pub hostname: mail::Domain,
    /// Where to listen; port 0 takes a free one, see [`crate::Edge::addresses`]. STARTTLS is offered if there are certificates.
    pub listen: Vec<SocketAddr>,
    /// Where to listen for connections that begin with TLS (RFC 8314 section 3.3: port 465). Needs certificates.
    pub listen_tls: Vec<SocketAddr>,
    /// For TLS; `None`: there is none.
    pub certificates: Option<Arc<Certificates>>,
    /// What becomes of STARTTLS on `listen`.
    pub starttls: StartTlsUse,
    /// Clients come with the address of somebody else, a proxy or a load balancer: none is a principal, whatever is declared.
    pub clients_hidden: bool,
    /// How long a TLS handshake may take, [`HANDSHAKE_TIMEOUT`] unless a test says otherwise.
    pub handshake: Duration,
    /// Bounds that hold until an EdgePool is declared.
    pub settings: EdgeSettings,
    /// Octets of message content at once, [`BODY_BYTES_MAX`] unless a test says otherwise.
    pub body_bytes: usize,
    /// After this much time without a full chunk, what was gathered of a message is sent to the queue.
    pub chunk_after: Duration,
}

impl Config {
    /// The defaults: 50 MiB a message, 1000 SMTP sessions, 50 from one source, 60 s to drain.
    pub fn new(name: impl Into<String>, hostname: mail::Domain, listen: Vec<SocketAddr>) -> Config {
        Config {
            name: name.into(),
            hostname,
            listen,
            listen_tls: Vec::new(),
            certificates: None,
            starttls: StartTlsUse::WithCertificates,
            clients_hidden: false,
            handshake: HANDSHAKE_TIMEOUT,
            settings: EdgeSettings::default(),
            body_bytes: BODY_BYTES_MAX,
            chunk_after: Duration::from_secs(120),
        }
    }
}
