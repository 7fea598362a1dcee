//! The DNS over the network: hickory-resolver with our cache bounds, and its errors told apart.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use rustls::{ClientConfig, RootCertStore};

use crate::{AddressAnswer, Error, MxAnswer, TxtAnswer, interleave};

/// An answer is kept at least this long, whatever its time to live: a zone with TTL 0 would else be asked for every item.
pub const POSITIVE_TTL_MIN: Duration = Duration::from_secs(5);
/// An answer is kept at most this long: a moved mail host is found within the hour.
pub const POSITIVE_TTL_MAX: Duration = Duration::from_secs(3600);
/// "No such name" is kept at least this long, so that a dead domain's mail does not ask at every item.
pub const NEGATIVE_TTL_MIN: Duration = Duration::from_secs(5);
/// "No such name" is kept at most this long: mail bounces on it, and a new domain must not wait.
pub const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(300);
/// Answers in the cache: MX and both address families of about ten thousand domains.
pub const CACHE_ENTRIES_MAX: u64 = 32 * 1024;
/// One question to one server; two attempts, so a lookup takes at most some ten seconds.
const QUERY_TIMEOUT: Duration = Duration::from_secs(4);
/// Attempts for one question.
const QUERY_ATTEMPTS: usize = 2;

pub(crate) struct Network {
    resolver: TokioResolver,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    pub(crate) fn system() -> Result<Network, Error> {
        Network::build(from_system()?)
    }

    pub(crate) fn with_name_servers(servers: &[SocketAddr]) -> Result<Network, Error> {
        Network::build(of_servers(servers)?)
    }

    /// Asks anew each time.
    pub(crate) fn system_without_cache() -> Result<Network, Error> {
        Network::build_without_cache(from_system()?)
    }

    /// Asks anew each time.
    pub(crate) fn without_cache(servers: &[SocketAddr]) -> Result<Network, Error> {
        Network::build_without_cache(of_servers(servers)?)
    }

    fn build_without_cache(mut builder: Builder) -> Result<Network, Error> {
        set_queries(builder.options_mut());
        builder.options_mut().cache_size = 0;
        Network::finish(builder)
    }

    fn build(mut builder: Builder) -> Result<Network, Error> {
        let options = builder.options_mut();
        set_queries(options);
        options.cache_size = CACHE_ENTRIES_MAX;
        options.positive_min_ttl = Some(POSITIVE_TTL_MIN);
        options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        options.negative_min_ttl = Some(NEGATIVE_TTL_MIN);
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        Network::finish(builder)
    }

    fn finish(builder: Builder) -> Result<Network, Error> {
        let tls = trusts_nobody().map_err(|e| Error::Build(e.to_string()))?;
        let builder = builder.with_tls_config(tls);
        let resolver = builder.build().map_err(|e| Error::Build(e.to_string()))?;
        Ok(Network { resolver })
    }

    pub(crate) async fn mx(&self, domain: &str) -> MxAnswer {
        match self.lookup(domain, RecordType::MX).await {
            Ok(lookup) => {
                MxAnswer::of_records(lookup.answers().iter().filter_map(
                    |record| match &record.data {
                        RData::MX(mx) => Some((mx.preference, mx.exchange.to_ascii())),
                        _ => None,
                    },
                ))
            }
            Err(Missing::Records) => MxAnswer::NoMx,
            Err(Missing::Name) => MxAnswer::NoDomain,
            Err(Missing::Answer(why)) => MxAnswer::TempFail(format!("MX of {domain}: {why}")),
        }
    }

    pub(crate) async fn addresses(&self, host: &str) -> AddressAnswer {
        let (v4, v6) = tokio::join!(
            self.lookup(host, RecordType::A),
            self.lookup(host, RecordType::AAAA)
        );
        answer_of(
            host,
            v4.map(|found| addresses_in(&found)),
            v6.map(|found| addresses_in(&found)),
        )
    }

    pub(crate) async fn txt(&self, name: &str) -> TxtAnswer {
        let lookup = match self.lookup(name, RecordType::TXT).await {
            Ok(lookup) => lookup,
            Err(Missing::Records | Missing::Name) => return TxtAnswer::Missing,
            Err(Missing::Answer(why)) => {
                return TxtAnswer::TempFail(format!("TXT of {name}: {why}"));
            }
        };
        let (mut texts, mut ttl) = (Vec::new(), u32::MAX);
        for record in lookup.answers() {
            if let RData::TXT(txt) = &record.data {
                texts.push(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned());
                ttl = ttl.min(record.ttl);
            }
        }
        match texts.is_empty() {
            true => TxtAnswer::Missing,
            false => TxtAnswer::Found { texts, ttl },
        }
    }

    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Lookup, Missing> {
        let mut name = Name::from_ascii(name).map_err(|_| Missing::Name)?;
        // Complete, so that resolv.conf's search list is never tried: example.com.cluster.local is another domain.
        name.set_fqdn(true);
        self.records(&name, kind).await
    }

    /// Of a name that is complete.
    pub(crate) async fn records(&self, name: &Name, kind: RecordType) -> Result<Lookup, Missing> {
        self.resolver
            .lookup(name.clone(), kind)
            .await
            .map_err(|e| missing(&e))
    }
}

