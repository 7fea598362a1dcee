//! Documents to a [`Catalog`], as they come and go on a node.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;

use crate::catalog::{Catalog, Dkim, Grant, Inbound, Principal, Retry, Target, TlsPolicy};
use crate::document::{ClusterBody, DocumentKey, DocumentKind, DomainBody, KeyBody, RetryBody};
use crate::kind::{DkimAlgorithm, RetrySpec};
use crate::seal::Sealed;
use crate::validate::{parse_domain, parse_host, parse_label, parse_network};

/// The documents that a node has, each already understood. One that it cannot use is refused, and the former one stays.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    clusters: BTreeMap<DocumentKey, Cluster>,
    domains: BTreeMap<DocumentKey, Domain>,
    keys: BTreeMap<DocumentKey, Key>,
}

#[derive(Clone, Debug)]
struct Cluster {
    resolvers: Vec<SocketAddr>,
    retry: Option<Retry>,
}

#[derive(Clone, Debug)]
struct Domain {
    domain: Arc<str>,
    inbound: Option<Inbound>,
    outbound: Option<Outbound>,
}

#[derive(Clone, Debug)]
struct Outbound {
    networks: Vec<IpNet>,
    tenant: Arc<str>,
    class: Arc<str>,
    /// Its mail should be signed; and while no key can, it waits.
    sign: Option<bool>,
}

/// A DKIM key, still sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Lower-case A-label.
    pub domain: String,
    /// The record is at `<selector>._domainkey.<domain>`.
    pub selector: String,
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// It signs; else it was only sent ahead.
    pub active: bool,
    /// The private key.
    pub sealed: Sealed,
}

impl Documents {
    /// Takes what changed: documents that come in the place of the former ones of their keys, and keys that go. Gives those
    /// that cannot be used, with why; of these the former ones stay.
    pub fn take(
        &mut self,
        upserts: impl IntoIterator<Item = (DocumentKey, Bytes)>,
        deletes: impl IntoIterator<Item = DocumentKey>,
    ) -> Vec<(DocumentKey, String)> {
        for key in deletes {
            self.remove(&key);
        }
        let mut rejected = Vec::new();
        let mut changed: BTreeMap<DocumentKey, Option<Domain>> = BTreeMap::new();
        for (key, body) in upserts {
            match self.upsert(&key, &body) {
                Ok(None) => {}
                Ok(Some(former)) => drop(changed.insert(key, former)),
                Err(text) => rejected.push((key, text)),
            }
        }
        // A domain may have gone from one resource to another with the same change, so doubles are looked for at the end.
        let mut holders: HashMap<Arc<str>, DocumentKey> = HashMap::new();
        for (key, domain) in self
            .domains
            .iter()
            .filter(|(key, _)| !changed.contains_key(key))
        {
            holders.insert(domain.domain.clone(), key.clone());
        }
        for (key, former) in changed {
            let Some(domain) = self.domains.get(&key).map(|new| new.domain.clone()) else {
                continue;
            };
            let holder = holders.entry(domain.clone()).or_insert_with(|| key.clone());
            if *holder == key {
                continue;
            }
            rejected.push((key.clone(), format!("{domain} is {holder}'s already")));
            self.domains.remove(&key);
            if let Some(former) = former.filter(|former| !holders.contains_key(&former.domain)) {
                holders.insert(former.domain.clone(), key.clone());
                self.domains.insert(key, former);
            }
        }
        rejected
    }

    /// Of a domain: what it was before.
    fn upsert(&mut self, key: &DocumentKey, body: &[u8]) -> Result<Option<Option<Domain>>, String> {
        match key.kind {
            DocumentKind::RelayCluster => {
                drop(self.clusters.insert(key.clone(), cluster(decode(body)?)?))
            }
            DocumentKind::DkimKey => {
                drop(self.keys.insert(key.clone(), signing_key(decode(body)?)?))
            }
            DocumentKind::RelayDomain => {
                return Ok(Some(
                    self.domains.insert(key.clone(), domain(decode(body)?)?),
                ));
            }
        }
        Ok(None)
    }

    /// A document is gone.
    fn remove(&mut self, key: &DocumentKey) {
        match key.kind {
            DocumentKind::RelayCluster => drop(self.clusters.remove(key)),
            DocumentKind::RelayDomain => drop(self.domains.remove(key)),
            DocumentKind::DkimKey => drop(self.keys.remove(key)),
        }
    }

    /// The keys of all documents.
    pub fn known(&self) -> impl Iterator<Item = &DocumentKey> {
        self.clusters
            .keys()
            .chain(self.domains.keys())
            .chain(self.keys.keys())
    }

    /// The signing keys, still sealed.
    pub fn signing_keys(&self) -> impl Iterator<Item = (&DocumentKey, &Key)> {
        self.keys.iter()
    }

