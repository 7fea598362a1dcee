//! Configuration: which RelayDomains count, and how they reach the nodes of a cluster.
//!
//! Compiling is level-based: every time all domains of a cluster are judged anew ([`resource::judge`]), those that count are
//! laid out for its edge and delivery nodes, and every domain is told its answer. What is refused reaches no node.
//!
//! The documents lie in a ConfigMap that nodes mount. The kubelet would show a change after a minute or so; a pod that is
//! touched is looked at at once, so the pods' annotation says which state they should see.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use resource::{Claim, Cluster, Refusal, RelayCluster, RelayDomain, judge};
use serde_json::{Value, json};

use crate::conditions::{Conditions, Reason};
use crate::context::Context;
use crate::error::Error;
use crate::names::{self, Component};
use crate::place;
use crate::ssa::{self, Controller};

/// All domains are judged this often, also when nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// What delivery nodes are ahead of edges: the kubelet's look at a pod, and the node's at its files.
const HEAD_START: Duration = Duration::from_secs(3);
/// What a RelayDomain's status speaks of, as far as this controller knows.
const CONDITIONS: [&str; 3] = ["Ready", "Accepted", "Programmed"];

/// Judges all domains of one cluster and lays out those that count.
pub async fn reconcile(cluster: Arc<RelayCluster>, context: Arc<Context>) -> Result<Action, Error> {
    let (namespace, name) = place(&*cluster)?;
    let domains = domains_of(&context, namespace, name).await?;
    let labels = namespace_labels(&context, &domains).await?;
    let none = BTreeMap::new();
    let claims: Vec<Claim<'_>> = domains
        .iter()
        .map(|domain| {
            let own = domain.metadata.namespace.as_deref().unwrap_or_default();
            Claim {
                namespace: own,
                name: domain.metadata.name.as_deref().unwrap_or_default(),
                created: created(domain),
                labels: labels.get(own).unwrap_or(&none),
                spec: &domain.spec,
                // Seen at nobody's DNS yet: an ownership record is asked for only where the cluster wants one.
                proven: false,
            }
        })
        .collect();
    let home = Cluster {
        namespace,
        access: &cluster.spec.access,
    };
    let verdicts = judge(home, &claims);
    let accepted = domains
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.is_ok());
    let mut documents = vec![document(
        "RelayCluster",
        namespace,
        name,
        &json!(cluster.spec),
    )];
    documents.extend(accepted.map(|(domain, _)| {
        let own = domain.metadata.namespace.as_deref().unwrap_or_default();
        document("RelayDomain", own, &domain.name_any(), &json!(domain.spec))
    }));
    let version = lay_out(&context, &cluster, &documents).await?;
    // Delivery nodes first: an edge that knew a domain before they do would send its mail the wrong way.
    if touch_pods(&context, namespace, name, Component::Delivery, &version).await? {
        tokio::time::sleep(HEAD_START).await;
    }
    touch_pods(&context, namespace, name, Component::Edge, &version).await?;
    for (domain, verdict) in domains.iter().zip(&verdicts) {
        tell(&context, domain, verdict.as_ref().err()).await?;
    }
    Ok(Action::requeue(LOOK_AGAIN))
}

/// All domains that name the cluster, whatever their namespace.
async fn domains_of(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Vec<RelayDomain>, Error> {
    let api: Api<RelayDomain> = Api::all(context.client.clone());
    let mut found = api.list(&ListParams::default()).await?.items;
    found.retain(|domain| {
        domain.metadata.deletion_timestamp.is_none()
            && cluster_of(domain) == (namespace.into(), cluster.into())
    });
    // The same set gives the same octets.
    found.sort_by_key(|domain| (domain.namespace(), domain.name_any()));
    Ok(found)
}

/// Namespace and name of the cluster that a domain belongs to.
pub fn cluster_of(domain: &RelayDomain) -> (String, String) {
    let reference = &domain.spec.cluster_ref;
    let namespace = reference.namespace.clone().or_else(|| domain.namespace());
    (namespace.unwrap_or_default(), reference.name.clone())
}

async fn namespace_labels(
    context: &Context,
    domains: &[RelayDomain],
) -> Result<BTreeMap<String, BTreeMap<String, String>>, Error> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let mut labels = BTreeMap::new();
    for domain in domains {
        let own = domain.namespace().unwrap_or_default();
        if let Entry::Vacant(entry) = labels.entry(own) {
            let found = api.get_opt(entry.key()).await?;
            let found = found.and_then(|namespace| namespace.metadata.labels);
            entry.insert(found.unwrap_or_default());
        }
    }
    Ok(labels)
}

