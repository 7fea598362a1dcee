//! Configuration: which RelayDomains count, and how they reach the nodes of a cluster.
//!
//! Compiling is level-based: every time all domains of a cluster are judged anew ([`resource::judge`]), those that count and
//! their signing keys are compiled to documents, what differs is written to the queue, and every domain is told its answer.
//! What is refused reaches no node.
//!
//! ```text
//! index.rs     all domains and keys, at hand
//! compile.rs   to documents; pure
//! seal.rs      private keys on their way
//! push.rs      to the queue, what differs
//! progress.rs  which nodes have it; pure
//! status.rs    what people are told
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::controller::Action;
use resource::seal::SEALING_KEY_OCTETS;
use resource::{
    DeliveryPool, DkimKey, EdgePool, NamespacesFrom, QueuePool, RelayCluster, RelayDomain,
};
use tokio::time::Instant;

use crate::cluster::of_cluster;
use crate::conditions::Reason;
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, Component};
use crate::queue_pool::is_ready;
use crate::{pki, place};

mod compile;
mod index;
mod progress;
mod push;
mod seal;
mod status;

pub use index::{Index, follow};
pub use seal::SealedKeys;

use compile::{Compiled, Labels, SealedKey, Sealing};
use progress::{Nodes, Progress};
use push::{Known, Pushed};
use status::Sent;

/// All domains are judged this often, also when nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Labels of namespaces are asked for at most this often.
const LABELS_LAST: Duration = Duration::from_secs(30);
/// Pauses between looks at who has what, each with how long after a change it holds: at first nodes need a moment only.
const WAITS: [(Duration, Duration); 2] = [
    (Duration::from_secs(5), Duration::from_millis(100)),
    (Duration::from_secs(60), Duration::from_secs(1)),
];
/// And later.
const WAITS_LONG: Duration = Duration::from_secs(5);

/// Statuses that are written at once. The API server gives each client a fair share and lets the rest wait.
const TOLD_AT_ONCE: usize = 16;

/// What the queues hold, by cluster, and labels of namespaces.
#[derive(Default)]
pub struct Pushes {
    known: Mutex<HashMap<String, Known>>,
    labels: Mutex<HashMap<String, Asked>>,
}

/// Labels of a namespace, and when they were asked for.
type Asked = (Instant, BTreeMap<String, String>);

