//! One resource to the document that nodes get. What it says is checked here, whoever it came through: an API server's rules
//! are written in another language, and may be older.

use std::time::Duration;

use crate::catalog::{DeliverySettings, EdgeSettings, Host, Target, TlsPolicy};
use crate::document::{
    Audience, ClusterBody, Document, DocumentKey, DocumentKind, DomainBody, InboundBody, KeyBody,
    OutboundBody, RetryBody, TargetBody,
};
use crate::kind::{
    DEFAULT_CLASS, DeliveryPoolSpec, DkimAlgorithm, DkimMode, EdgePoolSpec, OnMissingKey,
    OutboundSpec, QueuePoolSpec, RelayClusterSpec, RelayDomainSpec, SmartHostTls, TargetSpec,
    TargetTls,
};
use crate::seal::Sealed;
use crate::validate::{
    bounded, parse_address, parse_domain, parse_host, parse_label, parse_network, parse_quantity,
    parse_resolver,
};

/// Targets of one domain.
const TARGETS_MAX: usize = 16;
/// Networks of one RelayDomain.
const DOMAIN_NETWORKS_MAX: usize = 32;
/// Networks of a RelayCluster.
const CLUSTER_NETWORKS_MAX: usize = 64;
/// DNS servers.
const RESOLVERS_MAX: usize = 8;
/// Keys of a person's own for one domain.
const IMPORTED_KEYS_MAX: usize = 4;
/// Smallest message size that may be asked for: RFC 5321 section 4.5.3.1.7 asks for 64K octets.
const MESSAGE_SIZE_MIN: u64 = 64 << 10;
/// Largest message size that may be asked for: the queue takes 256 chunks of a message, of 1 MiB each, and an edge needs
/// the freedom to send many of them before they are full.
const MESSAGE_SIZE_MAX: u64 = 128 << 20;
/// Longest pause before the greeting: clients wait five minutes for it (RFC 5321 section 4.5.3.2.1), people do not.
const GREETING_PAUSE_MAX: u32 = 60;
/// Smallest volume of a queue node: below it the log could not keep what it may hold back for a node that is away.
const VOLUME_MIN: u64 = 2 << 30;

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As `spec.inbound.targets[0].host`.
    pub field: String,
    /// What is wrong and what to write.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// Where a resource is read: what Services are called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habitat {
    /// A Service is a host of the cluster's DNS.
    Kubernetes,
    /// There are none.
    Files,
}

/// Names a resource in its cluster.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.generation`; 0 for files.
    pub generation: u64,
}

/// Faults as they are found.
#[derive(Default)]
pub(crate) struct Check {
    pub faults: Vec<Fault>,
}

impl Check {
    pub fn fault(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.faults.push(Fault {
            field: field.into(),
            text: text.into(),
        });
    }

    /// The value, or its fault noted.
    fn value<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|text| self.fault(field, text)).ok()
    }

    /// The good values of a list; faults are noted with their position.
    fn each<I, T>(
        &mut self,
        field: &str,
        max: usize,
        list: &[I],
        parse: impl Fn(&I) -> Result<T, String>,
    ) -> Vec<T> {
        if list.len() > max {
            self.fault(field, format!("{} entries; at most {max}", list.len()));
        }
        let numbered = list.iter().enumerate();
        numbered
            .filter_map(|(n, one)| self.value(&format!("{field}[{n}]"), parse(one)))
            .collect()
    }

    fn done<T>(self, value: Option<T>) -> Result<T, Vec<Fault>> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }
}

