//! DKIM: a key signs only after its record was seen at the domain's name server, is followed by another, and ceases to sign when
//! its record goes. A knot in the world has the zone, and dkimpy, which is none of ours, verifies what arrives there.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::kubernetes::World;

use crate::operator;
use crate::relay::{Relay, SOON};
use crate::smtp;

#[allow(dead_code, reason = "other tests look for a free port")]
#[path = "../../../crates/dns/tests/support/knot.rs"]
mod knot;

/// The world's address, at which CoreDNS asks for this zone (`tests/cluster/up`).
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 9));
const ZONE: &str = "signed.test";
/// Who serves the zone.
const SERVERS: &str = "@ 60 NS ns1.signed.test.\nns1 A 172.30.0.9\n";
/// The tenth of a second stands for a minute: an hour for which a record must be seen, or may be gone, is six seconds.
const DIVISOR: u32 = 600;
/// A step in the life of a key: a hold or a grace of six seconds, and looks before and after it.
const STEP: Duration = Duration::from_secs(90);
/// Prints selector, domain and verdict of each signature; the name server is its argument.
const VERIFIER: &str = r#"
import dkim, dns.resolver, sys
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers = [sys.argv[1]]
def txt(name, timeout=5):
    return b"".join(resolver.resolve(name.decode(), "TXT")[0].strings)
message = dkim.DKIM(sys.stdin.buffer.read())
count = sum(name.lower() == b"dkim-signature" for name, _ in message.headers)
for index in range(count):
    good = message.verify(index, dnsfunc=txt)
    print(message.selector.decode(), message.domain.decode(), good)
"#;

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_key_signs_after_its_record_was_seen_is_followed_by_another_and_falls_with_its_record() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        operator::runs_with(&relay, operator::TEST_CLOCK)?;
        let world = World::start()?;
        let zones = [(ZONE, SERVERS)];
        let mut server = knot::Knot::start_by(SERVER, 53, &zones, |program| world.command(program));
        let domain = Domain {
            relay: &relay,
            world: &world,
        };
        domain.declare()?;
        let records = domain.records(2)?;
        ensure!(
            domain.signers("anna")?.is_empty(),
            "signed before the record was seen"
        );

        let start = Instant::now();
        server.zone(ZONE, &zone(&records));
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
        server.zone(ZONE, &zone(&records));
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
        server.zone(ZONE, &zone(&others));
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
        relay
            .kubectl(&["delete", "relaydomain", "signed"])
            .map(drop)
    });
}

/// The zone with these records. A string in it has at most 255 octets.
fn zone(records: &[(String, String)]) -> String {
    let mut text = SERVERS.to_owned();
    for (name, value) in records {
        let value: Vec<char> = value.chars().collect();
        let parts = value
            .chunks(255)
            .map(|part| format!(" \"{}\"", part.iter().collect::<String>()));
        text.push_str(&format!("{name}. 60 TXT{}\n", parts.collect::<String>()));
    }
    text
}

/// The domain whose mail is signed.
struct Domain<'a> {
    relay: &'a Relay<'a>,
    world: &'a World,
}

impl Domain<'_> {
    /// Mail from it is taken of this machine, and every edge knows it.
    fn declare(&self) -> Result<()> {
        let relay = self.relay;
        // Keys of an earlier run outlived their domain, and would be taken over.
        let old = [
            "delete",
            "secrets",
            "-l",
            "postroad.dev/relay-domain=signed",
        ];
        relay.kubectl(&old)?;
        let networks = ["172.30.255.0/30"];
        relay.change("relaycluster", &json!({"access": {"networks": networks}}))?;
        let domain = json!({
            "apiVersion": "postroad.dev/v1alpha1", "kind": "RelayDomain",
            "metadata": {
                "name": "signed", "namespace": "mail",
                "annotations": {"postroad.dev/test-clock-divisor": DIVISOR.to_string()},
            },
            "spec": {"domain": ZONE, "outbound": {"networks": networks}},
        });
        relay.cluster.apply(&domain.to_string())?;
        for pod in relay.pods("edgepool")? {
            relay.until("every edge takes its mail", SOON, || {
                let edge = relay.edge_at(&pod)?;
                let answer = smtp::recipient(edge, "alice@signed.test", "anna@world.test")?;
                ensure!(answer.starts_with("250"), "{pod}: {answer}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Names and values of the keys' records that people are told to publish, as soon as there are so many.
    fn records(&self, count: usize) -> Result<Vec<(String, String)>> {
        self.relay.until("keys are made", SOON, || {
            let status = ["get", "relaydomain", "signed", "-o", "json"];
            let object: Value = serde_json::from_str(&self.relay.kubectl(&status)?)?;
            let all = object["status"]["dnsRecords"].as_array();
            let keys = all
                .into_iter()
                .flatten()
                .filter(|one| one["purpose"] == "DKIM");
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let found: Vec<(String, String)> = keys
                .filter_map(|one| text(&one["name"]).zip(text(&one["values"][0])))
                .collect();
            ensure!(found.len() == count, "{found:?}");
            Ok(found)
        })
    }

    /// Selectors that sign, as soon as they are so.
    fn active(
        &self,
        what: &str,
        so: impl Fn(&BTreeSet<String>) -> bool,
    ) -> Result<BTreeSet<String>> {
        self.relay.until(what, STEP, || {
            let active = self
                .relay
                .field("relaydomain/signed", "{.status.activeSelectors[*]}")?;
            let active: BTreeSet<String> = active.split_whitespace().map(str::to_owned).collect();
            ensure!(so(&active), "{active:?}");
            Ok(active)
        })
    }

    /// Sends a message to a user in the world; gives the selectors of its signatures, all of which are good.
    fn signers(&self, user: &str) -> Result<BTreeSet<String>> {
        let pods = self.relay.pods("edgepool")?;
        let edge = self.relay.edge_at(pods.first().context("no edge")?)?;
        let (from, to) = ("alice@signed.test", format!("{user}@world.test"));
        let message = format!("From: {from}\r\nTo: {to}\r\nSubject: signed?\r\n\r\nOne line.");
        let answer = smtp::send(edge, from, &to, &message)?;
        ensure!(answer.starts_with("250"), "{answer}");
        let message = self.world.mailbox(user, 1, SOON)?.remove(0);
        let mut verifier = Command::new("/usr/bin/python3")
            .args(["-c", VERIFIER, &SERVER.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = verifier.stdin.take().context("it is piped")?;
        input.write_all(message.as_bytes())?;
        drop(input);
        let output = verifier.wait_with_output()?;
        ensure!(output.status.success(), "cannot be verified:\n{message}");
        let mut selectors = BTreeSet::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            ensure!(words[1..] == [ZONE, "True"], "{line}:\n{message}");
            selectors.insert(words[0].to_owned());
        }
        Ok(selectors)
    }
}
