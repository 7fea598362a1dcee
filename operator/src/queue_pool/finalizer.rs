//! A QueuePool whose volumes would go with it stays while mail is left in them.
//!
//! It is let go when the queue says that it is empty, when a person says that its mail may go (annotation
//! `postroad.dev/force-forget`), and when the whole namespace goes: that is such a word too.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use proto::client::AdminClient;
use resource::{QueuePool, Retention};
use serde_json::json;

use crate::context::Context;
use crate::error::Error;
use crate::names;

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
    if going || forget || !would_lose_mail(pool) {
        write(context, pool, false).await?;
        return Ok(Held::Released);
    }
    Ok(Held::By("the queue was not asked yet".into()))
}

/// Lets a pool go whose queue is empty; says what holds it else.
pub async fn release_if_empty(
    context: &Context,
    pool: &QueuePool,
    admin: &AdminClient,
) -> Result<Held, Error> {
    let summary = admin.summary(0).await;
    let left = match summary {
        Ok(summary) => summary.messages,
        Err(error) => {
            return Ok(Held::By(format!(
                "the queue does not say whether it is empty: {error}"
            )));
        }
    };
    if left == 0 {
        write(context, pool, false).await?;
        return Ok(Held::Released);
    }
    Ok(Held::By(format!(
        "{left} messages are in the queue, and its volumes would go with it: wait until they are delivered, or annotate it with {}=true to lose them",
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
