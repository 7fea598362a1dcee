//! The objects of a queue pool as the API server would get them.

use std::collections::BTreeSet;

use resource::{QueuePoolSpec, RelayClusterSpec};

use resource::Retention;

use super::*;
use crate::node_pool::tests::assert_restricted;

fn with<T>(test: impl FnOnce(&Parts<'_>) -> T) -> T {
    let mut pool = QueuePool::new("main", QueuePoolSpec::default());
    pool.metadata.uid = Some("u".into());
    let cluster = RelayCluster::new("postroad", RelayClusterSpec::default());
    let name = name(&pool, "mail");
    test(&Parts {
        pool: &pool,
        cluster: &cluster,
        name: &name,
        image: "image:1",
        cluster_id: "6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a09",
    })
}

#[test]
fn the_first_nodes_know_each_other_and_later_ones_wait_to_be_added() {
    with(|parts| {
        let first = BTreeSet::from([1, 2, 3]);
        let first = pod(parts, 2, Some(&first), true).to_string();
        let list = "1=main-queue-1.main-queue-peers.mail.svc:7101,2=main-queue-2";
        assert!(first.contains(list) && first.contains("\"new\""), "{first}");
        let later = pod(parts, 4, None, false);
        assert!(later.to_string().contains("\"existing\""), "{later}");
        assert!(later["metadata"]["labels"][names::MEMBER].is_null());
        // Without both the first election never ends.
        assert_eq!(later["spec"]["hostname"], "main-queue-4");
        assert_eq!(later["spec"]["subdomain"], "main-queue-peers");
        assert_restricted(&later);
        let zone = &later["spec"]["containers"][0]["env"][0];
        assert_eq!(zone["name"], "POSTROAD_ZONE");
        assert_eq!(
            zone["valueFrom"]["fieldRef"]["fieldPath"],
            "metadata.labels['topology.kubernetes.io/zone']"
        );
    });
}

#[test]
fn a_pod_is_made_anew_for_what_people_see_and_for_nothing_else() {
    with(|parts| {
        let before = hash(parts);
        let labelled = hash(&Parts {
            cluster_id: "other",
            ..*parts
        });
        assert_eq!(before, labelled);
        assert_ne!(
            before,
            hash(&Parts {
                image: "image:2",
                ..*parts
            })
        );
    });
}

#[test]
fn nobody_who_collects_garbage_takes_a_claim_whatever_becomes_of_its_pool() {
    with(|parts| {
        let kept = claim(parts, 1, Some(&BTreeSet::from([1, 2, 3])));
        assert!(kept["metadata"]["ownerReferences"].is_null());
        assert_eq!(
            kept["metadata"]["annotations"][names::INITIAL_CLUSTER],
            "1,2,3"
        );
        let mut pool = parts.pool.clone();
        pool.spec.storage.when_deleted = Retention::Delete;
        let goes = claim(
            &Parts {
                pool: &pool,
                ..*parts
            },
            4,
            None,
        );
        assert!(goes["metadata"]["ownerReferences"].is_null());
        assert!(goes["metadata"]["annotations"].is_null());
    });
}
