//! Who watches what. One controller for each kind; what they own, or what they look at ([`wake`]), wakes them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use kube::api::{Api, ListParams};
use kube::runtime::controller::{self, Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use resource::{DeliveryPool, DkimKey, EdgePool, QueuePool, RelayCluster, RelayDomain};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::Error;
use crate::wake::{self, Home, of_same_cluster};
use crate::{cluster, config, domain, names, node_pool, pki, queue_pool, ssa};

/// Objects of one kind that are worked on at once.
const AT_ONCE: u16 = 8;
/// Domains whose keys are looked at at once: most of the time a look waits for name servers.
const DOMAINS_AT_ONCE: u16 = 64;
/// Several changes in a row are one.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A watch is opened anew after this many seconds: load balancers drop connections that are silent for four minutes.
const WATCH_SECONDS: u32 = 200;

/// Runs all controllers until `stop`, then lets what is under way finish.
pub async fn run(
    client: Client,
    context: impl FnOnce(config::Index) -> Context,
    namespace: Option<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let here = Watches { client, namespace };
    check_kinds(&here).await?;
    let (index, declared) = config::follow(here.api(), here.api(), here.all());
    let context = Arc::new(context(index));

    let of_type = |type_: &str| here.ours().fields(&format!("type={type_}"));
    let its_cluster = |secret: Secret| {
        let cluster = secret.labels().get(names::CLUSTER)?.clone();
        reference(&cluster, secret.namespace())
    };
    let clusters = here
        .controller::<RelayCluster>()
        .owns(here.api::<ConfigMap>(), here.ours())
        // Nobody owns a CA or a sealing key that outlives its cluster; one that is gone is made anew at once.
        .watches(here.api::<Secret>(), of_type(pki::CA_TYPE), its_cluster)
        .watches(here.api::<Secret>(), of_type(pki::SEAL_TYPE), its_cluster)
        .watches(here.api::<EdgePool>(), here.all(), |pool: EdgePool| {
            reference(&pool.spec.cluster_ref.name, pool.namespace())
        })
        .watches(here.api::<QueuePool>(), here.all(), |pool: QueuePool| {
            reference(&pool.spec.cluster_ref.name, pool.namespace())
        })
        .watches(
            here.api::<DeliveryPool>(),
            here.all(),
            |pool: DeliveryPool| reference(&pool.spec.cluster_ref.name, pool.namespace()),
        );
    let who = ssa::Controller::Cluster;
    let clusters = work(who, clusters, &context, &stop, |object, context| {
        Box::pin(cluster::reconcile(object, context))
    });
    let configs = here
        .controller::<RelayCluster>()
        .reconcile_all_on(declared)
        .watches(here.api::<Pod>(), here.ours(), |pod: Pod| {
            let cluster = pod.labels().get(names::CLUSTER)?.clone();
            reference(&cluster, pod.namespace())
        });
    let who = ssa::Controller::Config;
    let configs = work(who, configs, &context, &stop, |object, context| {
        Box::pin(config::reconcile(object, context))
    });
    // More at once than elsewhere: one who waits for a dead name server must not hold up the others.
    let keys = Config::default()
        .concurrency(DOMAINS_AT_ONCE)
        .debounce(DEBOUNCE);
    let keys = here.controller::<RelayDomain>().with_config(keys);
    let woken = of_same_cluster(keys.store(), config::cluster_of, itself);
    let keys = keys.owns(here.api::<DkimKey>(), here.all()).watches(
        here.api::<RelayCluster>(),
        here.all(),
        woken,
    );
    let who = ssa::Controller::Domain;
    let keys = work(who, keys, &context, &stop, |object, context| {
        Box::pin(domain::reconcile(object, context))
    });
    let edges = edges(&here, &context, &stop);
    let deliveries = deliveries(&here, &context, &stop);
    let queues = queues(&here, &context, &stop);
    tokio::join!(clusters, configs, edges, deliveries, queues, keys);
    Ok(())
}

async fn edges(here: &Watches, context: &Arc<Context>, stop: &CancellationToken) {
    let edges = here.controller::<EdgePool>();
    let woken = of_same_cluster(edges.store(), edge_home, itself);
    let edges = edges
        .owns(here.api::<Deployment>(), here.ours())
        .owns(here.api::<Service>(), here.ours())
        .owns(here.api::<Secret>(), here.ours())
        .watches(here.api::<RelayCluster>(), here.all(), woken);
    let who = ssa::Controller::EdgePool;
    work(who, edges, context, stop, |object, context| {
        Box::pin(node_pool::reconcile_edge(object, context))
    })
    .await;
}

async fn deliveries(here: &Watches, context: &Arc<Context>, stop: &CancellationToken) {
    let home = |pool: &DeliveryPool| wake::home(pool, &pool.spec.cluster_ref);
    let deliveries = here.controller::<DeliveryPool>();
    let woken = of_same_cluster(deliveries.store(), home, itself);
    // They are told what the edges are called.
    let named = of_same_cluster(deliveries.store(), home, edge_home);
    let deliveries = deliveries
        .owns(here.api::<Deployment>(), here.ours())
        .owns(here.api::<Secret>(), here.ours())
        .watches(here.api::<RelayCluster>(), here.all(), woken)
        .watches(here.api::<EdgePool>(), here.all(), named);
    let who = ssa::Controller::DeliveryPool;
    work(who, deliveries, context, stop, |object, context| {
        Box::pin(node_pool::reconcile_delivery(object, context))
    })
    .await;
}

async fn queues(here: &Watches, context: &Arc<Context>, stop: &CancellationToken) {
    let home = |pool: &QueuePool| wake::home(pool, &pool.spec.cluster_ref);
    let queues = here.controller::<QueuePool>();
    let woken = of_same_cluster(queues.store(), home, itself);
    let queues = queues
        .owns(here.api::<Pod>(), here.ours())
        .owns(here.api::<Service>(), here.ours())
        .watches(here.api::<RelayCluster>(), here.all(), woken)
        .watches(
            here.api::<PersistentVolumeClaim>(),
            here.ours(),
            // Claims outlive their pool, so they have no owner.
            |claim: PersistentVolumeClaim| {
                let pool = ObjectRef::new(claim.labels().get(names::POOL)?);
                Some(pool.within(&claim.namespace()?))
            },
        );
    let who = ssa::Controller::QueuePool;
    work(who, queues, context, stop, |object, context| {
        Box::pin(queue_pool::reconcile(object, context))
    })
    .await;
}

fn edge_home(pool: &EdgePool) -> Home {
    wake::home(pool, &pool.spec.cluster_ref)
}

fn itself(cluster: &RelayCluster) -> Home {
    (cluster.namespace().unwrap_or_default(), cluster.name_any())
}

fn reference(cluster: &str, namespace: Option<String>) -> Option<ObjectRef<RelayCluster>> {
    Some(ObjectRef::new(cluster).within(&namespace?))
}

/// Fails, with what to do, when the kinds are not there: a watch would only try again for ever.
async fn check_kinds(here: &Watches) -> anyhow::Result<()> {
    here.api::<RelayCluster>()
        .list(&ListParams::default().limit(1))
        .await
        .map(drop)
        .context("the API server does not know RelayCluster, or does not let this account list it; install the kinds with: postroad-operator crds | kubectl apply --server-side -f -")
}

/// Where the controllers look.
struct Watches {
    client: Client,
    namespace: Option<String>,
}

impl Watches {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn all(&self) -> watcher::Config {
        watcher::Config::default().timeout(WATCH_SECONDS)
    }

    /// Only what the operator made itself: Secrets of others are nobody's business here.
    fn ours(&self) -> watcher::Config {
        let managed = format!("app.kubernetes.io/managed-by={}", names::MANAGED_BY);
        self.all().labels(&managed)
    }

    fn controller<K>(&self) -> Controller<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let config = Config::default().concurrency(AT_ONCE).debounce(DEBOUNCE);
        Controller::new(self.api::<K>(), self.all()).with_config(config)
    }
}

