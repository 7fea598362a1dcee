//! The README's Kubernetes section: two charts, a RelayDomain, a message out of the cluster; then pools are scaled under load.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::child::{Process, run};
use tests::kubernetes::{Kubernetes, World};

/// The image's user: a hostPath is not given to the pod's group by the kubelet.
const USER: u32 = 65532;
/// Volumes that are there to be claimed.
const VOLUMES: usize = 7;
/// Pods start, find each other and elect: seconds on a quiet machine.
const COMES_UP: Duration = Duration::from_secs(300);
/// Mail that nothing holds up.
const SOON: Duration = Duration::from_secs(60);

const DOMAIN: &str = r#"
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: example-com, namespace: mail}
spec:
  domain: example.com
  inbound: {targets: [{host: mx.test}]}
"#;

/// A cluster with the charts installed. Dropped, they and everything of them is gone.
struct Relay<'a> {
    cluster: &'a Kubernetes,
    volumes: tempfile::TempDir,
}

impl<'a> Relay<'a> {
    fn install(cluster: &'a Kubernetes) -> Result<Relay<'a>> {
        let volumes = tempfile::Builder::new()
            .prefix("postroad-volumes-")
            .tempdir_in("/var/tmp")?;
        let relay = Relay { cluster, volumes };
        for number in 0..VOLUMES {
            let path = relay.volumes.path().join(number.to_string());
            fs::create_dir(&path)?;
            chown(&path, Some(USER), Some(USER))?;
            let path = path.display();
            cluster.apply(&format!(
                "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: volume-{number}}}\nspec:\n  capacity: {{storage: 20Gi}}\n  \
                 accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {path}}}\n"
            ))?;
        }
        cluster.apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: mail, labels: {pod-security.kubernetes.io/enforce: restricted}}\n",
        )?;
        let image = [
            "--set",
            "image.repository=localhost/postroad",
            "--set",
            "image.tag=dev",
        ];
        let mut install = cluster.tool("helm4", &["install", "postroad"]);
        install.arg(chart("postroad"));
        install.args([
            "--namespace",
            "postroad-system",
            "--create-namespace",
            "--wait",
            "--timeout",
            "2m",
        ]);
        run(install.args(image))?;
        let mut install = cluster.tool("helm4", &["install", "relay"]);
        install.arg(chart("postroad-cluster"));
        run(install.args(["--namespace", "mail"]))?;
        Ok(relay)
    }

    fn wait(&self, object: &str, condition: &str, limit: Duration) -> Result<()> {
        let condition = format!("--for={condition}");
        let limit = format!("--timeout={}s", limit.as_secs());
        let outcome = self
            .cluster
            .kubectl(&["-n", "mail", "wait", &condition, object, &limit]);
        outcome.map(drop).with_context(|| {
            let shown = self
                .cluster
                .kubectl(&["-n", "mail", "get", object, "-o", "yaml"]);
            let operator = self.cluster.kubectl(&[
                "-n",
                "postroad-system",
                "logs",
                "-l",
                "app.kubernetes.io/name=postroad-operator",
                "--tail=40",
            ]);
            format!(
                "{}\n-- operator\n{}",
                shown.unwrap_or_default(),
                operator.unwrap_or_default()
            )
        })
    }

    fn edge(&self) -> Result<String> {
        self.cluster
            .field("mail", "service/postroad-edge", "{.spec.clusterIP}")
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if std::env::var_os("POSTROAD_CLUSTER_KEEP").is_some() {
            return;
        }
        for arguments in [
            [
                "delete",
                "namespace",
                "mail",
                "--wait=true",
                "--ignore-not-found",
            ]
            .as_slice(),
            &["delete", "persistentvolumes", "--all", "--wait=false"],
        ] {
            if let Err(error) = self.cluster.kubectl(arguments) {
                eprintln!("{error:#}");
            }
        }
        let mut uninstall = self
            .cluster
            .tool("helm4", &["uninstall", "postroad", "-n", "postroad-system"]);
        if let Err(error) = run(&mut uninstall) {
            eprintln!("{error:#}");
        }
    }
}

fn chart(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join("charts").join(name)
}

