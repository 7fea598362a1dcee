//! DKIM as others meet it: whoever answers for a domain publishes its records with a knot in the world, and who receives its mail
//! verifies it with dkimpy, which is none of ours.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::kubernetes::World;

use crate::operator;
use crate::relay::{Relay, SOON};
use crate::smtp;
use crate::traffic::accepted_from;

#[allow(dead_code, reason = "other tests look for a free port")]
#[path = "../../../crates/dns/tests/support/knot.rs"]
mod knot;

pub use knot::Knot;

/// The world's address, at which CoreDNS asks for `signed.test` and `example.com` (`tests/cluster/up`).
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 9));
/// The tenth of a second stands for a minute: an hour for which a record must be seen, or may be gone, is six seconds.
pub const CLOCK: (&str, &str) = ("postroad.dev/test-clock-divisor", "600");
/// A domain of the tests, whose keys live on that clock; CoreDNS asks the world for it.
pub const ZONE: &str = "signed.test";
/// From which this machine brings its mail.
const NETWORK: &str = "172.30.255.0/30";
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

/// A domain whose mail is signed.
pub struct Domain<'a> {
    /// What relays it.
    pub relay: &'a Relay<'a>,
    /// Where its mail is taken.
    pub world: &'a World,
    /// Name of its RelayDomain.
    pub object: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Runs a test of the life of [`ZONE`]'s keys on the operator's fast clock. The zone is served, without any key yet.
pub fn on_a_fast_clock(object: &str, test: impl FnOnce(&Domain<'_>, &mut Knot) -> Result<()>) {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        operator::runs_with(&relay, operator::TEST_CLOCK)?;
        let world = World::start()?;
        let domain = Domain {
            relay: &relay,
            world: &world,
            object,
            name: ZONE,
        };
        let mut server = domain.serve();
        test(&domain, &mut server)
    });
}

impl Domain<'_> {
    /// Keys of an earlier run outlived their domain, and would be taken over.
    pub fn forget_keys(&self) -> Result<()> {
        let label = format!("postroad.dev/relay-domain={}", self.object);
        let delete = ["delete", "secrets", "-l", &label];
        self.relay.kubectl(&delete).map(drop)
    }

    /// Declares it with this `outbound.dkim` on the fast clock. Mail from it is taken of this machine, and every edge knows it.
    pub fn declare(&self, dkim: &Value) -> Result<()> {
        let relay = self.relay;
        relay.change("relaycluster", &json!({"access": {"networks": [NETWORK]}}))?;
        let domain = json!({
            "apiVersion": "postroad.dev/v1alpha1", "kind": "RelayDomain",
            "metadata": {"name": self.object, "namespace": "mail", "annotations": {CLOCK.0: CLOCK.1}},
            "spec": {"domain": self.name, "outbound": {"networks": [NETWORK], "dkim": dkim}},
        });
        relay.cluster.apply(&domain.to_string())?;
        accepted_from(relay, &format!("alice@{}", self.name), "anna@world.test")
    }

    /// A name server with the domain's zone, without any key yet.
    pub fn serve(&self) -> Knot {
        let zone = self.zone(&[]);
        let zones = [(self.name, zone.as_str())];
        knot::Knot::start_by(SERVER, 53, &zones, |program| self.world.command(program))
    }

    /// From now on the zone has these records of keys.
    pub fn publish(&self, server: &mut Knot, records: &[(String, String)]) {
        server.zone(self.name, &self.zone(records));
    }

    /// The zone with these records. A string in it has at most 255 octets.
    fn zone(&self, records: &[(String, String)]) -> String {
        let mut text = format!("@ 60 NS ns1\nns1 A {SERVER}\nmx 5 A {SERVER}\n");
        for (name, value) in records {
            let value: Vec<char> = value.chars().collect();
            let parts = value
                .chunks(255)
                .map(|part| format!(" \"{}\"", part.iter().collect::<String>()));
            text.push_str(&format!("{name}. 60 TXT{}\n", parts.collect::<String>()));
        }
        text
    }

    fn reference(&self) -> String {
        format!("relaydomain/{}", self.object)
    }

    /// Names and values of the keys' records that people are told to publish, as soon as there are so many.
    pub fn records(&self, count: usize) -> Result<Vec<(String, String)>> {
        self.relay.until("keys are made", SOON, || {
            let reference = self.reference();
            let status = ["get", &reference, "-o", "json"];
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
    pub fn active(
        &self,
        what: &str,
        so: impl Fn(&BTreeSet<String>) -> bool,
    ) -> Result<BTreeSet<String>> {
        self.relay.until(what, STEP, || {
            let path = "{.status.activeSelectors[*]}";
            let active = self.relay.field(&self.reference(), path)?;
            let active: BTreeSet<String> = active.split_whitespace().map(str::to_owned).collect();
            ensure!(so(&active), "{active:?}");
            Ok(active)
        })
    }

    /// Sends a message of the domain to a user in the world; gives the selectors of its signatures, all of which are good.
    pub fn signers(&self, user: &str) -> Result<BTreeSet<String>> {
        self.send(user)?;
        self.verified(user, 1)
    }

    /// Sends a message of the domain to a user in the world.
    pub fn send(&self, user: &str) -> Result<()> {
        let pods = self.relay.pods("edgepool")?;
        let edge = self.relay.edge_at(pods.first().context("no edge")?)?;
        let (from, to) = (format!("alice@{}", self.name), format!("{user}@world.test"));
        let message = format!("From: {from}\r\nTo: {to}\r\nSubject: signed?\r\n\r\nOne line.");
        let answer = smtp::send(edge, &from, &to, &message)?;
        ensure!(answer.starts_with("250"), "{answer}");
        Ok(())
    }

    /// The selectors of the last message's signatures, all of which are good; `messages` of them have come to this user in the world.
    pub fn verified(&self, user: &str, messages: usize) -> Result<BTreeSet<String>> {
        let message = self.world.mailbox(user, messages, SOON)?;
        let message = message.last().context("no message")?;
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
            ensure!(words[1..] == [self.name, "True"], "{line}:\n{message}");
            selectors.insert(words[0].to_owned());
        }
        Ok(selectors)
    }
}
