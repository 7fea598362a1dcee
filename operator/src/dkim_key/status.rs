//! What is written of keys: the status of each, its times in its Secret, and what the domain says of them all.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use resource::dkim::record_name;
use resource::{
    DkimKey, DkimKeyStatus, DkimMode, DnsState, KeyCheck, KeyPhase, KeySource, RelayCluster,
    RelayDomain,
};
use serde_json::json;

use super::keymaker::Order;
use super::lifecycle::{self, Next, Record, State, Wish};
use super::observe::{One, Seen};
use super::publish;
use crate::conditions::{Conditions, Reason, find, stamp};
use crate::context::Context;
use crate::error::Error;
use crate::names;
use crate::node_pool::delete;
use crate::pki;
use crate::ssa::{self, Controller};

/// What a DkimKey's status speaks of, as far as this controller writes it.
const KEY_CONDITIONS: [&str; 3] = ["Ready", "KeyReady", "RecordSeen"];
/// What a RelayDomain's status speaks of, as far as this controller writes it.
const DOMAIN_CONDITIONS: [&str; 2] = ["DKIMReady", "DNSReady"];

/// Writes where a key is now, and does what that means for its Secret.
pub async fn move_on(
    context: &Context,
    order: &Order<'_>,
    one: &mut One,
    next: Next,
    now: Timestamp,
) -> Result<(), Error> {
    let made = one.object.spec.source == KeySource::Generated;
    let state = match next {
        Next::State(state) => state,
        Next::Gone => {
            if made {
                delete(&secrets(context, order), &one.object.spec.secret_name).await?;
            }
            delete(&keys(context, order), &one.object.name_any()).await?;
            one.gone = true;
            return Ok(());
        }
    };
    let over = matches!(state.phase, KeyPhase::Retired | KeyPhase::Revoked);
    // First of all: what is read here is still what is there, or it is read again.
    if let Some(secret) = one.secret.as_ref().filter(|_| made && !over) {
        let api = secrets(context, order);
        pki::restate_owner(&api, secret, &one.object, order.deletion).await?;
    }
    let before = one.key.state.phase;
    one.key.state = state;
    write_key(context, order, one, now).await?;
    if made && one.secret.is_some() {
        match over {
            // A key that will never sign again is of use only to those who should not have it.
            true => delete(&secrets(context, order), &one.object.spec.secret_name).await?,
            false => note(context, order, one, state).await?,
        }
    }
    if before != state.phase {
        tell(context, order, one, state.phase).await;
    }
    Ok(())
}

/// Deletes the DkimKey of a selector.
pub async fn delete_key(context: &Context, order: &Order<'_>, selector: &str) -> Result<(), Error> {
    delete(&keys(context, order), &format!("{}-{selector}", order.name)).await
}

fn secrets(context: &Context, order: &Order<'_>) -> Api<Secret> {
    Api::namespaced(context.client.clone(), order.namespace)
}

fn keys(context: &Context, order: &Order<'_>) -> Api<DkimKey> {
    Api::namespaced(context.client.clone(), order.namespace)
}

