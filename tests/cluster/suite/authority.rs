//! The CA of the relay's nodes: statuses and metrics say when it ends, and one that people take away is replaced.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::child::run;

use crate::relay::{COMES_UP, Relay, SOON};
use crate::traffic::Traffic;

/// Those that have the new CA and those that do not yet open no connections to one another; those that stand go on.
const BETWEEN: Duration = Duration::from_secs(60);
/// When the CA ends, in the cluster's status.
const ENDS: &str = "{.status.caNotAfter}";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_ca_that_is_taken_away_is_replaced_at_every_node_under_load() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "authority")?;
        let before = relay.field("relaycluster/postroad", ENDS)?;
        ensure!(!before.is_empty(), "the status says no end of the CA");
        let start = Instant::now();
        relay.kubectl(&["delete", "secret", "postroad-ca"])?;
        relay.until("there is another CA", SOON, || {
            let after = relay.field("relaycluster/postroad", ENDS)?;
            ensure!(after != before, "{after}");
            Ok(())
        })?;
        let pem = "go-template={{index .data \"ca.crt\" | base64decode}}";
        let pem = relay.kubectl(&["get", "secret", "postroad-ca", "-o", pem])?;
        let ends = proto::pki::not_after(pem.as_bytes()).context("no certificate")?;
        for pool in ["edgepool", "deliverypool", "queuepool"] {
            for pod in relay.pods(pool)? {
                relay.until(&format!("{pod} trusts the new CA"), COMES_UP, || {
                    let found = trusted_until(&relay, &pod)?;
                    ensure!(found == ends, "{found}");
                    Ok(())
                })?;
            }
        }
        eprintln!("every node has the new CA after {:?}", start.elapsed());
        for pool in ["edgepool", "deliverypool"] {
            relay.scaled(pool, 2)?;
        }
        relay.scaled("queuepool", 3)?;
        let members = "{.status.members[*].certificateNotAfter}";
        let members = relay.field("queuepool/postroad", members)?;
        ensure!(members.split(' ').count() == 3, "{members}");
        // A node that comes now speaks to those that were there.
        relay.scale("edgepool", 3)?;
        relay.scaled("edgepool", 3)?;
        traffic.end(BETWEEN)
    });
}

/// When the CA that a node trusts ends, by its own metrics.
fn trusted_until(relay: &Relay<'_>, pod: &str) -> Result<i64> {
    let address = relay.field(&format!("pod/{pod}"), "{.status.podIP}")?;
    let url = format!("http://{address}:9090/metrics");
    let text = run(std::process::Command::new("curl").args(["--silent", "--fail", &url]))?;
    let name = "postroad_node_certificate_expiry_timestamp_seconds{certificate=\"ca\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value: f64 = value.context("the node does not say it")?.parse()?;
    Ok(value as i64)
}
