//! The cluster's own CA and the certificates of its nodes, kept in Secrets.
//!
//! A CA's key is never overwritten: who finds one uses it. A node's certificate is made anew when two thirds of its life have
//! passed, or when it was signed by another CA; nodes read the new files without a restart.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use proto::pki::Pair;
use proto::{Role, pki};
use resource::{InternalTls, RelayCluster, Retention};
use serde_json::{Value, json};

use crate::error::Error;
use crate::names;
use crate::ssa::{self, Controller};

const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;
/// Type of the Secret with a cluster's CA.
pub const CA_TYPE: &str = "postroad.dev/ca";

/// The CA of a cluster as it lies in its Secret, made if there is none.
pub async fn ensure_ca(client: &Client, cluster: &RelayCluster) -> Result<Pair, Error> {
    let (namespace, name) = crate::place(cluster)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = names::ca_secret(name);
    if let Some(found) = secrets.get_opt(&secret).await? {
        return ca_of(&found);
    }
    let trust_domain = names::trust_domain(namespace, name);
    let life = days(cluster.spec.internal_tls.ca_days);
    let ca = pki::make_ca(&trust_domain, SystemTime::now(), life)?;
    let owners = match cluster.spec.deletion_policy {
        Retention::Delete => ssa::owner(cluster),
        Retention::Retain => json!([]),
    };
    let object: Secret = serde_json::from_value(json!({
        "metadata": {"name": secret, "labels": labels(name), "ownerReferences": owners},
        "type": CA_TYPE,
        "stringData": {pki::CA_CERTIFICATE: ca.certificate, pki::CA_KEY: ca.key},
    }))?;
    match secrets.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(ca),
        // Somebody was quicker: theirs counts.
        Err(kube::Error::Api(status)) if status.code == 409 => ca_of(&secrets.get(&secret).await?),
        Err(error) => Err(error.into()),
    }
}

/// The CA of a cluster, if it was made already.
pub async fn find_ca(
    client: &Client,
    namespace: &str,
    cluster: &str,
) -> Result<Option<Pair>, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get_opt(&names::ca_secret(cluster)).await?;
    found.as_ref().map(ca_of).transpose()
}

/// Lays out what the nodes trust.
pub async fn apply_bundle(client: &Client, cluster: &RelayCluster, ca: &Pair) -> Result<(), Error> {
    let (namespace, name) = crate::place(cluster)?;
    let bundles: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": names::ca_bundle(name), "labels": labels(name), "ownerReferences": ssa::owner(cluster)},
        "data": {pki::CA_CERTIFICATE: ca.certificate},
    });
    ssa::apply(&bundles, Controller::Cluster, &object).await?;
    Ok(())
}

/// Whose certificate, and where it lies.
pub struct Leaf<'a> {
    /// Namespace of the Secret.
    pub namespace: &'a str,
    /// Its name.
    pub secret: String,
    /// Its labels.
    pub labels: Value,
    /// What it goes with.
    pub owners: Value,
    /// What the certificate proves.
    pub role: Role,
    /// Pool, or node id of a queue node.
    pub name: String,
}

/// When a certificate ends, as the API writes times; `None` when there is none in this PEM.
pub fn ends(pem: &[u8]) -> Option<Timestamp> {
    Timestamp::from_second(pki::not_after(pem)?).ok()
}

/// What became of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Ensured {
    /// It was made just now.
    pub made: bool,
    /// When it ends.
    pub ends: Option<Timestamp>,
}

/// Makes the certificate unless a good one is there.
pub async fn ensure_leaf(
    client: &Client,
    controller: Controller,
    ca: &Pair,
    tls: &InternalTls,
    leaf: Leaf<'_>,
) -> Result<Ensured, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), leaf.namespace);
    let now = Timestamp::now();
    let issuer = names::digest(ca.certificate.trim());
    let good = |found: &Secret| {
        let notes = found.metadata.annotations.as_ref();
        let note = |name: &str| notes.and_then(|notes| notes.get(name)).map(String::as_str);
        let renew = note(names::RENEW_AFTER).and_then(|text| text.parse::<Timestamp>().ok());
        note(names::ISSUED_BY) == Some(&issuer) && renew.is_some_and(|renew| now < renew)
    };
    match secrets.get_opt(&leaf.secret).await? {
        Some(found) if good(&found) => {
            let data = found.data.as_ref();
            let pem = data.and_then(|data| data.get(pki::NODE_CERTIFICATE));
            return Ok(Ensured {
                made: false,
                ends: pem.and_then(|pem| ends(&pem.0)),
            });
        }
        Some(found) if !found.annotations().contains_key(names::ISSUED_BY) => {
            return Err(Error::Refused(format!(
                "the Secret {} is not of this operator's making and would be overwritten: delete it, or give the pool another name",
                leaf.secret
            )));
        }
        _ => {}
    }
    let life = days(tls.leaf_days);
    let pair = pki::make_leaf(ca, leaf.role, &leaf.name, SystemTime::now(), life)?;
    let renew = now
        .checked_add(life * 2 / 3)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let object = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": leaf.secret, "labels": leaf.labels, "ownerReferences": leaf.owners,
            "annotations": {names::RENEW_AFTER: renew.to_string(), names::ISSUED_BY: issuer},
        },
        "type": "kubernetes.io/tls",
        "stringData": {pki::NODE_CERTIFICATE: pair.certificate, pki::NODE_KEY: pair.key},
    });
    ssa::apply(&secrets, controller, &object).await?;
    tracing::info!(
        secret = leaf.secret,
        namespace = leaf.namespace,
        "made a certificate"
    );
    Ok(Ensured {
        made: true,
        ends: ends(pair.certificate.as_bytes()),
    })
}

/// The key that seals DKIM keys, made if there is none: only delivery nodes get it.
pub async fn ensure_seal(client: &Client, cluster: &RelayCluster) -> Result<(), Error> {
    let (namespace, name) = crate::place(cluster)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = names::seal_secret(name);
    if secrets.get_opt(&secret).await?.is_some() {
        return Ok(());
    }
    let key: [u8; 32] = rand::random();
    let id = Timestamp::now().as_second().to_string();
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(secret),
            labels: serde_json::from_value(labels(name))?,
            owner_references: match cluster.spec.deletion_policy {
                Retention::Delete => serde_json::from_value(ssa::owner(cluster))?,
                Retention::Retain => None,
            },
            ..ObjectMeta::default()
        },
        type_: Some("postroad.dev/seal".into()),
        // The id that sorts last seals. One that is made anew after its Secret was lost has another, or what the lost key sealed
        // would be taken for its own.
        data: Some([(id, k8s_openapi::ByteString(key.to_vec()))].into()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn labels(cluster: &str) -> Value {
    json!({names::CLUSTER: cluster, "app.kubernetes.io/managed-by": names::MANAGED_BY})
}

fn ca_of(secret: &Secret) -> Result<Pair, Error> {
    let text = |key: &str| {
        let octets = &secret.data.as_ref()?.get(key)?.0;
        String::from_utf8(octets.clone()).ok()
    };
    match (text(pki::CA_CERTIFICATE), text(pki::CA_KEY)) {
        (Some(certificate), Some(key)) => Ok(Pair { certificate, key }),
        _ => Err(Error::BadCa(
            secret.metadata.name.clone().unwrap_or_default(),
        )),
    }
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * SECONDS_OF_A_DAY)
}
