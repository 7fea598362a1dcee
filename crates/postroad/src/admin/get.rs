//! `postroad get`: the documents, as they were declared.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use proto::v1::{ConfigAudience, ConfigListed};
use resource::document::{ClusterBody, DomainBody, TargetBody};
use serde_json::{Value, json};

use super::config::short_hash;
use super::table::{plain, table};
use super::{connect, print_json};
use crate::failure::Failure;
use crate::settings::{Get, Output};

/// All documents are there within this, or nobody leads.
const WAIT: Duration = Duration::from_secs(15);

/// Lists documents, or shows one.
///
/// # Errors
/// Code 1 when there is none of that name, 3 when nobody answers.
pub async fn run(settings: Get) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let view = client.config().status().await?;
    let wanted = |key: &str| {
        let mut parts = key.splitn(3, '/');
        let (kind, namespace, name) = (parts.next(), parts.next(), parts.next());
        let is = |want: &Option<String>, has: Option<&str>| {
            want.as_deref()
                .is_none_or(|want| has.is_some_and(|has| has.eq_ignore_ascii_case(want)))
        };
        let full = namespace
            .zip(name)
            .map(|(space, name)| format!("{space}/{name}"));
        is(&settings.kind, kind)
            && (is(&settings.name, name) || is(&settings.name, full.as_deref()))
    };
    let found: Vec<&ConfigListed> = view
        .documents
        .iter()
        .filter(|one| wanted(&one.key))
        .collect();
    if found.is_empty() && settings.name.is_some() {
        return Err(Failure::Failed(format!(
            "there is no {} named {}; `postroad get` lists what there is",
            settings.kind.as_deref().unwrap_or("document"),
            settings.name.as_deref().unwrap_or_default(),
        )));
    }
    let mut bodies = BTreeMap::new();
    if !found.is_empty() {
        let mut stream = client.config().watch();
        let news = tokio::time::timeout(WAIT, stream.next()).await;
        let news = news.map_err(|_| {
            Failure::Unreachable("no answer from the control group's leader".into())
        })?;
        bodies.extend(news.upserts.into_iter().map(|one| (one.key, one.body)));
    }
    let shown = found.iter().map(|one| {
        let body = bodies.get(&one.key);
        (
            *one,
            body.map_or(Value::Null, |body| meaning(&one.key, body)),
        )
    });
    match settings.output {
        Output::Json => {
            let all: Vec<Value> = shown.map(|(one, body)| to_json(one, &body)).collect();
            print_json(&json!({ "revision": view.revision, "documents": all }));
        }
        Output::Table => {
            let rows: Vec<Vec<String>> = shown.map(|(one, body)| row(one, &body)).collect();
            let heading = [
                "DOCUMENT",
                "WRITER",
                "GENERATION",
                "REVISION",
                "SHA-256",
                "SAYS",
            ];
            print!("{}", table(&heading, &rows));
        }
    }
    Ok(())
}

fn row(one: &ConfigListed, body: &Value) -> Vec<String> {
    let says = match body {
        Value::Null => "sealed, for delivery nodes only".to_owned(),
        body => plain(body["says"].as_str().unwrap_or_default()),
    };
    vec![
        plain(&one.key),
        plain(&one.writer),
        one.generation.to_string(),
        one.revision.to_string(),
        short_hash(&one.sha256),
        says,
    ]
}

fn to_json(one: &ConfigListed, body: &Value) -> Value {
    let audience = match one.audience() {
        ConfigAudience::Unspecified => "unknown",
        ConfigAudience::All => "all",
        ConfigAudience::Edge => "edge",
        ConfigAudience::Delivery => "delivery",
        ConfigAudience::Queue => "queue",
    };
    let sha256: String = one.sha256.iter().map(|b| format!("{b:02x}")).collect();
    json!({ "key": one.key, "writer": one.writer, "generation": one.generation, "revision": one.revision,
            "audience": audience, "sha256": sha256, "octets": one.size, "body": body["body"] })
}

/// A body for people and for programs.
fn meaning(key: &str, body: &[u8]) -> Value {
    let meant = match key.split('/').next() {
        Some("RelayDomain") => DomainBody::decode(body).ok().map(domain),
        Some("RelayCluster") => ClusterBody::decode(body).ok().map(cluster),
        _ => None,
    };
    meant.unwrap_or_else(|| json!({ "says": format!("{} octets that this program cannot read", body.len()), "body": null }))
}

fn target(target: &TargetBody) -> String {
    let tls = ["", " (tls Off)", " (tls Required)", " (tls Implicit)"];
    let tls = tls
        .get(target.tls as usize)
        .copied()
        .unwrap_or(" (tls unknown)");
    format!("{}:{}{tls}", target.host, target.port)
}

fn domain(body: DomainBody) -> Value {
    let mut says = vec![body.domain.clone()];
    let inbound = body.inbound.as_ref().map(|inbound| {
        let targets: Vec<String> = inbound.targets.iter().map(target).collect();
        says.push(match targets.is_empty() {
            true => "in: by MX".to_owned(),
            false => format!("in: {}", targets.join(", ")),
        });
        json!({ "class": inbound.class, "targets": targets })
    });
    let outbound = body.outbound.as_ref().map(|outbound| {
        let signed = if outbound.sign { "signed" } else { "unsigned" };
        says.push(format!("out: {}, {signed}", outbound.networks.join(" ")));
        json!({ "class": outbound.class, "networks": outbound.networks, "sign": outbound.sign,
                "defer_unsigned": outbound.defer_unsigned })
    });
    json!({ "says": says.join("; "),
            "body": { "domain": body.domain, "tenant": body.tenant, "inbound": inbound, "outbound": outbound } })
}

fn cluster(body: ClusterBody) -> Value {
    let retry = body.retry.unwrap_or_default();
    let says = format!(
        "retries from {} s to {} s, gives up after {} h",
        retry.first_seconds, retry.max_seconds, retry.give_up_after_hours
    );
    json!({ "says": says, "body": { "resolvers": body.resolvers, "retry": {
        "first_seconds": retry.first_seconds, "max_seconds": retry.max_seconds,
        "give_up_after_hours": retry.give_up_after_hours, "delay_notice_after_hours": retry.delay_notice_after_hours } } })
}
