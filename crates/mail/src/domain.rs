//! Domains, hosts and destinations (RFC 5321 section 4.1.2 and 4.1.3).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

use crate::address::AddressError;
use crate::limits::{DOMAIN_BYTES_MAX, LABEL_BYTES_MAX};

/// A domain name: lower-case A-labels, without a trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Parses a domain; U-labels (RFC 5890) become A-labels.
    pub fn parse(text: &str) -> Result<Domain, AddressError> {
        if !text.is_ascii() {
            let ascii = Uts46::new()
                .to_ascii(
                    text.as_bytes(),
                    AsciiDenyList::STD3,
                    Hyphens::CheckFirstLast,
                    DnsLength::Verify,
                )
                .map_err(|_| AddressError::BadDomain)?;
            return Domain::from_ascii(&ascii);
        }
        Domain::from_ascii(text)
    }

    /// RFC 5321 4.1.2: `sub-domain = Let-dig [Ldh-str]`.
    fn from_ascii(text: &str) -> Result<Domain, AddressError> {
        if text.is_empty() {
            return Err(AddressError::NoDomain);
        }
        if text.len() > DOMAIN_BYTES_MAX {
            return Err(AddressError::DomainTooLong);
        }
        for label in text.split('.') {
            let bytes = label.as_bytes();
            let ends = bytes.first().zip(bytes.last());
            if ends.is_none_or(|(a, b)| *a == b'-' || *b == b'-') {
                return Err(AddressError::BadDomain);
            }
            if bytes.len() > LABEL_BYTES_MAX
                || !bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            {
                return Err(AddressError::BadDomain);
            }
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Domain(text.to_ascii_lowercase().into()));
        }
        Ok(Domain(text.into()))
    }

    /// The A-label form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What stands right of the `@`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Host {
    /// A domain name.
    Domain(Domain),
    /// An address literal (RFC 5321 4.1.3); general literals are refused, for nobody registered one.
    Literal(IpAddr),
}

impl Host {
    /// Parses a domain, `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    pub fn parse(text: &str) -> Result<Host, AddressError> {
        let Some(inner) = text.strip_prefix('[') else {
            return Domain::parse(text).map(Host::Domain);
        };
        let inner = inner.strip_suffix(']').ok_or(AddressError::BadLiteral)?;
        let address = match inner.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
                inner[5..].parse::<Ipv6Addr>().map(IpAddr::V6)
            }
            _ => inner.parse::<Ipv4Addr>().map(IpAddr::V4),
        };
        address
            .map(Host::Literal)
            .map_err(|_| AddressError::BadLiteral)
    }

    /// Where mail for this host goes.
    pub fn destination(&self) -> Destination {
        match self {
            Host::Domain(domain) => Destination(domain.0.clone()),
            Host::Literal(_) => Destination(self.to_string().into()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Domain(domain) => domain.fmt(f),
            Host::Literal(IpAddr::V4(address)) => write!(f, "[{address}]"),
            Host::Literal(IpAddr::V6(address)) => write!(f, "[IPv6:{address}]"),
        }
    }
}

/// Where one transaction can take a message: a recipient domain as lower-case A-label, or an address literal
/// with its brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(Arc<str>);

impl Destination {
    /// Takes text that was already brought into canonical form (see the parsers of this module, or the log).
    pub fn from_canonical(text: &str) -> Destination {
        Destination(text.into())
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host that this destination names; an error where it was not made from a [`Host`].
    pub fn host(&self) -> Result<Host, AddressError> {
        Host::parse(&self.0)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