fn send(server: &str, to: &str) -> Result<()> {
    run(Command::new("swaks")
        .args(["--server", server, "--helo", "client.test", "--hide-all"])
        .args(["--from", "sender@origin.test", "--to", to]))
    .map(drop)
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn charts_are_clean_for_both_helms() {
    let clean = || -> Result<()> {
        let cluster = Kubernetes::find()?;
        for helm in ["helm3", "helm4"] {
            for name in ["postroad", "postroad-cluster"] {
                let mut lint = cluster.tool(helm, &["lint", "--strict"]);
                run(lint.arg(chart(name)))?;
                let mut render = cluster.tool(helm, &["template", "test"]);
                render.arg(chart(name)).args(["--kube-version", "1.33.0"]);
                render.args(["--api-versions", "monitoring.coreos.com/v1/PodMonitor"]);
                render.args(["--api-versions", "monitoring.coreos.com/v1/PrometheusRule"]);
                let rendered = run(&mut render)?;
                // The operators' own Deployment is the only thing whose number the charts know.
                let numbers = rendered
                    .lines()
                    .filter(|line| line.starts_with("  replicas:"))
                    .count();
                ensure!(
                    numbers == usize::from(name == "postroad"),
                    "{name} writes replicas:\n{rendered}"
                );
            }
            let mut wrong = cluster.tool(helm, &["template", "test"]);
            wrong.arg(chart("postroad-cluster")).args([
                "--kube-version",
                "1.33.0",
                "--set",
                "edge.spec.replicas=4",
            ]);
            let refusal = run(&mut wrong)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            ensure!(
                refusal.contains("edge"),
                "{helm} took a number of nodes: {refusal}"
            );
        }
        Ok(())
    };
    if let Err(error) = clean() {
        panic!("{error:#}");
    }
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn two_charts_and_a_domain_relay_a_message_and_pools_are_scaled_under_load() {
    crate::in_namespace("mail", |cluster| {
        let world = World::start()?;
        let start = Instant::now();
        let relay = Relay::install(cluster)?;
        eprintln!("both charts are installed after {:?}", start.elapsed());
        relay.wait("relaycluster/postroad", "condition=Ready", COMES_UP)?;
        eprintln!("the cluster is ready after {:?}", start.elapsed());

        let applied = Instant::now();
        cluster.apply(DOMAIN)?;
        relay.wait("relaydomain/example-com", "condition=Accepted", SOON)?;
        let edge = relay.edge()?;
        cluster.until("an edge accepts mail to the domain", SOON, || {
            send(&edge, "alice@example.com")
        })?;
        let accepted = applied.elapsed();
        eprintln!("mail to the domain is accepted {accepted:?} after it was declared");
        world.mailbox("alice", 1, SOON)?;
        eprintln!("the first message arrived after {:?}", start.elapsed());

        scale_under_load(cluster, &relay, &world, &edge)?;
        refuses_fewer_nodes_than_copies(cluster)
    });
}

/// Edges and delivery nodes come and go while mail passes: each message that was accepted arrives, and none twice.
fn scale_under_load(
    cluster: &Kubernetes,
    relay: &Relay<'_>,
    world: &World,
    edge: &str,
) -> Result<()> {
    const MESSAGES: usize = 600;
    let start = Instant::now();
    // Each message in a session of its own, so that every edge gets some.
    let mut load = Command::new("smtp-source");
    load.args([
        "-s",
        "4",
        "-l",
        "2000",
        "-M",
        "client.test",
        "-m",
        &MESSAGES.to_string(),
    ])
    .args(["-f", "sender@origin.test", "-t", "load@example.com"])
    .arg(format!("{edge}:25"));
    let mut load = Process::start("smtp-source", &mut load)?;
    for (pool, replicas) in [
        ("edgepool", 4),
        ("deliverypool", 4),
        ("edgepool", 2),
        ("deliverypool", 2),
    ] {
        let object = format!("{pool}/postroad");
        cluster.kubectl(&[
            "-n",
            "mail",
            "scale",
            &object,
            &format!("--replicas={replicas}"),
        ])?;
        relay.wait(
            &object,
            &format!("jsonpath={{.status.readyReplicas}}={replicas}"),
            COMES_UP,
        )?;
        eprintln!("{pool} has {replicas} nodes after {:?}", start.elapsed());
    }
    let status = load.wait(COMES_UP, || true)?;
    ensure!(
        status.success(),
        "a session was refused: smtp-source {status}"
    );
    world.mailbox("load", MESSAGES, COMES_UP)?;
    eprintln!("{MESSAGES} messages arrived after {:?}", start.elapsed());
    Ok(())
}

/// The API server itself says no.
fn refuses_fewer_nodes_than_copies(cluster: &Kubernetes) -> Result<()> {
    let scale = cluster.kubectl(&["-n", "mail", "scale", "queuepool/postroad", "--replicas=2"]);
    let refusal = scale
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(
        refusal.contains("fewer nodes than copies"),
        "not refused: {refusal}"
    );
    Ok(())
}
