//! What people are told: of each domain whether it counts and whether the nodes have it, of each signing key the latter, of the
//! cluster how far all of it is. Written only when it says something new.

use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::Api;
use resource::{Condition, DkimKey, OnMissingKey, Refusal, RelayCluster, RelayDomain};
use serde_json::{Value, json};

use super::progress::Progress;
use crate::conditions::{Conditions, Reason, find, is_true};
use crate::context::Context;
use crate::error::Error;
use crate::place;
use crate::ssa::{self, Controller};

/// What a RelayDomain's status speaks of, as far as this controller writes it.
const DOMAIN: [&str; 3] = ["Ready", "Accepted", "Programmed"];
/// What a DkimKey's status speaks of, as far as this controller writes it.
const KEY: [&str; 1] = ["Programmed"];
/// What a pool's status speaks of, as far as this controller writes it.
const POOL: [&str; 1] = ["Programmed"];
/// What a RelayCluster's status speaks of, as far as this controller writes it.
const CLUSTER: [&str; 2] = ["ConfigSynced", "Programmed"];

/// A document at the nodes.
#[derive(Clone, Debug)]
pub struct Sent {
    /// That brought it.
    pub revision: u64,
    /// How far it is.
    pub progress: Progress,
}

/// Writes what became of a domain; says whether nodes are waited for. `sent`: `Err` says why nothing could be written to the
/// queue.
pub async fn tell_domain(
    context: &Context,
    domain: &RelayDomain,
    verdict: Result<&Result<Sent, String>, &Refusal>,
) -> Result<bool, Error> {
    let before = domain.status.clone().unwrap_or_default();
    let generation = domain.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, Timestamp::now());
    let mut revision = before.programmed_revision;
    let mut waits = false;
    match verdict {
        Ok(sent) => {
            conditions.set(
                "Accepted",
                true,
                Reason::AsDeclared,
                "the cluster relays for this domain",
            );
            let said = find(&before.conditions, "Programmed")
                .filter(|old| old.observed_generation == generation)
                .filter(|_| is_true(&before.conditions, "Programmed"));
            match (sent, said) {
                // Written once a generation: a node that comes later is ready when it has everything.
                (Ok(sent), Some(_)) if revision == i64::try_from(sent.revision).ok() => {
                    conditions.set("Programmed", true, Reason::AsDeclared, IN_EFFECT);
                }
                (Err(_), Some(_)) => {
                    conditions.set("Programmed", true, Reason::AsDeclared, IN_EFFECT);
                }
                (Ok(sent), _) => match &sent.progress {
                    Progress::Done => {
                        revision = i64::try_from(sent.revision).ok();
                        conditions.set("Programmed", true, Reason::AsDeclared, IN_EFFECT);
                    }
                    Progress::Waits(text) => {
                        waits = true;
                        conditions.set("Programmed", false, Reason::NotAcknowledged, text);
                    }
                    Progress::Rejected(text) => {
                        conditions.set("Programmed", false, Reason::Rejected, text);
                    }
                },
                (Err(text), None) => {
                    waits = true;
                    conditions.set("Programmed", false, Reason::QueueUnreachable, text);
                }
            }
            ready(domain, &before.conditions, &mut conditions);
        }
        Err(refusal) => {
            let (reason, text) = (reason(refusal), refusal.to_string());
            let mut old = before.conditions.iter();
            if !old.any(|old| old.type_ == "Accepted" && old.message == text) {
                // By its own reason: of two events with the same one within minutes only the first one's text is kept.
                context.warn(domain, &reason.text(), text.clone()).await;
            }
            conditions.set("Accepted", false, reason, text.clone());
            conditions.set("Programmed", false, reason, "nothing of it reaches a node");
            conditions.set("Ready", false, reason, text);
            revision = None;
        }
    }
    let status = json!({
        "observedGeneration": generation,
        "conditions": conditions.finish(&DOMAIN),
        "inbound": domain.spec.inbound.is_some(),
        "outbound": domain.spec.outbound.is_some(),
        "programmedRevision": revision,
    });
    let mine = json!({
        "observedGeneration": before.observed_generation,
        "conditions": own(&before.conditions, &DOMAIN),
        "inbound": before.inbound,
        "outbound": before.outbound,
        "programmedRevision": before.programmed_revision,
    });
    write(context, domain, mine, status).await?;
    Ok(waits)
}

const IN_EFFECT: &str = "in effect at every ready edge and delivery node";

/// Ready: accepted, in effect, and signed where mail would else wait.
fn ready(domain: &RelayDomain, before: &[Condition], conditions: &mut Conditions<'_>) {
    let outbound = domain.spec.outbound.as_ref();
    let defers =
        outbound.is_some_and(|outbound| outbound.dkim.on_missing_key == OnMissingKey::Defer);
    match () {
        () if !conditions.is("Programmed") => conditions.set(
            "Ready",
            false,
            Reason::NotAcknowledged,
            "not in effect at all nodes yet; see the condition Programmed",
        ),
        () if defers && !is_true(before, "DKIMReady") => conditions.set(
            "Ready",
            false,
            Reason::NoKeySigns,
            "mail from the domain waits for a key that signs; see the condition DKIMReady",
        ),
        () => conditions.set("Ready", true, Reason::AsDeclared, IN_EFFECT),
    }
}

