//! Edge and delivery pools: nodes without a disk of their own, as Deployments that drain.
//!
//! The two differ in their arguments, ports and Services ([`edge`], [`delivery`]); what they have in common is here: the
//! order of things, and in [`build`] the objects.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use kube::runtime::controller::Action;
use proto::Role;
use proto::pki::Pair;
use resource::spec::Fault;
use resource::{Condition, DeliveryPool, EdgePool, QueuePool, RelayCluster, RelayClusterSpec};
use serde_json::{Value, json};

use crate::cluster::{self, of_cluster};
use crate::conditions::{Conditions, Reason, find};
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, Component, PoolName};
use crate::network;
use crate::pki::{self, Leaf};
use crate::place;
use crate::ssa::{self, Controller};
use turn::Turn;

pub mod build;
mod certificates;
pub mod delivery;
pub mod edge;
pub mod refusal;
#[cfg(test)]
pub mod tests;
mod turn;

/// A pool that cannot go on waits for a change, and looks by itself this often.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// Secrets of people have no watch: one that is missing is looked for this often.
const LOOK_FOR_SECRETS: Duration = Duration::from_secs(30);
/// What waits for another controller looks again soon.
const SOON: Duration = Duration::from_secs(2);

/// What a pool needs of its cluster.
struct Home {
    cluster: RelayCluster,
    image: Turn,
    queue: String,
}

/// Brings one edge pool to what is declared.
pub async fn reconcile_edge(pool: Arc<EdgePool>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, _) = place(&*pool)?;
    let name = edge::name(&pool, namespace);
    let before = pool.status.clone().unwrap_or_default();
    let (old, generation) = (&before.conditions, pool.metadata.generation);
    let mut conditions = Conditions::new(old, generation, Timestamp::now());
    if pool.spec.source_address_is_reliable() {
        conditions.set(
            "SourceAddressReliable",
            true,
            Reason::AsDeclared,
            "clients come with their own addresses",
        );
    } else {
        conditions.set(
            "SourceAddressReliable",
            false,
            Reason::SourceAddressHidden,
            "externalTrafficPolicy: Cluster hides the clients' addresses, so no network is recognised; write Local",
        );
    }
    // What is not looked at now stays as it was: a field that is left out is taken away.
    let mut state = json!(before);
    let outcome = make_edges(&context, &pool, &name, &mut state, &mut conditions).await;
    let refused = refusal::tell(&context, &*pool, old, outcome, &mut conditions).await?;
    state["selector"] = json!(name.selector_text());
    let known = [
        "Ready",
        "Accepted",
        "CertificatesReady",
        "SourceAddressReliable",
    ];
    let (who, conditions) = (Controller::EdgePool, conditions.finish(&known));
    let action =
        write_status::<EdgePool>(&context, who, &name, generation, state, conditions).await?;
    refused.map_or(Ok(action), Err)
}

/// States the objects of an edge pool whose cluster is there; says in `state` and `conditions` what became of them.
async fn make_edges(
    context: &Context,
    pool: &EdgePool,
    name: &PoolName,
    state: &mut Value,
    conditions: &mut Conditions<'_>,
) -> Result<(), Error> {
    let (namespace, own) = (&name.namespace, &name.pool);
    let owners = ssa::owner(pool);
    let Some(home) = home(context, name, &owners, conditions).await? else {
        return Ok(());
    };
    if !usable(resource::spec::edge_pool(&pool.spec).err(), conditions) {
        return Ok(());
    }
    let objects = Objects {
        controller: Controller::EdgePool,
        owners,
        replicas: pool.spec.replicas,
        listeners: pool
            .spec
            .listeners
            .iter()
            .map(|listener| listener.container_port())
            .collect(),
        deployment: edge::build(pool, &home.cluster, name, &home.image.image, &home.queue),
        resource: build::document("EdgePool", namespace, own, &json!(pool.spec)),
    };
    let deployment = objects.apply(context, name, &home.cluster.spec).await?;
    scaled(&deployment, pool.spec.replicas, state, conditions);
    held_back(home.image.waits, state, conditions);
    let services: Api<Service> = Api::namespaced(context.client.clone(), namespace);
    let hides =
        pool.spec.source_address_is_reliable() || all_know_of_hidden_clients(context, name).await?;
    let service = edge::service(pool, name, hides);
    let service = ssa::apply(&services, Controller::EdgePool, &service).await?;
    state["addresses"] = json!(edge::addresses(&service));
    let listeners = certificates::judge(context, pool, namespace, conditions).await?;
    state["listeners"] = json!(listeners);
    Ok(())
}

/// No pod is left that would take a load balancer's address for a client's.
async fn all_know_of_hidden_clients(context: &Context, name: &PoolName) -> Result<bool, Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let selected = ListParams::default().labels(&name.selector_text());
    let pods = pods.list(&selected).await?.items;
    Ok(pods.iter().all(edge::knows_of_hidden_clients))
}

