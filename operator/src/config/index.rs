//! All RelayDomains and signing keys, followed and at hand: judging a claim takes all of them, and asking the API server for all
//! of them with each change would be its heaviest load.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use resource::{DkimKey, RelayDomain};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// What is followed.
#[derive(Clone)]
pub struct Index {
    /// All RelayDomains.
    pub domains: Store<RelayDomain>,
    /// All signing keys.
    pub keys: Store<DkimKey>,
}

impl Index {
    /// Until both kinds were listed once: before that nobody knows who claims what.
    pub async fn ready(&self) {
        // The writers live as long as this program.
        let _ = tokio::join!(
            self.domains.wait_until_ready(),
            self.keys.wait_until_ready()
        );
    }
}

/// Begins to follow. The stream says that something changed that the nodes, or a domain's conditions, depend on; several
/// changes may be one.
pub fn follow(
    domains: Api<RelayDomain>,
    keys: Api<DkimKey>,
    config: watcher::Config,
) -> (Index, impl Stream<Item = ()> + Send + 'static) {
    // One is enough: who is woken looks at everything.
    let (wake, woken) = mpsc::channel(1);
    let index = Index {
        domains: one(domains, config.clone(), wake.clone(), of_domain),
        keys: one(keys, config, wake, of_key),
    };
    let stream = futures::stream::unfold(woken, |mut woken| async move {
        woken.recv().await.map(|()| ((), woken))
    });
    (index, stream)
}

fn one<K>(
    api: Api<K>,
    config: watcher::Config,
    wake: mpsc::Sender<()>,
    what_counts: fn(&K) -> u64,
) -> Store<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (reader, writer) = reflector::store();
    let changes = Changes(Arc::default(), what_counts);
    let events = reflector::reflector(writer, watcher::watcher(api, config).default_backoff());
    tokio::spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                // Full: somebody will look anyway.
                Ok(event) if changes.note(&event) => drop(wake.try_send(())),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "cannot watch; it is tried again");
                }
            }
        }
    });
    reader
}

/// What counted of each object when it was seen last.
struct Changes<K>(Arc<Mutex<HashMap<String, u64>>>, fn(&K) -> u64);

impl<K: Resource<DynamicType = ()>> Changes<K> {
    /// The event changes something that counts.
    fn note(&self, event: &Event<K>) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |object: &K| {
            format!(
                "{}/{}",
                object.namespace().unwrap_or_default(),
                object.name_any()
            )
        };
        match event {
            Event::Init => {
                seen.clear();
                false
            }
            Event::InitApply(object) => {
                seen.insert(key(object), (self.1)(object));
                false
            }
            Event::InitDone => true,
            Event::Apply(object) => {
                let now = (self.1)(object);
                seen.insert(key(object), now) != Some(now)
            }
            Event::Delete(object) => {
                seen.remove(&key(object));
                true
            }
        }
    }
}

fn digest(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Spec, whether it is going, and the conditions of others that its own depend on.
fn of_domain(domain: &RelayDomain) -> u64 {
    let conditions = domain.status.iter().flat_map(|status| &status.conditions);
    let others: Vec<String> = conditions
        .filter(|condition| ["DKIMReady", "OwnershipVerified"].contains(&condition.type_.as_str()))
        .map(|condition| format!("{}{:?}", condition.type_, condition.status))
        .collect();
    let meta = &domain.metadata;
    digest((
        &meta.uid,
        meta.generation,
        meta.deletion_timestamp.is_some(),
        others,
    ))
}

/// Where it is, whether it was taken back, and which key it is.
fn of_key(key: &DkimKey) -> u64 {
    let status = key.status.as_ref();
    let record = status
        .and_then(|status| status.record.as_ref())
        .map(|record| &record.value);
    let phase = status
        .and_then(|status| status.phase)
        .map(|phase| format!("{phase:?}"));
    let meta = &key.metadata;
    digest((
        &meta.uid,
        meta.generation,
        meta.deletion_timestamp.is_some(),
        phase,
        record,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_of_a_domain_wakes_nobody_unless_it_counts() {
        let spec = serde_json::from_value(serde_json::json!({"domain": "a.test", "inbound": {}}));
        let mut domain = RelayDomain::new("a", spec.expect("good"));
        let changes = Changes(Arc::default(), of_domain);
        assert!(changes.note(&Event::Apply(domain.clone())));
        domain.status = Some(resource::RelayDomainStatus {
            active_selectors: vec!["x".into()],
            ..Default::default()
        });
        assert!(!changes.note(&Event::Apply(domain.clone())));
        domain.metadata.generation = Some(2);
        assert!(changes.note(&Event::Apply(domain.clone())));
        assert!(changes.note(&Event::Delete(domain.clone())));
        assert!(
            changes.note(&Event::Apply(domain)),
            "one that comes back is new"
        );
    }
}