/// Name servers are asked in the clear. By default the resolver would look for the machine's CA certificates all the same, and not
/// start in an image that has none.
fn trusts_nobody() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(RootCertStore::empty());
    Ok(builder.with_no_client_auth())
}

type Builder = hickory_resolver::ResolverBuilder<TokioRuntimeProvider>;

fn from_system() -> Result<Builder, Error> {
    TokioResolver::builder_tokio().map_err(|e| Error::System(e.to_string()))
}

fn of_servers(servers: &[SocketAddr]) -> Result<Builder, Error> {
    if servers.is_empty() {
        return Err(Error::Build("no name server was given".into()));
    }
    let servers = servers.iter().map(|server| {
        let connections =
            [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
        NameServerConfig::new(server.ip(), true, connections.into())
    });
    let config = ResolverConfig::from_name_servers(servers.collect());
    Ok(TokioResolver::builder_with_config(
        config,
        TokioRuntimeProvider::default(),
    ))
}

fn set_queries(options: &mut ResolverOpts) {
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    options.edns0 = true;
    options.try_tcp_on_error = true;
}

/// Why there is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The name is there, and none of that kind.
    Records,
    /// There is no such name.
    Name,
    /// No answer.
    Answer(String),
}

/// Only an answer that says so is taken for "does not exist"; everything else is no answer.
fn missing(error: &NetError) -> Missing {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Missing::Name,
            ResponseCode::NoError => Missing::Records,
            other => Missing::Answer(format!("the server answered {other}")),
        },
        other => Missing::Answer(other.to_string()),
    }
}

fn addresses_in(lookup: &Lookup) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    lookup
        .answers()
        .iter()
        .filter_map(|record| address(&record.data))
        .collect()
}

/// One family's failure does not hide the other's addresses; without any, a failure outweighs "there is none".
fn answer_of(
    host: &str,
    v4: Result<Vec<IpAddr>, Missing>,
    v6: Result<Vec<IpAddr>, Missing>,
) -> AddressAnswer {
    let found = interleave(
        v4.clone().unwrap_or_default(),
        v6.clone().unwrap_or_default(),
    );
    if !found.is_empty() {
        return AddressAnswer::Found(found);
    }
    match (v4, v6) {
        (Err(Missing::Answer(why)), _) | (_, Err(Missing::Answer(why))) => {
            AddressAnswer::TempFail(format!("addresses of {host}: {why}"))
        }
        (Err(Missing::Name), Err(Missing::Name)) => AddressAnswer::NoDomain,
        _ => AddressAnswer::NoAddress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::net::UdpSocket;

    /// A name server that answers every question with one response code and no record, in the twelve octets of a
    /// header and the question as asked.
    async fn server(rcode: u8) -> SocketAddr {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("loopback"));
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut packet = [0u8; 1500];
            while let Ok((len, from)) = socket.recv_from(&mut packet).await {
                // The question ends before the OPT record: name, type, class.
                let name = packet[12..len]
                    .iter()
                    .position(|octet| *octet == 0)
                    .expect("a name's end")
                    + 13;
                let mut answer = packet[..name + 4].to_vec();
                answer[2] = 0x81;
                answer[3] = 0x80 | rcode;
                answer[6..12].fill(0);
                socket.send_to(&answer, from).await.expect("sent");
            }
        });
        address
    }

    #[tokio::test]
    async fn servfail_is_never_taken_for_nxdomain() {
        const NOERROR: u8 = 0;
        const SERVFAIL: u8 = 2;
        const NXDOMAIN: u8 = 3;
        const REFUSED: u8 = 5;
        for (code, expected) in [
            (NOERROR, "none"),
            (SERVFAIL, "temp"),
            (NXDOMAIN, "gone"),
            (REFUSED, "temp"),
        ] {
            let resolver = Network::with_name_servers(&[server(code).await]).expect("a resolver");
            let mx = match resolver.mx("example.test").await {
                MxAnswer::NoMx => "none",
                MxAnswer::NoDomain => "gone",
                MxAnswer::TempFail(_) => "temp",
                other => panic!("unexpected {other:?}"),
            };
            let addresses = match resolver.addresses("example.test").await {
                AddressAnswer::NoAddress => "none",
                AddressAnswer::NoDomain => "gone",
                AddressAnswer::TempFail(_) => "temp",
                other => panic!("unexpected {other:?}"),
            };
            assert_eq!((mx, addresses), (expected, expected), "rcode {code}");
        }
    }

    #[test]
    fn one_family_is_enough_and_a_failure_outweighs_absence() {
        let ip: IpAddr = "192.0.2.1".parse().expect("an address");
        let broken = || Err(Missing::Answer("timeout".into()));
        assert_eq!(
            answer_of("h", Ok(vec![ip]), broken()),
            AddressAnswer::Found(vec![ip])
        );
        assert!(matches!(
            answer_of("h", Err(Missing::Records), broken()),
            AddressAnswer::TempFail(_)
        ));
        assert_eq!(
            answer_of("h", Err(Missing::Name), Err(Missing::Name)),
            AddressAnswer::NoDomain
        );
        assert_eq!(
            answer_of("h", Err(Missing::Records), Err(Missing::Records)),
            AddressAnswer::NoAddress
        );
    }
}
