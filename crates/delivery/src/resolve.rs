//! From a site to its hops: asks the DNS what `route` needs to know.

use std::net::SocketAddr;

use dns::{AddressAnswer, MxHost, Resolver};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use resource::{Host, Target};

use crate::route::{self, ADDRESSES_MAX, Hop, NoRoute, Own};

/// Hosts that are asked for addresses: more than [`ADDRESSES_MAX`] are never tried, and a zone may list hundreds.
const HOSTS_MAX: usize = ADDRESSES_MAX;

/// How a site is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// By the MX records of this domain, or at this address literal.
    Mx(String),
    /// These servers, in this order.
    Fixed(Vec<Target>),
}

/// The hops to try, best first.
pub(crate) async fn hops(
    via: &Via,
    resolver: &Resolver,
    own: &Own,
    port: u16,
) -> Result<Vec<Hop>, NoRoute> {
    match via {
        Via::Mx(destination) => match route::literal(destination) {
            Some(ip) => Ok(vec![Hop::found(destination.clone(), (ip, port).into())]),
            None => by_mx(destination, resolver, own, port).await,
        },
        Via::Fixed(targets) => fixed(targets, resolver).await,
    }
}

async fn by_mx(
    domain: &str,
    resolver: &Resolver,
    own: &Own,
    port: u16,
) -> Result<Vec<Hop>, NoRoute> {
    let answer = resolver.mx(domain).await;
    let mut hosts = route::hosts(domain, answer, own, &mut rand::rng())?;
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
    route::hops(domain, found, port, own)
}

/// A server that was declared and cannot be found is a mistake to be corrected, never a reason to return mail.
async fn fixed(targets: &[Target], resolver: &Resolver) -> Result<Vec<Hop>, NoRoute> {
    let mut hops = Vec::new();
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
        hops.extend(ips.into_iter().map(|ip| Hop {
            host: host.clone(),
            address: SocketAddr::new(ip, target.port),
            tls: target.tls,
        }));
    }
    hops.truncate(ADDRESSES_MAX);
    // RFC 3463 X.4.3: directory server failure.
    if hops.is_empty() {
        Err(NoRoute {
            permanent: false,
            code: 0,
            enhanced: "4.4.3",
            text: why,
        })
    } else {
        Ok(hops)
    }
}