/// Writes whether delivery nodes have a signing key; says whether they are waited for.
pub async fn tell_key(
    context: &Context,
    key: &DkimKey,
    sent: Option<&Result<Sent, String>>,
) -> Result<bool, Error> {
    let before = key.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(
        &before.conditions,
        key.metadata.generation,
        Timestamp::now(),
    );
    let mut revision = None;
    let mut waits = false;
    match sent {
        None if find(&before.conditions, "Programmed").is_none() => return Ok(false),
        None => conditions.set(
            "Programmed",
            false,
            Reason::InPhase,
            "delivery nodes do not have the key",
        ),
        Some(Ok(sent)) => {
            match &sent.progress {
                Progress::Done => {
                    conditions.set(
                        "Programmed",
                        true,
                        Reason::AsDeclared,
                        "every ready delivery node has the key",
                    );
                }
                Progress::Waits(text) => {
                    waits = true;
                    conditions.set("Programmed", false, Reason::NotAcknowledged, text);
                }
                Progress::Rejected(text) => {
                    conditions.set("Programmed", false, Reason::Rejected, text)
                }
            }
            revision = i64::try_from(sent.revision).ok();
        }
        // It stays as it was until the queue answers.
        Some(Err(_)) => return Ok(true),
    }
    let status = json!({
        "conditions": conditions.finish(&KEY),
        "programmedRevision": revision,
    });
    let mine = json!({
        "conditions": own(&before.conditions, &KEY),
        "programmedRevision": before.programmed_revision,
    });
    write(context, key, mine, status).await?;
    Ok(waits)
}

/// Writes how far the cluster's configuration is.
pub async fn tell_cluster(
    context: &Context,
    cluster: &RelayCluster,
    cluster_id: Option<&str>,
    synced: Result<(u64, Progress, usize, usize), (Reason, String)>,
) -> Result<(), Error> {
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, Timestamp::now());
    let (mut revision, mut nodes) = (json!(before.config_revision), json!(before.nodes));
    match synced {
        Ok((at, progress, with, total)) => {
            conditions.set(
                "ConfigSynced",
                true,
                Reason::AsDeclared,
                "the queue holds what is declared",
            );
            match progress {
                Progress::Done => conditions.set("Programmed", true, Reason::AsDeclared, IN_EFFECT),
                Progress::Waits(text) => {
                    conditions.set("Programmed", false, Reason::NotAcknowledged, text)
                }
                Progress::Rejected(text) => {
                    conditions.set("Programmed", false, Reason::Rejected, text)
                }
            }
            revision = json!(at);
            nodes = json!({"programmed": with, "total": total});
        }
        Err((reason, text)) => {
            conditions.set("ConfigSynced", false, reason, text);
        }
    }
    let status = json!({
        "conditions": conditions.finish(&CLUSTER),
        "clusterID": cluster_id,
        "configRevision": revision,
        "nodes": nodes,
    });
    let mine = json!({
        "conditions": own(&before.conditions, &CLUSTER),
        "clusterID": before.cluster_id,
        "configRevision": before.config_revision,
        "nodes": before.nodes,
    });
    write(context, cluster, mine, status).await
}

/// Writes whether the nodes of an edge or delivery pool have what is declared of their cluster.
pub async fn tell_pool<K>(
    context: &Context,
    pool: &K,
    before: &[Condition],
    progress: Progress,
) -> Result<bool, Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    // It is the cluster's configuration that they have: it says nothing of what the pool itself declares since.
    let mut conditions = Conditions::new(before, None, Timestamp::now());
    let waits = matches!(progress, Progress::Waits(_));
    match progress {
        Progress::Done => {
            let text = "the cluster's configuration is in effect at every ready node of the pool";
            conditions.set("Programmed", true, Reason::AsDeclared, text);
        }
        Progress::Waits(text) => conditions.set("Programmed", false, Reason::NotAcknowledged, text),
        Progress::Rejected(text) => conditions.set("Programmed", false, Reason::Rejected, text),
    }
    let status = json!({"conditions": conditions.finish(&POOL)});
    let mine = json!({"conditions": own(before, &POOL)});
    write(context, pool, mine, status).await?;
    Ok(waits)
}

/// Writes this controller's part of a status, if it says anything new.
async fn write<K>(context: &Context, object: &K, mine: Value, status: Value) -> Result<(), Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let status = ssa::without_nulls(status);
    if ssa::without_nulls(mine) == status {
        return Ok(());
    }
    let (namespace, _) = place(object)?;
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    Ok(ssa::apply_status(&api, Controller::Config, &object.name_any(), &status).await?)
}

fn own(conditions: &[Condition], types: &[&str]) -> Vec<Condition> {
    let own = conditions
        .iter()
        .filter(|condition| types.contains(&condition.type_.as_str()));
    own.cloned().collect()
}

fn reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::NamespaceNotAllowed { .. } => Reason::NamespaceNotAllowed,
        Refusal::OwnershipNotVerified { .. } => Reason::OwnershipNotVerified,
        Refusal::DomainConflict { .. } => Reason::DomainConflict,
        Refusal::NetworkNotAllowed { .. } => Reason::NetworkNotAllowed,
        Refusal::Invalid { .. } => Reason::Invalid,
    }
}
