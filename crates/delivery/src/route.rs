//! From a destination to the hosts that may take its mail, in the order to try them (RFC 5321 section 5.1). Pure: what
//! the DNS said and the random source come in as arguments; `resolve` asks.

use std::net::{IpAddr, SocketAddr};

use dns::{AddressAnswer, MxAnswer, MxHost};
use resource::TlsPolicy;

/// Addresses tried for one connection, over all hosts: "at least two" (RFC 5321 section 5.1), and few enough that a
/// site of silent hosts is given up within minutes.
const ADDRESSES_MAX: usize = 8;
/// Addresses of one host among them, where it has so many and others want room too: one of each family.
const ADDRESSES_PER_HOST_MIN: usize = 2;
const _: () = assert!(ADDRESSES_PER_HOST_MIN <= ADDRESSES_MAX);

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The host's name, for logs, results and certificates; an address literal for one.
    pub(crate) host: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Whether mail goes there under TLS.
    pub(crate) tls: TlsPolicy,
}

impl Hop {
    /// A host that nobody declared: found by MX or by its address.
    pub(crate) fn found(host: String, address: SocketAddr) -> Hop {
        let tls = TlsPolicy::Opportunistic;
        Hop { host, address, tls }
    }

    /// This is an address of the same server as the other one.
    pub(crate) fn is_same_host(&self, other: &Hop) -> bool {
        self.host == other.host && self.address.port() == other.address.port()
    }
}

/// Where mail may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Best first.
    pub(crate) hops: Vec<Hop>,
    /// Every host that may take the mail is among them: what all of them refuse for good fails. Else it waits, for a host that
    /// was passed over may take it.
    pub(crate) whole: bool,
}

impl Route {
    /// At most [`ADDRESSES_MAX`] hops, from the hops of each host. As many hosts as fit have a place: the best one's many
    /// addresses must not hide the others.
    pub(crate) fn of(mut hosts: Vec<Vec<Hop>>) -> Route {
        hosts.retain(|host| !host.is_empty());
        let each = (ADDRESSES_MAX / hosts.len().max(1)).max(ADDRESSES_PER_HOST_MIN);
        let (mut hops, mut whole) = (Vec::new(), true);
        for host in hosts {
            let room = ADDRESSES_MAX - hops.len();
            whole &= room > 0;
            hops.extend(host.into_iter().take(each.min(room)));
        }
        Route { hops, whole }
    }
}

/// Why there is no hop, in the words of a recipient's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoRoute {
    /// The mail fails now; else it waits.
    pub(crate) permanent: bool,
    /// Enhanced status code (RFC 3463).
    pub(crate) enhanced: &'static str,
    /// For people.
    pub(crate) text: String,
}

impl NoRoute {
    fn permanent(enhanced: &'static str, text: String) -> NoRoute {
        NoRoute {
            permanent: true,
            enhanced,
            text,
        }
    }

    fn temporary(text: String) -> NoRoute {
        // RFC 3463 X.4.3: directory server failure, for which the DNS is the example.
        NoRoute {
            permanent: false,
            enhanced: "4.4.3",
            text,
        }
    }

    /// There are hosts, but none that has an address now.
    fn unreachable_now(text: String) -> NoRoute {
        // RFC 3463 X.4.4: unable to route.
        NoRoute {
            enhanced: "4.4.4",
            ..NoRoute::temporary(text)
        }
    }
}

/// The hosts of a domain that may take its mail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// Best first.
    pub(crate) hosts: Vec<MxHost>,
    /// By its name one of the others is ourselves: we are the backup of these.
    pub(crate) backup: bool,
}

/// The address in an address literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 section 4.1.3); `None` when the
/// destination is a domain or another kind of literal.
pub(crate) fn literal(destination: &str) -> Option<IpAddr> {
    let inner = destination.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse().ok().map(IpAddr::V6),
        _ => inner.parse().ok().map(IpAddr::V4),
    }
}

