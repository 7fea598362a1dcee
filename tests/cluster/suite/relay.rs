//! The relay that the tests share: both charts, installed by the README's own lines. It is as the charts make it when a test
//! begins, whatever an earlier one left.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::child::run;
use tests::kubernetes::{IMAGE, Kubernetes, checkout};

use crate::{operator, readme};

/// Namespace of the relay.
pub const MAIL: &str = "mail";
/// Namespace of the operator.
pub const OPERATOR: &str = "postroad-system";
/// Both charts, as the README names them; the one that needs the other comes first.
const RELEASES: [(&str, &str); 2] = [("relay", MAIL), ("postroad", OPERATOR)];
/// Namespaces that tests make for tenants.
const TENANTS: [&str; 4] = ["tenant", "many", "brief", "alone"];
/// What the charts make: pool and number of nodes.
const POOLS: [(&str, usize); 3] = [("edgepool", 2), ("queuepool", 3), ("deliverypool", 2)];
/// The image's user: a hostPath is not given to the pod's group by the kubelet.
const USER: u32 = 65532;
/// Volumes that are there to be claimed: three to begin with, and whatever comes and goes in the tests.
const VOLUMES: usize = 24;
/// SMTP of the edges' Service, and of each of their pods: `port` and `containerPort` of the chart's listener.
const SERVICE_PORT: u16 = 25;
const POD_PORT: u16 = 2525;
/// Pods start, find each other and elect: seconds on a quiet machine.
pub const COMES_UP: Duration = Duration::from_secs(300);
/// What nothing holds up.
pub const SOON: Duration = Duration::from_secs(60);

/// How long the first installation took until the relay was ready; set by whichever test made it.
pub static INSTALLED: OnceLock<Duration> = OnceLock::new();

/// See the module.
pub struct Relay<'a> {
    /// Where it runs.
    pub cluster: &'a Kubernetes,
}

