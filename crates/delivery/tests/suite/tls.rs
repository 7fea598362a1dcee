//! Next hops with TLS that works, that fails, and that must be.

use std::time::Duration;

use delivery::Config;
use proto::v1::Verdict;

use crate::support::remote::{Action, say};
use crate::support::{Certificate, World};

const BODY: &str = "Subject: x\r\n\r\nbody\r\n";

fn good(_: &str, _: usize) -> Action {
    Action::Good
}

/// Each message has a connection of its own.
fn one_each(world: &World) -> Config {
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.messages_per_connection = 1;
    }
    config
}

#[tokio::test]
async fn starttls_is_used_where_it_is_offered_whatever_the_certificate() {
    let mut world = World::new().await;
    let remote = world
        .tls_domain("a.test", &Certificate::of("else.test"), good)
        .await;
    let large = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(200_000));
    let ids = [
        world.queue.append("a.test", &["a"], BODY),
        world.queue.append("a.test", &["b"], large.clone()),
    ];
    let node = world.node(world.config()).await;
    for id in ids {
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
        let tls = &results[0].tls;
        assert!(tls.starts_with("TLSv1.3 TLS13_"), "{tls}");
        assert!(tls.ends_with(", certificate not checked"), "{tls}");
    }
    let mut taken = remote.taken();
    taken.sort_by_key(|taken| taken.body.len());
    assert!(taken.iter().all(|taken| taken.tls));
    assert_eq!(taken[1].body, large.as_bytes());
    node.leave().await;
}

#[tokio::test]
async fn a_host_whose_handshake_fails_is_spoken_to_in_clear_and_remembered() {
    // What the host does instead of TLS.
    for (at, what) in [
        // It says that it is ready, and hangs up.
        ("TLS", Action::Die),
        // It shakes hands, and then does not like us.
        ("EHLO", Action::Die),
    ] {
        let mut world = World::new().await;
        let second = at == "EHLO";
        let remote = world
            .tls_domain("a.test", &Certificate::of("mx.a.test"), move |verb, nth| {
                // The first EHLO is in clear.
                match verb == at && nth == usize::from(second) {
                    true => what.clone(),
                    false => Action::Good,
                }
            })
            .await;
        let node = world.node(one_each(&world)).await;
        for name in ["a", "b"] {
            let id = world.queue.append("a.test", &[name], BODY);
            let results = world.queue.results(id, 0).await;
            assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
            assert_eq!(results[0].tls, "");
        }
        assert_eq!(
            remote.count("STARTTLS"),
            1,
            "{at}: tried once, then remembered"
        );
        assert!(remote.taken().iter().all(|taken| !taken.tls));
        node.leave().await;
    }
}

#[tokio::test]
async fn a_host_that_takes_starttls_back_gets_the_mail_over_the_same_connection() {
    let mut world = World::new().await;
    let remote = world
        .tls_domain(
            "a.test",
            &Certificate::of("mx.a.test"),
            |verb, _| match verb {
                "STARTTLS" => say("454 4.7.0 no TLS today"),
                _ => Action::Good,
            },
        )
        .await;
    let id = world.queue.append("a.test", &["a"], BODY);
    let node = world.node(world.config()).await;
    let results = world.queue.results(id, 0).await;
    assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
    assert_eq!(remote.count("CONNECT"), 1);
    node.leave().await;
}

#[tokio::test]
async fn a_connection_under_tls_is_kept_for_the_next_message() {
    let mut world = World::new().await;
    let remote = world
        .tls_domain("a.test", &Certificate::of("mx.a.test"), good)
        .await;
    let mut config = world.config();
    config.idle = Duration::from_secs(10);
    let node = world.node(config).await;
    for name in ["a", "b", "c"] {
        let id = world.queue.append("a.test", &[name], BODY);
        world.queue.results(id, 0).await;
    }
    assert_eq!(remote.count("CONNECT"), 1);
    node.leave().await;
}

/// `required.test` and `wrong.test` are given to their hosts with TLS that is required.
const DECLARED: &str = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: required}
spec: {domain: required.test, inbound: {targets: [{host: mx.required.test, port: PORT, tls: Required}]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: wrong}
spec: {domain: wrong.test, inbound: {targets: [{host: mx.wrong.test, port: PORT, tls: Required}]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: clear}
spec: {domain: clear.test, inbound: {targets: [{host: mx.clear.test, port: PORT, tls: Required}]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: unoffered}
spec: {domain: off.test, inbound: {targets: [{host: mx.off.test, port: PORT, tls: 'Off'}]}}
";

#[tokio::test]
async fn required_tls_wants_a_known_certificate_of_the_host_and_never_falls_back() {
    let mut world = World::new().await;
    let declared = DECLARED.replace("PORT", &world.port.to_string());
    world.catalog = resource::load_dir(vec![("t.yaml".into(), declared)]).unwrap();
    let known = Certificate::of("mx.required.test");
    let right = world.tls_domain("required.test", &known, good).await;
    // Known, but another host's.
    let wrong = world.tls_domain("wrong.test", &known, good).await;
    let clear = world.domain("clear.test", good).await;
    let off = world.tls_domain("off.test", &known, good).await;
    let ca = world.dir.path().join("ca.pem");
    std::fs::write(&ca, known.0.cert.pem()).unwrap();
    let mut config = world.config();
    config.tls_ca = Some(ca);
    let node = world.node(config).await;

    let id = world.queue.append("required.test", &["a"], BODY);
    let results = world.queue.results(id, 0).await;
    assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
    assert!(results[0].tls.ends_with(", certificate checked"));
    assert!(right.taken()[0].tls);
    for (domain, remote, enhanced) in [
        ("wrong.test", wrong, "4.7.5"),
        ("clear.test", clear, "4.7.4"),
    ] {
        let id = world.queue.append(domain, &["a"], BODY);
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Deferred, "{results:?}");
        assert_eq!(results[0].enhanced, enhanced, "{results:?}");
        assert_eq!(remote.count("MAIL"), 0);
    }
    let id = world.queue.append("off.test", &["a"], BODY);
    let results = world.queue.results(id, 0).await;
    assert_eq!(results[0].tls, "", "{results:?}");
    assert_eq!(off.count("STARTTLS"), 0);
    node.leave().await;
}
