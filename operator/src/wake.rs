//! Whom a change of somebody else's object wakes. Pools and domains are made from what their RelayCluster says as well, and
//! delivery pools from what edges are called: without a watch they would see it at their next look by themselves, minutes later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::core::object::HasStatus;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use resource::{ClusterRef, EdgePoolStatus, RelayClusterStatus};

/// Namespace and name of a RelayCluster.
pub type Home = (String, String);

/// The cluster of a pool, which lives in its namespace.
pub fn home<K: ResourceExt>(pool: &K, cluster: &ClusterRef) -> Home {
    (pool.namespace().unwrap_or_default(), cluster.name.clone())
}

/// For a controller's watch on `Other`: those of the controller's own objects that belong to the same cluster.
pub fn of_same_cluster<K, Other>(
    own: Store<K>,
    home_of: fn(&K) -> Home,
    home: fn(&Other) -> Home,
) -> impl Fn(Other) -> Vec<ObjectRef<K>> + Send + Sync + 'static
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    Other: Resource + HasStatus + 'static,
    Other::Status: Clone + PartialEq + Concerns + Send + 'static,
{
    let changes = Changes::<Other::Status>::default();
    move |other: Other| {
        if !changes.count(&other) {
            return Vec::new();
        }
        let home = home(&other);
        let found: Vec<Arc<K>> = own.state_filter(|object| home_of(object) == home);
        found
            .iter()
            .map(|object| ObjectRef::from_obj(&**object))
            .collect()
    }
}

/// A status of which a part concerns others.
pub trait Concerns {
    /// That part.
    fn concern(&self) -> Option<&str>;
}

impl Concerns for RelayClusterStatus {
    /// When the CA ends: another CA has another end, and every node needs a certificate of it.
    fn concern(&self) -> Option<&str> {
        self.ca_not_after.as_deref()
    }
}

impl Concerns for EdgePoolStatus {
    fn concern(&self) -> Option<&str> {
        None
    }
}

/// What was seen last of each object.
struct Changes<S>(Mutex<HashMap<Home, Seen<S>>>);

/// An object at one moment.
struct Seen<S> {
    uid: Option<String>,
    generation: Option<i64>,
    status: Option<S>,
}

impl<S> Default for Changes<S> {
    fn default() -> Changes<S> {
        Changes(Mutex::default())
    }
}

impl<S: Clone + PartialEq + Concerns> Changes<S> {
    /// Something changed that may concern others. A status alone does not, but for what [`Concerns`] says: it is written with every domain and every pod that
    /// comes, and whoever was woken by it would write the next. A watch does not tell an end from a change, but an object that
    /// ends does so with the status that it had.
    fn count<K: Resource + HasStatus<Status = S>>(&self, object: &K) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        let now = Seen {
            uid: object.uid(),
            generation: object.meta().generation,
            status: object.status().cloned(),
        };
        let status_alone = all.get(&key).is_some_and(|seen| {
            let concern = |seen: &Seen<S>| {
                let concern = seen.status.as_ref().and_then(Concerns::concern);
                concern.map(str::to_owned)
            };
            let same = seen.uid == now.uid && seen.generation == now.generation;
            same && seen.status != now.status && concern(seen) == concern(&now)
        });
        all.insert(key, now);
        !status_alone
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use resource::{DeliveryPool, RelayCluster, RelayClusterSpec};
    use serde_json::json;

    use super::*;

    fn pool(name: &str, cluster: &str) -> DeliveryPool {
        let spec = serde_json::from_value(json!({"clusterRef": {"name": cluster}}));
        let mut pool = DeliveryPool::new(name, spec.expect("a good spec"));
        pool.metadata.namespace = Some("mail".into());
        pool
    }

    #[test]
    fn a_cluster_wakes_its_own_pools_and_of_its_status_only_the_ca_does() {
        let (store, mut writer) = reflector::store::<DeliveryPool>();
        for pool in [pool("out", "postroad"), pool("other", "elsewhere")] {
            writer.apply_watcher_event(&Event::Apply(pool));
        }
        let wakes = of_same_cluster(
            store,
            |pool: &DeliveryPool| home(pool, &pool.spec.cluster_ref),
            |cluster: &RelayCluster| (cluster.namespace().unwrap_or_default(), cluster.name_any()),
        );
        let woken = |cluster: &RelayCluster| {
            let found = wakes(cluster.clone()).into_iter();
            found.map(|pool| pool.name).collect::<Vec<String>>()
        };
        let mut cluster = RelayCluster::new("postroad", RelayClusterSpec::default());
        cluster.metadata.namespace = Some("mail".into());
        cluster.metadata.generation = Some(1);
        assert_eq!(woken(&cluster), ["out"]);
        cluster.status = Some(RelayClusterStatus {
            edge: Some("1/2".into()),
            ..RelayClusterStatus::default()
        });
        assert!(woken(&cluster).is_empty());
        cluster.status = Some(RelayClusterStatus {
            ca_not_after: Some("2030-01-01T00:00:00Z".into()),
            ..RelayClusterStatus::default()
        });
        assert_eq!(woken(&cluster), ["out"], "another CA");
        cluster.metadata.generation = Some(2);
        assert_eq!(woken(&cluster), ["out"]);
        // The event of its end.
        assert_eq!(woken(&cluster), ["out"]);
        cluster.metadata.namespace = Some("another".into());
        assert!(woken(&cluster).is_empty(), "pools live with their cluster");
    }
}
