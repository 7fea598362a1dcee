//! RelayDomains: how soon one is in effect, and how long many with keys take and what the operator is then.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::kubernetes::Kubernetes;
use tests::process::size;

use crate::operator;
use crate::relay::{COMES_UP, Relay, SOON};
use crate::smtp;
use crate::traffic::accepted;

/// The operator's limit in the chart, KiB; what it takes for a thousand domains is far below.
const RSS_KIB_MAX: u64 = 256 << 10;
/// Domains that come one by one.
const ONES: usize = 5;
/// From the event that tells of a new domain until every ready node has it, as the median of them.
const IN_EFFECT: Duration = Duration::from_secs(1);
/// Of a domain whose mail is signed.
const SIGNED: &str = ", outbound: {networks: [10.0.0.0/8]}";
/// A domain's condition.
const PROGRAMMED: &str = "{.status.conditions[?(@.type=='Programmed')].status}";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn many_domains_are_accepted_and_taken_by_every_edge_and_refused_again_when_they_go() {
    crate::in_namespace("many", |cluster| {
        let relay = Relay::ready(cluster)?;
        let open = json!({
            "allowedNamespaces": {"from": "All"}, "domainOwnership": "Trust", "networks": ["10.0.0.0/8"],
        });
        relay.change("relaycluster", &json!({"access": open}))?;
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: many}\n")?;
        one_by_one(&relay)?;
        at_once(&relay, size(100, 1000))?;
        let gone = Instant::now();
        cluster.kubectl(&["delete", "namespace", "many"])?;
        for pod in relay.pods("edgepool")? {
            relay.until("no edge takes mail to them", SOON, || {
                let edge = relay.edge_at(&pod)?;
                let answer = smtp::recipient(edge, "a@origin.test", "anybody@d0.many.test")?;
                ensure!(answer.starts_with("550"), "{pod}: {answer}");
                Ok(())
            })?;
        }
        eprintln!("all refused again {:?} later", gone.elapsed());
        Ok(())
    });
}

/// `more` stands in its spec.
fn domain(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}, namespace: many}}\nspec: \
         {{clusterRef: {{name: postroad, namespace: mail}}, domain: {name}.many.test, inbound: {{targets: [{{host: mx.test}}]}}{more}}}\n"
    )
}

/// From the watch's event to Programmed, which says that every ready node has it.
fn one_by_one(relay: &Relay<'_>) -> Result<()> {
    let watch = Watch::start(relay.cluster)?;
    let mut all = Vec::new();
    for number in 0..ONES {
        let name = format!("one{number}");
        relay.cluster.apply(&domain(&name, ""))?;
        let seen = watch.wait(|line| line.split(' ').next() == Some(name.as_str()))?;
        let programmed = watch.wait(|line| line == format!("{name} True"))?;
        all.push(programmed - seen);
        accepted(relay, &format!("anybody@{name}.many.test"))?;
    }
    eprintln!(
        "one domain is in effect at every node after {all:?}, counted from the watch's event"
    );
    all.sort();
    let median = all[ONES / 2];
    ensure!(
        median < IN_EFFECT,
        "{median:?}, and {IN_EFFECT:?} is the most"
    );
    Ok(())
}

fn at_once(relay: &Relay<'_>, count: usize) -> Result<()> {
    let cluster = relay.cluster;
    let all: String = (0..count)
        .map(|number| domain(&format!("d{number}"), SIGNED))
        .collect();
    let patience = size(COMES_UP, 4 * COMES_UP);
    let (before, start) = (requests(cluster)?, Instant::now());
    cluster.apply(&all)?;
    let applied = start.elapsed();
    let path = format!("{{range .items[*]}}{PROGRAMMED}{{\" \"}}{{end}}");
    relay.until("every domain is in effect", patience, || {
        let seen = cluster.field("many", "relaydomains", &path)?;
        let yes = seen
            .split_whitespace()
            .filter(|word| *word == "True")
            .count();
        ensure!(yes == count + ONES, "{yes} of {}", count + ONES);
        Ok(())
    })?;
    let programmed = start.elapsed();
    relay.until("every domain has both its keys", patience, || {
        let keys = cluster.kubectl(&["-n", "many", "get", "dkimkeys", "-o", "name"])?;
        let made = keys.lines().count();
        ensure!(made == 2 * count, "{made} of {}", 2 * count);
        Ok(())
    })?;
    let made = start.elapsed();
    accepted(relay, &format!("anybody@d{}.many.test", count - 1))?;
    let (rss, asked) = (operator::rss()?, requests(cluster)? - before);
    eprintln!(
        "{count} domains: applied in {applied:?}, in effect at every node after {programmed:?}, with both keys after \
         {made:?}; {asked:.0} requests to the API server by all its clients; operator {} MiB",
        rss >> 10
    );
    ensure!(rss < RSS_KIB_MAX, "the operator has {rss} KiB");
    Ok(())
}

/// Requests that the API server answered so far.
fn requests(cluster: &Kubernetes) -> Result<f64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let lines = metrics.lines();
    let counts = lines.filter(|line| line.starts_with("apiserver_request_total{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

/// `kubectl get --watch` of the domains: each event as it comes.
struct Watch {
    kubectl: Child,
    events: Receiver<(Instant, String)>,
}

impl Watch {
    fn start(cluster: &Kubernetes) -> Result<Watch> {
        let path = format!("jsonpath={{.metadata.name}} {PROGRAMMED}{{\"\\n\"}}");
        let get = ["-n", "many", "get", "relaydomains", "--watch", "-o", &path];
        let mut kubectl = cluster.command(&get).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(kubectl.stdout.take().context("it is piped")?);
        let (tell, events) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens any more: the test is over.
                let _ = tell.send((Instant::now(), line.trim_end().to_owned()));
            }
        });
        Ok(Watch { kubectl, events })
    }

    /// When the next event came of which this is so.
    fn wait(&self, so: impl Fn(&str) -> bool) -> Result<Instant> {
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let (at, line) = event.context("the domain's event does not come")?;
            if so(&line) {
                return Ok(at);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
