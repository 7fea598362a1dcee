//! Who owns a name: which claims to domains count, and why the others do not.
//!
//! Without this a tenant that declares `gmail.com` inbound would take every other tenant's mail to it. A claim counts when
//! its namespace is admitted, when the domain's owner agreed where that is asked for, when no other claim that passed these
//! two is older, and when its networks lie inside the cluster's. A claim that fails by what it says of itself still holds
//! its name: a mistake of its owner's must not hand the domain to somebody else.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use crate::document::sha256;
use crate::kind::{Access, DomainOwnership, NamespacesFrom, RelayDomainSpec};
use crate::validate::{parse_domain, parse_network};

/// The label in front of a domain where its owner agrees to a claim.
pub const CHALLENGE_LABEL: &str = "_postroad-challenge";
/// The label that every namespace of Kubernetes has: its name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A cluster as claims see it.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Who may declare what.
    pub access: &'a Access,
}

/// A RelayDomain that refers to the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// Labels of its namespace.
    pub labels: &'a BTreeMap<String, String>,
    /// What it says.
    pub spec: &'a RelayDomainSpec,
    /// The TXT record of [`challenge`] was seen. Time-outs do not change what was seen before.
    pub proven: bool,
}

/// Why a claim does not count: reason and text of the condition `Accepted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its namespace is not admitted.
    NamespaceNotAllowed {
        /// Which.
        namespace: String,
    },
    /// The domain's owner did not agree.
    OwnershipNotVerified {
        /// The domain.
        domain: String,
    },
    /// Another claim is older.
    DomainConflict {
        /// The domain.
        domain: String,
        /// `namespace/name` of the one that counts; a tenant may not be allowed to know more.
        holder: String,
    },
    /// A network lies outside the cluster's.
    NetworkNotAllowed {
        /// Which.
        network: String,
        /// Its position in `spec.outbound.networks`.
        position: usize,
    },
    /// The domain is none.
    Invalid {
        /// What is wrong.
        text: String,
    },
}

impl Refusal {
    /// The condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NamespaceNotAllowed { .. } => "NamespaceNotAllowed",
            Refusal::OwnershipNotVerified { .. } => "OwnershipNotVerified",
            Refusal::DomainConflict { .. } => "DomainConflict",
            Refusal::NetworkNotAllowed { .. } => "NetworkNotAllowed",
            Refusal::Invalid { .. } => "Invalid",
        }
    }

    /// The field that it is about.
    pub fn field(&self) -> String {
        match self {
            Refusal::NamespaceNotAllowed { .. } => "metadata.namespace".into(),
            Refusal::OwnershipNotVerified { .. }
            | Refusal::DomainConflict { .. }
            | Refusal::Invalid { .. } => "spec.domain".into(),
            Refusal::NetworkNotAllowed { position, .. } => {
                format!("spec.outbound.networks[{position}]")
            }
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NamespaceNotAllowed { namespace } => write!(
                f,
                "namespace {namespace} may not declare domains of this RelayCluster; ask who runs the cluster to admit it in access.allowedNamespaces"
            ),
            Refusal::OwnershipNotVerified { domain } => write!(
                f,
                "the TXT record at {CHALLENGE_LABEL}.{domain} was not seen; publish the one in status.ownershipRecord"
            ),
            Refusal::DomainConflict { domain, holder } => write!(
                f,
                "{domain} is declared by {holder} already, which is older; a domain has one RelayDomain in a cluster"
            ),
            Refusal::NetworkNotAllowed { network, .. } => write!(
                f,
                "`{network}` is not inside the RelayCluster's access.networks; add it there, or ask who runs the cluster"
            ),
            Refusal::Invalid { text } => f.write_str(text),
        }
    }
}

/// The TXT record at `_postroad-challenge.<domain>` by which a domain's owner agrees to the claim of a namespace.
pub fn challenge(cluster_id: &[u8; 16], namespace: &str, domain: &str) -> String {
    let mut octets = cluster_id.to_vec();
    // Neither names nor domains have a NUL.
    octets.extend_from_slice(format!("{namespace}\0{domain}").as_bytes());
    let hash = sha256(&octets);
    // 128 bits are enough for what nobody gains by guessing.
    let hex: String = hash[..16]
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    format!("postroad-challenge={hex}")
}

/// The namespace's RelayDomains count.
pub fn admits(cluster: Cluster<'_>, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let allowed = &cluster.access.allowed_namespaces;
    namespace == cluster.namespace
        || match allowed.from {
            NamespacesFrom::Same => false,
            NamespacesFrom::All => true,
            NamespacesFrom::Selector => allowed
                .selector
                .as_ref()
                .is_some_and(|selector| selector.matches(labels)),
        }
}

/// Judges all claims to domains of one cluster; the answers are in their order. Whatever order they come in, the same
/// claims count.
pub fn judge(cluster: Cluster<'_>, claims: &[Claim<'_>]) -> Vec<Result<(), Refusal>> {
    let asked = cluster.access.ownership() == DomainOwnership::DNS;
    let standing: Vec<Result<String, Refusal>> = claims
        .iter()
        .map(|claim| stand(cluster, claim, asked))
        .collect();
    let age = |n: usize| (claims[n].created, claims[n].namespace, claims[n].name);
    let mut holders: HashMap<&str, usize> = HashMap::new();
    for (n, domain) in standing.iter().enumerate() {
        if let Ok(domain) = domain {
            let holder = holders.entry(domain).or_insert(n);
            if age(n) < age(*holder) {
                *holder = n;
            }
        }
    }
    let bound: Vec<IpNet> = cluster
        .access
        .networks
        .iter()
        .filter_map(|text| parse_network(text).ok())
        .collect();
    let answer = |(n, domain): (usize, &Result<String, Refusal>)| {
        let domain = domain.as_ref().map_err(Clone::clone)?;
        match holders.get(domain.as_str()) {
            Some(&holder) if holder != n => Err(Refusal::DomainConflict {
                domain: domain.clone(),
                holder: format!("{}/{}", claims[holder].namespace, claims[holder].name),
            }),
            _ => outside(claims[n].spec, &bound)
                .into_iter()
                .next()
                .map_or(Ok(()), Err),
        }
    };
    standing.iter().enumerate().map(answer).collect()
}

/// The domain, when the claim may compete for it.
fn stand(cluster: Cluster<'_>, claim: &Claim<'_>, asked: bool) -> Result<String, Refusal> {
    if !admits(cluster, claim.namespace, claim.labels) {
        let namespace = claim.namespace.into();
        return Err(Refusal::NamespaceNotAllowed { namespace });
    }
    let domain = parse_domain(&claim.spec.domain).map_err(|text| Refusal::Invalid { text })?;
    match asked && !claim.proven {
        true => Err(Refusal::OwnershipNotVerified { domain }),
        false => Ok(domain),
    }
}

/// The networks that do not lie inside the bound. What is no network at all is refused where it is compiled.
pub(crate) fn outside(spec: &RelayDomainSpec, bound: &[IpNet]) -> Vec<Refusal> {
    let networks = spec.outbound.iter().flat_map(|outbound| &outbound.networks);
    let out = |text: &str| {
        parse_network(text).is_ok_and(|network| !bound.iter().any(|outer| outer.contains(&network)))
    };
    networks
        .enumerate()
        .filter(|(_, text)| out(text))
        .map(|(position, text)| Refusal::NetworkNotAllowed {
            network: text.clone(),
            position,
        })
        .collect()
}
