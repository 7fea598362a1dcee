//! RelayDomain: whether its owner agreed to it, and the life of its signing keys. Whether it counts is judged together with all
//! others, in `config`.

use std::sync::Arc;
use std::time::Duration;

use dns::TxtAnswer;
use jiff::Timestamp;
use kube::api::Api;
use kube::runtime::controller::Action;
use resource::{
    CHALLENGE_LABEL, DnsPurpose, DnsRecord, DnsState, DomainOwnership, RelayCluster, RelayDomain,
    challenge,
};
use serde_json::json;

use crate::conditions::{Conditions, Reason, find, is_true};
use crate::config::cluster_of;
use crate::context::Context;
use crate::error::Error;
use crate::ssa::{self, Controller};
use crate::{dkim_key, place};

/// What waits for another controller, or for a person, looks again so soon.
const SOON: Duration = Duration::from_secs(30);
/// Domains that are looked at again in a second, all of them together, at most: each look asks the API server for some six objects
/// and name servers for two records. A thousand whose records nobody published yet would else take all turns of the controller,
/// which gives them in no order, and some got none for as long as it went on.
const LOOKS_PER_SECOND: u32 = 10;
/// Nothing is to be done.
const AT_REST: Duration = Duration::from_secs(600);

/// Brings one domain a step on.
pub async fn reconcile(domain: Arc<RelayDomain>, context: Arc<Context>) -> Result<Action, Error> {
    let (home, cluster) = cluster_of(&domain);
    let clusters: Api<RelayCluster> = Api::namespaced(context.client.clone(), &home);
    let Some(cluster) = clusters.get_opt(&cluster).await? else {
        let text = format!(
            "there is no RelayCluster {home}/{cluster}: apply one, or name another in clusterRef"
        );
        refuse(&context, &domain, text).await?;
        return Ok(Action::requeue(SOON));
    };
    if cluster.spec.paused || domain.metadata.deletion_timestamp.is_some() {
        return Ok(Action::requeue(AT_REST));
    }
    let proven = ownership(&context, &domain, &cluster).await?;
    let pause = dkim_key::bring_on(&context, &domain, &cluster).await?;
    let pause = if proven { pause } else { pause.min(SOON) };
    Ok(Action::requeue(
        pause.max(share(context.index.domains.len())),
    ))
}

/// The pause that each of so many domains takes between two looks of its own; a change is looked at at once.
fn share(domains: usize) -> Duration {
    let domains = u32::try_from(domains).unwrap_or(u32::MAX);
    Duration::from_secs(1).saturating_mul(domains) / LOOKS_PER_SECOND
}

/// A domain of no cluster is judged by nobody.
async fn refuse(context: &Context, domain: &RelayDomain, text: String) -> Result<(), Error> {
    let before = domain.status.clone().unwrap_or_default();
    let said = find(&before.conditions, "Accepted");
    if said.is_some_and(|old| old.message == text) {
        return Ok(());
    }
    let mut conditions = Conditions::new(
        &before.conditions,
        domain.metadata.generation,
        Timestamp::now(),
    );
    for type_ in ["Accepted", "Ready"] {
        conditions.set(type_, false, Reason::ClusterNotFound, text.clone());
    }
    let status = json!({
        "observedGeneration": domain.metadata.generation,
        "conditions": conditions.finish(&[]),
    });
    let (namespace, name) = place(domain)?;
    let api: Api<RelayDomain> = Api::namespaced(context.client.clone(), namespace);
    // In the name of who judges: it writes the same fields once there is a cluster.
    Ok(ssa::apply_status(&api, Controller::Config, name, &status).await?)
}

