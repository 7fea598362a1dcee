//! Who owns a name, over any claims in any order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use resource::{
    Access, AllowedNamespaces, Claim, Cluster, DomainOwnership, InboundSpec, LabelSelector,
    NamespacesFrom, OutboundSpec, Refusal, RelayDomainSpec, challenge, judge,
};

fn domain(name: &str, networks: &[&str]) -> RelayDomainSpec {
    RelayDomainSpec {
        cluster_ref: Default::default(),
        domain: name.into(),
        inbound: Some(InboundSpec::default()),
        outbound: Some(OutboundSpec {
            networks: networks.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }),
    }
}

fn access(from: NamespacesFrom, ownership: Option<DomainOwnership>) -> Access {
    Access {
        allowed_namespaces: AllowedNamespaces {
            from,
            selector: (from == NamespacesFrom::Selector).then(|| LabelSelector {
                match_labels: BTreeMap::from([("mail".into(), "yes".into())]),
                match_expressions: Vec::new(),
            }),
        },
        domain_ownership: ownership,
        networks: vec!["10.0.0.0/8".into()],
    }
}

struct Declared {
    namespace: &'static str,
    name: &'static str,
    created: i64,
    labels: BTreeMap<String, String>,
    spec: RelayDomainSpec,
    proven: bool,
}

fn declared(
    namespace: &'static str,
    name: &'static str,
    created: i64,
    spec: RelayDomainSpec,
) -> Declared {
    Declared {
        namespace,
        name,
        created,
        labels: BTreeMap::new(),
        spec,
        proven: false,
    }
}

fn judged(access: &Access, all: &[Declared]) -> Vec<Result<(), Refusal>> {
    let claims: Vec<Claim<'_>> = all
        .iter()
        .map(|one| Claim {
            namespace: one.namespace,
            name: one.name,
            created: one.created,
            labels: &one.labels,
            spec: &one.spec,
            proven: one.proven,
        })
        .collect();
    judge(
        Cluster {
            namespace: "mail",
            access,
        },
        &claims,
    )
}

#[test]
fn a_tenant_that_claims_anothers_domain_is_refused_with_a_reason() {
    let access = access(NamespacesFrom::All, Some(DomainOwnership::Trust));
    let all = [
        declared("thief", "gmail", 20, domain("shop.example", &[])),
        declared("shop", "shop", 10, domain("SHOP.example", &["10.1.0.0/16"])),
    ];
    let judged = judged(&access, &all);
    let refused = judged[0].clone().unwrap_err();
    assert_eq!(refused.reason(), "DomainConflict");
    assert_eq!(
        refused.to_string(),
        "shop.example is declared by shop/shop already, which is older; a domain has one RelayDomain in a cluster"
    );
    assert_eq!(judged[1], Ok(()));
}

#[test]
fn a_network_outside_the_clusters_is_refused_and_still_holds_the_name() {
    let access = access(NamespacesFrom::All, Some(DomainOwnership::Trust));
    let all = [
        declared(
            "a",
            "one",
            10,
            domain("shop.example", &["10.0.0.0/8", "192.0.2.0/24"]),
        ),
        declared("b", "two", 20, domain("shop.example", &[])),
    ];
    let judged = judged(&access, &all);
    let refused = judged[0].clone().unwrap_err();
    assert_eq!(
        (refused.reason(), refused.field()),
        ("NetworkNotAllowed", "spec.outbound.networks[1]".into())
    );
    assert_eq!(judged[1].clone().unwrap_err().reason(), "DomainConflict");
}

