//! The questions that nodes ask of what was declared.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::kind::{DeliveryLimits, EdgeLimits, RetrySpec, Timeouts};

/// A host name (lower-case A-label) or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be resolved to addresses (A and AAAA, never MX).
    Name(String),
    /// Used as it is.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// A mail server that was declared by name or address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The server.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// Whether mail goes there under TLS.
    pub tls: TlsPolicy,
}

/// Whether mail goes to a server under TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsPolicy {
    /// Never.
    Off,
    /// By STARTTLS where it is offered, without a look at the certificate; else in clear.
    #[default]
    Opportunistic,
    /// Only by STARTTLS, and only to a server whose certificate is that of its host, of a known CA.
    Required,
    /// As required, but TLS begins with the connection (RFC 8314).
    Implicit,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            ref host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// What it means that a domain's mail is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Tenant that answers for the mail.
    pub tenant: Arc<str>,
    /// Class of the mail.
    pub class: Arc<str>,
    /// Where it goes; empty: by MX.
    pub targets: Arc<[Target]>,
}

/// Who may send, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Tenant that answers for the mail.
    pub tenant: Arc<str>,
    /// Class of the mail.
    pub class: Arc<str>,
    /// For logs and traces: `network 10.0.0.0/8 of example.org`.
    pub name: Arc<str>,
}

/// Where a destination's mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To one of these, in this order.
    Targets(Arc<[Target]>),
    /// To the pool's smart host.
    SmartHost(Target),
    /// By MX records (RFC 5321 section 5.1), or to the address of a literal.
    Mx,
}

/// How the mail of one domain is signed (RFC 6376).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dkim {
    /// Tenant that answers for the mail.
    pub tenant: Arc<str>,
    /// The domain, which is what `d=` says.
    pub domain: Arc<str>,
    /// Keys of its own: selector, and name of the Secret that holds the private key.
    pub keys: Vec<(Arc<str>, Arc<str>)>,
    /// Mail waits while no key can sign; else it goes unsigned.
    pub defer_without: bool,
}

/// When deferred mail is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Wait after the first deferral.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
    /// Age at which mail is returned.
    pub give_up_after: Duration,
    /// Age at which the sender is told of the delay; `None`: never.
    pub delay_notice_after: Option<Duration>,
}

/// Bounds for one node at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSettings {
    /// SMTP sessions at once.
    pub connections: usize,
    /// SMTP sessions at once from one source (an IPv6 client counts by its /64).
    pub connections_per_source: usize,
    /// Largest message, octets.
    pub message_size: u64,
    /// Recipients a message.
    pub recipients: usize,
    /// How long a leaving node waits for its SMTP sessions.
    pub drain: Duration,
    /// Who gets the mail to `Postmaster`; `None`: it is refused.
    pub postmaster: Option<Arc<str>>,
    /// How long a client waits for the greeting, and may not talk; zero: neither.
    pub greeting_pause: Duration,
    /// Clients come with addresses of somebody between, whom a network may hold: nobody is recognised by his network.
    pub hidden_clients: bool,
}

/// Settings of one delivery node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliverySettings {
    /// Open connections in all.
    pub connections: usize,
    /// Open connections to one destination's servers.
    pub connections_per_site: usize,
    /// Messages before a connection is closed.
    pub messages_per_connection: usize,
    /// How long the TCP connection is waited for.
    pub connect_timeout: Duration,
    /// How long greeting and replies are waited for.
    pub reply_timeout: Duration,
    /// How long the reply to the final dot is waited for.
    pub final_reply_timeout: Duration,
    /// How long a leaving node waits for its transactions.
    pub drain: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry::from(&RetrySpec::default())
    }
}

impl From<&RetrySpec> for Retry {
    fn from(spec: &RetrySpec) -> Retry {
        let hours = |n: u32| Duration::from_secs(u64::from(n) * 3600);
        Retry {
            first: Duration::from_secs(spec.first_seconds.into()),
            max: Duration::from_secs(spec.max_seconds.into()),
            give_up_after: hours(spec.give_up_after_hours),
            delay_notice_after: (spec.delay_notice_after_hours > 0)
                .then(|| hours(spec.delay_notice_after_hours)),
        }
    }
}

impl EdgeSettings {
    pub(crate) fn new(limits: &EdgeLimits, message_size: u64, drain_seconds: u32) -> EdgeSettings {
        EdgeSettings {
            connections: limits.connections as usize,
            connections_per_source: limits.connections_per_source as usize,
            message_size,
            recipients: limits.recipients as usize,
            drain: Duration::from_secs(drain_seconds.into()),
            postmaster: None,
            greeting_pause: Duration::ZERO,
            hidden_clients: false,
        }
    }
}

impl Default for EdgeSettings {
    fn default() -> EdgeSettings {
        let pool = crate::kind::EdgePoolSpec::default();
        let size = crate::validate::parse_quantity(&pool.limits.message_size)
            .expect("the default is a quantity");
        EdgeSettings::new(&pool.limits, size, pool.drain_seconds)
    }
}