fn created(domain: &RelayDomain) -> i64 {
    let created = domain.metadata.creation_timestamp.as_ref();
    created.map_or(0, |time| time.0.as_second())
}

/// A resource as nodes read it from a file; JSON is YAML.
pub fn document(kind: &str, namespace: &str, name: &str, spec: &Value) -> String {
    let document = json!({
        "apiVersion": resource::API_VERSION, "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    });
    ssa::without_nulls(document).to_string()
}

/// Writes the documents; gives what tells this state from others.
async fn lay_out(
    context: &Context,
    cluster: &RelayCluster,
    documents: &[String],
) -> Result<String, Error> {
    let (namespace, name) = place(cluster)?;
    let text = documents.join("\n---\n");
    let version = names::digest(&text);
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": names::config(name), "ownerReferences": ssa::owner(cluster),
            "labels": {names::CLUSTER: name, "app.kubernetes.io/managed-by": names::MANAGED_BY},
            "annotations": {names::CONFIG_VERSION: version},
        },
        "data": {names::CONFIG_FILE: text},
    });
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    ssa::apply(&maps, Controller::Config, &object).await?;
    Ok(version)
}

/// Makes the kubelet look at the pods that read the configuration; says whether there were any that had not seen it.
async fn touch_pods(
    context: &Context,
    namespace: &str,
    cluster: &str,
    component: Component,
    version: &str,
) -> Result<bool, Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selected = format!(
        "{}={cluster},app.kubernetes.io/component={}",
        names::CLUSTER,
        component.as_str()
    );
    let mut touched = false;
    for pod in pods
        .list(&ListParams::default().labels(&selected))
        .await?
        .items
    {
        if pod
            .annotations()
            .get(names::CONFIG_VERSION)
            .map(String::as_str)
            == Some(version)
        {
            continue;
        }
        touched = true;
        let patch = json!({"metadata": {"annotations": {names::CONFIG_VERSION: version}}});
        match pods
            .patch(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(touched)
}

/// Writes what became of a domain into its status.
async fn tell(
    context: &Context,
    domain: &RelayDomain,
    refusal: Option<&Refusal>,
) -> Result<(), Error> {
    let (namespace, name) = place(domain)?;
    let before = domain.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(
        &before.conditions,
        domain.metadata.generation,
        Timestamp::now(),
    );
    match refusal {
        None => {
            let text = "laid out for all nodes, which read it within seconds";
            conditions.set(
                "Accepted",
                true,
                Reason::AsDeclared,
                "the cluster relays for this domain",
            );
            conditions.set("Ready", true, Reason::AsDeclared, text);
            // Nodes that read files do not say when they have.
            conditions.unknown("Programmed", Reason::NotAcknowledged, text);
        }
        Some(refusal) => {
            let (reason, text) = (reason(refusal), refusal.to_string());
            let told = before
                .conditions
                .iter()
                .any(|old| old.type_ == "Accepted" && old.message == text);
            if !told {
                context.warn(domain, "NotAccepted", text.clone()).await;
            }
            conditions.set("Accepted", false, reason, text.clone());
            conditions.set("Programmed", false, reason, "nothing of it reaches a node");
            conditions.set("Ready", false, reason, text);
        }
    }
    let status = json!({
        "observedGeneration": domain.metadata.generation,
        "conditions": conditions.finish(&CONDITIONS),
        "inbound": domain.spec.inbound.is_some(),
        "outbound": domain.spec.outbound.is_some(),
    });
    let api: Api<RelayDomain> = Api::namespaced(context.client.clone(), namespace);
    Ok(ssa::apply_status(&api, Controller::Config, name, &status).await?)
}

fn reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::NamespaceNotAllowed { .. } => Reason::NamespaceNotAllowed,
        Refusal::OwnershipNotVerified { .. } => Reason::OwnershipNotVerified,
        Refusal::DomainConflict { .. } => Reason::DomainConflict,
        Refusal::NetworkNotAllowed { .. } => Reason::NetworkNotAllowed,
        Refusal::Invalid { .. } => Reason::Invalid,
    }
}
