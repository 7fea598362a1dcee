//! Both charts, by Helm 3 and by Helm 4: clean, taken by the real API server, and never with a number of nodes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::child::run;
use tests::kubernetes::{IMAGE, Kubernetes};

use crate::relay::{COMES_UP, MAIL, OPERATOR, Relay, chart};
use crate::traffic::accepted;
use crate::uninstall;

const HELMS: [&str; 2] = ["helm3", "helm4"];
const CHARTS: [&str; 2] = ["postroad", "postroad-cluster"];
/// The oldest Kubernetes that the charts take.
const OLDEST: [&str; 2] = ["--kube-version", "1.33.0"];
/// Kinds of the Prometheus operator, which is not on the test's cluster.
const MONITORING: [&str; 4] = [
    "--api-versions",
    "monitoring.coreos.com/v1/PodMonitor",
    "--api-versions",
    "monitoring.coreos.com/v1/PrometheusRule",
];
/// Values that the schema does not take, and what it says of each: the command itself, which any failure shows, has other words.
const WRONG: [(&str, &str); 2] = [
    ("edge.spec.replicas=4", "at '/edge/spec': 'not' failed"),
    (
        "edges.enabled=true",
        "additional properties 'edges' not allowed",
    ),
];

fn render(cluster: &Kubernetes, helm: &str, name: &str, more: &[&str]) -> Result<String> {
    let mut render = cluster.tool(helm, &["template", "test"]);
    render.arg(chart(name)).args(OLDEST).args(more);
    run(&mut render)
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn charts_are_clean_and_never_write_how_many_nodes_a_pool_has() {
    let clean = || -> Result<()> {
        let cluster = Kubernetes::find()?;
        for helm in HELMS {
            for name in CHARTS {
                let mut lint = cluster.tool(helm, &["lint", "--strict"]);
                run(lint.arg(chart(name)))?;
                let rendered = render(&cluster, helm, name, &MONITORING)?;
                // The operators' own Deployment is the only thing whose number the charts know.
                let numbers = rendered
                    .lines()
                    .filter(|line| line.starts_with("  replicas:"))
                    .count();
                ensure!(
                    numbers == usize::from(name == "postroad"),
                    "{name} writes replicas:\n{rendered}"
                );
                let mut texts = vec!["kind: PodMonitor", "kind: PrometheusRule"];
                texts.extend((name == "postroad").then_some(IMAGE));
                for text in texts {
                    ensure!(rendered.contains(text), "without {text}:\n{rendered}");
                }
            }
            for (wrong, why) in WRONG {
                let refusal = render(&cluster, helm, "postroad-cluster", &["--set", wrong])
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default();
                ensure!(refusal.contains(why), "{helm}, {wrong}: {refusal}");
            }
        }
        Ok(())
    };
    if let Err(error) = clean() {
        panic!("{error:#}");
    }
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn the_api_server_takes_every_document_of_the_charts_and_promtool_the_rules() {
    crate::explained("mail", |cluster| {
        // Its kinds must be there.
        Relay::ready(cluster)?;
        let domains = [
            "--namespace",
            "default",
            "--set",
            "domains.example.domain=example.com",
            "--set",
            "domains.example.inbound.targets[0].host=mx.example.com",
            "--set",
            "cluster.access.networks={10.0.0.0/8}",
        ];
        for helm in HELMS {
            for (name, values) in [
                ("postroad", ["--namespace", "default"].as_slice()),
                ("postroad-cluster", &domains),
            ] {
                let rendered = render(cluster, helm, name, values)?;
                let apply = [
                    "apply",
                    "--server-side",
                    "--force-conflicts",
                    "--dry-run=server",
                    "--validate=strict",
                    "-f",
                    "-",
                ];
                cluster
                    .feed(&apply, &rendered)
                    .with_context(|| format!("{name} by {helm}"))?;
            }
        }
        CHARTS.into_iter().try_for_each(|name| rules(cluster, name))
    });
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn an_upgrade_by_helm_keeps_how_many_nodes_there_are_and_helm_test_sends_a_message() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        relay.scale("edgepool", 3)?;
        relay.scaled("edgepool", 3)?;
        let by = |arguments: &[&str]| {
            let all = [arguments, &["--namespace", MAIL]].concat();
            run(&mut cluster.tool("helm4", &all))
        };
        let place = chart("postroad-cluster").display().to_string();
        let domain =
            "domains.tested.domain=tested.test,domains.tested.inbound.targets[0].host=mx.test";
        by(&["upgrade", "relay", &place, "--set", domain])?;
        accepted(&relay, "postmaster@tested.test")?;
        by(&["test", "relay"])?;
        by(&["rollback", "relay", "1"])?;
        relay.scaled("edgepool", 3)?;
        let domains = relay.kubectl(&["get", "relaydomains", "-o", "name"])?;
        ensure!(domains.is_empty(), "after the rollback: {domains}");
        Ok(())
    });
}

