//! A double of the DNS: answers are set, no packet is sent. Part of the library so that other crates' tests use the
//! same type as production.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use crate::{AddressAnswer, MxAnswer};

/// Answers by name. What was never set does not exist ([`MxAnswer::NoDomain`]); a name with addresses and no MX
/// answer has no MX. Answers may be changed while a resolver uses them.
#[derive(Debug, Default)]
pub struct Scripted {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mx: HashMap<String, MxAnswer>,
    addresses: HashMap<String, AddressAnswer>,
}

impl Scripted {
    /// A DNS without names.
    pub fn new() -> Scripted {
        Scripted::default()
    }

    /// Adds a domain with these MX records (preference, host).
    pub fn with_mx(self, domain: &str, records: &[(u16, &str)]) -> Scripted {
        self.set_mx(
            domain,
            MxAnswer::of_records(
                records
                    .iter()
                    .map(|(preference, host)| (*preference, host.to_string())),
            ),
        );
        self
    }

    /// Adds a host with these addresses, in this order.
    pub fn with_addresses(self, host: &str, addresses: &[IpAddr]) -> Scripted {
        self.set_addresses(host, AddressAnswer::Found(addresses.to_vec()));
        self
    }

    /// Sets what is answered for a domain's MX from now on.
    pub fn set_mx(&self, domain: &str, answer: MxAnswer) {
        self.lock().mx.insert(canonical(domain), answer);
    }

    /// Sets what is answered for a host's addresses from now on.
    pub fn set_addresses(&self, host: &str, answer: AddressAnswer) {
        self.lock().addresses.insert(canonical(host), answer);
    }

    pub(crate) fn mx(&self, domain: &str) -> MxAnswer {
        let state = self.lock();
        let name = canonical(domain);
        match state.mx.get(&name) {
            Some(answer) => answer.clone(),
            None if state.addresses.contains_key(&name) => MxAnswer::NoMx,
            None => MxAnswer::NoDomain,
        }
    }

    pub(crate) fn addresses(&self, host: &str) -> AddressAnswer {
        let state = self.lock();
        let name = canonical(host);
        match state.addresses.get(&name) {
            Some(answer) => answer.clone(),
            None if state.mx.contains_key(&name) => AddressAnswer::NoAddress,
            None => AddressAnswer::NoDomain,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is a plain map: a panic elsewhere cannot leave it half changed.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resolver;

    #[tokio::test]
    async fn an_unknown_name_does_not_exist_and_a_host_is_its_own_mx() {
        let ip: IpAddr = "192.0.2.1".parse().expect("an address");
        let resolver = Resolver::scripted(
            Scripted::new()
                .with_addresses("host.example", &[ip])
                .with_mx("Mail.Example", &[(10, "host.example")]),
        );
        assert_eq!(resolver.mx("nowhere.example").await, MxAnswer::NoDomain);
        assert_eq!(resolver.mx("host.example").await, MxAnswer::NoMx);
        assert!(
            matches!(resolver.mx("mail.example").await, MxAnswer::Hosts(hosts) if hosts[0].host == "host.example")
        );
        assert_eq!(
            resolver.addresses("HOST.example.").await,
            AddressAnswer::Found(vec![ip])
        );
        assert_eq!(
            resolver.addresses("mail.example").await,
            AddressAnswer::NoAddress
        );
    }
}
