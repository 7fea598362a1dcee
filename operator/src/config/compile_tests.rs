//! Who is refused in status reaches no node, and a key signs only by its phase.

use resource::{DkimKeyStatus, RelayClusterSpec};
use serde_json::json;

use super::*;

fn cluster() -> RelayCluster {
    let spec = json!({"access": {"networks": ["10.0.0.0/8"], "allowedNamespaces": {"from": "All"}, "domainOwnership": "Trust"}});
    let spec: RelayClusterSpec = serde_json::from_value(spec).expect("good");
    let mut cluster = RelayCluster::new("postroad", spec);
    cluster.metadata.namespace = Some("mail".into());
    cluster.metadata.generation = Some(3);
    cluster
}

fn domain(namespace: &str, name: &str, created: i64, spec: serde_json::Value) -> RelayDomain {
    let mut domain = RelayDomain::new(name, serde_json::from_value(spec).expect("good"));
    domain.metadata.namespace = Some(namespace.into());
    domain.metadata.generation = Some(1);
    let time = jiff::Timestamp::from_second(created).expect("in range");
    domain.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
    domain
}

fn key(domain: &RelayDomain, selector: &str, phase: KeyPhase) -> DkimKey {
    let spec = json!({
        "domainRef": {"name": domain.metadata.name}, "domain": domain.spec.domain, "selector": selector,
        "algorithm": "Ed25519", "secretName": selector, "source": "Generated",
    });
    let mut key = DkimKey::new(selector, serde_json::from_value(spec).expect("good"));
    key.metadata.namespace = domain.metadata.namespace.clone();
    key.status = Some(DkimKeyStatus {
        phase: Some(phase),
        ..DkimKeyStatus::default()
    });
    key
}

fn sealed() -> Sealing {
    Sealing::Sealed(Sealed {
        key_id: "1".into(),
        nonce: vec![0; 12].into(),
        sealed: vec![1; 48].into(),
    })
}

fn compiled(domains: &[&RelayDomain], keys: &[DkimKey]) -> Compiled {
    compiled_as(domains, keys, sealed)
}

fn compiled_as(domains: &[&RelayDomain], keys: &[DkimKey], sealed: fn() -> Sealing) -> Compiled {
    let keys: Vec<SealedKey<'_>> = keys
        .iter()
        .map(|object| SealedKey {
            object,
            sealed: sealed(),
        })
        .collect();
    compile(&cluster(), domains, &Labels::new(), &keys).expect("a good cluster")
}

fn names(compiled: &Compiled) -> Vec<String> {
    compiled
        .documents
        .iter()
        .map(|document| document.key.to_string())
        .collect()
}

#[test]
fn of_a_claim_that_does_not_count_nothing_is_sent_and_neither_are_its_keys() {
    let first = domain(
        "a",
        "first",
        10,
        json!({"domain": "gmail.test", "outbound": {}}),
    );
    let second = domain(
        "b",
        "second",
        20,
        json!({"domain": "gmail.test", "inbound": {}, "outbound": {}}),
    );
    let wide = domain(
        "b",
        "wide",
        5,
        json!({"domain": "wide.test", "outbound": {"networks": ["192.0.2.0/24"]}}),
    );
    let keys = [
        key(&first, "one", KeyPhase::Active),
        key(&second, "two", KeyPhase::Active),
        key(&wide, "three", KeyPhase::Active),
    ];
    let compiled = compiled(&[&first, &second, &wide], &keys);
    assert_eq!(
        names(&compiled),
        [
            "RelayCluster/mail/postroad",
            "RelayDomain/a/first",
            "DkimKey/a/one"
        ]
    );
    assert!(matches!(
        compiled.verdicts[1],
        Err(Refusal::DomainConflict { .. })
    ));
    assert!(matches!(
        compiled.verdicts[2],
        Err(Refusal::NetworkNotAllowed { .. })
    ));
    assert_eq!(compiled.keys, [Some("DkimKey/a/one".into()), None, None]);
}

#[test]
fn a_key_is_sent_ahead_when_published_and_signs_when_active_and_is_wiped_after() {
    use resource::document::KeyBody;
    let owner = domain("a", "own", 1, json!({"domain": "own.test", "outbound": {}}));
    for (phase, expected) in [
        (KeyPhase::Pending, None),
        (KeyPhase::Published, Some(false)),
        (KeyPhase::Active, Some(true)),
        (KeyPhase::Retiring, None),
        (KeyPhase::Retired, None),
        (KeyPhase::Revoked, None),
        (KeyPhase::Failed, None),
    ] {
        let made = compiled(&[&owner], &[key(&owner, "s", phase)]);
        let document = made
            .documents
            .iter()
            .find(|one| one.key.to_string() == "DkimKey/a/s");
        let active = document.map(|one| {
            let body: KeyBody = prost::Message::decode(one.body.clone()).expect("its own");
            assert_eq!(one.audience, resource::Audience::Delivery);
            body.active
        });
        assert_eq!(active, expected, "{phase:?}");
    }
    let mut revoked = key(&owner, "s", KeyPhase::Active);
    revoked.spec.revoked = Some(true);
    assert_eq!(
        compiled(&[&owner], &[revoked]).keys,
        [None],
        "before its phase says so"
    );
    let off = domain(
        "a",
        "own",
        1,
        json!({"domain": "own.test", "outbound": {"dkim": {"mode": "Off"}}}),
    );
    assert_eq!(
        compiled(&[&off], &[key(&off, "s", KeyPhase::Active)]).keys,
        [None]
    );
}

/// Its Secret was deleted, and with the next look every key of every domain was.
#[test]
fn without_a_sealing_key_nodes_keep_the_keys_that_they_have_and_lose_those_that_are_over() {
    let owner = domain("a", "own", 1, json!({"domain": "own.test", "outbound": {}}));
    let mut revoked = key(&owner, "r", KeyPhase::Active);
    revoked.spec.revoked = Some(true);
    let keys = [
        key(&owner, "s", KeyPhase::Active),
        key(&owner, "t", KeyPhase::Retiring),
        revoked,
    ];
    let made = compiled_as(&[&owner], &keys, || Sealing::NotNow);
    assert_eq!(
        names(&made),
        ["RelayCluster/mail/postroad", "RelayDomain/a/own"]
    );
    let kept: Vec<&str> = made.kept.iter().map(String::as_str).collect();
    assert_eq!(kept, ["DkimKey/a/s"]);
    assert_eq!(made.keys, [Some("DkimKey/a/s".into()), None, None]);
    let unreadable = compiled_as(&[&owner], &keys, || Sealing::Nothing);
    assert!(
        unreadable.kept.is_empty(),
        "no other key signs in its place"
    );
    assert_eq!(unreadable.keys, [None, None, None]);
    assert!(compiled(&[&owner], &keys).kept.is_empty());
}

#[test]
fn a_key_of_another_tenant_that_names_the_domain_is_not_sent() {
    let owner = domain("a", "own", 1, json!({"domain": "own.test", "outbound": {}}));
    let mut stranger = key(&owner, "s", KeyPhase::Active);
    stranger.metadata.namespace = Some("b".into());
    let mut liar = key(&owner, "t", KeyPhase::Active);
    liar.spec.domain = "other.test".into();
    assert_eq!(compiled(&[&owner], &[stranger, liar]).keys, [None, None]);
}
