//! DKIM: a key signs only after its record was seen at the domain's name server, is followed by another, and ceases to sign when
//! its record goes or when it is revoked.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::administrator;
use crate::dkim::{Domain, Knot, on_a_fast_clock};
use crate::relay::{Relay, SOON};

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_key_signs_after_its_record_was_seen_is_followed_by_another_and_falls_with_its_record() {
    on_a_fast_clock("signed", |domain, server| {
        let relay = domain.relay;
        domain.forget_keys()?;
        domain.declare(&json!({"mode": "Managed"}))?;
        let records = domain.records(2)?;
        ensure!(
            domain.signers("anna")?.is_empty(),
            "signed before the record was seen"
        );

        let start = Instant::now();
        domain.publish(server, &records);
        let first = domain.active("both keys sign", |active| active.len() == 2)?;
        eprintln!(
            "{first:?} sign {:?} after they were published",
            start.elapsed()
        );
        ensure!(
            domain.signers("bert")? == first,
            "others sign than the status says"
        );

        relay.kubectl(&["annotate", "relaydomain/signed", "postroad.dev/rotate=once"])?;
        let records = domain.records(4)?;
        ensure!(
            domain.signers("carl")? == first,
            "new keys sign before their records were seen"
        );
        domain.publish(server, &records);
        let second = domain.active("the next keys sign", |active| {
            active.len() == 2 && active.is_disjoint(&first)
        })?;
        ensure!(
            domain.signers("dora")? == second,
            "others sign than the status says"
        );

        let gone = second.first().cloned().context("two sign")?;
        let others: Vec<(String, String)> = records
            .into_iter()
            .filter(|(name, _)| !name.starts_with(&format!("{gone}.")))
            .collect();
        domain.publish(server, &others);
        let left = domain.active("one key is left", |active| !active.contains(&gone))?;
        ensure!(
            left.len() == 1 && left.is_subset(&second),
            "{left:?} of {second:?}"
        );
        let key = format!("dkimkey/signed-{gone}");
        let seen = "{.status.phase} {.status.conditions[?(@.type=='RecordSeen')].status}";
        let seen = relay.field(&key, seen)?;
        ensure!(seen == "Failed False", "{key}: {seen}");
        let events = relay.kubectl(&["get", "events"])?;
        ensure!(events.contains("RecordGone"), "no event says it:\n{events}");
        ensure!(
            domain.signers("emil")? == left,
            "the key without a record still signs"
        );

        let last = left.first().context("one is left")?;
        revoke(relay, last)?;
        domain.active("none signs", BTreeSet::is_empty)?;
        ensure!(
            domain.signers("fred")?.is_empty(),
            "the revoked key still signs"
        );
        waits_for_a_key(domain, server, last)?;
        relay
            .kubectl(&["delete", "relaydomain", "signed"])
            .map(drop)
    });
}

fn revoke(relay: &Relay<'_>, selector: &str) -> Result<()> {
    let key = format!("dkimkey/signed-{selector}");
    let patch = |revoked: bool| {
        let patch = json!({"spec": {"revoked": revoked}}).to_string();
        relay.kubectl(&["patch", &key, "--type=merge", "-p", &patch])
    };
    patch(true)?;
    ensure!(patch(false).is_err(), "the revocation was taken back");
    Ok(())
}

/// With `onMissingKey: Defer` mail waits until a key signs: the successor of the revoked one, as soon as its record is there.
fn waits_for_a_key(domain: &Domain<'_>, server: &mut Knot, revoked: &str) -> Result<()> {
    let relay = domain.relay;
    let patch = json!({"spec": {"outbound": {"dkim": {"onMissingKey": "Defer"}}}}).to_string();
    relay.kubectl(&["patch", "relaydomain/signed", "--type=merge", "-p", &patch])?;
    let seen = "{.metadata.generation} {.status.conditions[?(@.type=='Programmed')].observedGeneration} \
                {.status.conditions[?(@.type=='Programmed')].status}";
    relay.until("every node knows that mail must wait", SOON, || {
        let seen = relay.field("relaydomain/signed", seen)?;
        let words: Vec<&str> = seen.split(' ').collect();
        ensure!(
            words.len() == 3 && words[0] == words[1] && words[2] == "True",
            "{seen}"
        );
        Ok(())
    })?;
    domain.send("gina")?;
    relay.until("the message waits, and says for what", SOON, || {
        let list = administrator::ask(relay, &["queue", "list"])?;
        ensure!(
            list.contains("signed.test") && list.to_lowercase().contains("key"),
            "{list}"
        );
        Ok(())
    })?;
    // The first two still verify what is under way, one may come back, and two follow that one and the revoked one.
    let records = domain.records(5)?;
    domain.publish(server, &records);
    domain.active("another key signs", |active| {
        !active.is_empty() && !active.contains(revoked)
    })?;
    administrator::ask(relay, &["queue", "retry", "--all", "--yes"])?;
    ensure!(!domain.verified("gina", 1)?.is_empty(), "it went unsigned");
    Ok(())
}
