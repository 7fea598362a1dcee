//! Single values: domain names, hosts, networks, sizes, bounds. Each error text says what to write instead.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::catalog::Host;

/// Octets of a domain name (RFC 1035 section 2.3.4, less the root's length octet and dot).
pub const DOMAIN_OCTETS_MAX: usize = 253;
/// Octets of a DNS label (RFC 1035 section 2.3.4); names of resources are labels too.
const LABEL_OCTETS_MAX: usize = 63;
/// Octets of an address's local part (RFC 5321 section 4.5.3.1.1).
const LOCAL_OCTETS_MAX: usize = 64;
/// Port of DNS (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// A domain name in lower-case A-label form (RFC 5890). The text of an error names the fault.
pub fn parse_domain(text: &str) -> Result<String, String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let ascii = idna::domain_to_ascii_cow(bare.as_bytes(), idna::AsciiDenyList::STD3)
        .map_err(|_| format!("`{text}` is no domain name; write one like example.org"))?;
    if ascii.is_empty() || ascii.len() > DOMAIN_OCTETS_MAX {
        return Err(format!(
            "`{text}` has {} octets; a domain name has 1 to {DOMAIN_OCTETS_MAX}",
            ascii.len()
        ));
    }
    if let Some(label) = ascii.split('.').find(|label| !is_label(label)) {
        return Err(format!(
            "`{text}` is no domain name: `{label}` is no label (1 to {LABEL_OCTETS_MAX} letters, digits and inner hyphens)"
        ));
    }
    if ascii.parse::<IpAddr>().is_ok() {
        return Err(format!("`{text}` is an address, not a domain name"));
    }
    Ok(ascii.into_owned())
}

/// A mail address with a plain local part, and its domain as A-labels.
pub(crate) fn parse_address(text: &str) -> Result<Arc<str>, String> {
    let wrong = || format!("`{text}` is no mail address; write one like postmaster@example.org");
    let (local, domain) = text.rsplit_once('@').ok_or_else(wrong)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
    if local.is_empty() || local.len() > LOCAL_OCTETS_MAX || dots || !local.chars().all(is_plain) {
        return Err(wrong());
    }
    Ok(format!("{local}@{}", parse_domain(domain)?).into())
}

/// A host name or an address.
pub(crate) fn parse_host(text: &str) -> Result<Host, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip.to_canonical()));
    }
    parse_domain(text)
        .map(Host::Name)
        .map_err(|_| format!("`{text}` is neither a host name nor an IP address"))
}

/// A network that may be trusted: never /0, in its canonical form.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(ip) => format!(
                "`{text}` is an address; write the network {}",
                IpNet::from(ip)
            ),
            Err(_) => {
                format!("`{text}` is no network; write one like 192.0.2.0/24 or 2001:db8::/32")
            }
        });
    };
    if net.prefix_len() == 0 {
        return Err(format!(
            "`{text}` is everybody: that is an open relay; name the networks of your clients"
        ));
    }
    if net.trunc() != net {
        return Err(format!(
            "`{text}` has bits set behind its prefix; write {}",
            net.trunc()
        ));
    }
    // ::ffff:0:0/96 would be a second spelling of 0.0.0.0/0; clients are compared in their IPv4 form.
    let mapped: ipnet::Ipv6Net = "::ffff:0:0/96".parse().expect("a constant network");
    if let IpNet::V6(v6) = net
        && (mapped.contains(&v6) || v6.contains(&mapped))
    {
        return Err(format!(
            "`{text}` covers IPv4 in IPv6 form; write IPv4 networks as IPv4"
        ));
    }
    Ok(net)
}

/// `ip` or `ip:port` of a DNS server.
pub fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    text.parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, DNS_PORT))
        .map_err(|_| format!("`{text}` is no resolver; write its IP address, or address and port like 192.0.2.1:53 or [2001:db8::1]:53"))
}