#[test]
fn namespaces_that_are_not_admitted_and_owners_that_did_not_agree_hold_no_name() {
    let all = [
        declared("stranger", "x", 1, domain("shop.example", &[])),
        declared("mail", "y", 2, domain("shop.example", &[])),
    ];
    let same = judged(&access(NamespacesFrom::Same, None), &all);
    assert_eq!(same[0].clone().unwrap_err().reason(), "NamespaceNotAllowed");
    assert_eq!(same[1], Ok(()));

    // Where all namespaces count, the domain's owner is asked, unless the cluster says otherwise.
    let mut all = all;
    all[1].proven = true;
    let dns = judged(&access(NamespacesFrom::All, None), &all);
    let refused = dns[0].clone().unwrap_err();
    assert_eq!(refused.reason(), "OwnershipNotVerified");
    assert!(
        refused
            .to_string()
            .contains("_postroad-challenge.shop.example")
    );
    assert_eq!(dns[1], Ok(()));

    let chosen = access(NamespacesFrom::Selector, Some(DomainOwnership::Trust));
    assert_eq!(
        judged(&chosen, &all)[0].clone().unwrap_err().reason(),
        "NamespaceNotAllowed"
    );
    all[0].labels.insert("mail".into(), "yes".into());
    assert_eq!(judged(&chosen, &all)[0], Ok(()));
}

#[test]
fn a_challenge_is_of_one_cluster_one_namespace_and_one_domain() {
    let one = challenge(&[1; 16], "a", "b.example");
    assert!(
        one.starts_with("postroad-challenge=") && one.len() == 51,
        "{one}"
    );
    let others = [
        challenge(&[2; 16], "a", "b.example"),
        challenge(&[1; 16], "b", "b.example"),
        challenge(&[1; 16], "a", "c.example"),
    ];
    assert!(!others.contains(&one));
    assert_eq!(one, challenge(&[1; 16], "a", "b.example"));
}

proptest! {
    #[test]
    fn one_claim_a_name_counts_whatever_order_they_come_in(
        claims in prop::collection::vec((0usize..3, 0usize..4, 0i64..3, 0usize..3, any::<bool>(), any::<bool>()), 1..12),
        from in prop_oneof![Just(NamespacesFrom::Same), Just(NamespacesFrom::All)],
        ownership in prop_oneof![Just(None), Just(Some(DomainOwnership::DNS)), Just(Some(DomainOwnership::Trust))],
        seed in any::<u64>(),
    ) {
        const NAMESPACES: [&str; 3] = ["mail", "a", "b"];
        const NAMES: [&str; 4] = ["w", "x", "y", "z"];
        const DOMAINS: [&str; 3] = ["a.example", "b.example", "A.example"];
        let access = access(from, ownership);
        let mut seen = BTreeSet::new();
        let mut all: Vec<Declared> = claims.into_iter()
            .filter(|(namespace, name, ..)| seen.insert((*namespace, *name)))
            .map(|(namespace, name, created, of, outside, proven)| {
                let networks: &[&str] = if outside { &["192.0.2.0/24"] } else { &["10.2.0.0/16"] };
                Declared { proven, ..declared(NAMESPACES[namespace], NAMES[name], created, domain(DOMAINS[of], networks)) }
            }).collect();
        let answers = judged(&access, &all);
        let mut holders = BTreeMap::new();
        for (one, answer) in all.iter().zip(&answers) {
            let name = one.spec.domain.to_ascii_lowercase();
            if answer.is_ok() {
                prop_assert!(holders.insert(name, (one.created, one.namespace, one.name)).is_none(), "two hold one name");
                prop_assert!(from == NamespacesFrom::All || one.namespace == "mail");
                prop_assert!(access.ownership() == DomainOwnership::Trust || one.proven);
                prop_assert!(!one.spec.outbound.as_ref().unwrap().networks.contains(&"192.0.2.0/24".to_owned()));
            }
        }
        // Whoever lost against another is younger than who holds, or than one that has to mend its networks.
        for (one, answer) in all.iter().zip(&answers) {
            if let Err(Refusal::DomainConflict { holder, .. }) = answer {
                let other = all.iter().find(|other| format!("{}/{}", other.namespace, other.name) == *holder).unwrap();
                prop_assert!((other.created, other.namespace, other.name) < (one.created, one.namespace, one.name));
            }
        }
        let before: BTreeMap<_, _> = all.iter().zip(&answers).map(|(one, answer)| ((one.namespace, one.name), answer.clone())).collect();
        let length = all.len();
        all.rotate_left(seed as usize % length);
        all.swap(0, seed as usize / 7 % length);
        let after: BTreeMap<_, _> = all.iter().zip(judged(&access, &all)).map(|(one, answer)| ((one.namespace, one.name), answer)).collect();
        prop_assert_eq!(before, after);
    }
}
