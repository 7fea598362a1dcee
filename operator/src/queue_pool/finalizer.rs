//! A QueuePool whose volumes would go with it stays while mail is left in them, or may still come: while nodes at the edge run.
//!
//! Its volumes go when it is let go, and only by this: no owner reference of theirs would ask whether they are empty, or hear of
//! a `whenDeleted` that changed since.
//!
//! It is let go when the queue says that it is empty, when a person says that its mail may go (annotation
//! `postroad.dev/force-forget`), and when the whole namespace goes: that is such a word too.

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use proto::client::AdminClient;
use resource::{QueuePool, Retention};
use serde_json::json;

use crate::context::Context;
use crate::error::Error;
use crate::names::{self, Component, PoolName};
use crate::node_pool::delete;
use crate::pki;

/// The finalizer.
const NAME: &str = "postroad.dev/mail-is-left";

/// What holds a pool that is on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is not on its way out.
    Stays,
    /// Nothing: it goes.
    Released,
    /// This, for people.
    By(String),
}

/// The pool's volumes go with it.
fn would_lose_mail(pool: &QueuePool) -> bool {
    pool.spec.storage.when_deleted == Retention::Delete
}

/// Puts the finalizer on, or takes it away; says what holds a pool that is on its way out.
pub async fn keep(context: &Context, pool: &QueuePool) -> Result<Held, Error> {
    let (namespace, _) = crate::place(pool)?;
    let has = pool.finalizers().iter().any(|one| one == NAME);
    if pool.metadata.deletion_timestamp.is_none() {
        if has != would_lose_mail(pool) {
            write(context, pool, !has).await?;
        }
        return Ok(Held::Stays);
    }
    if !has {
        return Ok(Held::Released);
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let home = namespaces.get_opt(namespace).await?;
    let going = home.is_none_or(|home| home.metadata.deletion_timestamp.is_some());
    let forget = pool.annotations().contains_key(names::FORCE_FORGET);
    if going || !would_lose_mail(pool) {
        write(context, pool, false).await?;
        return Ok(Held::Released);
    }
    if forget {
        return release(context, pool, &super::build::name(pool, namespace)).await;
    }
    Ok(Held::By("the queue was not asked yet".into()))
}

/// Takes the volumes away, then lets the pool go. A volume stays until the pod that uses it has ended, which goes with the pool.
async fn release(context: &Context, pool: &QueuePool, name: &PoolName) -> Result<Held, Error> {
    let claims = claims(context, name);
    let selected = ListParams::default().labels(&name.selector_text());
    for claim in claims.list(&selected).await?.items {
        delete(&claims, &claim.name_any()).await?;
    }
    write(context, pool, false).await?;
    Ok(Held::Released)
}

fn claims(context: &Context, name: &PoolName) -> Api<PersistentVolumeClaim> {
    Api::namespaced(context.client.clone(), &name.namespace)
}

/// What holds a pool that is on its way out and would take its mail with it. Asks for nothing that may be gone already, like the
/// RelayCluster.
pub async fn leave(context: &Context, pool: &QueuePool, name: &PoolName) -> Result<Held, Error> {
    let selected = ListParams::default().labels(&name.selector_text());
    if claims(context, name)
        .list(&selected)
        .await?
        .items
        .is_empty()
    {
        // It never had a volume.
        return release(context, pool, name).await;
    }
    let edge = PoolName {
        component: Component::Edge,
        ..name.clone()
    };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let edges = ListParams::default().labels(&edge.of_cluster());
    let edges = pods.list(&edges).await?.items.len();
    if edges > 0 {
        return Ok(Held::By(format!(
            "{edges} nodes at the edge still accept mail for this queue: delete their EdgePools first, or annotate this pool with {}=true to lose its mail",
            names::FORCE_FORGET
        )));
    }
    let Some(ca) = pki::find_ca(&context.client, &name.namespace, &name.cluster).await? else {
        return Ok(Held::By(format!(
            "the queue cannot be asked whether it is empty, for the CA of {} is gone: annotate this pool with {}=true to lose its mail",
            name.cluster,
            names::FORCE_FORGET
        )));
    };
    let address = names::queue_service(&name.pool, &name.namespace);
    let queue = context.queue(&name.namespace, &name.cluster, &address, &ca)?;
    release_if_empty(context, pool, name, &queue.admin()).await
}

/// Lets a pool go whose queue is empty; says what holds it else.
async fn release_if_empty(
    context: &Context,
    pool: &QueuePool,
    name: &PoolName,
    admin: &AdminClient,
) -> Result<Held, Error> {
    let summary = admin.summary(0).await;
    let left = match summary {
        Ok(summary) => summary.messages,
        Err(error) => {
            return Ok(Held::By(format!(
                "the queue does not say whether it is empty: {error}; annotate this pool with {}=true to lose its mail",
                names::FORCE_FORGET
            )));
        }
    };
    if left == 0 {
        return release(context, pool, name).await;
    }
    Ok(Held::By(format!(
        "mail is in the queue, and its volumes would go with it: wait until it is delivered, or annotate this pool with {}=true to lose it",
        names::FORCE_FORGET
    )))
}

async fn write(context: &Context, pool: &QueuePool, on: bool) -> Result<(), Error> {
    let (namespace, name) = crate::place(pool)?;
    let mut all: Vec<&str> = pool.finalizers().iter().map(String::as_str).collect();
    all.retain(|one| *one != NAME);
    if on {
        all.push(NAME);
    }
    // Only as it was read: somebody else's finalizer is not lost.
    let version = pool.resource_version();
    let patch = json!({"metadata": {"finalizers": all, "resourceVersion": version}});
    let api: Api<QueuePool> = Api::namespaced(context.client.clone(), namespace);
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::NotYet(
            "somebody else wrote the QueuePool meanwhile".into(),
        )),
        Err(error) => Err(error.into()),
    }
}