/// A Kubernetes quantity of octets, as the API server takes and writes it: `52428800`, `50Mi`, `1.5Gi`, `5e7`. A part of an octet
/// counts as one.
pub fn parse_quantity(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write one like 50Mi");
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        unit => {
            let power = unit.strip_prefix(['e', 'E']).ok_or_else(wrong)?;
            let power: u32 = power.parse().map_err(|_| wrong())?;
            10_u128.checked_pow(power).ok_or_else(wrong)?
        }
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    // More digits than this are less than an octet of the largest size.
    let scale = u32::try_from(part.len()).map_err(|_| wrong())?;
    if scale > 18 || part.contains('.') {
        return Err(wrong());
    }
    let digits: u128 = format!("{whole}{part}").parse().map_err(|_| wrong())?;
    let octets = digits.checked_mul(factor);
    let octets = octets.map(|octets| octets.div_ceil(10_u128.pow(scale)));
    octets
        .and_then(|octets| u64::try_from(octets).ok())
        .ok_or_else(|| format!("`{text}` is too large; write one like 50Mi"))
}

/// A DNS label: names of resources, namespaces and classes.
pub(crate) fn parse_label(text: &str) -> Result<String, String> {
    if is_label(text) && !text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(text.into());
    }
    Err(format!(
        "`{text}` is no DNS label; write 1 to {LABEL_OCTETS_MAX} lower-case letters, digits and inner hyphens"
    ))
}

/// A number in its bounds.
pub(crate) fn bounded<T: PartialOrd + Display>(value: T, min: T, max: T) -> Result<T, String> {
    if value < min || value > max {
        return Err(format!("{value} is out of bounds; write {min} to {max}"));
    }
    Ok(value)
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_OCTETS_MAX).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_names_become_lower_case_a_labels() {
        assert_eq!(parse_domain("Example.ORG").as_deref(), Ok("example.org"));
        assert_eq!(
            parse_domain("bücher.example.").as_deref(),
            Ok("xn--bcher-kva.example")
        );
        for bad in [
            "",
            ".",
            "a..b",
            "-a.example",
            "under_score.example",
            "10.0.0.1",
            "a b.example",
            &"a".repeat(64),
        ] {
            assert!(parse_domain(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_network_is_refused_with_the_text_that_would_be_right() {
        assert_eq!(
            parse_network("10.0.0.1/8"),
            Err("`10.0.0.1/8` has bits set behind its prefix; write 10.0.0.0/8".into())
        );
        assert_eq!(
            parse_network("192.0.2.1"),
            Err("`192.0.2.1` is an address; write the network 192.0.2.1/32".into())
        );
        for everybody in [
            "0.0.0.0/0",
            "::/0",
            "::ffff:0.0.0.0/96",
            "::ffff:0:0/97",
            "::/1",
        ] {
            assert!(parse_network(everybody).is_err(), "{everybody} was taken");
        }
        assert!(parse_network("2001:db8::/32").is_ok());
    }

    #[test]
    fn sizes_are_kubernetes_quantities() {
        assert_eq!(parse_quantity("50Mi"), Ok(52_428_800));
        assert_eq!(parse_quantity("1000"), Ok(1000));
        assert_eq!(parse_quantity("2k"), Ok(2000));
        assert_eq!(parse_quantity("1.5Mi"), Ok(1_572_864));
        assert_eq!(parse_quantity("1Ti"), Ok(1 << 40));
        assert_eq!(parse_quantity("0.1k"), Ok(100));
        assert_eq!(parse_quantity("0.0001k"), Ok(1), "a part of an octet");
        assert_eq!(parse_quantity("5e7"), Ok(50_000_000));
        for bad in [
            "",
            ".",
            "Mi",
            "50MB",
            "-1",
            "1.2.3",
            "1e",
            "99999999999Gi",
            "1e40",
            "1e-3",
        ] {
            assert!(parse_quantity(bad).is_err(), "{bad:?} was taken");
        }
    }
}
