//! The resources of a directory to documents; what holds between several of them.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use crate::catalog::{Catalog, DeliverySettings, EdgeSettings, Target};
use crate::document::Document;
use crate::error::{Invalid, Problem};
use crate::kind::{DkimAlgorithm, DkimMode, DomainOwnership, RelayClusterSpec, RelayDomainSpec};
use crate::ownership::{Cluster, NAMESPACE_NAME_LABEL, Refusal, admits, outside};
use crate::parse::{self, Place, Resource, parse_file};
use crate::spec::{self, Fault, Habitat};
use crate::table::Documents;
use crate::validate::{parse_domain, parse_network};

/// What a directory declares.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What nodes get, by key. Without keys, which are sealed by who has the sealing key.
    pub documents: Vec<Document>,
    /// DKIM keys of a person's own, whose files are to be read.
    pub keys: Vec<KeyFile>,
    /// What the EdgePool says, when there is one.
    pub edge: Option<EdgeSettings>,
    /// What the EdgePool calls its nodes.
    pub edge_hostname: Option<String>,
    /// What the DeliveryPool says, when there is one.
    pub delivery: Option<DeliverySettings>,
    /// The DeliveryPool's smart host.
    pub smart_host: Option<Target>,
    /// `Kind namespace/name` of pools: they are a node's own affair and make no documents.
    pub pools: Vec<String>,
}

/// A DKIM key in a file: `secrets/<secret_name>/private.key` of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Namespace of the RelayDomain.
    pub namespace: String,
    /// `<relaydomain>-<selector>`.
    pub name: String,
    /// Lower-case A-label.
    pub domain: String,
    /// The record is at `<selector>._domainkey.<domain>`.
    pub selector: String,
    /// Where it is.
    pub secret_name: String,
}

impl Compiled {
    /// The questions of a node that reads the directory itself.
    pub fn catalog(&self) -> Catalog {
        let mut documents = Documents::default();
        let all = self
            .documents
            .iter()
            .map(|one| (one.key.clone(), one.body.clone()));
        // They were compiled by this very program.
        let rejected = documents.take(all, []);
        debug_assert!(rejected.is_empty(), "{rejected:?}");
        let mut catalog = documents.catalog(&Catalog {
            edge: self.edge.clone(),
            own_names: self
                .edge_hostname
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            delivery: self.delivery.clone(),
            smart_host: self.smart_host.clone(),
            ..Catalog::default()
        });
        for key in &self.keys {
            let of = catalog.dkim.iter_mut().find(|of| *of.domain == *key.domain);
            if let Some(of) = of {
                of.keys.push((
                    key.selector.as_str().into(),
                    key.secret_name.as_str().into(),
                ));
            }
        }
        catalog
    }
}

/// Compiles the resources of a directory, given as (file name, text), to what one node asks. All faults are reported
/// together; with any, there is no catalog.
pub fn load_dir(files: Vec<(String, String)>) -> Result<Catalog, Invalid> {
    Ok(compile_dir(files)?.catalog())
}

/// Compiles the resources of a directory, given as (file name, text), to documents.
///
/// # Errors
/// All faults, together.
pub fn compile_dir(mut files: Vec<(String, String)>) -> Result<Compiled, Invalid> {
    // The order of a directory is chance; the order of errors must not be.
    files.sort();
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for (file, text) in &files {
        documents.extend(parse_file(file, text, &mut problems));
    }
    let compiler = Compiler {
        problems,
        compiled: Compiled::default(),
        cluster: None,
    };
    compiler.compile(&documents)
}

struct Compiler<'a> {
    problems: Vec<Problem>,
    compiled: Compiled,
    /// The RelayCluster and its namespace, when one was declared: it binds as on Kubernetes.
    cluster: Option<(&'a str, &'a RelayClusterSpec)>,
}

impl<'a> Compiler<'a> {
    fn compile(mut self, documents: &'a [parse::Document]) -> Result<Compiled, Invalid> {
        self.refuse_doubles(documents);
        // The cluster first: it bounds the domains.
        for document in documents {
            self.not_a_domain(document);
        }
        let mut claims: HashMap<String, &Place> = HashMap::new();
        for document in documents {
            if let Resource::RelayDomain(spec) = &document.resource {
                self.domain(document, spec, &mut claims);
            }
        }
        self.compiled.documents.sort_by(|a, b| a.key.cmp(&b.key));
        match self.problems.is_empty() {
            true => Ok(self.compiled),
            false => Err(Invalid {
                problems: self.problems,
            }),
        }
    }

    /// One resource of a name; one cluster and one pool of each kind a directory, because a process is a node of one.
    fn refuse_doubles(&mut self, documents: &[parse::Document]) {
        let mut seen: HashMap<String, &Place> = HashMap::new();
        for document in documents {
            let (key, text) = match document.resource.kind() {
                "RelayDomain" => (
                    document.place.resource.clone().unwrap_or_default(),
                    "was declared already".to_owned(),
                ),
                kind => (kind.into(), format!("one {kind} a directory; another is")),
            };
            match seen.get(&key) {
                Some(first) => {
                    let text = format!(
                        "{text} in {}, document {}; keep one of them",
                        first.file, first.document
                    );
                    self.problems.push(document.place.problem("", text));
                }
                None => {
                    seen.insert(key, &document.place);
                }
            }
        }
    }

