//! DKIM with a key that somebody brings along.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::child::run;

use crate::dkim::on_a_fast_clock;
use crate::relay::Relay;

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_key_of_ones_own_signs_as_soon_as_its_record_is_seen_and_gives_way_to_made_ones() {
    on_a_fast_clock("own", |domain, server| {
        let relay = domain.relay;
        domain.forget_keys()?;
        secret(relay)?;
        domain.declare(
            &json!({"mode": "Imported", "keys": [{"selector": "mine", "secretName": "own-key"}]}),
        )?;
        let own: BTreeSet<String> = ["mine".to_owned()].into();

        let records = domain.records(1)?;
        ensure!(
            records[0].0.starts_with("mine._domainkey.signed.test"),
            "{records:?}"
        );
        ensure!(
            domain.signers("anna")?.is_empty(),
            "signed before the record was seen"
        );
        domain.publish(server, &records);
        domain.active("the key signs", |active| *active == own)?;
        ensure!(domain.signers("bert")? == own, "others sign");

        // It signs until those that the operator makes can.
        domain.declare(&json!({"mode": "Managed", "keys": []}))?;
        let records = domain.records(3)?;
        ensure!(domain.signers("carl")? == own, "nobody signs meanwhile");
        domain.publish(server, &records);
        let made = domain.active("made keys sign", |active| {
            active.len() == 2 && active.is_disjoint(&own)
        })?;
        ensure!(domain.signers("dora")? == made, "others sign");
        relay.kubectl(&["delete", "relaydomain", "own"])?;
        // It is not ours to delete.
        relay.kubectl(&["delete", "secret", "own-key"]).map(drop)
    });
}

/// As people have theirs: made by OpenSSL.
fn secret(relay: &Relay<'_>) -> Result<()> {
    let old = ["delete", "secrets", "--ignore-not-found"];
    relay.kubectl(&[old.as_slice(), &["own-key"]].concat())?;
    let files = tempfile::tempdir()?;
    let file = files.path().join("private.key");
    let made = [
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
    ];
    run(Command::new("openssl").args(made).arg(&file))?;
    let from = format!("--from-file={}", file.display());
    relay
        .kubectl(&["create", "secret", "generic", "own-key", &from])
        .map(drop)
}
