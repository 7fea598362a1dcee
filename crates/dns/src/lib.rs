//! One resolver for the whole project: MX and addresses, a cache with bounded times to live, and a scripted double.
//!
//! What is deliberately absent: routing. This crate says what the DNS says; what mail makes of it stands in
//! `delivery::route`. A failure to get an answer (SERVFAIL, REFUSED, a timeout, a validation failure) is always
//! [`MxAnswer::TempFail`] or [`AddressAnswer::TempFail`], never "there is no such domain": mail is bounced on the
//! latter and only deferred on the former.
//!
//! [`Authorities`] asks the servers of a zone themselves, for who must know whether a record is published everywhere.
//!
//! The types to know are [`Resolver`], [`MxAnswer`] and, in tests, [`Scripted`].

mod answer;
mod authority;
mod exchange;
mod network;
mod scripted;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

pub use answer::{AddressAnswer, MxAnswer, MxHost, interleave, order};
pub use authority::{Authorities, TxtAnswer};
pub use network::{
    CACHE_ENTRIES_MAX, NEGATIVE_TTL_MAX, NEGATIVE_TTL_MIN, POSITIVE_TTL_MAX, POSITIVE_TTL_MIN,
};
pub use scripted::Scripted;

/// Why a resolver could not be made. Lookups have no errors of their own: a failure is one of the answers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/etc/resolv.conf` cannot be read or names no server.
    #[error(
        "cannot use the system's resolver settings (/etc/resolv.conf): {0}; name servers can be given explicitly instead"
    )]
    System(String),
    /// The library refused the settings.
    #[error("cannot start the resolver: {0}")]
    Build(String),
}

/// Answers the questions of mail to the DNS. Cheap to clone; all clones share one cache.
#[derive(Clone, Debug)]
pub struct Resolver {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Network(Arc<RwLock<Arc<network::Network>>>),
    Scripted(Arc<Scripted>),
}

impl Source {
    fn of(network: network::Network) -> Source {
        Source::Network(Arc::new(RwLock::new(Arc::new(network))))
    }
}

fn now(network: &RwLock<Arc<network::Network>>) -> Arc<network::Network> {
    let network = network.read().unwrap_or_else(PoisonError::into_inner);
    network.clone()
}

impl Resolver {
    /// Asks the name servers of `/etc/resolv.conf`. Its search list is not used: a mail domain is always complete.
    ///
    /// # Errors
    /// [`Error::System`] when the file cannot be used.
    pub fn system() -> Result<Resolver, Error> {
        let network = network::Network::system()?;
        Ok(Resolver {
            source: Source::of(network),
        })
    }

    /// Asks these name servers, over UDP and, for long answers, TCP, on the given port.
    ///
    /// # Errors
    /// [`Error::Build`] when there is none, or the library refuses them.
    pub fn with_name_servers(servers: &[SocketAddr]) -> Result<Resolver, Error> {
        let network = network::Network::with_name_servers(servers)?;
        Ok(Resolver {
            source: Source::of(network),
        })
    }

    /// From now on this resolver and all its clones ask these name servers; none: those of the system. Nothing for a script.
    ///
    /// # Errors
    /// As when one is made; the former ones stay.
    pub fn use_name_servers(&self, servers: &[SocketAddr]) -> Result<(), Error> {
        let Source::Network(network) = &self.source else {
            return Ok(());
        };
        let new = match servers.is_empty() {
            true => network::Network::system()?,
            false => network::Network::with_name_servers(servers)?,
        };
        *network.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Answers from a script and sends no packet. Give an `Arc` to change the answers later.
    pub fn scripted(script: impl Into<Arc<Scripted>>) -> Resolver {
        Resolver {
            source: Source::Scripted(script.into()),
        }
    }

    /// Who takes the mail of `domain` (an A-label without final dot; RFC 5321 section 5.1).
    pub async fn mx(&self, domain: &str) -> MxAnswer {
        match &self.source {
            Source::Network(network) => now(network).mx(domain).await,
            Source::Scripted(script) => script.mx(domain),
        }
    }

    /// The addresses of `host`, IPv4 and IPv6 in turn.
    pub async fn addresses(&self, host: &str) -> AddressAnswer {
        match &self.source {
            Source::Network(network) => now(network).addresses(host).await,
            Source::Scripted(script) => script.addresses(host),
        }
    }
}
