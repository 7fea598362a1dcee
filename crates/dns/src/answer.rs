//! What the DNS can say, in the words of RFC 5321 section 5.1. Pure.

use std::net::IpAddr;

use rand::RngExt;

/// One MX record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    /// Lower is preferred.
    pub preference: u16,
    /// The host's name, lower case, without final dot.
    pub host: String,
}

/// What the DNS says of a domain's mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxAnswer {
    /// The MX hosts, lowest preference first; never empty. Shuffle equal preferences with [`order`].
    Hosts(Vec<MxHost>),
    /// The domain takes no mail (a null MX, RFC 7505).
    Null,
    /// The domain exists without MX records: its own addresses are the implicit MX.
    NoMx,
    /// The domain does not exist.
    NoDomain,
    /// No answer was to be had; the text says why. Says nothing about the domain.
    TempFail(String),
}

impl MxAnswer {
    /// Makes an answer of the records (preference, host) found. A host that is not "." beside a null MX wins:
    /// RFC 7505 section 3 forbids the mixture, and delivering is the safer reading.
    pub fn of_records(records: impl IntoIterator<Item = (u16, String)>) -> MxAnswer {
        let mut null = false;
        let mut hosts = Vec::new();
        for (preference, host) in records {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            if host.is_empty() {
                null = true;
            } else {
                hosts.push(MxHost { preference, host });
            }
        }
        hosts.sort_by(|a, b| (a.preference, &a.host).cmp(&(b.preference, &b.host)));
        hosts.dedup_by(|later, first| later.host == first.host);
        match (hosts.is_empty(), null) {
            (false, _) => MxAnswer::Hosts(hosts),
            (true, true) => MxAnswer::Null,
            (true, false) => MxAnswer::NoMx,
        }
    }
}

/// What the DNS says of a host's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressAnswer {
    /// At least one address, IPv4 and IPv6 in turn.
    Found(Vec<IpAddr>),
    /// The name exists without an address.
    NoAddress,
    /// The name does not exist.
    NoDomain,
    /// No answer was to be had; the text says why.
    TempFail(String),
}

/// Shuffles hosts of equal preference and leaves the preferences in order: "the sender-SMTP MUST randomize them to
/// spread the load" (RFC 5321 section 5.1).
pub fn order(hosts: &mut [MxHost], random: &mut impl rand::Rng) {
    hosts.sort_by_key(|host| host.preference);
    for group in hosts.chunk_by_mut(|a, b| a.preference == b.preference) {
        for last in (1..group.len()).rev() {
            group.swap(last, random.random_range(0..=last));
        }
    }
}

/// One of each family in turn, IPv4 first, so that a family without a route costs one attempt and not all of them.
pub fn interleave(v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut out = Vec::with_capacity(v4.len() + v6.len());
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    loop {
        let (a, b) = (v4.next(), v6.next());
        if a.is_none() && b.is_none() {
            return out;
        }
        out.extend(a);
        out.extend(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn records(list: &[(u16, &str)]) -> MxAnswer {
        MxAnswer::of_records(list.iter().map(|(p, h)| (*p, h.to_string())))
    }

    #[test]
    fn records_become_answers() {
        let host = |preference, host: &str| MxHost {
            preference,
            host: host.into(),
        };
        let table: &[(&[(u16, &str)], MxAnswer)] = &[
            (&[], MxAnswer::NoMx),
            (&[(0, ".")], MxAnswer::Null),
            (
                &[(10, "B.Example."), (5, "a.example.")],
                MxAnswer::Hosts(vec![host(5, "a.example"), host(10, "b.example")]),
            ),
            (
                &[(0, "."), (10, "a.example.")],
                MxAnswer::Hosts(vec![host(10, "a.example")]),
            ),
        ];
        for (input, expected) in table {
            assert_eq!(&records(input), expected, "{input:?}");
        }
    }

    #[test]
    fn equal_preferences_are_shuffled_and_others_keep_their_rank() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(1);
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let MxAnswer::Hosts(mut hosts) = records(&[(10, "a"), (10, "b"), (10, "c"), (20, "z")])
            else {
                panic!("records give hosts");
            };
            order(&mut hosts, &mut random);
            firsts.insert(hosts[0].host.clone());
            assert_eq!(hosts[3].host, "z");
        }
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn families_take_turns() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mixed = interleave(
            vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3")],
            vec![ip("2001:db8::1")],
        );
        assert_eq!(
            mixed,
            [
                ip("192.0.2.1"),
                ip("2001:db8::1"),
                ip("192.0.2.2"),
                ip("192.0.2.3")
            ]
        );
    }
}