    /// The questions of nodes, answered; `base` brings what the node's own pool says.
    pub fn catalog(&self, base: &Catalog) -> Catalog {
        let mut catalog = Catalog {
            edge: base.edge.clone(),
            own_names: base.own_names.clone(),
            delivery: base.delivery.clone(),
            smart_host: base.smart_host.clone(),
            ..Catalog::default()
        };
        // A cluster has one document; were there two, the first name would count everywhere.
        if let Some(cluster) = self.clusters.values().next() {
            catalog.resolvers = cluster.resolvers.clone();
            catalog.retry = cluster.retry.clone().unwrap_or_default();
        }
        for domain in self.domains.values() {
            if let Some(inbound) = &domain.inbound {
                catalog
                    .inbound
                    .insert(domain.domain.clone(), inbound.clone());
            }
            let Some(outbound) = &domain.outbound else {
                continue;
            };
            catalog.dkim.extend(outbound.sign.map(|defer_without| Dkim {
                tenant: outbound.tenant.clone(),
                domain: domain.domain.clone(),
                keys: Vec::new(),
                defer_without,
            }));
            let grants = outbound.networks.iter().map(|network| Grant {
                network: *network,
                domain: domain.domain.clone(),
                principal: Principal {
                    tenant: outbound.tenant.clone(),
                    class: outbound.class.clone(),
                    name: format!("network {network} of {}", domain.domain).into(),
                },
            });
            catalog.grants.extend(grants);
        }
        order(&mut catalog);
        catalog
    }
}

fn order(catalog: &mut Catalog) {
    catalog.grants.sort_by(|a, b| {
        let specific = b.network.prefix_len().cmp(&a.network.prefix_len());
        specific.then_with(|| {
            (&a.principal.tenant, &a.domain, a.network).cmp(&(
                &b.principal.tenant,
                &b.domain,
                b.network,
            ))
        })
    });
    let mut senders: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
    for (n, grant) in catalog.grants.iter().enumerate() {
        senders.entry(grant.domain.clone()).or_default().push(n);
    }
    catalog.senders = senders;
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, String> {
    M::decode(body).map_err(|error| format!("its octets are no such document: {error}"))
}

fn cluster(body: ClusterBody) -> Result<Cluster, String> {
    let resolver = |text: &String| {
        text.parse()
            .map_err(|_| format!("resolver `{text}` is no address with a port"))
    };
    Ok(Cluster {
        resolvers: body
            .resolvers
            .iter()
            .map(resolver)
            .collect::<Result<_, String>>()?,
        retry: body.retry.map(retry),
    })
}

fn retry(body: RetryBody) -> Retry {
    Retry::from(&RetrySpec {
        first_seconds: body.first_seconds,
        max_seconds: body.max_seconds,
        give_up_after_hours: body.give_up_after_hours,
        delay_notice_after_hours: body.delay_notice_after_hours,
    })
}

fn domain(body: DomainBody) -> Result<Domain, String> {
    let tenant: Arc<str> = parse_label(&body.tenant)?.into();
    let inbound = match body.inbound {
        None => None,
        Some(inbound) => Some(Inbound {
            tenant: tenant.clone(),
            class: parse_label(&inbound.class)?.into(),
            targets: inbound
                .targets
                .iter()
                .map(|target| {
                    let port = u16::try_from(target.port)
                        .map_err(|_| format!("port {} is none", target.port))?;
                    let tls = match target.tls {
                        0 => TlsPolicy::Opportunistic,
                        1 => TlsPolicy::Off,
                        2 => TlsPolicy::Required,
                        3 => TlsPolicy::Implicit,
                        other => {
                            return Err(format!(
                                "this program knows no TLS policy {other}; upgrade it"
                            ));
                        }
                    };
                    Ok(Target {
                        host: parse_host(&target.host)?,
                        port,
                        tls,
                    })
                })
                .collect::<Result<_, String>>()?,
        }),
    };
    let outbound = match body.outbound {
        None => None,
        Some(outbound) => Some(Outbound {
            networks: outbound
                .networks
                .iter()
                .map(|text| parse_network(text))
                .collect::<Result<_, _>>()?,
            tenant,
            class: parse_label(&outbound.class)?.into(),
            sign: outbound.sign.then_some(outbound.defer_unsigned),
        }),
    };
    Ok(Domain {
        domain: parse_domain(&body.domain)?.into(),
        inbound,
        outbound,
    })
}

fn signing_key(body: KeyBody) -> Result<Key, String> {
    Ok(Key {
        domain: parse_domain(&body.domain)?,
        selector: body.selector,
        algorithm: match body.algorithm {
            1 => DkimAlgorithm::RSA2048,
            2 => DkimAlgorithm::Ed25519,
            other => {
                return Err(format!(
                    "this program knows no signing algorithm {other}; upgrade it"
                ));
            }
        },
        active: body.active,
        sealed: Sealed {
            key_id: body.seal,
            nonce: body.nonce,
            sealed: body.sealed,
        },
    })
}
