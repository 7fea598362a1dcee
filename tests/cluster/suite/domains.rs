//! Many RelayDomains at once: how long they take, and what the operator is then.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tests::process::size;

use crate::operator;
use crate::relay::{COMES_UP, Relay};
use crate::traffic::accepted;

/// The operator's limit in the chart, KiB; what it takes for a thousand domains is far below.
const RSS_KIB_MAX: u64 = 256 << 10;

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn many_domains_are_accepted_and_taken_by_every_edge_and_refused_again_when_they_go() {
    crate::in_namespace("many", |cluster| {
        let relay = Relay::ready(cluster)?;
        let count: usize = size(100, 1000);
        let open = json!({"allowedNamespaces": {"from": "All"}, "domainOwnership": "Trust"});
        relay.change("relaycluster", &json!({"access": open}))?;
        let mut all = "apiVersion: v1\nkind: Namespace\nmetadata: {name: many}\n".to_owned();
        for number in 0..count {
            all.push_str(&format!(
                "---\napiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: d{number}, namespace: many}}\nspec: \
                 {{clusterRef: {{name: postroad, namespace: mail}}, domain: d{number}.many.test, inbound: {{targets: [{{host: \
                 mx.test}}]}}}}\n"
            ));
        }
        let start = Instant::now();
        cluster.apply(&all)?;
        let applied = start.elapsed();
        relay.until("every domain is accepted", COMES_UP, || {
            let of = ".status.conditions[?(@.type=='Accepted')].status";
            let path = format!("{{.items[*]{of}}}");
            let seen = cluster.field("many", "relaydomains", &path)?;
            let yes = seen.split_whitespace().filter(|word| *word == "True");
            ensure!(yes.clone().count() == count, "{} of {count}", yes.count());
            Ok(())
        })?;
        let judged = start.elapsed();
        accepted(&relay, &format!("anybody@d{}.many.test", count - 1))?;
        let rss = operator::rss()?;
        eprintln!(
            "{count} domains: applied in {applied:?}, accepted after {judged:?}, taken by every edge after {:?}; operator {} MiB",
            start.elapsed(),
            rss >> 10
        );
        ensure!(rss < RSS_KIB_MAX, "the operator has {rss} KiB");
        let gone = Instant::now();
        cluster.kubectl(&["delete", "namespace", "many"])?;
        relay.until(
            "no edge takes mail to them",
            Duration::from_secs(60),
            || {
                let answer =
                    crate::smtp::recipient(relay.edge()?, "a@origin.test", "anybody@d0.many.test")?;
                ensure!(answer.starts_with("550"), "{answer}");
                Ok(())
            },
        )?;
        eprintln!("all refused again {:?} later", gone.elapsed());
        relay.change("relaycluster", &json!({"access": null}))?;
        Ok(())
    });
}
