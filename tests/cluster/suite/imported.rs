//! DKIM with a key that somebody brings along.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::child::run;
use tests::kubernetes::World;

use crate::dkim::{CLOCK, Domain};
use crate::operator;
use crate::relay::Relay;
use crate::traffic::accepted_from;

/// CoreDNS asks the world for this zone only.
const ZONE: &str = "signed.test";
const NETWORK: &str = "172.30.255.0/30";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_key_of_ones_own_signs_as_soon_as_its_record_is_seen_and_gives_way_to_made_ones() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        operator::runs_with(&relay, operator::TEST_CLOCK)?;
        let world = World::start()?;
        let domain = Domain {
            relay: &relay,
            world: &world,
            object: "own",
            name: ZONE,
        };
        let mut server = domain.serve();
        secret(&relay)?;
        declare(
            &relay,
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
        domain.publish(&mut server, &records);
        domain.active("the key signs", |active| *active == own)?;
        ensure!(domain.signers("bert")? == own, "others sign");

        // It signs until those that the operator makes can.
        declare(&relay, &json!({"mode": "Managed", "keys": []}))?;
        let records = domain.records(3)?;
        ensure!(domain.signers("carl")? == own, "nobody signs meanwhile");
        domain.publish(&mut server, &records);
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
    relay.kubectl(&["delete", "secrets", "-l", "postroad.dev/relay-domain=own"])?;
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

fn declare(relay: &Relay<'_>, dkim: &serde_json::Value) -> Result<()> {
    relay.change("relaycluster", &json!({"access": {"networks": [NETWORK]}}))?;
    let domain = json!({
        "apiVersion": "postroad.dev/v1alpha1", "kind": "RelayDomain",
        "metadata": {"name": "own", "namespace": "mail", "annotations": {CLOCK.0: CLOCK.1}},
        "spec": {"domain": ZONE, "outbound": {"networks": [NETWORK], "dkim": dkim}},
    });
    relay.cluster.apply(&domain.to_string())?;
    accepted_from(relay, "alice@signed.test", "anna@world.test")
}
