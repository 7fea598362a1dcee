//! What stays when the charts go, and what finds it again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::relay::{Relay, SOON};
use crate::traffic::Traffic;

/// Nothing is done to the relay while it accepts mail.
const NO_BREAK: Duration = Duration::from_secs(10);
/// What must be the same afterwards: kinds, volume claims, the CA, the sealing key and the keys that sign.
const STAYS: [&str; 3] = [
    "customresourcedefinitions",
    "persistentvolumeclaims",
    "secrets",
];

/// A domain whose mail is signed.
const SIGNS: &str = "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {name: signs, namespace: mail}\nspec: {domain: signs.test, outbound: {}}\n";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn what_was_kept_when_the_charts_went_is_found_when_they_come_again_with_the_mail_in_it() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let mut traffic = Traffic::start(&relay, "stays")?;
        relay.cluster.apply(SIGNS)?;
        relay.until("its mail has keys", SOON, || {
            let keys = kept(&relay)?.matches("postroad.dev/dkim").count();
            ensure!(keys >= 2, "{keys} keys");
            Ok(())
        })?;
        // Mail that nobody takes away stays in the queue.
        relay.scale("deliverypool", 0)?;
        relay.scaled("deliverypool", 0)?;
        traffic.passes(40)?;
        // The relay that comes again has another address: a client that went on would wait at the old one for ever.
        traffic.stop();
        let before = kept(&relay)?;
        let start = Instant::now();
        relay.uninstall()?;
        eprintln!("uninstalled after {:?}", start.elapsed());
        let stayed = kept(&relay)?;
        ensure!(before == stayed, "before:\n{before}\nafter:\n{stayed}");
        let domain = relay.field("relaydomain/stays", "{.spec.domain}")?;
        ensure!(domain == "stays.test", "what a user declared is gone");

        relay.install()?;
        relay.until("the queue has what it had", SOON, || {
            let now = kept(&relay)?;
            ensure!(before == now, "before:\n{before}\nnow:\n{now}");
            Ok(())
        })?;
        traffic.arrived(NO_BREAK)
    });
}

/// Names and uids of what outlives a release; leaves of nodes go and come with them.
fn kept(relay: &Relay<'_>) -> Result<String> {
    let columns = "custom-columns=NAME:.metadata.name,UID:.metadata.uid,TYPE:.type";
    let mut all = String::new();
    for kind in STAYS {
        let found = relay.kubectl(&["get", kind, "--no-headers", "-o", columns])?;
        let lines = found.lines().filter(|line| match kind {
            "customresourcedefinitions" => line.contains("postroad.dev"),
            "secrets" => line.contains(" postroad.dev/"),
            _ => true,
        });
        for line in lines {
            // The columns are as wide as the longest name, which may be one that goes.
            let words: Vec<&str> = line.split_whitespace().collect();
            all.push_str(&words.join(" "));
            all.push('\n');
        }
    }
    ensure!(
        all.lines().count() >= 6 + 3 + 2,
        "not much is there:\n{all}"
    );
    Ok(all)
}
