//! How many SMTP sessions there may be, in all and from one source.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts SMTP sessions by source.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    sources: HashMap<IpAddr, usize>,
}

/// Which bound was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    Total,
    Source,
}

impl Exceeded {
    /// For metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Exceeded::Total => "total",
            Exceeded::Source => "source",
        }
    }
}

/// One SMTP session's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    of: Arc<Permits>,
    source: IpAddr,
}

impl Permits {
    /// A place for a session from `client`, under bounds that may have changed since the last one.
    pub fn take(
        self: &Arc<Permits>,
        client: IpAddr,
        total: usize,
        per_source: usize,
    ) -> Result<Permit, Exceeded> {
        let source = source(client);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= total {
            return Err(Exceeded::Total);
        }
        let own = counts.sources.entry(source).or_default();
        if *own >= per_source {
            return Err(Exceeded::Source);
        }
        *own += 1;
        counts.total += 1;
        metrics::gauge!("postroad_sessions_count").set(counts.total as f64);
        Ok(Permit {
            of: self.clone(),
            source,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self
            .of
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        metrics::gauge!("postroad_sessions_count").set(counts.total as f64);
        if let Some(own) = counts.sources.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                counts.sources.remove(&self.source);
            }
        }
    }
}

/// One customer holds a /64 of IPv6 addresses (RFC 6177 section 2), so that is one source.
fn source(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_source_and_given_back() {
        let permits = Arc::new(Permits::default());
        let take = |client: &str| permits.take(client.parse().unwrap(), 3, 2);
        let first = take("192.0.2.1").unwrap();
        let _second = take("::ffff:192.0.2.1").unwrap();
        assert_eq!(take("192.0.2.1").unwrap_err(), Exceeded::Source);
        let _third = take("2001:db8::1").unwrap();
        assert_eq!(take("2001:db8:0:1::1").unwrap_err(), Exceeded::Total);
        drop(first);
        let _fourth = take("2001:db8::2").unwrap();
        drop(_second);
        assert_eq!(
            take("2001:db8::3").unwrap_err(),
            Exceeded::Source,
            "the same /64"
        );
        assert!(take("192.0.2.1").is_ok());
    }
}