/// The one hop to an address literal.
pub(crate) fn to_literal(
    destination: &str,
    ip: IpAddr,
    port: u16,
    is_own: impl Fn(IpAddr) -> bool,
) -> Result<Route, NoRoute> {
    if is_own(ip) {
        return Err(loops(destination));
    }
    let hop = Hop::found(destination.to_string(), (ip, port).into());
    Ok(Route::of(vec![vec![hop]]))
}

/// The hosts to ask for addresses, from a domain's MX answer. `own`: what we are called, lower case; mail is never sent
/// there by an MX record.
pub(crate) fn hosts(
    domain: &str,
    answer: MxAnswer,
    own: &[String],
    random: &mut impl rand::Rng,
) -> Result<Hosts, NoRoute> {
    match answer {
        MxAnswer::Hosts(mut hosts) => {
            dns::order(&mut hosts, random);
            let own_at = hosts
                .iter()
                .find(|host| own.contains(&host.host))
                .map(|host| host.preference);
            let hosts = before(hosts, own_at);
            let backup = own_at.is_some();
            if hosts.is_empty() {
                Err(loops(domain))
            } else {
                Ok(Hosts { hosts, backup })
            }
        }
        // RFC 7505 section 4. Its reply code 556 is for who is asked by SMTP; here nobody was, so nobody said it.
        MxAnswer::Null => Err(NoRoute::permanent(
            "5.1.10",
            format!("{domain} accepts no mail (null MX)"),
        )),
        MxAnswer::NoMx if own.iter().any(|name| name == domain) => Err(loops(domain)),
        MxAnswer::NoMx => {
            let host = domain.to_string();
            Ok(Hosts {
                hosts: vec![MxHost {
                    preference: 0,
                    host,
                }],
                backup: false,
            })
        }
        // RFC 3463 X.1.2: bad destination system address.
        MxAnswer::NoDomain => Err(NoRoute::permanent(
            "5.1.2",
            format!("the domain {domain} does not exist"),
        )),
        MxAnswer::TempFail(why) => Err(NoRoute::temporary(why)),
    }
}

/// The hops from the hosts and their addresses, in the hosts' order. `backup`: see [`Hosts`]. `cut`: the domain has more hosts,
/// no better ones, that were not looked up.
pub(crate) fn hops(
    domain: &str,
    found: Vec<(MxHost, AddressAnswer)>,
    port: u16,
    backup: bool,
    cut: bool,
    is_own: impl Fn(IpAddr) -> bool,
) -> Result<Route, NoRoute> {
    let own_at = found.iter().find_map(|(host, answer)| match answer {
        AddressAnswer::Found(ips) if ips.iter().any(|ip| is_own(*ip)) => Some(host.preference),
        _ => None,
    });
    let better = |(host, _): &(MxHost, _)| own_at.is_none_or(|own| host.preference < own);
    let is_best = !backup && own_at.is_some() && !found.iter().any(better);
    // Behind ourselves no host counts.
    let cut = cut && own_at.is_none();
    let mut lookup_failed = None;
    let mut hosts = Vec::new();
    for (host, answer) in found {
        if own_at.is_some_and(|own| host.preference >= own) {
            continue;
        }
        match answer {
            AddressAnswer::Found(ips) => {
                let found = |ip| Hop::found(host.host.clone(), (ip, port).into());
                hosts.push(ips.into_iter().map(found).collect());
            }
            AddressAnswer::TempFail(why) => lookup_failed = Some(why),
            AddressAnswer::NoAddress | AddressAnswer::NoDomain => {}
        }
    }
    let route = Route::of(hosts);
    if !route.hops.is_empty() {
        let whole = route.whole && !cut && lookup_failed.is_none();
        return Ok(Route { whole, ..route });
    }
    Err(match lookup_failed {
        Some(why) => NoRoute::temporary(why),
        None if is_best => loops(domain),
        // A backup keeps the mail until the better hosts are back, in the DNS too.
        None if backup || own_at.is_some() => NoRoute::unreachable_now(format!(
            "no mail host of {domain} that is better than this relay has an address now"
        )),
        None if cut => NoRoute::unreachable_now(format!(
            "the first mail hosts of {domain} have no address, and it has too many to look at all"
        )),
        // RFC 3463 X.4.4: unable to route.
        None => NoRoute::permanent("5.4.4", format!("no mail host of {domain} has an address")),
    })
}