/// Brings one delivery pool to what is declared.
pub async fn reconcile_delivery(
    pool: Arc<DeliveryPool>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let (namespace, _) = place(&*pool)?;
    let name = delivery::name(&pool, namespace);
    let before = pool.status.clone().unwrap_or_default();
    let (old, generation) = (&before.conditions, pool.metadata.generation);
    let mut conditions = Conditions::new(old, generation, Timestamp::now());
    // What is not looked at now stays as it was: a field that is left out is taken away.
    let mut state = json!(before);
    let outcome = make_deliveries(&context, &pool, &name, &mut state, &mut conditions).await;
    let refused = refusal::tell(&context, &*pool, old, outcome, &mut conditions).await?;
    state["selector"] = json!(name.selector_text());
    let (who, conditions) = (
        Controller::DeliveryPool,
        conditions.finish(&["Ready", "Accepted"]),
    );
    let action =
        write_status::<DeliveryPool>(&context, who, &name, generation, state, conditions).await?;
    refused.map_or(Ok(action), Err)
}

/// States the objects of a delivery pool whose cluster is there; says in `state` and `conditions` what became of them.
async fn make_deliveries(
    context: &Context,
    pool: &DeliveryPool,
    name: &PoolName,
    state: &mut Value,
    conditions: &mut Conditions<'_>,
) -> Result<(), Error> {
    let (namespace, own) = (&name.namespace, &name.pool);
    let owners = ssa::owner(pool);
    let Some(home) = home(context, name, &owners, conditions).await? else {
        return Ok(());
    };
    if !usable(resource::spec::delivery_pool(&pool.spec).err(), conditions) {
        return Ok(());
    }
    let edges = of_cluster(context, namespace, |edge: &EdgePool| {
        edge.spec.cluster_ref.name == name.cluster
    });
    let (edges, cluster) = (edges.await?, &home.cluster);
    let objects = Objects {
        controller: Controller::DeliveryPool,
        owners,
        replicas: pool.spec.replicas,
        listeners: Vec::new(),
        deployment: delivery::build(pool, cluster, name, &home.image.image, &home.queue, &edges),
        resource: build::document("DeliveryPool", namespace, own, &json!(pool.spec)),
    };
    let deployment = objects.apply(context, name, &home.cluster.spec).await?;
    scaled(&deployment, pool.spec.replicas, state, conditions);
    held_back(home.image.waits, state, conditions);
    Ok(())
}

/// What the API server takes and nodes cannot read: they would not start any more, so they hear nothing of it.
fn usable(faults: Option<Vec<Fault>>, conditions: &mut Conditions<'_>) -> bool {
    let Some(faults) = faults else {
        return true;
    };
    let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
    conditions.set("Accepted", false, Reason::Invalid, texts.join("; "));
    false
}

/// The pool's cluster, once it is there with its CA, and the queue that its nodes belong to. Without them running pods run on.
async fn home(
    context: &Context,
    name: &PoolName,
    owners: &Value,
    conditions: &mut Conditions<'_>,
) -> Result<Option<Home>, Error> {
    let clusters: Api<RelayCluster> = Api::namespaced(context.client.clone(), &name.namespace);
    let Some(cluster) = clusters.get_opt(&name.cluster).await? else {
        let text = format!(
            "there is no RelayCluster {} in this namespace: apply one, or name another in clusterRef",
            name.cluster
        );
        conditions.set("Accepted", false, Reason::ClusterNotFound, text.clone());
        conditions.set("Ready", false, Reason::ClusterNotFound, text);
        return Ok(None);
    };
    let queues = of_cluster(context, &name.namespace, |pool: &QueuePool| {
        pool.spec.cluster_ref.name == name.cluster
    })
    .await?;
    let Some(queue) = queues.first() else {
        let text = format!(
            "the RelayCluster {} has no QueuePool: apply one",
            name.cluster
        );
        conditions.set("Accepted", false, Reason::QueuePoolNotFound, text.clone());
        conditions.set("Ready", false, Reason::QueuePoolNotFound, text);
        return Ok(None);
    };
    if cluster.spec.paused {
        // They end all the same, and the nodes would be cut off from one another.
        if let Some(ca) = pki::find_ca(&context.client, &name.namespace, &name.cluster).await? {
            renew_leaf(context, name, owners, &ca, &cluster.spec).await?;
        }
        conditions.set(
            "Accepted",
            false,
            Reason::Paused,
            "the RelayCluster is paused: only certificates between nodes are renewed",
        );
        return Ok(None);
    }
    conditions.set("Accepted", true, Reason::AsDeclared, "the cluster is there");
    let image = cluster::image(&cluster, &context.node_image);
    Ok(Some(Home {
        image: turn::turn(context, name, queue, &image).await?,
        queue: names::queue_service(&queue.name_any(), &name.namespace),
        cluster,
    }))
}

/// What both kinds of pool consist of.
struct Objects {
    controller: Controller,
    owners: Value,
    replicas: i32,
    listeners: Vec<u16>,
    deployment: Value,
    resource: String,
}

