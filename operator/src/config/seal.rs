//! Signing keys on their way to delivery nodes: sealed with the cluster's key. What was sealed once is kept, so that a change of
//! one domain does not read the keys of all others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use resource::DkimKey;
use resource::dkim::PublicKey;
use resource::seal::{Bound, SEALING_KEY_OCTETS, Sealed, SealingKey, SealingKeys};

use crate::context::Context;
use crate::dkim_key::private_key;
use crate::error::Error;
use crate::names;

/// What was sealed, by namespace and name of the DkimKey.
#[derive(Debug, Default)]
pub struct SealedKeys(Mutex<HashMap<String, (String, Sealed)>>);

/// The key that seals for a cluster; `None`: it is not there, or its Secret holds none.
pub async fn sealing_key(
    context: &Context,
    namespace: &str,
    cluster: &str,
) -> Result<Option<SealingKey>, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = secrets.get_opt(&names::seal_secret(cluster)).await?;
    let data = found.and_then(|secret| secret.data).unwrap_or_default();
    let keys = data.iter().filter_map(|(id, octets)| {
        let octets: [u8; SEALING_KEY_OCTETS] = octets.0.as_slice().try_into().ok()?;
        Some(SealingKey::new(id.clone(), &octets))
    });
    Ok(SealingKeys::new(keys.collect()).newest().cloned())
}

/// Seals a key. `None`: its Secret does not hold the key whose record was looked for, and no other may sign in its place.
pub async fn seal(
    context: &Context,
    with: &SealingKey,
    cluster_id: &[u8; 16],
    key: &DkimKey,
) -> Result<Option<Sealed>, Error> {
    let (namespace, name) = crate::place(key)?;
    let Some(record) = key
        .status
        .as_ref()
        .and_then(|status| status.record.as_ref())
    else {
        return Ok(None);
    };
    let place = format!("{namespace}/{name}");
    let of = format!("{} {} {cluster_id:?}", record.value, with.id());
    let remembered = {
        let sealed = context
            .sealed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sealed
            .get(&place)
            .filter(|(known, _)| *known == of)
            .map(|(_, sealed)| sealed.clone())
    };
    if remembered.is_some() {
        return Ok(remembered);
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let secret = secrets.get_opt(&key.spec.secret_name).await?;
    let Some(text) = secret.and_then(|secret| private_key(&secret).ok()) else {
        return Ok(None);
    };
    if PublicKey::of_private(&text)
        .map(|key| key.record())
        .as_ref()
        != Ok(&record.value)
    {
        return Ok(None);
    }
    let bound = Bound {
        cluster_id,
        domain: &key.spec.domain,
        selector: &key.spec.selector,
    };
    let made = with.seal(bound, text.as_bytes());
    let mut sealed = context
        .sealed
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    sealed.insert(place, (of, made.clone()));
    Ok(Some(made))
}

/// Forgets what is sent no more.
pub fn keep(context: &Context, sent: &[&DkimKey]) {
    let mut sealed = context
        .sealed
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if sealed.len() <= sent.len() {
        return;
    }
    let names: std::collections::HashSet<String> = sent
        .iter()
        .filter_map(|key| crate::place(*key).ok())
        .map(|(namespace, name)| format!("{namespace}/{name}"))
        .collect();
    sealed.retain(|name, _| names.contains(name));
}
