//! Documents to a [`Catalog`]; what holds between several of them.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::catalog::{
    Catalog, DeliverySettings, EdgeSettings, Grant, Inbound, Principal, Retry, Target,
};
use crate::error::{Invalid, Problem};
use crate::kind::{DEFAULT_CLASS, DeliveryPool, EdgePool, RelayCluster, RelayDomain, TargetSpec};
use crate::parse::{Document, Place, Resource, parse_file};
use crate::validate::{
    bounded, parse_domain, parse_host, parse_label, parse_network, parse_quantity, parse_resolver,
};

/// Targets of one domain.
const TARGETS_MAX: usize = 16;
/// Networks of one RelayDomain.
const DOMAIN_NETWORKS_MAX: usize = 32;
/// Networks of a RelayCluster.
const CLUSTER_NETWORKS_MAX: usize = 64;
/// DNS servers.
const RESOLVERS_MAX: usize = 8;
/// Smallest message size that may be asked for: RFC 5321 section 4.5.3.1.7 asks for 64K octets.
const MESSAGE_SIZE_MIN: u64 = 64 << 10;
/// Largest message size that may be asked for.
const MESSAGE_SIZE_MAX: u64 = 1 << 30;

/// Compiles the resources of a directory, given as (file name, text). All faults are reported together; with any, there
/// is no catalog.
pub fn load_dir(mut files: Vec<(String, String)>) -> Result<Catalog, Invalid> {
    // The order of a directory is chance; the order of errors must not be.
    files.sort();
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for (file, text) in &files {
        documents.extend(parse_file(file, text, &mut problems));
    }
    let catalog = Compiler {
        problems: &mut problems,
        catalog: Catalog::default(),
        bound: None,
    }
    .compile(&documents);
    if problems.is_empty() {
        Ok(catalog)
    } else {
        Err(Invalid { problems })
    }
}

struct Compiler<'a> {
    problems: &'a mut Vec<Problem>,
    catalog: Catalog,
    /// `RelayCluster.access.networks`, when a RelayCluster was declared.
    bound: Option<Vec<IpNet>>,
}