async fn write_key(
    context: &Context,
    order: &Order<'_>,
    one: &One,
    now: Timestamp,
) -> Result<(), Error> {
    let (object, state) = (&one.object, one.key.state);
    let before = object.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, object.metadata.generation, now);
    match &one.public {
        Ok(_) => conditions.set(
            "KeyReady",
            true,
            Reason::AsDeclared,
            "the Secret holds the key",
        ),
        Err(_) if matches!(state.phase, KeyPhase::Retired | KeyPhase::Revoked) => conditions.set(
            "KeyReady",
            false,
            Reason::InPhase,
            "the private key was taken away: it never signs again",
        ),
        Err(text) => conditions.set(
            "KeyReady",
            false,
            Reason::KeyUnreadable,
            format!(
                "the Secret {}: {text}; restore it, or revoke the key",
                object.spec.secret_name
            ),
        ),
    }
    let was_absent = one.key.absent_since.is_some();
    let text = one.found.text.clone();
    match one.key.record {
        Record::Present if one.found.state == DnsState::Unknown => {
            conditions.set("RecordSeen", true, Reason::NotChecked, text);
        }
        Record::Present => conditions.set("RecordSeen", true, Reason::RecordSeen, text),
        Record::Absent => conditions.set("RecordSeen", false, Reason::RecordMissing, text),
        // Who says nothing does not bring a record back.
        Record::Unknown if was_absent => {
            conditions.set("RecordSeen", false, Reason::RecordMissing, text);
        }
        Record::Unknown => conditions.unknown("RecordSeen", Reason::NoAnswer, text),
    }
    let text = format!("the key is {:?}", state.phase);
    conditions.set(
        "Ready",
        state.phase == KeyPhase::Active,
        Reason::InPhase,
        text,
    );
    if one.key.record == Record::Absent
        && find(&before.conditions, "RecordSeen")
            .is_some_and(|old| old.status == resource::ConditionStatus::True)
    {
        let text = format!(
            "the record of {} is gone: {}",
            object.spec.selector, one.found.text
        );
        context.warn(order.domain, "RecordGone", text).await;
    }
    let value = publish::text(one);
    let name = record_name(&object.spec.selector, &object.spec.domain);
    let status = json!({
        "observedGeneration": object.metadata.generation,
        "conditions": conditions.finish(&KEY_CONDITIONS),
        "phase": state.phase,
        "record": value.map(|value| json!({"name": name, "value": value})),
        "ttlSeconds": one.found.ttl.or(before.ttl_seconds),
        "publishedTime": state.published.map(stamp),
        "activeTime": state.active.map(stamp),
        "retiringTime": state.retiring.map(stamp),
    });
    // The revision and the condition of the nodes are another controller's.
    let mine = DkimKeyStatus {
        conditions: own(&before.conditions, &KEY_CONDITIONS),
        programmed_revision: None,
        ..before
    };
    let status = ssa::without_nulls(status);
    if ssa::without_nulls(json!(mine)) == status {
        return Ok(());
    }
    let name = object.name_any();
    Ok(ssa::apply_status(&keys(context, order), Controller::DkimKey, &name, &status).await?)
}

fn own(conditions: &[resource::Condition], types: &[&str]) -> Vec<resource::Condition> {
    let own = conditions
        .iter()
        .filter(|condition| types.contains(&condition.type_.as_str()));
    own.cloned().collect()
}