/// Judges all domains of one cluster, writes those that count to its queue and looks who has them.
pub async fn reconcile(cluster: Arc<RelayCluster>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = place(&*cluster)?;
    if cluster.spec.paused {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    context.index.ready().await;
    let domains = domains_of(&context.index, namespace, name);
    let keys = keys_of(&context.index, &domains);
    let domains: Vec<&RelayDomain> = domains.iter().map(|domain| &**domain).collect();
    let keys: Vec<&DkimKey> = keys.iter().map(|key| &**key).collect();
    let labels = labels_of(&context, &cluster, &domains).await?;
    let queue = queue_of(&context, &cluster).await?;
    let sealed = sealed_keys(&context, &cluster, queue.as_ref(), &keys).await?;
    let sent: Vec<&DkimKey> = keys
        .iter()
        .copied()
        .filter(|key| compile::is_sent(key))
        .collect();
    // Of several clusters each keeps its own only by forgetting nothing of the others.
    if context.index.keys.len() == keys.len() {
        seal::keep(&context, &sent);
    }
    let cluster_id = queue.as_ref().map(|queue| queue.text.clone());
    let compiled = match compile::compile(&cluster, &domains, &labels, &sealed) {
        Ok(compiled) => compiled,
        Err(text) => {
            let fault = Err((Reason::Invalid, text));
            status::tell_cluster(&context, &cluster, cluster_id.as_deref(), fault).await?;
            return Ok(Action::requeue(LOOK_AGAIN));
        }
    };
    let pushed = match &queue {
        Some(queue) => write(&context, &cluster, queue, &compiled).await,
        None => Err(Error::NotYet("the cluster's queue is not there yet".into())),
    };
    let told = Told {
        context: &context,
        cluster: &cluster,
        domains: &domains,
        keys: &keys,
        compiled: &compiled,
    };
    match pushed {
        Ok(pushed) => {
            let changed = pushed.known.changed;
            let waits = told.with(&pushed, cluster_id.as_deref()).await?;
            let key = names::trust_domain(namespace, name);
            let mut known = context
                .pushes
                .known
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.insert(key, pushed.known);
            Ok(Action::requeue(match waits {
                true => pause(changed.elapsed()),
                false => LOOK_AGAIN,
            }))
        }
        Err(error) => {
            told.without(&error.to_string(), cluster_id.as_deref())
                .await?;
            Err(error)
        }
    }
}

fn pause(since: Duration) -> Duration {
    let mut waits = WAITS.iter();
    waits
        .find(|(until, _)| since < *until)
        .map_or(WAITS_LONG, |(_, pause)| *pause)
}

/// All domains that name the cluster, whatever their namespace.
fn domains_of(index: &Index, namespace: &str, cluster: &str) -> Vec<Arc<RelayDomain>> {
    let mut found = index.domains.state();
    found.retain(|domain| {
        domain.metadata.deletion_timestamp.is_none()
            && cluster_of(domain) == (namespace.into(), cluster.into())
    });
    // The same set gives the same documents.
    found.sort_by_key(|domain| (domain.namespace(), domain.name_any()));
    found
}

/// The signing keys of these domains.
fn keys_of(index: &Index, domains: &[Arc<RelayDomain>]) -> Vec<Arc<DkimKey>> {
    let owners: BTreeSet<(Option<String>, String)> = domains
        .iter()
        .map(|domain| (domain.namespace(), domain.name_any()))
        .collect();
    let mut keys = index.keys.state();
    keys.retain(|key| owners.contains(&(key.namespace(), key.spec.domain_ref.name.clone())));
    keys.sort_by_key(|key| (key.namespace(), key.name_any()));
    keys
}

/// The keys as they are sent.
async fn sealed_keys<'a>(
    context: &Context,
    cluster: &RelayCluster,
    queue: Option<&Queue>,
    keys: &[&'a DkimKey],
) -> Result<Vec<SealedKey<'a>>, Error> {
    let (namespace, name) = place(cluster)?;
    let with = seal::sealing_key(context, namespace, name).await?;
    let mut sealed = Vec::new();
    for object in keys.iter().copied() {
        let made = match (&with, queue) {
            (None, _) => Sealing::NotNow,
            (Some(with), Some(queue)) if compile::is_sent(object) => {
                let made = seal::seal(context, with, &queue.id, object).await?;
                made.map_or(Sealing::Nothing, Sealing::Sealed)
            }
            _ => Sealing::Nothing,
        };
        sealed.push(SealedKey {
            object,
            sealed: made,
        });
    }
    Ok(sealed)
}

/// Namespace and name of the cluster that a domain belongs to.
pub fn cluster_of(domain: &RelayDomain) -> (String, String) {
    let reference = &domain.spec.cluster_ref;
    let namespace = reference.namespace.clone().or_else(|| domain.namespace());
    (namespace.unwrap_or_default(), reference.name.clone())
}

