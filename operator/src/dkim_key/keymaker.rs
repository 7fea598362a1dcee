//! Makes private keys, and what holds them: a Secret, then its DkimKey. Secrets outlive their RelayDomain: one that is declared
//! again finds its keys. A Secret whose DkimKey is missing under the RelayDomain that it was made for is left over: a person
//! deleted the key, or the operator died between the two, and then nobody saw it.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::Ed25519KeyPair;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use resource::dkim::PublicKey;
use resource::{DkimAlgorithm, DkimKey, KeySource, RelayDomain, Retention};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Error;
use crate::names;
use crate::node_pool::delete;
use crate::ssa;

/// What a DkimKey is made for.
pub struct Order<'a> {
    /// The RelayDomain.
    pub domain: &'a RelayDomain,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What becomes of the cluster's keys.
    pub deletion: Retention,
}

/// A new private key, PKCS#8 PEM.
///
/// # Errors
/// The library made none, for which there is no reason but a broken random source.
pub fn generate(algorithm: DkimAlgorithm) -> Result<String, Error> {
    let broken = |_| Error::Internal(format!("no {algorithm:?} key could be made"));
    match algorithm {
        DkimAlgorithm::RSA2048 => {
            let pair = rsa::KeyPair::generate(KeySize::Rsa2048).map_err(broken)?;
            let der: Pkcs8V1Der<'_> = pair.as_der().map_err(broken)?;
            Ok(resource::private_pem(der.as_ref()))
        }
        DkimAlgorithm::Ed25519 => {
            let pair = Ed25519KeyPair::generate().map_err(broken)?;
            // Version 1: what openssl reads.
            let der = pair.to_pkcs8v1().map_err(broken)?;
            Ok(resource::private_pem(der.as_ref()))
        }
    }
}

/// Makes a key with this selector, and what holds it.
pub async fn make(
    context: &Context,
    order: &Order<'_>,
    algorithm: DkimAlgorithm,
    selector: &str,
) -> Result<(), Error> {
    let text = tokio::task::spawn_blocking(move || generate(algorithm))
        .await
        .map_err(|error| Error::Internal(error.to_string()))??;
    let name = object_name(order, selector);
    let secret: Secret = serde_json::from_value(secret(order, &name, selector, &text))?;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {}
        // It was made before, and is the key that counts.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    create(
        context,
        order,
        &key(order, algorithm, selector, &name, KeySource::Generated),
    )
    .await?;
    let text = format!("the key {selector} ({algorithm:?}) was made; publish its record");
    context.tell(order.domain, "KeyMade", text).await;
    Ok(())
}

/// Makes the DkimKey of a key of a person's own.
pub async fn import(
    context: &Context,
    order: &Order<'_>,
    algorithm: DkimAlgorithm,
    selector: &str,
    secret: &str,
) -> Result<(), Error> {
    create(
        context,
        order,
        &key(order, algorithm, selector, secret, KeySource::Imported),
    )
    .await
}

/// Secrets with keys of the domain that have no DkimKey get one. Says whether there were any. One that had a DkimKey under this
/// very RelayDomain lost it to a person, who meant the key: it goes too.
pub async fn adopt(context: &Context, order: &Order<'_>, keys: &[DkimKey]) -> Result<bool, Error> {
    // Its DkimKeys may go first, and its Secrets stay.
    if order.domain.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
    let selected = ListParams::default().labels(&format!("{}={}", names::RELAY_DOMAIN, order.name));
    let mut found = false;
    for secret in secrets.list(&selected).await?.items {
        let name = secret.name_any();
        if keys.iter().any(|key| key.spec.secret_name == name) {
            continue;
        }
        let notes = secret.annotations();
        let domain = notes.get(names::KEY_DOMAIN);
        let (Some(selector), Ok(public)) = (notes.get(names::KEY_SELECTOR), public_key(&secret))
        else {
            continue;
        };
        if domain != Some(&order.domain.spec.domain) {
            continue;
        }
        let owner = order.domain.uid();
        if owner.is_some() && notes.get(names::KEY_OWNER) == owner.as_ref() {
            delete(&secrets, &name).await?;
            let text = format!("the DkimKey of {selector} was deleted, and its Secret with it");
            context.tell(order.domain, "KeyDeleted", text).await;
            continue;
        }
        let object = key(
            order,
            public.algorithm,
            selector,
            &name,
            KeySource::Generated,
        );
        create(context, order, &object).await?;
        let owned = json!({"metadata": {"annotations": {names::KEY_OWNER: owner}}});
        let merge = kube::api::PatchParams::default();
        let patch = kube::api::Patch::Merge(&owned);
        secrets.patch(&name, &merge, &patch).await?;
        found = true;
    }
    Ok(found)
}