/// A RelayCluster's document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn relay_cluster(of: Named<'_>, spec: &RelayClusterSpec) -> Result<Document, Vec<Fault>> {
    let mut check = Check::default();
    check.each(
        "spec.access.networks",
        CLUSTER_NETWORKS_MAX,
        &spec.access.networks,
        |text| parse_network(text),
    );
    let resolvers = check.each(
        "spec.dns.resolvers",
        RESOLVERS_MAX,
        &spec.dns.resolvers,
        |text| parse_resolver(text),
    );
    let retry = &spec.retry;
    check.value(
        "spec.retry.firstSeconds",
        bounded(retry.first_seconds, 30, 3600),
    );
    check.value(
        "spec.retry.maxSeconds",
        bounded(retry.max_seconds, retry.first_seconds, 86_400),
    );
    check.value(
        "spec.retry.giveUpAfterHours",
        bounded(retry.give_up_after_hours, 1, 720),
    );
    let notice = bounded(retry.delay_notice_after_hours, 0, retry.give_up_after_hours);
    check.value("spec.retry.delayNoticeAfterHours", notice);
    let body = ClusterBody {
        resolvers: resolvers.iter().map(ToString::to_string).collect(),
        retry: Some(RetryBody {
            first_seconds: retry.first_seconds,
            max_seconds: retry.max_seconds,
            give_up_after_hours: retry.give_up_after_hours,
            delay_notice_after_hours: retry.delay_notice_after_hours,
        }),
    };
    let key = DocumentKey::new(DocumentKind::RelayCluster, of.namespace, of.name);
    check.done(Some(Document::of(key, of.generation, Audience::All, &body)))
}

/// A RelayDomain's document. Whether its claim counts is for [`crate::judge`] to say.
///
/// # Errors
/// Everything that is wrong with it.
pub fn relay_domain(
    of: Named<'_>,
    spec: &RelayDomainSpec,
    habitat: Habitat,
) -> Result<Document, Vec<Fault>> {
    let mut check = Check::default();
    let domain = check.value("spec.domain", parse_domain(&spec.domain));
    if spec.inbound.is_none() && spec.outbound.is_none() {
        check.fault("spec", "neither inbound nor outbound: write `inbound: {}` to accept mail to the domain, `outbound` to accept mail from it");
    }
    let inbound = spec.inbound.as_ref().map(|inbound| {
        let target = |one: &TargetSpec| parse_target(one, of.namespace, habitat);
        let targets = check.each(
            "spec.inbound.targets",
            TARGETS_MAX,
            &inbound.targets,
            target,
        );
        InboundBody {
            class: DEFAULT_CLASS.into(),
            targets: targets
                .iter()
                .map(|target| TargetBody {
                    host: target.host.to_string(),
                    port: target.port.into(),
                    tls: match target.tls {
                        TlsPolicy::Opportunistic => 0,
                        TlsPolicy::Off => 1,
                        TlsPolicy::Required => 2,
                        TlsPolicy::Implicit => 3,
                    },
                })
                .collect(),
        }
    });
    let outbound = spec.outbound.as_ref().map(|outbound| {
        check.value("spec.outbound.class", parse_label(&outbound.class));
        let networks = &outbound.networks;
        let networks = check.each(
            "spec.outbound.networks",
            DOMAIN_NETWORKS_MAX,
            networks,
            |text| parse_network(text),
        );
        dkim(&mut check, outbound);
        OutboundBody {
            class: outbound.class.clone(),
            networks: networks.iter().map(ToString::to_string).collect(),
            sign: outbound.dkim.mode != DkimMode::Off,
            defer_unsigned: outbound.dkim.on_missing_key == OnMissingKey::Defer,
        }
    });
    let document = domain.map(|domain| {
        let tenant = of.namespace.into();
        let body = DomainBody {
            domain,
            tenant,
            inbound,
            outbound,
        };
        let key = DocumentKey::new(DocumentKind::RelayDomain, of.namespace, of.name);
        Document::of(key, of.generation, Audience::All, &body)
    });
    check.done(document)
}

