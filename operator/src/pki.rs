//! The cluster's own CA and the certificates of its nodes, kept in Secrets.
//!
//! A CA's key is never overwritten: who finds one uses it. A node's certificate is made anew when two thirds of its life have
//! passed, or when it was signed by another CA; nodes read the new files without a restart.
//!
//! What goes with its owner, and what outlives it, is `deletionPolicy`'s to say ([`restate_owner`]).

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
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
/// Type of the Secret with the keys that seal a cluster's signing keys.
pub const SEAL_TYPE: &str = "postroad.dev/seal";

/// The CA of a cluster as it lies in its Secret, made if there is none.
pub async fn ensure_ca(client: &Client, cluster: &RelayCluster) -> Result<Pair, Error> {
    let (namespace, name) = crate::place(cluster)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = names::ca_secret(name);
    let policy = cluster.spec.deletion_policy;
    if let Some(found) = secrets.get_opt(&secret).await? {
        restate_owner(&secrets, &found, cluster, policy).await?;
        return ca_of(&found);
    }
    let trust_domain = names::trust_domain(namespace, name);
    let life = days(cluster.spec.internal_tls.ca_days);
    let ca = pki::make_ca(&trust_domain, SystemTime::now(), life)?;
    let owners = owners(&[], cluster, policy);
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
    let policy = cluster.spec.deletion_policy;
    if let Some(found) = secrets.get_opt(&secret).await? {
        return restate_owner(&secrets, &found, cluster, policy).await;
    }
    let key: [u8; 32] = rand::random();
    let id = Timestamp::now().as_second().to_string();
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(secret),
            labels: serde_json::from_value(labels(name))?,
            owner_references: Some(owners(&[], cluster, policy)),
            ..ObjectMeta::default()
        },
        type_: Some(SEAL_TYPE.into()),
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

/// Brings a Secret's owners to what `deletionPolicy` says now: it may have said something else when the Secret was made, and
/// then keys would be lost with their cluster, or stay. Writes only what differs.
pub async fn restate_owner<K: Resource<DynamicType = ()>>(
    secrets: &Api<Secret>,
    found: &Secret,
    owner: &K,
    policy: Retention,
) -> Result<(), Error> {
    let wanted = owners(found.owner_references(), owner, policy);
    if wanted == found.owner_references() {
        return Ok(());
    }
    let name = found.name_any();
    // With the version that was read: an owner that somebody else wrote meanwhile is not taken out again.
    let version = &found.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version, "ownerReferences": wanted}});
    let patch = Patch::Merge(&patch);
    match secrets.patch(&name, &PatchParams::default(), &patch).await {
        Ok(_) => {
            tracing::info!(secret = name, ?policy, "the Secret follows deletionPolicy");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(Error::NotYet(format!(
            "the Secret {name} changed before deletionPolicy could be written into it"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// The owners that a Secret should have, if it has these. Those of other kinds stay.
fn owners<K: Resource<DynamicType = ()>>(
    there: &[OwnerReference],
    owner: &K,
    policy: Retention,
) -> Vec<OwnerReference> {
    let (kind, group) = (K::kind(&()), K::group(&()));
    // Whatever its uid: one of a former object of that name, from a backup perhaps, would take the Secret with it at once.
    let ours = |one: &&OwnerReference| {
        one.kind == kind && one.api_version.split('/').next() == Some(&*group)
    };
    let mut owners: Vec<OwnerReference> = there.iter().filter(|one| !ours(one)).cloned().collect();
    // The API server takes one controller. A Secret that another one keeps goes when that one says so.
    let kept = owners.iter().any(|one| one.controller == Some(true));
    if policy == Retention::Delete && !kept {
        owners.extend(owner.controller_owner_ref(&()));
    }
    owners
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

#[cfg(test)]
mod tests {
    use resource::RelayClusterSpec;

    use super::*;

    fn cluster(uid: &str) -> RelayCluster {
        let mut cluster = RelayCluster::new("postroad", RelayClusterSpec::default());
        cluster.metadata.uid = Some(uid.into());
        cluster
    }

    fn stranger(controller: bool) -> OwnerReference {
        OwnerReference {
            api_version: "bitnami.com/v1alpha1".into(),
            kind: "SealedSecret".into(),
            name: "postroad-ca".into(),
            uid: "9".into(),
            controller: Some(controller),
            ..OwnerReference::default()
        }
    }

    /// Who wrote Delete first and Retain later lost the CA and the sealing key with the cluster; the other way all of it stayed.
    #[test]
    fn a_secret_goes_or_stays_as_the_policy_says_now_and_not_when_it_was_made() {
        let (own, former) = (cluster("2"), cluster("1"));
        let made = owners(&[], &own, Retention::Delete);
        assert_eq!((made.len(), made[0].uid.as_str()), (1, "2"));
        let again = owners(&made, &own, Retention::Delete);
        assert_eq!(again, made, "nothing is to be written");
        assert!(owners(&made, &own, Retention::Retain).is_empty());
        assert!(owners(&[], &own, Retention::Retain).is_empty());
        let old = owners(&[], &former, Retention::Delete);
        assert_eq!(owners(&old, &own, Retention::Delete), made);
        assert!(owners(&old, &own, Retention::Retain).is_empty());
    }

    #[test]
    fn other_owners_of_a_secret_stay_and_of_controllers_there_is_one() {
        let own = cluster("2");
        let ours = owners(&[], &own, Retention::Delete);
        let other = [stranger(false)];
        let both = owners(&other, &own, Retention::Delete);
        assert_eq!(both, [other.to_vec(), ours].concat());
        assert_eq!(owners(&both, &own, Retention::Retain), other);
        let kept = [stranger(true)];
        assert_eq!(owners(&kept, &own, Retention::Delete), kept);
    }
}
