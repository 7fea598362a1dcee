//! What leaves a delivery node that has DKIM keys. A verifier of somebody else's has a test in the suite for a cluster
//! (`tests/cluster/suite/signed.rs`).

use std::sync::Arc;

use bytes::Bytes;
use delivery::{MissingKey, SigningKey, SigningKeys};
use proto::v1::Verdict;
use rand::{RngExt, SeedableRng};

use crate::support::World;
use crate::support::remote::{Action, Taken, say};

const FIELD: &[u8] = b"DKIM-Signature: ";

fn good(_: &str, _: usize) -> Action {
    Action::Good
}

/// Keys of both algorithms for shop.example, a domain of the tenant of all messages here; of wait.example none, and mail waits.
fn keys() -> Arc<SigningKeys> {
    let mut keys = SigningKeys::default();
    for (selector, algorithm) in [
        ("r1", &rcgen::PKCS_RSA_SHA256),
        ("e1", &rcgen::PKCS_ED25519),
    ] {
        let made = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let key = SigningKey::from_pkcs8(selector, &made.serialize_der()).unwrap();
        assert!(keys.add("default", "shop.example", key));
    }
    keys.domain("default", "wait.example", MissingKey::Defer);
    keys.domain("default", "send.example", MissingKey::SendUnsigned);
    keys.domain("other", "other.example", MissingKey::Defer);
    Arc::new(keys)
}

/// The fields in front of a message, and the rest.
fn split(taken: &Taken) -> (Vec<&[u8]>, &[u8]) {
    let mut rest = &taken.body[..];
    let mut fields = Vec::new();
    while rest.starts_with(FIELD) {
        let end = rest
            .windows(3)
            .position(|w| w[..2] == *b"\r\n" && w[2] != b'\t');
        let (field, after) = rest.split_at(end.unwrap() + 2);
        fields.push(field);
        rest = after;
    }
    (fields, rest)
}

#[tokio::test]
async fn signatures_stand_before_the_message_whose_octets_stay_as_they_are() {
    let mut world = World::new().await;
    world.keys = keys();
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    let pieces = [
        "\r\n",
        " ",
        "\t",
        ".",
        "..",
        "word",
        "\u{fc}",
        "\r\n\r\n",
        "  \r\n",
        "From: x\r\n",
    ];
    let mut sent = Vec::new();
    for n in 0..40 {
        let domain = format!("d{n}.test");
        let count = random.random_range(0..60);
        let mut text =
            format!("Received: x\r\n\tby y\r\nFrom: Shop <a@shop.example>\r\nX-N: {n}\r\n\r\n");
        text.extend((0..count).map(|_| pieces[random.random_range(0..pieces.len())]));
        // A message ends with a line end, as the edge lets it in.
        text.push_str("\r\n");
        if n == 39 {
            text.push_str(&"a line of a large message \r\n".repeat(100_000));
        }
        let remote = world.domain(&domain, good).await;
        let id = world
            .queue
            .append(&domain, &["b"], Bytes::from(text.clone()));
        sent.push((remote, id, text));
    }
    let node = world.node(world.config()).await;
    for (remote, id, text) in sent {
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
        assert_eq!(results[0].dkim_selectors, ["r1", "e1"]);
        let taken = remote.taken().remove(0);
        let (fields, rest) = split(&taken);
        assert_eq!(fields.len(), 2);
        assert!(
            rest == text.as_bytes(),
            "octets were changed: {:?}",
            rest.escape_ascii().to_string()
        );
    }
    node.leave().await;
}

#[tokio::test]
async fn only_the_tenants_own_domain_in_from_is_signed() {
    let mut world = World::new().await;
    world.keys = keys();
    let remote = world.domain("a.test", good).await;
    let unsigned = [
        "From: a@else.example\r\n\r\nx\r\n",
        "From: a@other.example\r\n\r\nx\r\n",
        "From: a@shop.example, b@else.example\r\n\r\nx\r\n",
        "From: a@sub.shop.example\r\n\r\nx\r\n",
        "From: a@send.example\r\n\r\nx\r\n",
        "Subject: nobody\r\n\r\nx\r\n",
        "no header at all\r\n",
    ];
    let mut ids: Vec<_> = unsigned
        .iter()
        .map(|text| world.queue.append("a.test", &["b"], *text))
        .collect();
    // Another tenant's mail from the domain.
    ids.push(world.queue.append_with(
        "a.test",
        &["b"],
        "From: a@shop.example\r\n\r\nx\r\n",
        |handout| {
            handout.message.as_mut().unwrap().tenant = "other".into();
        },
    ));
    // Anybody's mail to an inbound domain of the tenant, who has written the tenant's name into it.
    ids.push(world.queue.append_with(
        "a.test",
        &["b"],
        "From: a@shop.example\r\n\r\nx\r\n",
        |handout| {
            handout.message.as_mut().unwrap().has_principal = false;
        },
    ));
    let node = world.node(world.config()).await;
    for id in ids {
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
        assert!(results[0].dkim_selectors.is_empty());
    }
    for taken in remote.taken() {
        assert!(
            !taken.body.starts_with(FIELD),
            "{}",
            taken.body.escape_ascii()
        );
    }
    node.leave().await;
}

#[tokio::test]
async fn without_a_key_mail_waits_where_it_must_not_go_unsigned() {
    let mut world = World::new().await;
    world.keys = keys();
    let remote = world.domain("a.test", good).await;
    let waits = world
        .queue
        .append("a.test", &["b"], "From: a@wait.example\r\n\r\nx\r\n");
    let goes = world
        .queue
        .append("a.test", &["c"], "From: a@shop.example\r\n\r\nx\r\n");
    let node = world.node(world.config()).await;
    let results = world.queue.results(waits, 0).await;
    assert_eq!(results[0].verdict(), Verdict::Deferred, "{results:?}");
    assert!(results[0].text == "dkim key missing" && results[0].never_reached);
    // The connection serves the next item all the same.
    let results = world.queue.results(goes, 0).await;
    assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
    assert_eq!(remote.taken().len(), 1);
    node.leave().await;
}

#[tokio::test]
async fn the_declared_size_counts_the_signatures() {
    let mut world = World::new().await;
    world.keys = keys();
    let body = "From: a@shop.example\r\n\r\nx\r\n";
    let offer = format!("250-remote.test\r\n250 SIZE {}", body.len() + 10);
    let script = move |verb: &str, _: usize| match verb {
        "EHLO" => say(&offer),
        _ => Action::Good,
    };
    world.domain("a.test", script).await;
    let id = world.queue.append("a.test", &["b"], body);
    let node = world.node(world.config()).await;
    let results = world.queue.results(id, 0).await;
    assert_eq!(results[0].enhanced, "5.3.4", "{results:?}");
    node.leave().await;
}