impl<'a> Relay<'a> {
    /// The relay, installed if it is not, and as the charts make it.
    pub fn ready(cluster: &'a Kubernetes) -> Result<Relay<'a>> {
        // An earlier test may have died while the API server was away.
        let started = cluster.script("apiserver").arg("start").status()?;
        ensure!(started.success(), "the API server does not come back");
        let relay = Relay { cluster };
        let mut whole = true;
        for (release, namespace) in RELEASES {
            whole &= deployed(cluster, release, namespace)?;
        }
        if !whole {
            // The README's lines are for a cluster that has neither; an installation that broke off may have left one.
            relay.uninstall()?;
            relay.install()?;
        }
        relay.restore()?;
        Ok(relay)
    }

    /// By the README's lines, into a namespace that takes nothing but the strictest pods.
    pub fn install(&self) -> Result<()> {
        let cluster = self.cluster;
        self.volumes()?;
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {MAIL}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}\n"
        ))?;
        let start = Instant::now();
        cluster
            .shell(&readme::block(0)?)
            .context("the README's first lines on Kubernetes")?;
        let took = start.elapsed();
        eprintln!("both charts are installed and the relay is ready after {took:?}");
        INSTALLED.get_or_init(|| took);
        Ok(())
    }

    /// Takes away what of both charts is there; returns when no node runs.
    pub fn uninstall(&self) -> Result<()> {
        for (release, namespace) in RELEASES {
            let uninstall = ["uninstall", release, "--namespace", namespace];
            let mut uninstall = self.cluster.tool("helm4", &uninstall);
            run(uninstall.arg("--ignore-not-found"))?;
        }
        self.until("all pods are gone", COMES_UP, || {
            let pods = self.kubectl(&["get", "pods", "-o", "name"])?;
            ensure!(pods.is_empty(), "{pods}");
            Ok(())
        })
    }

    /// Directories as volumes: there is nobody who makes them when they are claimed.
    fn volumes(&self) -> Result<()> {
        let mut all = String::new();
        for number in 0..VOLUMES {
            let path = self.cluster.dir.join("volumes").join(number.to_string());
            fs::create_dir_all(&path)?;
            chown(&path, Some(USER), Some(USER))?;
            let path = path.display();
            all.push_str(&format!(
                "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: volume-{number}}}\nspec:\n  capacity: {{storage: 20Gi}}\n  \
                 accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {path}}}\n"
            ));
        }
        // A directory says nothing of its volume: whoever made it may have died in between.
        self.cluster.apply(&all)
    }

    /// Whatever an earlier test left, also one that failed half way: nobody's domains, and cluster and pools as the chart
    /// declares them, all nodes ready.
    fn restore(&self) -> Result<()> {
        let mut delete = vec!["delete", "namespace", "--ignore-not-found"];
        delete.extend(TENANTS);
        self.cluster.kubectl(&delete)?;
        self.kubectl(&["delete", "relaydomains", "--all"])?;
        operator::runs_as_usual(self)?;
        // Put, not merged: what the chart does not name becomes the default, the number of nodes too.
        let manifest = ["get", "manifest", "relay", "--namespace", MAIL];
        let manifest = run(&mut self.cluster.tool("helm4", &manifest))?;
        // The operator may write a status between kubectl's reading and its writing.
        self.until("everything is as the chart made it", SOON, || {
            self.cluster.feed(&["replace", "-f", "-"], &manifest)
        })?;
        // Helm 4 takes away only what says that it is Helm's, and that does not stand in the manifest.
        let owned = ["annotate", "--overwrite", "-f", "-"];
        let by = [
            "meta.helm.sh/release-name=relay",
            "meta.helm.sh/release-namespace=mail",
        ];
        let annotate = [owned.as_slice(), &by].concat();
        self.cluster.feed(&annotate, &manifest)?;
        // A cluster that names no image goes on with the last one.
        if self.field("relaycluster/postroad", "{.status.image}")? != IMAGE {
            self.change("relaycluster", &json!({"image": IMAGE}))?;
        }
        self.runs(IMAGE)?;
        for (pool, nodes) in POOLS {
            self.scaled(pool, nodes)?;
        }
        self.wait("relaycluster/postroad", "condition=Ready", COMES_UP)
    }

    /// Waits until each of as many nodes as the charts make has this image.
    pub fn runs(&self, image: &str) -> Result<()> {
        let count: usize = POOLS.iter().map(|(_, nodes)| nodes).sum();
        let nodes = ["get", "pods", "-l", "app.kubernetes.io/name=postroad"];
        let path = "jsonpath={.items[*].spec.containers[0].image}";
        self.until(&format!("every node has {image}"), COMES_UP, || {
            let images = self.kubectl(&[nodes.as_slice(), &["-o", path]].concat())?;
            let images: Vec<&str> = images.split_whitespace().collect();
            let new = images.iter().filter(|found| **found == image).count();
            ensure!((new, images.len()) == (count, count), "{images:?}");
            Ok(())
        })
    }

    /// Merges this into the spec of the relay's object of a kind; `null` takes a field away.
    pub fn change(&self, kind: &str, spec: &Value) -> Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        self.kubectl(&["patch", kind, "postroad", "--type=merge", "-p", &patch])
            .map(drop)
    }

    /// `kubectl scale`.
    pub fn scale(&self, pool: &str, nodes: usize) -> Result<()> {
        let object = format!("{pool}/postroad");
        let replicas = format!("--replicas={nodes}");
        self.kubectl(&["scale", &object, &replicas]).map(drop)
    }

    /// Waits until a pool has so many nodes, all of them as it is declared now and ready, and nothing is under way.
    pub fn scaled(&self, pool: &str, nodes: usize) -> Result<()> {
        let what = format!("{pool} has {nodes} nodes");
        let condition = |type_: &str, field: &str| {
            format!("{{.status.conditions[?(@.type=='{type_}')].{field}}}")
        };
        let fields = [
            "{.metadata.generation}".to_owned(),
            "{.status.observedGeneration}".to_owned(),
            condition("Ready", "observedGeneration"),
            condition("Ready", "status"),
            "{.status.replicas}".to_owned(),
            "{.status.updatedReplicas}".to_owned(),
            "{.status.readyReplicas}".to_owned(),
            condition("Progressing", "status"),
        ]
        .join("|");
        let number = nodes.to_string();
        self.until(&what, COMES_UP, || {
            let seen = self.field(&format!("{pool}/postroad"), &fields)?;
            let words: Vec<&str> = seen.split('|').collect();
            let generation = words[0];
            // Only queue pools say whether they are at it.
            let idle = ["False", ""].contains(words.last().unwrap_or(&""));
            ensure!(
                words[1..4] == [generation, generation, "True"]
                    && words[4..7].iter().all(|word| *word == number)
                    && idle,
                "generation|seen|judged|ready|nodes|updated|ready nodes|working: {seen}"
            );
            let pods = self.pods(pool)?;
            ensure!(pods.len() == nodes, "{pods:?}");
            Ok(())
        })
    }

    /// Names of a pool's pods.
    pub fn pods(&self, pool: &str) -> Result<Vec<String>> {
        let component = pool.trim_end_matches("pool");
        let selector = format!("app.kubernetes.io/component={component}");
        let names = self.kubectl(&["get", "pods", "-l", &selector, "-o", "name"])?;
        let names = names.lines().map(|name| name.trim_start_matches("pod/"));
        Ok(names.map(str::to_owned).collect())
    }

    /// `kubectl wait`.
    pub fn wait(&self, object: &str, condition: &str, limit: Duration) -> Result<()> {
        let condition = format!("--for={condition}");
        let limit = format!("--timeout={}s", limit.as_secs());
        let waited = self.kubectl(&["wait", &condition, object, &limit]);
        waited.map(drop).with_context(|| {
            self.kubectl(&["get", object, "-o", "yaml"])
                .unwrap_or_else(|error| error.to_string())
        })
    }

    /// Waits until something is so.
    pub fn until<T>(&self, what: &str, limit: Duration, so: impl Fn() -> Result<T>) -> Result<T> {
        self.cluster.until(what, limit, so)
    }

    /// `kubectl` in the relay's namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", MAIL];
        all.extend(arguments);
        self.cluster.kubectl(&all)
    }

    /// One field of an object of the relay.
    pub fn field(&self, object: &str, path: &str) -> Result<String> {
        self.cluster.field(MAIL, object, path)
    }

    /// Where the relay accepts mail: its Service.
    pub fn edge(&self) -> Result<SocketAddr> {
        let address = self.field("service/postroad-edge", "{.spec.clusterIP}")?;
        let address = address.parse().with_context(|| address.clone())?;
        Ok(SocketAddr::new(address, SERVICE_PORT))
    }

    /// Where one edge accepts mail, whatever the Service thinks of it: a pod listens where it may without being root.
    pub fn edge_at(&self, pod: &str) -> Result<SocketAddr> {
        let address = self.field(&format!("pod/{pod}"), "{.status.podIP}")?;
        let address = address.parse().with_context(|| address.clone())?;
        Ok(SocketAddr::new(address, POD_PORT))
    }
}

/// Whether a release is installed whole: one that broke off has a status too.
fn deployed(cluster: &Kubernetes, release: &str, namespace: &str) -> Result<bool> {
    let list = ["list", "--namespace", namespace, "--deployed", "--short"];
    let found = run(&mut cluster.tool("helm4", &list))?;
    Ok(found.lines().any(|name| name == release))
}

/// Where a chart lies.
pub fn chart(name: &str) -> PathBuf {
    checkout().join("charts").join(name)
}
