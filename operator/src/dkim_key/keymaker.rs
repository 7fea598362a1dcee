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

/// Makes a key with this selector, and what holds it; or says what stands in the way.
pub async fn make(
    context: &Context,
    order: &Order<'_>,
    algorithm: DkimAlgorithm,
    selector: &str,
) -> Result<Result<(), String>, Error> {
    let name = object_name(order, selector);
    if let Err(text) = free(context, order, &name, selector).await? {
        return Ok(Err(text));
    }
    let text = tokio::task::spawn_blocking(move || generate(algorithm))
        .await
        .map_err(|error| Error::Internal(error.to_string()))??;
    let secret: Secret = serde_json::from_value(secret(order, &name, selector, &text))?;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {}
        // It was made before, and is the key that counts.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    let object = key(order, algorithm, selector, &name, KeySource::Generated);
    let made = create(context, order, &object).await?;
    if made.is_ok() {
        let text = format!("the key {selector} ({algorithm:?}) was made; publish its record");
        context.tell(order.domain, "KeyMade", text).await;
    }
    Ok(made)
}

/// Makes the DkimKey of a key of a person's own, or says what stands in the way.
pub async fn import(
    context: &Context,
    order: &Order<'_>,
    algorithm: DkimAlgorithm,
    selector: &str,
    secret: &str,
) -> Result<Result<(), String>, Error> {
    let object = key(order, algorithm, selector, secret, KeySource::Imported);
    create(context, order, &object).await
}

/// Secrets with keys of the domain that have no DkimKey get one. Says whether there were any. One that had a DkimKey under this
/// very RelayDomain lost it to a person, who meant the key: it goes too.
pub async fn adopt(context: &Context, order: &Order<'_>, keys: &[DkimKey]) -> Result<bool, Error> {
    // Its DkimKeys may go first, and its Secrets stay.
    if order.domain.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let objects: Api<DkimKey> = Api::namespaced(context.client.clone(), order.namespace);
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
            // A private key does not come back, and a list may be old or lack one: the DkimKey is asked for by name.
            let there = objects.get_opt(&object_name(order, selector)).await?;
            if there.is_some_and(|key| key.spec.secret_name == name) {
                continue;
            }
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
        if let Err(text) = create(context, order, &object).await? {
            tracing::warn!(
                domain = order.name,
                secret = name,
                reason = text,
                "a key that is left over is not taken over"
            );
            continue;
        }
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

/// Names are made of two names, and `a` with the selector `b-c` has that of `a-b` with `c`: what is another domain's is not
/// touched, and that is said. Looked at before a key is made, so that none is left over.
async fn free(
    context: &Context,
    order: &Order<'_>,
    name: &str,
    selector: &str,
) -> Result<Result<(), String>, Error> {
    let keys: Api<DkimKey> = Api::namespaced(context.client.clone(), order.namespace);
    if let Some(key) = keys.get_opt(name).await?
        && let Err(text) = ours(&key, order.name)
    {
        return Ok(Err(text));
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), order.namespace);
    let there = secrets.get_opt(name).await?;
    Ok(there.map_or(Ok(()), |secret| is_for(&secret, order.domain, selector)))
}

/// Whether a Secret has the key of this domain with this selector.
fn is_for(secret: &Secret, domain: &RelayDomain, selector: &str) -> Result<(), String> {
    let notes = secret.annotations();
    let of = (notes.get(names::KEY_DOMAIN), notes.get(names::KEY_SELECTOR));
    match of == (Some(&domain.spec.domain), Some(&selector.to_owned())) {
        true => Ok(()),
        false => Err(format!(
            "there is a Secret {} that has no key of {} with the selector {selector}: choose another selectorPrefix, or delete \
             that Secret",
            secret.name_any(),
            domain.spec.domain
        )),
    }
}

/// Creates a DkimKey, unless its name is another domain's.
async fn create(
    context: &Context,
    order: &Order<'_>,
    object: &Value,
) -> Result<Result<(), String>, Error> {
    let mut object = object.clone();
    object["apiVersion"] = json!(resource::API_VERSION);
    object["kind"] = json!("DkimKey");
    let object: DkimKey = serde_json::from_value(object)?;
    let keys: Api<DkimKey> = Api::namespaced(context.client.clone(), order.namespace);
    // Created once and never stated again: `revoked` is a person's.
    match keys.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let name = object.name_any();
            let there = keys.get_opt(&name).await?;
            Ok(there.map_or(Ok(()), |there| ours(&there, order.name)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a DkimKey is one of this RelayDomain's.
fn ours(key: &DkimKey, domain: &str) -> Result<(), String> {
    let (name, owner) = (key.name_any(), &key.spec.domain_ref.name);
    match owner == domain {
        true => Ok(()),
        false => Err(format!(
            "the DkimKey {name} is of the RelayDomain {owner}, and a key of {domain} with the selector {} would have the same \
             name: choose another selector",
            name.strip_prefix(&format!("{domain}-")).unwrap_or(&name)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_whose_name_another_domain_has_is_refused_with_what_to_do() {
        let key: DkimKey = serde_json::from_value(json!({
            "apiVersion": resource::API_VERSION, "kind": "DkimKey", "metadata": {"name": "a-b-c"},
            "spec": {
                "domainRef": {"name": "a-b"}, "domain": "b.example", "selector": "c", "algorithm": "Ed25519",
                "secretName": "any", "source": "Imported",
            },
        }))
        .expect("a key");
        assert_eq!(ours(&key, "a-b"), Ok(()));
        let text = ours(&key, "a").expect_err("it is of a-b");
        assert!(
            text.contains("selector b-c") && text.contains("choose another"),
            "{text}"
        );
    }

    /// It outlived its RelayDomain, whose name and selector make the same name.
    #[test]
    fn another_domains_key_is_not_taken_for_ones_own() {
        let domain: RelayDomain = serde_json::from_value(json!({
            "apiVersion": resource::API_VERSION, "kind": "RelayDomain", "metadata": {"name": "a"},
            "spec": {"domain": "a.example", "outbound": {}},
        }))
        .expect("a domain");
        let secret = |of: &str, selector: &str| Secret {
            metadata: kube::api::ObjectMeta {
                name: Some("a-b-c".into()),
                annotations: Some(
                    [(names::KEY_DOMAIN, of), (names::KEY_SELECTOR, selector)]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                ..Default::default()
            },
            ..Default::default()
        };
        assert_eq!(is_for(&secret("a.example", "b-c"), &domain, "b-c"), Ok(()));
        for other in [
            secret("b.example", "c"),
            secret("a.example", "c"),
            Secret::default(),
        ] {
            let text = is_for(&other, &domain, "b-c").expect_err("it is of another");
            assert!(text.contains("choose another selectorPrefix"), "{text}");
        }
    }

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