fn dkim(check: &mut Check, outbound: &OutboundSpec) {
    let dkim = &outbound.dkim;
    if (dkim.mode == DkimMode::Imported) == dkim.keys.is_empty() {
        check.fault(
            "spec.outbound.dkim.keys",
            "keys are written exactly with `mode: Imported`",
        );
    }
    check.each(
        "spec.outbound.dkim.keys",
        IMPORTED_KEYS_MAX,
        &dkim.keys,
        |key| parse_label(&key.selector).map_err(|text| format!("selector: {text}")),
    );
    let mut selectors: Vec<&str> = dkim.keys.iter().map(|key| key.selector.as_str()).collect();
    selectors.sort_unstable();
    if let Some(twice) = selectors.windows(2).find(|two| two[0] == two[1]) {
        check.fault(
            "spec.outbound.dkim.keys",
            format!("two keys have the selector {}", twice[0]),
        );
    }
    if dkim.algorithms.is_empty() {
        check.fault(
            "spec.outbound.dkim.algorithms",
            "empty; write RSA2048, Ed25519 or both, or `mode: Off`",
        );
    }
    if dkim.rotate_after_days != 0 {
        check.value(
            "spec.outbound.dkim.rotateAfterDays",
            bounded(dkim.rotate_after_days, 7, 3650),
        );
    }
    check.value(
        "spec.outbound.dkim.retireAfterDays",
        bounded(dkim.retire_after_days, 12, 365),
    );
    let prefix = &dkim.selector_prefix;
    let good = prefix.len() <= 10
        && prefix.starts_with(|c: char| c.is_ascii_lowercase())
        && prefix
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !good {
        check.fault(
            "spec.outbound.dkim.selectorPrefix",
            format!("`{prefix}`: write a lower-case letter and up to 9 letters and digits"),
        );
    }
}

fn parse_target(spec: &TargetSpec, namespace: &str, habitat: Habitat) -> Result<Target, String> {
    let port = bounded(spec.port, 1, u16::MAX).map_err(|text| format!("port: {text}"))?;
    let host = match (&spec.host, &spec.service_ref, habitat) {
        (_, Some(_), Habitat::Files) => {
            return Err("serviceRef works on Kubernetes only; write host: NAME".into());
        }
        (Some(_), Some(_), _) => return Err("both host and serviceRef; write one of them".into()),
        (None, Some(service), Habitat::Kubernetes) => {
            Host::Name(format!("{}.{namespace}.svc", parse_label(&service.name)?))
        }
        (Some(host), None, _) => parse_host(host)?,
        (None, None, _) => return Err("host is missing; write host: NAME".into()),
    };
    let tls = match spec.tls {
        TargetTls::Off => TlsPolicy::Off,
        TargetTls::Opportunistic => TlsPolicy::Opportunistic,
        TargetTls::Required => TlsPolicy::Required,
    };
    Ok(Target { host, port, tls })
}

/// A DKIM key that nodes get.
#[derive(Clone, Debug)]
pub struct KeyUse<'a> {
    /// Lower-case A-label.
    pub domain: &'a str,
    /// The record is at `<selector>._domainkey.<domain>`.
    pub selector: &'a str,
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// It signs; else it is only sent ahead.
    pub active: bool,
}

/// A DKIM key's document: only delivery nodes get it, and only they can open it.
pub fn dkim_key(of: Named<'_>, key: &KeyUse<'_>, sealed: Sealed) -> Document {
    let body = KeyBody {
        domain: key.domain.into(),
        selector: key.selector.into(),
        algorithm: match key.algorithm {
            DkimAlgorithm::RSA2048 => 1,
            DkimAlgorithm::Ed25519 => 2,
        },
        active: key.active,
        seal: sealed.key_id,
        nonce: sealed.nonce,
        sealed: sealed.sealed,
    };
    let name = DocumentKey::new(DocumentKind::DkimKey, of.namespace, of.name);
    Document::of(name, of.generation, Audience::Delivery, &body)
}