/// The public half of what a Secret holds.
///
/// # Errors
/// What is wrong with it, for people.
pub fn public_key(secret: &Secret) -> Result<PublicKey, String> {
    PublicKey::of_private(&private_key(secret)?)
}

/// What a Secret holds.
///
/// # Errors
/// What is wrong with it, for people.
pub fn private_key(secret: &Secret) -> Result<String, String> {
    let data = secret.data.as_ref();
    let octets = data
        .and_then(|data| data.get(names::PRIVATE_KEY))
        .ok_or_else(|| format!("it has no `{}`", names::PRIVATE_KEY))?;
    String::from_utf8(octets.0.clone()).map_err(|_| "it holds no PEM".into())
}

fn object_name(order: &Order<'_>, selector: &str) -> String {
    format!("{}-{selector}", order.name)
}

fn labels(order: &Order<'_>) -> Value {
    json!({
        names::CLUSTER: order.domain.spec.cluster_ref.name,
        names::RELAY_DOMAIN: order.name,
        "app.kubernetes.io/managed-by": names::MANAGED_BY,
    })
}

fn secret(order: &Order<'_>, name: &str, selector: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": name, "labels": labels(order),
            "annotations": {
                names::KEY_DOMAIN: order.domain.spec.domain, names::KEY_SELECTOR: selector,
                names::KEY_OWNER: order.domain.uid(),
            },
        },
        "type": names::KEY_SECRET_TYPE,
        "stringData": {names::PRIVATE_KEY: text},
    })
}

fn key(
    order: &Order<'_>,
    algorithm: DkimAlgorithm,
    selector: &str,
    secret: &str,
    source: KeySource,
) -> Value {
    let rotation = order.domain.annotations().get(names::ROTATE);
    json!({
        "metadata": {
            "name": object_name(order, selector), "labels": labels(order),
            "annotations": rotation.map(|value| json!({names::ROTATE: value})),
            "ownerReferences": ssa::owner(order.domain),
        },
        "spec": {
            "domainRef": {"name": order.name}, "domain": order.domain.spec.domain,
            "selector": selector, "algorithm": algorithm, "secretName": secret, "source": source,
        },
    })
}

async fn create(context: &Context, order: &Order<'_>, object: &Value) -> Result<(), Error> {
    let mut object = object.clone();
    object["apiVersion"] = json!(resource::API_VERSION);
    object["kind"] = json!("DkimKey");
    let object: DkimKey = serde_json::from_value(object)?;
    let keys: Api<DkimKey> = Api::namespaced(context.client.clone(), order.namespace);
    // Created once and never stated again: `revoked` is a person's.
    let made = match keys.create(&PostParams::default(), &object).await {
        Ok(made) => made,
        Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if order.deletion == Retention::Delete && made.spec.source == KeySource::Generated {
        let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
        let owned = json!({"metadata": {"ownerReferences": ssa::owner(&made)}});
        let merge = kube::api::PatchParams::default();
        let patch = kube::api::Patch::Merge(&owned);
        secrets
            .patch(&made.spec.secret_name, &merge, &patch)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_is_of_its_algorithm_and_unlike_any_other() {
        for algorithm in [DkimAlgorithm::RSA2048, DkimAlgorithm::Ed25519] {
            let one = PublicKey::of_private(&generate(algorithm).expect("made")).expect("a key");
            let two = PublicKey::of_private(&generate(algorithm).expect("made")).expect("a key");
            assert_eq!((one.algorithm, two.algorithm), (algorithm, algorithm));
            assert_ne!(one.octets, two.octets);
        }
    }
}