/// Brings one object to what is declared.
type Reconcile<K> = fn(Arc<K>, Arc<Context>) -> BoxFuture<'static, Result<Action, Error>>;

/// Runs one controller to its end.
async fn work<K>(
    who: ssa::Controller,
    controller: Controller<K>,
    context: &Arc<Context>,
    stop: &CancellationToken,
    reconcile: Reconcile<K>,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let kind = K::kind(&()).into_owned();
    let once = move |object: Arc<K>, context: Arc<Context>| async move {
        let key = key(who, &*object);
        let outcome = reconcile(object, context.clone()).await;
        metrics::counter!("postroad_operator_reconciliations_total", "kind" => K::kind(&()).into_owned(), "outcome" => if outcome.is_ok() { "done" } else { "failed" }).increment(1);
        if outcome.is_ok() {
            context.backoff.worked(&key);
        }
        outcome
    };
    let failed = move |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let key = key(who, &*object);
        let pause = context.backoff.failed(&key, rand::random());
        match error {
            Error::NotYet(text) => tracing::info!(object = key, "{text}"),
            error => {
                tracing::warn!(object = key, %error, again_in = ?pause, "could not be brought to what is declared")
            }
        }
        Action::requeue(pause)
    };
    let stop = stop.clone();
    controller
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(once, failed, context.clone())
        .for_each(|outcome| {
            match outcome {
                Err(controller::Error::QueueError(error)) => {
                    tracing::warn!(kind, %error, "cannot watch; it is tried again");
                }
                // What reconciling met was logged above.
                Err(error) => tracing::debug!(kind, %error, "a controller's turn ended"),
                Ok(_) => {}
            }
            std::future::ready(())
        })
        .await;
}

/// What failures in a row are counted by. Two controllers look after RelayClusters: what one of them can do says nothing of the other.
fn key<K: Resource<DynamicType = ()>>(who: ssa::Controller, object: &K) -> String {
    let meta = object.meta();
    format!(
        "{}: {} {}/{}",
        who.as_str(),
        K::kind(&()),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use resource::RelayClusterSpec;

    use super::*;

    #[test]
    fn a_controller_that_works_ends_no_pause_of_another_of_the_same_kind() {
        let cluster = RelayCluster::new("postroad", RelayClusterSpec::default());
        let backoff = crate::error::Backoff::default();
        let failing = key(ssa::Controller::Config, &cluster);
        let first = backoff.failed(&failing, 0.5);
        backoff.worked(&key(ssa::Controller::Cluster, &cluster));
        assert!(backoff.failed(&failing, 0.5) > first);
    }
}