/// What an EdgePool says of each of its nodes.
///
/// # Errors
/// Everything that is wrong with it.
pub fn edge_pool(spec: &EdgePoolSpec) -> Result<EdgeSettings, Vec<Fault>> {
    let mut check = Check::default();
    let limits = &spec.limits;
    check.value(
        "spec.limits.connections",
        bounded(limits.connections, 1, 100_000),
    );
    check.value(
        "spec.limits.connectionsPerSource",
        bounded(limits.connections_per_source, 1, 100_000),
    );
    check.value(
        "spec.limits.recipients",
        bounded(limits.recipients, 100, 10_000),
    );
    check.value("spec.drainSeconds", bounded(spec.drain_seconds, 5, 3600));
    let size = parse_quantity(&limits.message_size)
        .and_then(|size| bounded(size, MESSAGE_SIZE_MIN, MESSAGE_SIZE_MAX));
    let size = check.value("spec.limits.messageSize", size);
    let pause = bounded(spec.greeting_pause_seconds, 0, GREETING_PAUSE_MAX);
    let pause = check.value("spec.greetingPauseSeconds", pause);
    let postmaster = spec.postmaster.as_deref().map(parse_address).transpose();
    let postmaster = check.value("spec.postmaster", postmaster);
    let settings = (|| {
        Some(EdgeSettings {
            postmaster: postmaster?,
            greeting_pause: Duration::from_secs(pause?.into()),
            hidden_clients: !spec.source_address_is_reliable(),
            ..EdgeSettings::new(limits, size?, spec.drain_seconds)
        })
    })();
    check.done(settings)
}

/// What a DeliveryPool says of each of its nodes: its settings, and the smart host.
///
/// # Errors
/// Everything that is wrong with it.
pub fn delivery_pool(
    spec: &DeliveryPoolSpec,
) -> Result<(DeliverySettings, Option<Target>), Vec<Fault>> {
    let mut check = Check::default();
    let smart_host = spec.egress.smart_host.as_ref().and_then(|host| {
        check.value(
            "spec.egress.smartHost.port",
            bounded(host.port, 1, u16::MAX),
        );
        let parsed = check.value("spec.egress.smartHost.host", parse_host(&host.host));
        let tls = match host.tls {
            SmartHostTls::Opportunistic => TlsPolicy::Opportunistic,
            SmartHostTls::Required => TlsPolicy::Required,
            SmartHostTls::Implicit => TlsPolicy::Implicit,
        };
        parsed.map(|parsed| Target {
            host: parsed,
            port: host.port,
            tls,
        })
    });
    let (limits, timeouts) = (&spec.limits, &spec.timeouts);
    for (field, value, min, max) in [
        ("spec.limits.connections", limits.connections, 1, 10_000),
        (
            "spec.limits.connectionsPerSite",
            limits.connections_per_site,
            1,
            10_000,
        ),
        (
            "spec.limits.messagesPerConnection",
            limits.messages_per_connection,
            1,
            10_000,
        ),
        (
            "spec.timeouts.connectSeconds",
            timeouts.connect_seconds,
            1,
            300,
        ),
        (
            "spec.timeouts.replySeconds",
            timeouts.reply_seconds,
            10,
            3600,
        ),
        (
            "spec.timeouts.finalReplySeconds",
            timeouts.final_reply_seconds,
            600,
            3600,
        ),
        ("spec.drainSeconds", spec.drain_seconds, 10, 1800),
    ] {
        check.value(field, bounded(value, min, max));
    }
    let settings = DeliverySettings::new(limits, timeouts, spec.drain_seconds);
    check.done(Some((settings, smart_host)))
}

/// A queue node takes its settings from flags; what is written must still be right, for Kubernetes reads the same file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn queue_pool(spec: &QueuePoolSpec) -> Result<(), Vec<Fault>> {
    let mut check = Check::default();
    match spec.replication_factor {
        1 | 3 | 5 => {
            let enough = bounded(spec.replicas, spec.replication_factor, 64);
            check.value("spec.replicas", enough);
        }
        other => check.fault(
            "spec.replicationFactor",
            format!("{other} copies; write 1, 3 or 5"),
        ),
    }
    if spec.shards.count_ones() != 1 || !(1..=256).contains(&spec.shards) {
        check.fault(
            "spec.shards",
            format!("{} is no power of two up to 256", spec.shards),
        );
    }
    let size =
        parse_quantity(&spec.storage.size).and_then(|size| bounded(size, VOLUME_MIN, u64::MAX));
    check.value("spec.storage.size", size);
    check.done(Some(()))
}