impl DeliverySettings {
    pub(crate) fn new(
        limits: &DeliveryLimits,
        timeouts: &Timeouts,
        drain_seconds: u32,
    ) -> DeliverySettings {
        DeliverySettings {
            connections: limits.connections as usize,
            connections_per_site: limits.connections_per_site as usize,
            messages_per_connection: limits.messages_per_connection as usize,
            connect_timeout: Duration::from_secs(timeouts.connect_seconds.into()),
            reply_timeout: Duration::from_secs(timeouts.reply_seconds.into()),
            final_reply_timeout: Duration::from_secs(timeouts.final_reply_seconds.into()),
            drain: Duration::from_secs(drain_seconds.into()),
        }
    }
}

impl Default for DeliverySettings {
    fn default() -> DeliverySettings {
        let pool = crate::kind::DeliveryPoolSpec::default();
        DeliverySettings::new(&pool.limits, &pool.timeouts, pool.drain_seconds)
    }
}

/// A network whose clients may send from a domain.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub network: IpNet,
    pub domain: Arc<str>,
    pub principal: Principal,
}

/// What was declared, compiled to the questions that nodes ask. The default is a relay that relays nothing.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub(crate) inbound: HashMap<Arc<str>, Inbound>,
    /// Most specific network first, then by tenant and domain: the order in which a null sender finds its principal.
    pub(crate) grants: Vec<Grant>,
    /// Where in `grants` a domain's networks are.
    pub(crate) senders: HashMap<Arc<str>, Vec<usize>>,
    pub(crate) smart_host: Option<Target>,
    pub(crate) resolvers: Vec<SocketAddr>,
    pub(crate) retry: Retry,
    pub(crate) dkim: Vec<Dkim>,
    pub(crate) edge: Option<EdgeSettings>,
    /// What its nodes at the edge are called.
    pub(crate) own_names: Vec<Arc<str>>,
    pub(crate) delivery: Option<DeliverySettings>,
}

impl Catalog {
    /// Mail to `domain` (lower-case A-label) is accepted on these terms; `None`: it is not ours.
    pub fn inbound(&self, domain: &str) -> Option<&Inbound> {
        self.inbound.get(domain)
    }

    /// The principal of a client at `address` that sends from `domain`. `None` as domain is the null sender: it takes
    /// the most specific network that the client is in.
    pub fn outbound_for(&self, address: IpAddr, domain: Option<&str>) -> Option<&Principal> {
        if self.edge.as_ref().is_some_and(|edge| edge.hidden_clients) {
            return None;
        }
        let address = address.to_canonical();
        let found = match domain {
            Some(domain) => {
                let mut own = self.senders.get(domain)?.iter().map(|&n| &self.grants[n]);
                own.find(|grant| grant.network.contains(&address))
            }
            None => self
                .grants
                .iter()
                .find(|grant| grant.network.contains(&address)),
        };
        found.map(|grant| &grant.principal)
    }

    /// The client is in a network that may send from some domain.
    pub fn has_principal(&self, address: IpAddr) -> bool {
        self.outbound_for(address, None).is_some()
    }

    /// Where mail to `destination` (lower-case A-label, or an address literal with its brackets) goes.
    pub fn route(&self, destination: &str) -> Route {
        match (self.inbound.get(destination), &self.smart_host) {
            (Some(inbound), _) if !inbound.targets.is_empty() => {
                Route::Targets(inbound.targets.clone())
            }
            // A domain of ours goes to its own servers, never out to a smart host that would send it back.
            (Some(_), _) | (None, None) => Route::Mx,
            (None, Some(smart_host)) => Route::SmartHost(smart_host.clone()),
        }
    }

    /// The domains whose mail is to be signed.
    pub fn dkim(&self) -> &[Dkim] {
        &self.dkim
    }

    /// When deferred mail is tried again.
    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    /// DNS servers to ask; empty: as the system's resolv.conf says.
    pub fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    /// Bounds of an edge node, when an EdgePool was declared.
    pub fn edge(&self) -> Option<&EdgeSettings> {
        self.edge.as_ref()
    }

    /// What the relay's nodes at the edge are called in SMTP, as declared: an MX record that names one leads back here.
    pub fn own_names(&self) -> impl Iterator<Item = &str> {
        self.own_names.iter().map(|name| &**name)
    }

    /// Settings of a delivery node: of the DeliveryPool that was declared, else the defaults.
    pub fn delivery(&self) -> DeliverySettings {
        self.delivery.clone().unwrap_or_default()
    }

    /// Nothing is accepted: no domain was declared.
    pub fn relays_nothing(&self) -> bool {
        self.inbound.is_empty() && self.grants.is_empty()
    }

    /// How many domains take mail, and how many networks may send.
    pub fn counts(&self) -> (usize, usize) {
        (self.inbound.len(), self.grants.len())
    }

    /// The tenants and domains that may send, for `check` and `status`.
    pub fn senders(&self) -> impl Iterator<Item = (&str, IpNet, &Principal)> {
        self.grants
            .iter()
            .map(|grant| (&*grant.domain, grant.network, &grant.principal))
    }
}