/// Looks for the record by which the domain's owner agrees; says whether nothing is missing. What was seen once stays: no
/// time-out, and no hand that tidies a zone, takes a domain's mail away. A claim ends with its RelayDomain.
async fn ownership(
    context: &Context,
    domain: &RelayDomain,
    cluster: &RelayCluster,
) -> Result<bool, Error> {
    let before = domain.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(
        &before.conditions,
        domain.metadata.generation,
        Timestamp::now(),
    );
    let asked = cluster.spec.access.ownership() == DomainOwnership::DNS;
    let said = is_true(&before.conditions, "OwnershipVerified");
    let mut record = None;
    if !asked {
        if find(&before.conditions, "OwnershipVerified").is_none() {
            return Ok(true);
        }
        conditions.unknown(
            "OwnershipVerified",
            Reason::NotChecked,
            "not asked for: domainOwnership is Trust",
        );
    } else {
        let id = cluster
            .status
            .as_ref()
            .and_then(|status| status.cluster_id.as_deref());
        let id = id.and_then(|text| uuid::Uuid::parse_str(text).ok());
        // Who is not admitted is not looked for: the DNS would be asked at a stranger's wish.
        let admitted = find(&before.conditions, "Accepted")
            .is_none_or(|old| old.reason != Reason::NamespaceNotAllowed.text());
        let (Some(id), true) = (id, admitted) else {
            return Ok(false);
        };
        let (namespace, _) = place(domain)?;
        let value = challenge(id.as_bytes(), namespace, &domain.spec.domain);
        let name = format!("{CHALLENGE_LABEL}.{}", domain.spec.domain);
        let (state, observed) = match said {
            true => (DnsState::Present, Vec::new()),
            false => look(context, cluster, &name, &value).await?,
        };
        match state {
            DnsState::Present => conditions.set(
                "OwnershipVerified",
                true,
                Reason::RecordSeen,
                "the record of the domain's owner was seen",
            ),
            DnsState::Unknown => {
                let text = format!("no answer that counts for {name}");
                conditions.unknown("OwnershipVerified", Reason::NoAnswer, text);
            }
            DnsState::Missing | DnsState::Mismatch => conditions.set(
                "OwnershipVerified",
                false,
                Reason::RecordMissing,
                format!("publish a TXT record at {name}: {value}"),
            ),
        }
        record = Some(DnsRecord {
            name,
            type_: "TXT".into(),
            values: vec![value],
            observed,
            purpose: DnsPurpose::Ownership,
            state,
        });
    }
    let proven = !asked || conditions.is("OwnershipVerified");
    let records: Vec<&DnsRecord> = record.iter().collect();
    let value = record.as_ref().and_then(|record| record.values.first());
    let status = ssa::without_nulls(json!({
        "conditions": conditions.finish(&[]),
        "ownershipRecord": value,
        "dnsRecords": records,
    }));
    let own = |purpose| purpose == DnsPurpose::Ownership;
    let old: Vec<&DnsRecord> = before
        .dns_records
        .iter()
        .filter(|one| own(one.purpose))
        .collect();
    let stands: Vec<_> = find(&before.conditions, "OwnershipVerified")
        .into_iter()
        .collect();
    let mine = ssa::without_nulls(json!({
        "conditions": stands,
        "ownershipRecord": before.ownership_record,
        "dnsRecords": old,
    }));
    if mine != status {
        let (namespace, name) = place(domain)?;
        let api: Api<RelayDomain> = Api::namespaced(context.client.clone(), namespace);
        ssa::apply_status(&api, Controller::Domain, name, &status).await?;
    }
    Ok(proven)
}

async fn look(
    context: &Context,
    cluster: &RelayCluster,
    name: &str,
    value: &str,
) -> Result<(DnsState, Vec<String>), Error> {
    /// Texts that are shown, and characters of each.
    const SHOWN: (usize, usize) = (4, 512);
    let authorities = context.authorities(&cluster.spec.dns.resolvers)?;
    Ok(match authorities.txt_by_resolver(name).await {
        TxtAnswer::Found { texts, .. } => {
            let there = texts.iter().any(|text| text.trim() == value);
            let shown = texts
                .iter()
                .take(SHOWN.0)
                .map(|text| text.chars().take(SHOWN.1).collect());
            (
                if there {
                    DnsState::Present
                } else {
                    DnsState::Mismatch
                },
                shown.collect(),
            )
        }
        TxtAnswer::Missing => (DnsState::Missing, Vec::new()),
        TxtAnswer::TempFail(_) => (DnsState::Unknown, Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_domains_are_looked_at_as_soon_as_they_ask_and_many_take_turns() {
        assert!(share(10) <= Duration::from_secs(1));
        assert_eq!(share(1_000), Duration::from_secs(100));
        assert!(share(usize::MAX) > share(1_000));
    }
}
