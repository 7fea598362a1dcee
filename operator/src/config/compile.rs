//! What is declared to the documents that the nodes get. Pure: the same compiler as `postroad apply` has, and on top of it who
//! may declare what, and which signing keys are used.

use std::collections::{BTreeMap, BTreeSet};

use resource::seal::Sealed;
use resource::spec::{self, Habitat, KeyUse, Named};
use resource::{
    Claim, Cluster, DkimKey, DkimMode, Document, DocumentKey, DocumentKind, KeyPhase, Refusal,
    RelayCluster, RelayDomain, judge,
};

use crate::conditions::is_true;

/// Labels of namespaces, by name.
pub type Labels = BTreeMap<String, BTreeMap<String, String>>;

/// What nodes get, and what becomes of each domain.
pub struct Compiled {
    /// By key.
    pub documents: Vec<Document>,
    /// Keys of documents that nodes keep as they have them: they could not be made now, and are not to go.
    pub kept: BTreeSet<String>,
    /// Of each domain, in their order: the key of its document, or why there is none.
    pub verdicts: Vec<Result<String, Refusal>>,
    /// Of each signing key, in their order: the key of its document; `None`: nodes do not have it.
    pub keys: Vec<Option<String>>,
}

/// A signing key, and what it is sent as.
pub struct SealedKey<'a> {
    /// Its object.
    pub object: &'a DkimKey,
    /// Its private half.
    pub sealed: Sealing,
}

/// A private key on its way.
pub enum Sealing {
    /// It is ready to go.
    Sealed(Sealed),
    /// There is nothing to seal with now: nodes keep what they have, or all mail would go unsigned.
    NotNow,
    /// Its Secret does not hold it, or nobody is to have it.
    Nothing,
}

/// The key's phase is one in which delivery nodes have it.
pub fn is_sent(key: &DkimKey) -> bool {
    let phase = key.status.as_ref().and_then(|status| status.phase);
    let used = matches!(phase, Some(KeyPhase::Published | KeyPhase::Active));
    used && key.spec.revoked != Some(true) && key.metadata.deletion_timestamp.is_none()
}

/// Compiles the whole of a cluster.
///
/// # Errors
/// What is wrong with the RelayCluster itself; then nothing is sent.
pub fn compile(
    cluster: &RelayCluster,
    domains: &[&RelayDomain],
    labels: &Labels,
    keys: &[SealedKey<'_>],
) -> Result<Compiled, String> {
    let own = named(
        cluster.metadata.namespace.as_deref(),
        cluster.metadata.name.as_deref(),
        cluster.metadata.generation,
    );
    let document = spec::relay_cluster(own, &cluster.spec).map_err(|faults| told(&faults))?;
    let mut documents = vec![document];
    let none = BTreeMap::new();
    let claims: Vec<Claim<'_>> = domains
        .iter()
        .map(|domain| claim(domain, labels, &none))
        .collect();
    let home = Cluster {
        namespace: own.namespace,
        access: &cluster.spec.access,
    };
    let mut verdicts = Vec::new();
    for (domain, verdict) in domains.iter().zip(judge(home, &claims)) {
        let meta = &domain.metadata;
        let of = named(
            meta.namespace.as_deref(),
            meta.name.as_deref(),
            meta.generation,
        );
        let compiled = verdict.and_then(|()| {
            spec::relay_domain(of, &domain.spec, Habitat::Kubernetes).map_err(|faults| {
                Refusal::Invalid {
                    text: told(&faults),
                }
            })
        });
        verdicts.push(compiled.map(|document| {
            let key = document.key.to_string();
            documents.push(document);
            key
        }));
    }
    let mut kept = BTreeSet::new();
    let used = keys.iter().map(|key| {
        if !signs(key.object, domains, &verdicts) {
            return None;
        }
        let of = named(
            key.object.metadata.namespace.as_deref(),
            key.object.metadata.name.as_deref(),
            key.object.metadata.generation,
        );
        let name = DocumentKey::new(DocumentKind::DkimKey, of.namespace, of.name).to_string();
        match &key.sealed {
            Sealing::Sealed(sealed) => documents.push(signing_key(of, key.object, sealed.clone())),
            Sealing::NotNow => {
                kept.insert(name.clone());
            }
            Sealing::Nothing => return None,
        }
        Some(name)
    });
    let used: Vec<Option<String>> = used.collect();
    documents.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Compiled {
        documents,
        kept,
        verdicts,
        keys: used,
    })
}

fn named<'a>(
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    generation: Option<i64>,
) -> Named<'a> {
    Named {
        namespace: namespace.unwrap_or_default(),
        name: name.unwrap_or_default(),
        generation: generation
            .and_then(|number| u64::try_from(number).ok())
            .unwrap_or_default(),
    }
}

fn told(faults: &[spec::Fault]) -> String {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn claim<'a>(
    domain: &'a RelayDomain,
    labels: &'a Labels,
    none: &'a BTreeMap<String, String>,
) -> Claim<'a> {
    let namespace = domain.metadata.namespace.as_deref().unwrap_or_default();
    let created = domain.metadata.creation_timestamp.as_ref();
    let seen = domain.status.as_ref();
    Claim {
        namespace,
        name: domain.metadata.name.as_deref().unwrap_or_default(),
        created: created.map_or(0, |time| time.0.as_second()),
        labels: labels.get(namespace).unwrap_or(none),
        spec: &domain.spec,
        // A domain cannot be changed, so what was seen once was seen of it.
        proven: seen.is_some_and(|status| is_true(&status.conditions, "OwnershipVerified")),
    }
}

/// Nodes are to have the key: it is one of an accepted domain that signs, and in a phase for that.
fn signs(object: &DkimKey, domains: &[&RelayDomain], verdicts: &[Result<String, Refusal>]) -> bool {
    if !is_sent(object) {
        return false;
    }
    let namespace = object.metadata.namespace.as_deref();
    let of_it = |domain: &RelayDomain| {
        domain.metadata.namespace.as_deref() == namespace
            && domain.metadata.name.as_deref() == Some(&object.spec.domain_ref.name)
            && domain.spec.domain == object.spec.domain
    };
    let mut judged = domains.iter().zip(verdicts);
    let found = judged.find(|(domain, verdict)| verdict.is_ok() && of_it(domain));
    let outbound = found.and_then(|(domain, _)| domain.spec.outbound.as_ref());
    outbound.is_some_and(|outbound| outbound.dkim.mode != DkimMode::Off)
}

/// The document of a key that nodes are to have: in use only as its phase says.
fn signing_key(of: Named<'_>, object: &DkimKey, sealed: Sealed) -> Document {
    let phase = object.status.as_ref().and_then(|status| status.phase);
    let used = KeyUse {
        domain: &object.spec.domain,
        selector: &object.spec.selector,
        algorithm: object.spec.algorithm,
        active: phase == Some(KeyPhase::Active),
    };
    spec::dkim_key(of, &used, sealed)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