/// Only better hosts than ourselves may take it: "all MX records with a preference value equal to or greater than ours
/// MUST be discarded" (RFC 5321 section 5.1).
fn before(mut hosts: Vec<MxHost>, own: Option<u16>) -> Vec<MxHost> {
    if let Some(own) = own {
        hosts.retain(|host| host.preference < own);
    }
    hosts
}

fn loops(domain: &str) -> NoRoute {
    // RFC 3463 X.4.6: routing loop detected.
    let text = format!(
        "mail for {domain} loops back to this relay: it is the domain's best MX and has no route for it"
    );
    NoRoute::permanent("5.4.6", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn mx(list: &[(u16, &str)]) -> MxAnswer {
        MxAnswer::of_records(
            list.iter()
                .map(|(preference, host)| (*preference, host.to_string())),
        )
    }

    fn is_own(address: IpAddr) -> bool {
        address == ip("192.0.2.99")
    }

    fn names(answer: MxAnswer) -> Result<Vec<String>, (bool, &'static str)> {
        let mut random = rand::rngs::SmallRng::seed_from_u64(7);
        hosts("d.example", answer, &["us.example".into()], &mut random)
            .map(|found| found.hosts.into_iter().map(|host| host.host).collect())
            .map_err(|no| (no.permanent, no.enhanced))
    }

    #[test]
    fn what_the_dns_says_becomes_hosts_or_a_reason() {
        let ok = |list: &[&str]| Ok(list.iter().map(|name| name.to_string()).collect());
        let table = [
            (mx(&[(20, "b"), (10, "a")]), ok(&["a", "b"])),
            (MxAnswer::NoMx, ok(&["d.example"])),
            (MxAnswer::Null, Err((true, "5.1.10"))),
            (MxAnswer::NoDomain, Err((true, "5.1.2"))),
            (MxAnswer::TempFail("SERVFAIL".into()), Err((false, "4.4.3"))),
            // We are the backup: only the better one is left.
            (
                mx(&[(10, "a"), (20, "us.example"), (20, "c"), (30, "d")]),
                ok(&["a"]),
            ),
            // We are the best: it would come straight back.
            (mx(&[(10, "us.example"), (20, "b")]), Err((true, "5.4.6"))),
        ];
        for (answer, expected) in table {
            assert_eq!(names(answer.clone()), expected, "{answer:?}");
        }
    }

    #[test]
    fn addresses_follow_their_hosts_and_ours_end_the_list() {
        let host = |preference, name: &str| MxHost {
            preference,
            host: name.into(),
        };
        let found =
            |list: &[&str]| AddressAnswer::Found(list.iter().map(|text| ip(text)).collect());
        let backup = |list: Vec<(MxHost, AddressAnswer)>, backup| {
            hops("d.example", list, 25, backup, false, is_own)
                .map(|route| {
                    let hops = route.hops.into_iter();
                    hops.map(|hop| format!("{} {}", hop.host, hop.address))
                        .collect::<Vec<_>>()
                })
                .map_err(|no| (no.permanent, no.enhanced))
        };
        let of = |list| backup(list, false);
        assert_eq!(
            of(vec![
                (host(1, "a"), found(&["192.0.2.1", "2001:db8::1"])),
                (host(2, "b"), found(&["192.0.2.2"]))
            ]),
            Ok(vec![
                "a 192.0.2.1:25".into(),
                "a [2001:db8::1]:25".into(),
                "b 192.0.2.2:25".into()
            ])
        );
        assert_eq!(
            of(vec![
                (host(1, "a"), found(&["192.0.2.1"])),
                (host(2, "b"), found(&["192.0.2.99"])),
                (host(2, "c"), found(&["192.0.2.3"]))
            ]),
            Ok(vec!["a 192.0.2.1:25".into()]),
            "our own address ends the list"
        );
        assert_eq!(
            of(vec![(host(1, "b"), found(&["192.0.2.99"]))]),
            Err((true, "5.4.6"))
        );
        assert_eq!(
            of(vec![(host(1, "a"), AddressAnswer::NoDomain)]),
            Err((true, "5.4.4"))
        );
        let gone = || (host(1, "a"), AddressAnswer::NoAddress);
        assert_eq!(
            of(vec![gone(), (host(2, "b"), found(&["192.0.2.99"]))]),
            Err((false, "4.4.4")),
            "the backup waits, whatever becomes of the better ones"
        );
        assert_eq!(backup(vec![gone()], true), Err((false, "4.4.4")));
        let mixed = vec![
            (host(1, "a"), AddressAnswer::NoDomain),
            (host(2, "b"), AddressAnswer::TempFail("x".into())),
        ];
        assert_eq!(
            of(mixed),
            Err((false, "4.4.3")),
            "a lookup that failed is not an absence"
        );
    }

    /// Hosts, best first, each with so many addresses; `None`: its lookup failed.
    fn found(counts: &[Option<u8>]) -> Vec<(MxHost, AddressAnswer)> {
        let one = |(number, count): (u16, &Option<u8>)| {
            let host = MxHost {
                preference: number,
                host: format!("mx{number}"),
            };
            let answer = match count {
                Some(0) => AddressAnswer::NoAddress,
                Some(count) => {
                    let ip = |last: u8| IpAddr::from([198, 51, 100, last]);
                    AddressAnswer::Found((0..*count).map(ip).collect())
                }
                None => AddressAnswer::TempFail("SERVFAIL".into()),
            };
            (host, answer)
        };
        (0..).zip(counts).map(one).collect()
    }

    #[test]
    fn no_host_hides_the_others_and_a_route_knows_whether_it_has_all() {
        let of = |counts: &[Option<u8>], cut| {
            let route = hops("d.example", found(counts), 25, false, cut, is_own);
            let per_host = |route: Route| {
                let of_host = |n: usize| {
                    let name = format!("mx{n}");
                    let hops = route.hops.iter();
                    hops.filter(|hop| hop.host == name).count()
                };
                let each: Vec<_> = (0..counts.len()).map(of_host).collect();
                (each, route.whole)
            };
            route
                .map(per_host)
                .map_err(|no| (no.permanent, no.enhanced))
        };
        let many = Some(20);
        let nine = [1; 9].map(Some);
        /// Addresses of each host, whether the list was cut, how many of each are kept, and whether that is all.
        type Case<'a> = (&'a [Option<u8>], bool, &'a [usize], bool);
        let table: &[Case<'_>] = &[
            (&[many], false, &[8], true),
            (&[many, Some(1)], false, &[4, 1], true),
            (&[many, many, many], false, &[2, 2, 2], true),
            (&[many, Some(0), many], false, &[4, 0, 4], true),
            (&[many; 5], false, &[2, 2, 2, 2, 0], false),
            (&nine, false, &[1, 1, 1, 1, 1, 1, 1, 1, 0], false),
            (&[many, None], false, &[8, 0], false),
            (&[Some(1)], true, &[1], false),
        ];
        for &(counts, cut, each, whole) in table {
            let expected = Ok((each.to_vec(), whole));
            assert_eq!(of(counts, cut), expected, "{counts:?}");
        }
        assert_eq!(of(&[Some(0)], false), Err((true, "5.4.4")));
        assert_eq!(of(&[Some(0)], true), Err((false, "4.4.4")), "of many");
    }

    #[test]
    fn literals() {
        let to = |address: &str| {
            let hops = to_literal("[x]", ip(address), 25, is_own);
            hops.map(|route| route.hops.len()).map_err(|no| no.enhanced)
        };
        assert_eq!(to("192.0.2.1"), Ok(1));
        assert_eq!(to("192.0.2.99"), Err("5.4.6"));
        assert_eq!(literal("[192.0.2.1]"), Some(ip("192.0.2.1")));
        assert_eq!(literal("[ipv6:2001:db8::1]"), Some(ip("2001:db8::1")));
        for not in [
            "192.0.2.1",
            "[2001:db8::1]",
            "[tag:text]",
            "example.com",
            "[]",
        ] {
            assert_eq!(literal(not), None, "{not}");
        }
    }
}