impl Objects {
    /// States all of them, in the order in which pods need them.
    async fn apply(
        self,
        context: &Context,
        name: &PoolName,
        cluster: &RelayClusterSpec,
    ) -> Result<Deployment, Error> {
        let client = &context.client;
        let ca = pki::find_ca(client, &name.namespace, &name.cluster).await?;
        let ca = ca
            .ok_or_else(|| Error::NotYet(format!("the CA of {} is not there yet", name.cluster)))?;
        renew_leaf(context, name, &self.owners, &ca, cluster).await?;
        let (owners, wanted) = (&self.owners, cluster.network_policy);
        network::apply(
            context,
            self.controller,
            name,
            owners,
            wanted,
            &self.listeners,
        )
        .await?;
        let files: Api<ConfigMap> = Api::namespaced(client.clone(), &name.namespace);
        let file = build::pool_file(name, &self.owners, &self.resource);
        ssa::apply(&files, self.controller, &file).await?;
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &name.namespace);
        match build::disruption_budget(name, &self.owners, self.replicas) {
            Some(budget) => drop(ssa::apply(&budgets, self.controller, &budget).await?),
            None => delete_own(&budgets, &name.object()).await?,
        }
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), &name.namespace);
        Ok(ssa::apply(&deployments, self.controller, &self.deployment).await?)
    }
}

/// The certificate of a pool's nodes, made anew in time.
async fn renew_leaf(
    context: &Context,
    name: &PoolName,
    owners: &Value,
    ca: &Pair,
    cluster: &RelayClusterSpec,
) -> Result<(), Error> {
    let (controller, role) = match name.component {
        Component::Edge => (Controller::EdgePool, Role::Edge),
        Component::Delivery => (Controller::DeliveryPool, Role::Delivery),
        Component::Queue => (Controller::QueuePool, Role::Queue),
    };
    let leaf = Leaf {
        namespace: &name.namespace,
        secret: names::leaf_secret(&name.object()),
        labels: json!(name.labels()),
        owners: owners.clone(),
        role,
        name: name.pool.clone(),
    };
    let tls = &cluster.internal_tls;
    pki::ensure_leaf(&context.client, controller, ca, tls, leaf).await?;
    Ok(())
}

/// Deletes what may not be there.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes what may not be there, if the operator made it: people give such names too.
pub async fn delete_own<K>(api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let Some(found) = api.get_opt(name).await? else {
        return Ok(());
    };
    let by = found.labels().get("app.kubernetes.io/managed-by");
    if by.is_none_or(|by| by != names::MANAGED_BY) {
        return Ok(());
    }
    delete(api, name).await
}

/// The fields of a scaled kind's status, and whether it is ready.
fn scaled(
    deployment: &Deployment,
    desired: i32,
    state: &mut Value,
    conditions: &mut Conditions<'_>,
) {
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or_default();
    let replicas = status.replicas.unwrap_or_default();
    let seen = status.observed_generation >= deployment.metadata.generation;
    let mut text = format!("{ready} of {desired} pods are ready, {updated} are as declared");
    // The API server takes the Deployment and then none of its pods: a quota is full, or a policy forbids them.
    let mut said = status.conditions.iter().flatten();
    let failure = said.find(|one| one.type_ == "ReplicaFailure" && one.status == "True");
    if let Some(why) = failure.and_then(|failure| failure.message.as_deref()) {
        text = format!("{text}; no more can be made: {why}");
    }
    match seen && ready >= desired && updated >= desired && replicas == desired {
        true => conditions.set("Ready", true, Reason::AsDeclared, text),
        false => conditions.set("Ready", false, Reason::PodsNotReady, text),
    }
    state["replicas"] = json!(replicas);
    state["readyReplicas"] = json!(ready);
    state["updatedReplicas"] = json!(updated);
}

/// Nodes that keep an image although another is declared.
fn held_back(waits: Option<String>, state: &mut Value, conditions: &mut Conditions<'_>) {
    if let Some(text) = waits {
        conditions.set("Ready", false, Reason::NotItsTurn, text);
        state["updatedReplicas"] = json!(0);
    }
}

async fn write_status<K>(
    context: &Context,
    controller: Controller,
    name: &PoolName,
    generation: Option<i64>,
    mut state: Value,
    conditions: Vec<Condition>,
) -> Result<Action, Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    state["observedGeneration"] = json!(generation);
    state["conditions"] = json!(conditions);
    let said = |type_: &str, reason: Reason| {
        find(&conditions, type_).is_some_and(|condition| condition.reason == reason.text())
    };
    let pause = match () {
        () if said("Accepted", Reason::Invalid) => LOOK_AGAIN,
        () if !said("Accepted", Reason::AsDeclared) => SOON,
        () if said("Ready", Reason::NotItsTurn) => SOON,
        () if said("CertificatesReady", Reason::CertificateMissing) => LOOK_FOR_SECRETS,
        () => LOOK_AGAIN,
    };
    let api: Api<K> = Api::namespaced(context.client.clone(), &name.namespace);
    ssa::apply_status(&api, controller, &name.pool, &state).await?;
    Ok(Action::requeue(pause))
}
