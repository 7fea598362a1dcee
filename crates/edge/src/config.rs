//! What an edge node must know before its first connection.

use std::net::SocketAddr;
use std::time::Duration;

use resource::EdgeSettings;

/// Octets of message content that a node holds at once, over all its SMTP sessions. Above it sockets are no longer read.
pub const BODY_BYTES_MAX: usize = 128 << 20;

/// Settings of an edge node. What may be relayed comes later and changes: see [`resource::Catalog`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name: in WatchTopology, in each message's origin, in logs.
    pub name: String,
    /// Our name in the greeting, the EHLO reply and trace headers (RFC 5321 section 4.1.1.1).
    pub hostname: mail::Domain,
    /// Where to listen; port 0 takes a free one, see [`crate::Edge::addresses`].
    pub listen: Vec<SocketAddr>,
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
            settings: EdgeSettings::default(),
            body_bytes: BODY_BYTES_MAX,
            chunk_after: Duration::from_secs(120),
        }
    }
}
