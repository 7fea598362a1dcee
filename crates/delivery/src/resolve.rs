//! From a site to its hops: asks the DNS what `route` needs to know.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use dns::{AddressAnswer, MxHost, Resolver};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use resource::{Host, Target};

use crate::route::{self, Hop, NoRoute, Route};

/// Hosts of a domain that are looked up: a zone may list hundreds, and some names without an address must not hide a good one
/// behind them.
const HOSTS_MAX: usize = 32;

/// How a site is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// By the MX records of this domain, or at this address literal.
    Mx(String),
    /// These servers, in this order.
    Fixed(Vec<Target>),
}

/// Where mail of ours would come back to this relay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// What its nodes are called, lower case.
    pub(crate) names: Vec<String>,
    /// Where its nodes listen, whatever the port.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where this very process listens.
    pub(crate) listen: Vec<SocketAddr>,
}

impl Own {
    /// A connection to this address and port would end at this relay.
    fn is(&self, ip: IpAddr, port: u16) -> bool {
        let ip = ip.to_canonical();
        let here = |at: &SocketAddr| {
            at.port() == port && (at.ip() == ip || at.ip().is_unspecified() && is_local(ip))
        };
        self.addresses.contains(&ip) || self.listen.iter().any(here)
    }
}

/// The address is one of this machine's: only those can be bound to.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The hops to try, best first.
pub(crate) async fn hops(
    via: &Via,
    resolver: &Resolver,
    own: &Own,
    port: u16,
) -> Result<Route, NoRoute> {
    match via {
        Via::Mx(destination) => match route::literal(destination) {
            Some(ip) => route::to_literal(destination, ip, port, |ip| own.is(ip, port)),
            None => by_mx(destination, resolver, own, port).await,
        },
        Via::Fixed(targets) => fixed(targets, resolver).await,
    }
}

async fn by_mx(domain: &str, resolver: &Resolver, own: &Own, port: u16) -> Result<Route, NoRoute> {
    let answer = resolver.mx(domain).await;
    let route::Hosts { mut hosts, backup } =
        route::hosts(domain, answer, &own.names, &mut rand::rng())?;
    let cut = hosts.len() > HOSTS_MAX;
    hosts.truncate(HOSTS_MAX);
    let ask = |host: MxHost| async {
        let answer = resolver.addresses(&host.host).await;
        (host, answer)
    };
    let found = hosts
        .into_iter()
        .map(ask)
        .collect::<FuturesOrdered<_>>()
        .collect()
        .await;
    route::hops(domain, found, port, backup, cut, |ip| own.is(ip, port))
}

/// A server that was declared and cannot be found is a mistake to be corrected, never a reason to return mail.
async fn fixed(targets: &[Target], resolver: &Resolver) -> Result<Route, NoRoute> {
    let mut hosts: Vec<Vec<Hop>> = Vec::new();
    let mut why = String::from("no server is declared");
    for target in targets {
        let host = target.host.to_string();
        let ips = match &target.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => match resolver.addresses(name).await {
                AddressAnswer::Found(ips) => ips,
                AddressAnswer::TempFail(text) => {
                    why = text;
                    Vec::new()
                }
                AddressAnswer::NoAddress | AddressAnswer::NoDomain => {
                    why =
                        format!("the declared server {name} has no address; correct it or the DNS");
                    Vec::new()
                }
            },
        };
        let hop = |ip| Hop {
            host: host.clone(),
            address: SocketAddr::new(ip, target.port),
            tls: target.tls,
        };
        hosts.push(ips.into_iter().map(hop).collect());
    }
    let all_found = hosts.iter().all(|host| !host.is_empty());
    let route = Route::of(hosts);
    // RFC 3463 X.4.3: directory server failure.
    if route.hops.is_empty() {
        Err(NoRoute {
            permanent: false,
            enhanced: "4.4.3",
            text: why,
        })
    } else {
        let whole = route.whole && all_found;
        Ok(Route { whole, ..route })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_the_sockets_that_are_its_own() {
        let listening = |at: &str| Own {
            listen: vec![at.parse().expect("an address")],
            ..Own::default()
        };
        let is = |own: &Own, ip: &str, port| own.is(ip.parse().expect("an address"), port);
        let everywhere = listening("0.0.0.0:25");
        assert!(is(&everywhere, "127.0.0.1", 25) && is(&everywhere, "127.0.0.9", 25));
        assert!(is(&everywhere, "::ffff:127.0.0.1", 25));
        assert!(!is(&everywhere, "127.0.0.1", 2525), "another server's port");
        assert!(!is(&everywhere, "192.0.2.1", 25), "another machine");
        let one = listening("127.0.0.1:25");
        assert!(is(&one, "127.0.0.1", 25) && !is(&one, "127.0.0.2", 25));
        let told = Own {
            addresses: vec!["192.0.2.1".parse().expect("an address")],
            ..Own::default()
        };
        assert!(is(&told, "192.0.2.1", 25));
    }
}
