//! What stays when the charts go, and what finds it again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::relay::{COMES_UP, Relay, SOON};
use crate::smtp;
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

/// A queue of one node, whose volume goes with it, and nobody at its edge.
pub const BRIEF: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: brief}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayCluster
metadata: {name: brief, namespace: brief}
spec: {}
---
apiVersion: postroad.dev/v1alpha1
kind: QueuePool
metadata: {name: brief, namespace: brief}
spec:
  clusterRef: {name: brief}
  replicas: 1
  replicationFactor: 1
  storage: {size: 2Gi, whenDeleted: Delete}
";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_queue_whose_volume_goes_with_it_goes_when_it_is_empty_though_its_cluster_went_first() {
    crate::in_namespace("brief", |cluster| {
        // For its operator.
        Relay::ready(cluster)?;
        cluster.apply(BRIEF)?;
        let ours = |arguments: &[&str]| {
            let all = [["--namespace", "brief"].as_slice(), arguments].concat();
            cluster.kubectl(&all)
        };
        let ready = ["wait", "--for=condition=Ready", "queuepool/brief"];
        cluster.until("the queue is ready", COMES_UP, || ours(&ready))?;
        ours(&["delete", "relaycluster", "brief"])?;
        ours(&["delete", "queuepool", "brief", "--wait=false"])?;
        let left = ["get", "queuepools,pods,pvc", "-o", "name"];
        cluster.until("nothing of it is left", COMES_UP, || {
            let left = ours(&left)?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
    });
}

/// An edge in front of it, and a domain whose mail nobody delivers.
pub const FILLS: &str = "
apiVersion: postroad.dev/v1alpha1
kind: EdgePool
metadata: {name: brief, namespace: brief}
spec:
  clusterRef: {name: brief}
  replicas: 1
  listeners: [{name: smtp, protocol: SMTP, port: 25}]
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: brief, namespace: brief}
spec:
  clusterRef: {name: brief}
  domain: brief.test
  inbound: {targets: [{host: mx.brief.test}]}
";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_queue_whose_volume_goes_with_it_stays_while_mail_is_in_it_unless_a_person_gives_that_up() {
    crate::in_namespace("brief", |cluster| {
        Relay::ready(cluster)?;
        cluster.apply(BRIEF)?;
        cluster.apply(FILLS)?;
        let ours = |arguments: &[&str]| {
            let all = [["--namespace", "brief"].as_slice(), arguments].concat();
            cluster.kubectl(&all)
        };
        let ip = "jsonpath={.items[0].status.podIP}";
        let pod = [
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/component=edge",
            "-o",
            ip,
        ];
        cluster.until("a message is in the queue", COMES_UP, || {
            let edge = SocketAddr::new(ours(&pod)?.parse()?, 2525);
            let message = "Subject: left\r\n\r\nOne line.";
            let answer = smtp::send(edge, "a@origin.test", "b@brief.test", message)?;
            ensure!(answer.starts_with("250"), "{answer}");
            Ok(())
        })?;

        ours(&["delete", "queuepool", "brief", "--wait=false"])?;
        let says = |why: &str| {
            cluster.until(why, SOON, || {
                let pool = ours(&["get", "queuepool", "brief", "-o", "yaml"])?;
                ensure!(pool.contains(why), "{pool}");
                Ok(())
            })
        };
        says("at the edge still accept mail")?;
        ours(&["delete", "edgepool", "brief"])?;
        says("mail is in the queue")?;
        let claims = ours(&["get", "pvc", "-o", "name"])?;
        ensure!(!claims.is_empty(), "the mail is gone");

        ours(&[
            "annotate",
            "queuepool/brief",
            "postroad.dev/force-forget=true",
        ])?;
        let left = ["get", "queuepools,pods,pvc", "-o", "name"];
        cluster.until("nothing of it is left", COMES_UP, || {
            let left = ours(&left)?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
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
