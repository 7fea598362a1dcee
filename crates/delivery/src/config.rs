//! The settings that must be known before a delivery node starts; the rest comes with the catalog.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use resource::DeliverySettings;

use crate::hand::FENCE;
use crate::lease::KEEPALIVE_EVERY;

/// What a delivery node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, for the queue and for people.
    pub name: String,
    /// What it calls itself in EHLO; MX records that name it are loops.
    pub hostname: String,
    /// Where the journal is. One process uses it.
    pub data_dir: PathBuf,
    /// Addresses that this relay listens on; hosts with one of them are loops.
    pub own_addresses: Vec<IpAddr>,
    /// What other nodes of this relay are called, beside what the catalog says; MX hosts with such a name are loops.
    pub own_names: Vec<String>,
    /// Where this very process accepts mail.
    pub own_listen: Vec<SocketAddr>,
    /// Port of hosts found by MX, an address or an address literal: 25, but for tests.
    pub smtp_port: u16,
    /// CAs beside the well-known ones, in PEM, whose certificates a next hop may have where TLS is required.
    pub tls_ca: Option<PathBuf>,
    /// How long a connection without work stays open for the next message.
    pub idle: Duration,
    /// How often each lease session is kept alive.
    pub keepalive_every: Duration,
    /// Without an answer of a shard's leader for this long, nothing more is begun or finished under its lease session.
    /// Shorter only in tests; never longer, for the queue gives the items away after 30 s.
    pub fence_after: Duration,
    /// Overrides the catalog's limits and timeouts; `None` but for tests.
    pub settings: Option<DeliverySettings>,
}

/// A connection without work is closed after this: servers close them after minutes, and a burst's messages come sooner.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(10);

/// Port of the SMTP relay service (RFC 5321 section 4.5.4.2).
pub const SMTP_PORT: u16 = 25;

impl Config {
    /// With the defaults of a relay on the internet.
    pub fn new(
        name: impl Into<String>,
        hostname: impl Into<String>,
        data_dir: impl Into<PathBuf>,
    ) -> Config {
        Config {
            name: name.into(),
            hostname: hostname.into(),
            data_dir: data_dir.into(),
            own_addresses: Vec::new(),
            own_names: Vec::new(),
            own_listen: Vec::new(),
            smtp_port: SMTP_PORT,
            tls_ca: None,
            idle: IDLE_DEFAULT,
            keepalive_every: KEEPALIVE_EVERY,
            fence_after: FENCE,
            settings: None,
        }
    }
}