/// The operator for one namespace, beside the one for all. Helm 3 brings it and takes it away; everywhere else it is Helm 4.
const ALONE: &str = "alone";
/// A little more than DURATION and RENEW_DEADLINE of `operator/src/lease.rs` together.
const LEASE_RUNS_OUT: Duration = Duration::from_secs(26);

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn an_operator_of_one_namespace_has_rights_in_that_one_only_and_they_are_enough() {
    crate::in_namespace(ALONE, |cluster| {
        // Its image and its kinds are there.
        Relay::ready(cluster)?;
        let by = |arguments: &[&str]| {
            let all = [arguments, &["--namespace", ALONE]].concat();
            run(&mut cluster.tool("helm3", &all))
        };
        let place = chart("postroad").display().to_string();
        let values = format!("watch.namespace={ALONE},crds.enabled=false,rbac.aggregate=false");
        let waits = ["--create-namespace", "--wait", "--timeout=2m"];
        let install = ["install", ALONE, &place, "--set", &values];
        by(&[install.as_slice(), &waits].concat())?;
        by(&[
            "upgrade",
            ALONE,
            &place,
            "--reuse-values",
            "--wait",
            "--timeout=2m",
        ])?;
        let manifest = by(&["get", "manifest", ALONE])?;
        ensure!(!manifest.contains("kind: ClusterRole"), "{manifest}");
        let may = |what: &[&str]| -> Result<String> {
            let account = format!("--as=system:serviceaccount:{ALONE}:{ALONE}-operator");
            let all = [["auth", "can-i"].as_slice(), what, &[&account]].concat();
            // It ends with 1 when the answer is no.
            let output = cluster.tool("kubectl", &all).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        whole_relay(cluster)?;
        leads_on(cluster)?;
        let here = may(&["list", "secrets", "-n", ALONE])?;
        let elsewhere = may(&["list", "secrets", "-n", MAIL])?;
        ensure!(
            (here.as_str(), elsewhere.as_str()) == ("yes", "no"),
            "{here}, {elsewhere}"
        );
        let logs = [
            "-n",
            ALONE,
            "logs",
            "-l",
            "app.kubernetes.io/instance=alone",
            "--tail=-1",
        ];
        let logs = cluster.kubectl(&logs)?;
        ensure!(!logs.is_empty() && !logs.contains("forbidden"), "{logs}");
        by(&["uninstall", ALONE]).map(drop)
    });
}

/// Whoever leads there goes on with it, for longer than a Lease lasts that nobody renews and a leader that cannot renew it; and
/// none of its operators had to start again.
fn leads_on(cluster: &Kubernetes) -> Result<()> {
    let lease = format!("lease/postroad-leader-{ALONE}");
    let read = |path: &str| cluster.field(ALONE, &lease, path);
    let (holder, renewed) = ("{.spec.holderIdentity}", "{.spec.renewTime}");
    let before = (read(holder)?, read(renewed)?);
    std::thread::sleep(LEASE_RUNS_OUT);
    let after = (read(holder)?, read(renewed)?);
    ensure!(
        !before.0.is_empty() && before.0 == after.0 && before.1 != after.1,
        "{before:?}, {LEASE_RUNS_OUT:?} later {after:?}"
    );
    let starts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let operators = "app.kubernetes.io/name=postroad-operator";
    let starts = cluster.kubectl(&["-n", ALONE, "get", "pods", "-l", operators, "-o", starts])?;
    let mut counts = starts.split_whitespace();
    ensure!(
        !starts.is_empty() && counts.all(|count| count == "0"),
        "its operators started again so often: {starts}"
    );
    Ok(())
}

/// A relay of its own, as far as mail is accepted for a domain that has keys; nobody else looks after it.
fn whole_relay(cluster: &Kubernetes) -> Result<()> {
    let of_all = [
        "--namespace",
        OPERATOR,
        "scale",
        "deployment/postroad-operator",
    ];
    let scale = |count: &str| cluster.kubectl(&[of_all.as_slice(), &[count]].concat());
    scale("--replicas=0")?;
    let made = (|| {
        cluster.apply(&uninstall::BRIEF.replace("brief", ALONE))?;
        cluster.apply(
            &uninstall::FILLS
                .replace("brief", ALONE)
                .replace("inbound:", "outbound: {}\n  inbound:"),
        )?;
        let status = "{.status.conditions[?(@.type=='Programmed')].status}";
        cluster.until("its domain is in effect and has keys", COMES_UP, || {
            let programmed = cluster.field(ALONE, "relaydomain/alone", status)?;
            let keys = cluster.kubectl(&["-n", ALONE, "get", "dkimkeys", "-o", "name"])?;
            ensure!(
                programmed == "True" && keys.lines().count() == 2,
                "{programmed} {keys}"
            );
            Ok(())
        })
    })();
    // The chart's number.
    scale("--replicas=2")?;
    made
}

/// promtool takes a chart's alerts, all of them.
fn rules(cluster: &Kubernetes, name: &str) -> Result<()> {
    let rules = chart(name).join("rules.yaml");
    let check = ["check", "rules", "--lint=all", "--lint-fatal"];
    let said = run(cluster.promtool().args(check).arg(&rules))?;
    let alerts = fs::read_to_string(&rules)?.matches("alert:").count();
    let all = said.contains(&format!("{alerts} rules found"));
    ensure!(alerts > 0 && all, "{name}: {said}");
    Ok(())
}
