//! What servers say, made up; then a real name server with a real zone.

use std::net::{IpAddr, Ipv4Addr};

use resource::DkimAlgorithm;

use super::super::keymaker::generate;
use super::*;

#[path = "../../../crates/dns/tests/support/knot.rs"]
mod knot;

fn key() -> PublicKey {
    PublicKey {
        algorithm: DkimAlgorithm::Ed25519,
        octets: vec![7; 32],
    }
}

fn found(texts: &[&str]) -> TxtAnswer {
    TxtAnswer::Found {
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        ttl: 300,
    }
}

fn judged(said: &[TxtAnswer]) -> (Record, DnsState, DnsState) {
    let said: Vec<(String, TxtAnswer)> = said
        .iter()
        .enumerate()
        .map(|(n, said)| (format!("ns{n}"), said.clone()))
        .collect();
    let found = judge(&key(), &said);
    (found.record, found.state, found.revoked)
}

#[test]
fn one_server_that_denies_outweighs_all_and_one_that_is_silent_proves_nothing() {
    let record = key().record();
    let same = found(&[&record]);
    let silent = TxtAnswer::TempFail("no answer for 3 s".into());
    let missing = TxtAnswer::Missing;
    let void = found(&["v=DKIM1; p="]);
    let twice = found(&[&record, &record]);
    for (said, expected) in [
        (
            vec![same.clone(), same.clone()],
            (Record::Present, DnsState::Present, DnsState::Mismatch),
        ),
        (
            vec![same.clone(), silent.clone()],
            (Record::Unknown, DnsState::Unknown, DnsState::Mismatch),
        ),
        (
            vec![silent.clone()],
            (Record::Unknown, DnsState::Unknown, DnsState::Unknown),
        ),
        (
            vec![],
            (Record::Unknown, DnsState::Unknown, DnsState::Unknown),
        ),
        (
            vec![same.clone(), missing.clone()],
            (Record::Absent, DnsState::Missing, DnsState::Mismatch),
        ),
        (
            vec![silent, missing.clone()],
            (Record::Absent, DnsState::Missing, DnsState::Unknown),
        ),
        (
            vec![missing.clone()],
            (Record::Absent, DnsState::Missing, DnsState::Missing),
        ),
        (
            vec![void, missing],
            (Record::Absent, DnsState::Mismatch, DnsState::Present),
        ),
        (
            vec![found(&["v=spf1 -all"]), same],
            (Record::Absent, DnsState::Mismatch, DnsState::Mismatch),
        ),
        (
            vec![twice],
            (Record::Absent, DnsState::Mismatch, DnsState::Mismatch),
        ),
    ] {
        assert_eq!(judged(&said), expected, "{said:?}");
    }
}

#[test]
fn a_look_is_good_for_the_same_question_only() {
    let looks = Looks::default();
    let found = judge(&key(), &[("ns".into(), TxtAnswer::Missing)]);
    let (age, check) = (Duration::from_secs(60), KeyCheck::Authoritative);
    looks.note("a".into(), key(), check, found.clone());
    assert_eq!(looks.recent("a", &key(), check, age), Some(found));
    assert_eq!(looks.recent("b", &key(), check, age), None);
    assert_eq!(looks.recent("a", &key(), KeyCheck::Resolver, age), None);
    assert_eq!(looks.recent("a", &key(), check, Duration::ZERO), None);
    let other = PublicKey {
        octets: vec![8; 32],
        ..key()
    };
    assert_eq!(looks.recent("a", &other, check, age), None);
}

/// The two servers of the zone, at one port.
const SERVERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
];

#[tokio::test]
async fn a_key_is_seen_when_both_servers_of_a_real_zone_have_its_record() {
    let Some(port) = knot::port(&SERVERS) else {
        return;
    };
    let private = generate(DkimAlgorithm::RSA2048).expect("a key");
    let public = PublicKey::of_private(&private).expect("its public half");
    let name = resource::dkim::record_name("pr20260101a", "example.test");
    let record = |text: &str| {
        format!(
            "pr20260101a._domainkey 300 TXT {}",
            resource::dkim::split(text)
        )
    };
    // The root knows who serves the zone, the first server is also the resolver.
    let zone =
        "@ 60 NS ns1.example.test.\n@ 60 NS ns2.example.test.\nns1 A 127.0.0.1\nns2 A 127.0.0.2\n";
    let mut first = knot::Knot::start(SERVERS[0], port, &[("example.test", zone)]);
    let mut second = knot::Knot::start(SERVERS[1], port, &[("example.test", zone)]);
    let authorities = Authorities::with_name_servers(&[(SERVERS[0], port).into()])
        .expect("one resolver")
        .at_port(port);
    let look = async || look(&authorities, KeyCheck::Authoritative, &name, &public).await;

    let none = look().await;
    assert_eq!(
        (none.record, none.state),
        (Record::Absent, DnsState::Missing),
        "{none:?}"
    );
    let with = format!("{zone}{}\n", record(&public.record()));
    first.zone("example.test", &with);
    let half = look().await;
    assert_eq!(half.record, Record::Absent, "{half:?}");
    second.zone("example.test", &with);
    let both = look().await;
    assert_eq!(
        (both.record, both.ttl),
        (Record::Present, Some(300)),
        "{both:?}"
    );
    let resolved = verify_by_resolver(&authorities, &name, &public).await;
    assert_eq!(resolved, Record::Present);

    second.end();
    let silent = look().await;
    assert_eq!(
        (silent.record, silent.state),
        (Record::Unknown, DnsState::Unknown),
        "{silent:?}"
    );
    second = knot::Knot::start(SERVERS[1], port, &[]);
    let lame = look().await;
    assert_eq!(
        lame.record,
        Record::Unknown,
        "a server that refuses denies nothing: {lame:?}"
    );
    drop(second);
    let void = format!("{zone}{}\n", record(resource::dkim::REVOKED_RECORD));
    let _second = knot::Knot::start(SERVERS[1], port, &[("example.test", &void)]);
    first.zone("example.test", &void);
    let void = look().await;
    assert_eq!(
        (void.record, void.revoked),
        (Record::Absent, DnsState::Present),
        "{void:?}"
    );
}

async fn verify_by_resolver(authorities: &Authorities, name: &str, key: &PublicKey) -> Record {
    look(authorities, KeyCheck::Resolver, name, key)
        .await
        .record
}