impl Compiler<'_> {
    fn compile(mut self, documents: &[Document]) -> Catalog {
        self.refuse_doubles(documents);
        // The cluster first: it bounds the domains.
        for document in documents {
            match &document.resource {
                Resource::RelayCluster(spec) => self.cluster(&document.place, spec),
                Resource::EdgePool(spec) => self.edge(&document.place, spec),
                Resource::DeliveryPool(spec) => self.delivery(&document.place, spec),
                Resource::RelayDomain(_) => {}
            }
        }
        let mut claims: HashMap<String, &Place> = HashMap::new();
        for document in documents {
            if let Resource::RelayDomain(spec) = &document.resource {
                self.domain(document, spec, &mut claims);
            }
        }
        self.order_grants();
        self.catalog
    }

    /// One resource of a name; one cluster and one pool of each kind a directory, because a process is a node of one.
    fn refuse_doubles(&mut self, documents: &[Document]) {
        let mut seen: HashMap<String, &Place> = HashMap::new();
        for document in documents {
            let named = document.place.resource.clone().unwrap_or_default();
            let (key, text) = match &document.resource {
                Resource::RelayDomain(_) => (named, "was declared already"),
                Resource::RelayCluster(_) => (
                    "RelayCluster".into(),
                    "one RelayCluster a directory; another is",
                ),
                Resource::EdgePool(_) => {
                    ("EdgePool".into(), "one EdgePool a directory; another is")
                }
                Resource::DeliveryPool(_) => (
                    "DeliveryPool".into(),
                    "one DeliveryPool a directory; another is",
                ),
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

    fn cluster(&mut self, place: &Place, spec: &RelayCluster) {
        self.at_most(
            place,
            "spec.access.networks",
            spec.access.networks.len(),
            CLUSTER_NETWORKS_MAX,
        );
        self.bound = Some(self.each(
            place,
            "spec.access.networks",
            &spec.access.networks,
            |text| parse_network(text),
        ));
        self.at_most(
            place,
            "spec.dns.resolvers",
            spec.dns.resolvers.len(),
            RESOLVERS_MAX,
        );
        self.catalog.resolvers =
            self.each(place, "spec.dns.resolvers", &spec.dns.resolvers, |text| {
                parse_resolver(text)
            });
        let retry = &spec.retry;
        self.check(
            place,
            "spec.retry.firstSeconds",
            bounded(retry.first_seconds, 30, 3600),
        );
        self.check(
            place,
            "spec.retry.maxSeconds",
            bounded(retry.max_seconds, retry.first_seconds, 86_400),
        );
        self.check(
            place,
            "spec.retry.giveUpAfterHours",
            bounded(retry.give_up_after_hours, 1, 720),
        );
        let notice = bounded(retry.delay_notice_after_hours, 0, retry.give_up_after_hours);
        self.check(place, "spec.retry.delayNoticeAfterHours", notice);
        self.catalog.retry = Retry::from(retry);
    }

    fn edge(&mut self, place: &Place, spec: &EdgePool) {
        let limits = &spec.limits;
        self.check(
            place,
            "spec.limits.connections",
            bounded(limits.connections, 1, 100_000),
        );
        self.check(
            place,
            "spec.limits.connectionsPerSource",
            bounded(limits.connections_per_source, 1, 100_000),
        );
        self.check(
            place,
            "spec.limits.recipients",
            bounded(limits.recipients, 100, 10_000),
        );
        self.check(
            place,
            "spec.drainSeconds",
            bounded(spec.drain_seconds, 5, 3600),
        );
        let size = parse_quantity(&limits.message_size)
            .and_then(|size| bounded(size, MESSAGE_SIZE_MIN, MESSAGE_SIZE_MAX));
        if let Some(size) = self.check(place, "spec.limits.messageSize", size) {
            self.catalog.edge = Some(EdgeSettings::new(limits, size, spec.drain_seconds));
        }
    }

    fn delivery(&mut self, place: &Place, spec: &DeliveryPool) {
        if let Some(host) = &spec.egress.smart_host {
            let parsed = parse_host(&host.host);
            self.check(
                place,
                "spec.egress.smartHost.port",
                bounded(host.port, 1, u16::MAX),
            );
            if let Some(parsed) = self.check(place, "spec.egress.smartHost.host", parsed) {
                self.catalog.smart_host = Some(Target {
                    host: parsed,
                    port: host.port,
                });
            }
        }
        let (limits, timeouts) = (&spec.limits, &spec.timeouts);
        self.check(
            place,
            "spec.limits.connections",
            bounded(limits.connections, 1, 10_000),
        );
        self.check(
            place,
            "spec.limits.connectionsPerSite",
            bounded(limits.connections_per_site, 1, 10_000),
        );
        self.check(
            place,
            "spec.limits.messagesPerConnection",
            bounded(limits.messages_per_connection, 1, 10_000),
        );
        self.check(
            place,
            "spec.timeouts.connectSeconds",
            bounded(timeouts.connect_seconds, 1, 300),
        );
        self.check(
            place,
            "spec.timeouts.replySeconds",
            bounded(timeouts.reply_seconds, 10, 3600),
        );
        self.check(
            place,
            "spec.timeouts.finalReplySeconds",
            bounded(timeouts.final_reply_seconds, 600, 3600),
        );
        self.check(
            place,
            "spec.drainSeconds",
            bounded(spec.drain_seconds, 10, 1800),
        );
        self.catalog.delivery = Some(DeliverySettings::new(limits, timeouts, spec.drain_seconds));
    }

    fn domain<'d>(
        &mut self,
        document: &'d Document,
        spec: &RelayDomain,
        claims: &mut HashMap<String, &'d Place>,
    ) {
        let place = &document.place;
        let Some(domain) = self.check(place, "spec.domain", parse_domain(&spec.domain)) else {
            return;
        };
        if let Some(first) = claims.get(&domain) {
            let resource = first.resource.as_deref().unwrap_or_default();
            let text = format!(
                "{domain} is declared by {resource} in {}, document {} too; keep one of them",
                first.file, first.document
            );
            self.problems.push(place.problem("spec.domain", text));
            return;
        }
        claims.insert(domain.clone(), place);
        if spec.inbound.is_none() && spec.outbound.is_none() {
            self.problems.push(place.problem("spec", "neither inbound nor outbound: write `inbound: {}` to accept mail to the domain, `outbound` to accept mail from it"));
        }
        let (domain, tenant): (Arc<str>, Arc<str>) =
            (domain.into(), document.tenant.as_str().into());
        if let Some(inbound) = &spec.inbound {
            self.at_most(
                place,
                "spec.inbound.targets",
                inbound.targets.len(),
                TARGETS_MAX,
            );
            let targets = self
                .each(
                    place,
                    "spec.inbound.targets",
                    &inbound.targets,
                    parse_target,
                )
                .into();
            let class = DEFAULT_CLASS.into();
            self.catalog.inbound.insert(
                domain.clone(),
                Inbound {
                    tenant: tenant.clone(),
                    class,
                    targets,
                },
            );
        }
        if let Some(outbound) = &spec.outbound {
            self.at_most(
                place,
                "spec.outbound.networks",
                outbound.networks.len(),
                DOMAIN_NETWORKS_MAX,
            );
            let Some(class) =
                self.check(place, "spec.outbound.class", parse_label(&outbound.class))
            else {
                return;
            };
            let bound = self.bound.clone();
            let networks = self.each(
                place,
                "spec.outbound.networks",
                &outbound.networks,
                |text| parse_own_network(text, bound.as_deref()),
            );
            let class: Arc<str> = class.into();
            for network in networks {
                let name = format!("network {network} of {domain}").into();
                let principal = Principal {
                    tenant: tenant.clone(),
                    class: class.clone(),
                    name,
                };
                self.catalog.grants.push(Grant {
                    network,
                    domain: domain.clone(),
                    principal,
                });
            }
        }
    }

    fn order_grants(&mut self) {
        let grants = &mut self.catalog.grants;
        grants.sort_by(|a, b| {
            let specific = b.network.prefix_len().cmp(&a.network.prefix_len());
            specific.then_with(|| {
                (&a.principal.tenant, &a.domain, a.network).cmp(&(
                    &b.principal.tenant,
                    &b.domain,
                    b.network,
                ))
            })
        });
        for (n, grant) in grants.iter().enumerate() {
            self.catalog
                .senders
                .entry(grant.domain.clone())
                .or_default()
                .push(n);
        }
    }

    /// The value, or its fault noted.
    fn check<T>(&mut self, place: &Place, field: &str, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|text| self.problems.push(place.problem(field, text)))
            .ok()
    }

    /// The good values of a list; faults are noted with their position.
    fn each<I, T>(
        &mut self,
        place: &Place,
        field: &str,
        list: &[I],
        parse: impl Fn(&I) -> Result<T, String>,
    ) -> Vec<T> {
        let numbered = list.iter().enumerate();
        numbered
            .filter_map(|(n, one)| self.check(place, &format!("{field}[{n}]"), parse(one)))
            .collect()
    }

    fn at_most(&mut self, place: &Place, field: &str, count: usize, max: usize) {
        if count > max {
            self.problems
                .push(place.problem(field, format!("{count} entries; at most {max}")));
        }
    }
}

fn parse_target(spec: &TargetSpec) -> Result<Target, String> {
    if spec.service_ref.is_some() {
        return Err("serviceRef works on Kubernetes only; write host: NAME".into());
    }
    let Some(host) = &spec.host else {
        return Err("host is missing; write host: NAME".into());
    };
    let port = bounded(spec.port, 1, u16::MAX).map_err(|text| format!("port: {text}"))?;
    Ok(Target {
        host: parse_host(host)?,
        port,
    })
}

fn parse_own_network(text: &str, bound: Option<&[IpNet]>) -> Result<IpNet, String> {
    let network = parse_network(text)?;
    match bound {
        Some(bound) if !bound.iter().any(|outer| outer.contains(&network)) => Err(format!(
            "`{text}` is not inside the RelayCluster's access.networks; add it there, or ask who runs the cluster"
        )),
        _ => Ok(network),
    }
}