    fn not_a_domain(&mut self, document: &'a parse::Document) {
        let place = &document.place;
        match &document.resource {
            Resource::RelayCluster(spec) => {
                self.cluster = Some((&document.tenant, spec));
                if spec.access.ownership() == DomainOwnership::DNS {
                    let text = "only the operator asks the DNS who owns a domain; write `domainOwnership: Trust`";
                    self.problems
                        .push(place.problem("spec.access.domainOwnership", text));
                }
                let compiled = self.faults(place, spec::relay_cluster(document.named(), spec));
                self.compiled.documents.extend(compiled);
            }
            Resource::EdgePool(spec) => {
                self.compiled.edge = self.faults(place, spec::edge_pool(spec));
                self.compiled.edge_hostname.clone_from(&spec.hostname);
            }
            Resource::DeliveryPool(spec) => {
                if let Some((settings, smart_host)) = self.faults(place, spec::delivery_pool(spec))
                {
                    self.compiled.delivery = Some(settings);
                    self.compiled.smart_host = smart_host;
                }
            }
            Resource::QueuePool(spec) => {
                self.faults(place, spec::queue_pool(spec));
            }
            Resource::RelayDomain(_) => return,
        }
        if !matches!(document.resource, Resource::RelayCluster(_)) {
            self.compiled.pools.extend(place.resource.clone());
        }
    }

    fn domain(
        &mut self,
        document: &'a parse::Document,
        spec: &RelayDomainSpec,
        claims: &mut HashMap<String, &'a Place>,
    ) {
        let place = &document.place;
        let domain = match parse_domain(&spec.domain) {
            Ok(domain) => domain,
            Err(text) => return self.problems.push(place.problem("spec.domain", text)),
        };
        if let Some(first) = claims.get(&domain) {
            let resource = first.resource.as_deref().unwrap_or_default();
            let text = format!(
                "{domain} is declared by {resource} in {}, document {} too; keep one of them",
                first.file, first.document
            );
            return self.problems.push(place.problem("spec.domain", text));
        }
        claims.insert(domain.clone(), place);
        let compiled = spec::relay_domain(document.named(), spec, Habitat::Files);
        self.compiled
            .documents
            .extend(self_faults(&mut self.problems, place, compiled));
        for refusal in self.refusals(document, spec) {
            self.problems
                .push(place.problem(refusal.field(), refusal.to_string()));
        }
        let dkim = spec.outbound.as_ref().map(|outbound| &outbound.dkim);
        let imported = dkim.filter(|dkim| dkim.mode == DkimMode::Imported);
        let keys = imported.into_iter().flat_map(|dkim| &dkim.keys);
        self.compiled.keys.extend(keys.map(|key| KeyFile {
            namespace: document.tenant.clone(),
            name: format!("{}-{}", document.name, key.selector),
            domain: domain.clone(),
            selector: key.selector.clone(),
            secret_name: key.secret_name.clone(),
        }));
    }

    /// What a declared RelayCluster does not allow.
    fn refusals(&self, document: &parse::Document, spec: &RelayDomainSpec) -> Vec<Refusal> {
        let Some((namespace, cluster)) = self.cluster else {
            return Vec::new();
        };
        let access = &cluster.access;
        let own = [(NAMESPACE_NAME_LABEL.to_owned(), document.tenant.clone())];
        if !admits(
            Cluster { namespace, access },
            &document.tenant,
            &BTreeMap::from(own),
        ) {
            let namespace = document.tenant.clone();
            return vec![Refusal::NamespaceNotAllowed { namespace }];
        }
        let bound: Vec<IpNet> = access
            .networks
            .iter()
            .filter_map(|text| parse_network(text).ok())
            .collect();
        outside(spec, &bound)
    }

    fn faults<T>(&mut self, place: &Place, result: Result<T, Vec<Fault>>) -> Option<T> {
        self_faults(&mut self.problems, place, result)
    }
}

/// The value, or its faults noted.
fn self_faults<T>(
    problems: &mut Vec<Problem>,
    place: &Place,
    result: Result<T, Vec<Fault>>,
) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(faults) => {
            problems.extend(
                faults
                    .into_iter()
                    .map(|fault| place.problem(fault.field, fault.text)),
            );
            None
        }
    }
}

/// How a private key signs, by its DER: what a file says is the algorithm. `None`: it is no key that can sign.
pub fn algorithm_of(pem: &str) -> Option<DkimAlgorithm> {
    use aws_lc_rs::{rsa, signature::Ed25519KeyPair};
    let der = crate::pem::private_key(pem)?;
    if Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).is_ok() {
        return Some(DkimAlgorithm::Ed25519);
    }
    rsa::KeyPair::from_pkcs8(&der)
        .is_ok()
        .then_some(DkimAlgorithm::RSA2048)
}