/// A Secret outlives the RelayDomain where keys are kept: it says itself where its key is.
async fn note(context: &Context, order: &Order<'_>, one: &One, state: State) -> Result<(), Error> {
    let time = |time: Option<Timestamp>| time.map(stamp);
    let notes = json!({
        names::KEY_PHASE: format!("{:?}", state.phase),
        names::KEY_PUBLISHED: time(state.published),
        names::KEY_ACTIVE: time(state.active),
        names::KEY_RETIRING: time(state.retiring),
    });
    let there = one.secret.as_ref().map(ResourceExt::annotations);
    let said = |name: &String| there.and_then(|notes| notes.get(name)).map(String::as_str);
    let same = notes.as_object().is_some_and(|notes| {
        notes
            .iter()
            .all(|(name, value)| said(name) == value.as_str())
    });
    if same {
        return Ok(());
    }
    let patch = json!({"metadata": {"annotations": notes}});
    let secrets = secrets(context, order);
    let patch = Patch::Merge(&patch);
    match secrets
        .patch(
            &one.object.spec.secret_name,
            &PatchParams::default(),
            &patch,
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn tell(context: &Context, order: &Order<'_>, one: &One, phase: KeyPhase) {
    let selector = &one.object.spec.selector;
    metrics::counter!("postroad_operator_dkim_transitions_total", "to" => format!("{phase:?}"))
        .increment(1);
    tracing::info!(
        domain = one.object.spec.domain,
        selector,
        ?phase,
        "a signing key moved on"
    );
    let reason = format!("Key{phase:?}");
    let text = match phase {
        KeyPhase::Pending => format!("{selector} waits for its record: {}", one.found.text),
        KeyPhase::Published => format!(
            "the record of {selector} is there; the key waits until nobody remembers that it was not"
        ),
        KeyPhase::Active => format!("{selector} signs"),
        KeyPhase::Retiring => format!("{selector} signs no more; its record must stay"),
        KeyPhase::Retired => format!("{selector} is over: its record should say so, or go"),
        KeyPhase::Revoked => {
            format!("{selector} was revoked and signs no more: its record should say so, or go")
        }
        KeyPhase::Failed => format!(
            "{selector} signs no more: {}",
            match &one.public {
                Ok(_) => &one.found.text,
                Err(text) => text,
            }
        ),
    };
    match phase {
        KeyPhase::Failed | KeyPhase::Revoked => {
            context.warn(order.domain, &reason, text.clone()).await;
            context.warn(&one.object, &reason, text).await;
        }
        _ => {
            context.tell(order.domain, &reason, text.clone()).await;
            context.tell(&one.object, &reason, text).await;
        }
    }
}

/// Nothing is done with keys of a domain that does not count.
pub async fn not_accepted(context: &Context, domain: &RelayDomain) -> Result<(), Error> {
    let before = domain.status.clone().unwrap_or_default();
    let generation = domain.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, Timestamp::now());
    for type_ in DOMAIN_CONDITIONS {
        let text = "the cluster does not relay for the domain; see the condition Accepted";
        conditions.unknown(type_, Reason::NotAccepted, text);
    }
    let status = json!({
        "conditions": conditions.finish(&DOMAIN_CONDITIONS),
        "activeSelectors": before.active_selectors,
        "dnsRecords": publish::keys_of(&before.dns_records),
        "nextRotationTime": before.next_rotation_time,
    });
    put_domain(context, domain, status).await
}

/// Writes what the domain says of its keys.
pub async fn write_domain(
    context: &Context,
    domain: &RelayDomain,
    cluster: &RelayCluster,
    wish: &Wish<'_>,
    seen: &Seen,
    now: Timestamp,
) -> Result<(), Error> {
    let before = domain.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, domain.metadata.generation, now);
    let signing = seen
        .keys
        .iter()
        .filter(|one| one.key.state.phase == KeyPhase::Active);
    let active: Vec<&str> = signing
        .clone()
        .map(|one| one.key.selector.as_str())
        .collect();
    let mut trouble = seen.problems.clone();
    trouble.extend(
        seen.keys
            .iter()
            .filter_map(|one| match (&one.public, one.key.state.phase) {
                (
                    _,
                    KeyPhase::Retiring | KeyPhase::Retired | KeyPhase::Revoked | KeyPhase::Active,
                ) => None,
                (Err(text), _) => Some(format!("{}: {text}", one.key.selector)),
                (Ok(_), phase) => Some(format!(
                    "{} is {phase:?}: {}",
                    one.key.selector, one.found.text
                )),
            }),
    );
    let wanted = wish.dkim.is_some_and(|dkim| dkim.mode != DkimMode::Off);
    let others = match trouble.is_empty() {
        true => String::new(),
        false => format!("; {}", trouble.join("; ")),
    };
    match (wanted, active.is_empty()) {
        (false, _) => {
            conditions.set(
                "DKIMReady",
                true,
                Reason::NothingToSign,
                "nothing is to be signed",
            );
        }
        (true, false) => conditions.set(
            "DKIMReady",
            true,
            Reason::Signing,
            format!(
                "{} sign{}{others}",
                active.join(", "),
                if active.len() == 1 { "s" } else { "" }
            ),
        ),
        (true, true) => {
            conditions.set(
                "DKIMReady",
                false,
                Reason::NoKeySigns,
                format!("no key signs{others}"),
            );
        }
    }
    let records = publish::records(&seen.keys);
    match publish::open(&records) {
        _ if cluster.spec.dns.key_check == KeyCheck::None => conditions.unknown(
            "DNSReady",
            Reason::NotChecked,
            "records are not looked for: dns.keyCheck of the RelayCluster is None",
        ),
        None => conditions.set(
            "DNSReady",
            true,
            Reason::RecordSeen,
            "every record is as it should be",
        ),
        Some(text) => conditions.set("DNSReady", false, Reason::RecordMissing, text),
    }
    let due = signing
        .filter_map(|one| lifecycle::due(wish, &one.key))
        .min();
    let status = json!({
        "conditions": conditions.finish(&DOMAIN_CONDITIONS),
        "activeSelectors": active,
        "dnsRecords": records,
        "nextRotationTime": due.map(stamp),
    });
    put_domain(context, domain, status).await
}

/// Writes this controller's part of a domain's status, if it says anything new.
async fn put_domain(
    context: &Context,
    domain: &RelayDomain,
    status: serde_json::Value,
) -> Result<(), Error> {
    let before = domain.status.clone().unwrap_or_default();
    let mine = ssa::without_nulls(json!({
        "conditions": own(&before.conditions, &DOMAIN_CONDITIONS),
        "activeSelectors": before.active_selectors,
        "dnsRecords": publish::keys_of(&before.dns_records),
        "nextRotationTime": before.next_rotation_time,
    }));
    let status = ssa::without_nulls(status);
    if mine == status {
        return Ok(());
    }
    let (namespace, name) = crate::place(domain)?;
    let api: Api<RelayDomain> = Api::namespaced(context.client.clone(), namespace);
    Ok(ssa::apply_status(&api, Controller::DkimKey, name, &status).await?)
}