/// Labels of the domains' namespaces, where the cluster chooses by them.
async fn labels_of(
    context: &Context,
    cluster: &RelayCluster,
    domains: &[&RelayDomain],
) -> Result<Labels, Error> {
    let mut labels = Labels::new();
    if cluster.spec.access.allowed_namespaces.from != NamespacesFrom::Selector {
        return Ok(labels);
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    let names: BTreeSet<String> = domains
        .iter()
        .filter_map(|domain| domain.namespace())
        .collect();
    for name in names {
        let known = {
            let known = context
                .pushes
                .labels
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let recent = known
                .get(&name)
                .filter(|(asked, _)| asked.elapsed() < LABELS_LAST);
            recent.map(|(_, labels)| labels.clone())
        };
        let found = match known {
            Some(known) => known,
            None => {
                let found = api.get_opt(&name).await?;
                let found = found
                    .and_then(|namespace| namespace.metadata.labels)
                    .unwrap_or_default();
                let mut known = context
                    .pushes
                    .labels
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                known.insert(name.clone(), (Instant::now(), found.clone()));
                found
            }
        };
        labels.insert(name, found);
    }
    Ok(labels)
}

/// The queue of a cluster.
struct Queue {
    id: [u8; 16],
    text: String,
    address: String,
}

async fn queue_of(context: &Context, cluster: &RelayCluster) -> Result<Option<Queue>, Error> {
    let (namespace, name) = place(cluster)?;
    let pools = of_cluster(context, namespace, |pool: &QueuePool| {
        pool.spec.cluster_ref.name == name
    })
    .await?;
    let Some(pool) = pools.first() else {
        return Ok(None);
    };
    let text = pool
        .status
        .as_ref()
        .and_then(|status| status.cluster_id.clone());
    Ok(text.and_then(|text| {
        Some(Queue {
            id: *uuid::Uuid::parse_str(&text).ok()?.as_bytes(),
            address: names::queue_service(&pool.name_any(), namespace),
            text,
        })
    }))
}

async fn write(
    context: &Context,
    cluster: &RelayCluster,
    queue: &Queue,
    compiled: &Compiled,
) -> Result<Pushed, Error> {
    let (namespace, name) = place(cluster)?;
    let Some(ca) = pki::find_ca(&context.client, namespace, name).await? else {
        return Err(Error::NotYet(format!("the CA of {name} is not there yet")));
    };
    let client = context
        .queue(namespace, name, &queue.address, &ca)?
        .config();
    let key = names::trust_domain(namespace, name);
    // Taken out: after an error nothing is known.
    let known = {
        let mut known = context
            .pushes
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.remove(&key)
    };
    push::push(&client, known, &compiled.documents, &compiled.kept).await
}

/// What is said while signing keys stay at the nodes as they are.
fn no_sealing_key(cluster: &str) -> String {
    format!(
        "there is no Secret {} with a key of {SEALING_KEY_OCTETS} octets, so signing keys stay at the nodes as they are, and new \
         ones do not reach them; a Secret that is not there is made within seconds: delete one that holds no such key",
        names::seal_secret(cluster)
    )
}

/// The pods of a role that are ready, by name, and the pool that each is of.
async fn ready_pods(
    context: &Context,
    cluster: &RelayCluster,
    component: Component,
) -> Result<Pods, Error> {
    let (namespace, name) = place(cluster)?;
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selected = format!(
        "{}={name},app.kubernetes.io/component={}",
        names::CLUSTER,
        component.as_str()
    );
    let pods = pods
        .list(&ListParams::default().labels(&selected))
        .await?
        .items;
    let ready = pods
        .iter()
        .filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    let pool = |pod: &Pod| pod.labels().get(names::POOL).cloned().unwrap_or_default();
    Ok(ready.map(|pod| (pod.name_any(), pool(pod))).collect())
}

/// Writes statuses, several at once: each waits for the API server. Says whether nodes are waited for.
async fn at_once(tellings: Vec<impl Future<Output = Result<bool, Error>>>) -> Result<bool, Error> {
    let told = stream::iter(tellings).buffer_unordered(TOLD_AT_ONCE);
    told.try_fold(false, async |any, one| Ok(any | one)).await
}

/// Ready pods by name, with their pools.
type Pods = BTreeMap<String, String>;

/// Everything that has a status to be written.
struct Told<'a> {
    context: &'a Context,
    cluster: &'a RelayCluster,
    domains: &'a [&'a RelayDomain],
    keys: &'a [&'a DkimKey],
    compiled: &'a Compiled,
}

impl Told<'_> {
    /// Tells all of them how far they are; says whether nodes are waited for.
    async fn with(&self, pushed: &Pushed, cluster_id: Option<&str>) -> Result<bool, Error> {
        let edge = ready_pods(self.context, self.cluster, Component::Edge).await?;
        let delivery = ready_pods(self.context, self.cluster, Component::Delivery).await?;
        let names = |pods: &Pods| pods.keys().cloned().collect();
        let nodes = Nodes::new(names(&edge), names(&delivery), pushed.nodes.clone());
        let sent = |key: &str, for_all: bool| {
            let revision = pushed.known.revision_of(key);
            let revision = revision.ok_or_else(|| "the queue does not hold it".to_owned())?;
            let progress = nodes.progress(key, revision, for_all);
            Ok(Sent { revision, progress })
        };
        let mut waits = self.domains(|key| sent(key, true)).await?;
        let of_keys = self.keys.iter().zip(&self.compiled.keys);
        let of_keys = of_keys.map(|(key, document)| {
            let sent = document.as_ref().map(|document| sent(document, false));
            async move { status::tell_key(self.context, key, sent.as_ref()).await }
        });
        waits |= at_once(of_keys.collect()).await?;
        let (namespace, name) = place(self.cluster)?;
        let key = format!("RelayCluster/{namespace}/{name}");
        // While a domain is on its way, which takes milliseconds, pools have no news.
        if let Some(revision) = pushed.known.revision_of(&key)
            && (!waits || pushed.known.changed.elapsed() > WAITS[0].0)
        {
            let at = |pods: &Pods, pool: &str| {
                let of_pool = pods.iter().filter(|(_, its)| *its == pool);
                nodes.among(of_pool.map(|(pod, _)| pod), &key, revision)
            };
            waits |= self
                .pools(|pool| at(&edge, pool), |pool| at(&delivery, pool))
                .await?;
        }
        let own = sent(&key, true);
        let progress = own.map_or_else(Progress::Waits, |sent| sent.progress);
        waits |= matches!(progress, Progress::Waits(_)) && nodes.total() > 0;
        let synced = match self.compiled.kept.is_empty() {
            true => Ok((
                pushed.revision,
                progress,
                nodes.with(pushed.revision),
                nodes.total(),
            )),
            false => Err((Reason::KeyUnreadable, no_sealing_key(name))),
        };
        status::tell_cluster(self.context, self.cluster, cluster_id, synced).await?;
        Ok(waits || !self.compiled.kept.is_empty())
    }

    /// Tells each pool whether its nodes have the cluster's document; says whether nodes are waited for.
    async fn pools(
        &self,
        edge: impl Fn(&str) -> Progress,
        delivery: impl Fn(&str) -> Progress,
    ) -> Result<bool, Error> {
        let (namespace, cluster) = place(self.cluster)?;
        let edges = of_cluster(self.context, namespace, |pool: &EdgePool| {
            pool.spec.cluster_ref.name == cluster
        });
        let mut waits = false;
        for pool in edges.await?.iter().filter(|pool| pool.spec.replicas > 0) {
            let before = pool.status.clone().unwrap_or_default().conditions;
            let progress = edge(&pool.name_any());
            waits |= status::tell_pool(self.context, pool, &before, progress).await?;
        }
        let deliveries = of_cluster(self.context, namespace, |pool: &DeliveryPool| {
            pool.spec.cluster_ref.name == cluster
        });
        for pool in deliveries
            .await?
            .iter()
            .filter(|pool| pool.spec.replicas > 0)
        {
            let before = pool.status.clone().unwrap_or_default().conditions;
            let progress = delivery(&pool.name_any());
            waits |= status::tell_pool(self.context, pool, &before, progress).await?;
        }
        Ok(waits)
    }

    /// Tells every domain what was answered, or how far its document is; says whether nodes are waited for.
    async fn domains(&self, sent: impl Fn(&str) -> Result<Sent, String>) -> Result<bool, Error> {
        let domains = self.domains.iter().zip(&self.compiled.verdicts);
        let domains = domains.map(|(domain, verdict)| {
            let verdict = verdict.as_ref().map(|key| sent(key));
            async move {
                let verdict = verdict.as_ref().map_err(|refusal| *refusal);
                status::tell_domain(self.context, domain, verdict).await
            }
        });
        at_once(domains.collect()).await
    }

    /// The queue does not take it, and this is why.
    async fn without(&self, text: &str, cluster_id: Option<&str>) -> Result<(), Error> {
        self.domains(|_| Err(text.to_owned())).await?;
        let fault = Err((Reason::QueueUnreachable, text.to_owned()));
        status::tell_cluster(self.context, self.cluster, cluster_id, fault).await
    }
}
