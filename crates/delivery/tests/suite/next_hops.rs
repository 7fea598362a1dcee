//! Next hops that behave, die, hang and refuse at each verb: what the queue is told.

use std::time::Duration;

use proto::v1::{RecipientResult, Verdict};

use crate::support::remote::{Action, say};
use crate::support::{REPLY, World};

/// A result in a few words: verdict, code, `?` when ambiguous, `-` when no host was reached.
fn words(result: &RecipientResult) -> String {
    let verdict = match result.verdict() {
        Verdict::Delivered => "delivered",
        Verdict::Deferred => "deferred",
        Verdict::Failed => "failed",
        Verdict::Unspecified => "nothing",
    };
    let ambiguous = if result.ambiguous { "?" } else { "" };
    let unreached = if result.never_reached { "-" } else { "" };
    format!("{verdict}{ambiguous}{unreached} {}", result.code)
}

#[tokio::test]
async fn what_a_host_does_at_each_verb_becomes_its_result() {
    let mut world = World::new().await;
    // Verb, what happens there, and the result.
    let mut table = vec![
        // The host spoke, and refused for good.
        ("CONNECT", say("554 no mail here"), "failed 554"),
        ("MAIL", say("550 5.7.1 not you"), "failed 550"),
        ("RCPT", say("550 5.1.1 nobody"), "failed 550"),
        ("DATA", say("554 5.6.0 no"), "failed 554"),
        ("DOT", say("554 5.7.1 spam"), "failed 554"),
        // For now.
        ("CONNECT", say("450 busy"), "deferred 450"),
        ("EHLO", say("451 busy"), "deferred 451"),
        ("MAIL", say("451 4.3.0 busy"), "deferred 451"),
        ("RCPT", say("450 4.7.1 greylisted"), "deferred 450"),
        ("DATA", say("451 4.3.0 busy"), "deferred 451"),
        ("DOT", say("452 4.3.1 full"), "deferred 452"),
        ("MAIL", say("421 4.3.2 closing"), "deferred 421"),
        // After the dot nobody knows.
        ("DOT", Action::Die, "deferred? 0"),
        ("DOT", Action::Hang, "deferred? 0"),
    ];
    for verb in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"] {
        table.push((verb, Action::Die, "deferred 0"));
        table.push((verb, Action::Hang, "deferred 0"));
    }
    let mut appended = Vec::new();
    for (number, (verb, action, expected)) in table.into_iter().enumerate() {
        let domain = format!("d{number}.test");
        let case = format!("{verb} {action:?}");
        let remote = world
            .domain(&domain, move |at, _| {
                if at == verb {
                    action.clone()
                } else {
                    Action::Good
                }
            })
            .await;
        appended.push((
            case,
            expected,
            world
                .queue
                .append(&domain, &["a"], "Subject: x\r\n\r\nbody\r\n"),
            remote,
        ));
    }
    let node = world.node(world.config()).await;
    for (case, expected, id, remote) in appended {
        let results = world.queue.results(id, 0).await;
        let got: Vec<_> = results.iter().map(words).collect();
        assert_eq!(got, [expected], "{case}: {results:?}");
        if case == "RCPT" && expected == "failed 550" {
            // As it was said: a report quotes it (RFC 3464 2.3.6).
            assert_eq!(results[0].text, "5.1.1 nobody");
        }
        assert!(remote.taken().is_empty(), "{case}");
        assert!(
            !results[0].remote_host.is_empty() && !results[0].text.is_empty(),
            "{case}: {results:?}"
        );
    }
    node.leave().await;
}

#[tokio::test]
async fn a_host_that_fails_before_anything_was_sent_gives_way_to_the_next() {
    let mut world = World::new().await;
    let mut cases = vec![
        ("CONNECT", say("421 busy")),
        ("CONNECT", say("554 not here")),
        ("MAIL", say("421 closing")),
    ];
    for verb in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"] {
        cases.push((verb, Action::Die));
        cases.push((verb, Action::Hang));
    }
    let mut appended = Vec::new();
    for (number, (verb, action)) in cases.into_iter().enumerate() {
        let domain = format!("d{number}.test");
        let (first, second) = (format!("a.{domain}"), format!("b.{domain}"));
        world.mx(&domain, &[(10, &first), (20, &second)]);
        let case = format!("{verb} {action:?}");
        world
            .remote(&first, move |at, _| {
                if at == verb {
                    action.clone()
                } else {
                    Action::Good
                }
            })
            .await;
        let remote = world.remote(&second, |_, _| Action::Good).await;
        appended.push((
            case,
            world.queue.append(&domain, &["a"], "x\r\n"),
            remote,
            second,
        ));
    }
    let node = world.node(world.config()).await;
    for (case, id, remote, second) in appended {
        let results = world.queue.results(id, 0).await;
        assert_eq!(words(&results[0]), "delivered 250", "{case}: {results:?}");
        assert_eq!(results[0].remote_host, second, "{case}");
        assert_eq!(remote.taken().len(), 1, "{case}");
    }
    node.leave().await;
}

#[tokio::test]
async fn what_the_dns_says_is_told_apart() {
    let world = World::new().await;
    world.mx("null.test", &[(0, ".")]);
    world
        .dns
        .set_mx("broken.test", dns::MxAnswer::TempFail("SERVFAIL".into()));
    world.mx("loop.test", &[(10, "relay.test")]);
    world.mx("dark.test", &[(10, "mx.dark.test")]);
    world.dns.set_addresses(
        "mx.dark.test",
        dns::AddressAnswer::Found(vec!["127.0.0.250".parse().unwrap()]),
    );
    let node = world.node(world.config()).await;
    let table = [
        ("nowhere.test", "failed- 0", "5.1.2"),
        ("null.test", "failed- 0", "5.1.10"),
        ("broken.test", "deferred- 0", "4.4.3"),
        ("loop.test", "failed- 0", "5.4.6"),
        ("dark.test", "deferred- 0", "4.4.1"),
        ("[127.0.0.251]", "deferred- 0", "4.4.1"),
    ];
    for (domain, expected, enhanced) in table {
        let id = world.queue.append(domain, &["a", "b"], "x\r\n");
        let results = world.queue.results(id, 0).await;
        let got: Vec<_> = results
            .iter()
            .map(|result| (result.recipient, words(result)))
            .collect();
        assert_eq!(
            got,
            [(0, expected.to_string()), (1, expected.to_string())],
            "{domain}: {results:?}"
        );
        assert_eq!(results[0].enhanced, enhanced, "{domain}");
    }
    node.leave().await;
}

#[tokio::test]
async fn several_recipients_share_a_transaction_and_each_has_its_result() {
    let mut world = World::new().await;
    let remote = world
        .domain("d.test", |verb, nth| match (verb, nth) {
            ("RCPT", 1) => say("550 5.1.1 nobody"),
            ("RCPT", 2) => say("450 4.2.2 full"),
            _ => Action::Good,
        })
        .await;
    let node = world.node(world.config()).await;
    let body = "Subject: x\r\n\r\n.dots\r\n..more\r\n";
    let id = world.queue.append("d.test", &["a", "b", "c", "d"], body);
    let results = world.queue.results(id, 0).await;
    let got: Vec<_> = results.iter().map(words).collect();
    assert_eq!(
        got,
        [
            "delivered 250",
            "failed 550",
            "deferred 450",
            "delivered 250"
        ]
    );
    let taken = remote.taken();
    assert_eq!(taken[0].to, ["a@d.test", "d@d.test"]);
    assert_eq!(taken[0].from, "sender@example.com");
    assert_eq!(taken[0].body, body.as_bytes());
    node.leave().await;
}

#[tokio::test]
async fn greylisting_is_passed_at_the_second_attempt() {
    let mut world = World::new().await;
    let greylist = |verb: &str, nth| match (verb, nth) {
        ("RCPT", 0) => say("450 4.7.1 come back later"),
        _ => Action::Good,
    };
    let remote = world.domain("d.test", greylist).await;
    let node = world.node(world.config()).await;
    let id = world.queue.append("d.test", &["a"], "x\r\n");
    assert_eq!(words(&world.queue.results(id, 0).await[0]), "deferred 450");
    world.queue.again(id);
    assert_eq!(words(&world.queue.results(id, 1).await[0]), "delivered 250");
    assert_eq!(remote.taken().len(), 1);
    node.leave().await;
}

#[tokio::test]
async fn connections_are_kept_and_bounded() {
    const MESSAGES: usize = 400;
    const PER_CONNECTION: usize = 50;
    let mut world = World::new().await;
    let remote = world.domain("d.test", |_, _| Action::Good).await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.connections_per_site = 3;
        settings.messages_per_connection = PER_CONNECTION;
    }
    let node = world.node(config).await;
    let ids: Vec<_> = (0..MESSAGES)
        .map(|n| {
            world
                .queue
                .append("d.test", &["a"], format!("n: {n}\r\n\r\n"))
        })
        .collect();
    for id in &ids {
        assert_eq!(
            words(&world.queue.results(*id, 0).await[0]),
            "delivered 250"
        );
    }
    assert_eq!(remote.taken().len(), MESSAGES);
    {
        let seen = remote.seen.lock().unwrap();
        assert!(seen.open_max <= 3, "{}", seen.open_max);
        assert!(
            seen.connections <= MESSAGES / PER_CONNECTION + 3,
            "{} connections",
            seen.connections
        );
        let busiest = (0..seen.connections)
            .map(|c| seen.taken.iter().filter(|t| t.connection == c).count())
            .max();
        assert!(busiest <= Some(PER_CONNECTION));
    }
    node.leave().await;
}

#[tokio::test]
async fn a_kept_connection_that_the_host_closed_is_replaced_without_a_deferral() {
    let mut world = World::new().await;
    // The second MAIL on the first connection meets a dead host.
    let remote = world
        .domain("d.test", |verb, nth| {
            if (verb, nth) == ("MAIL", 1) {
                Action::Die
            } else {
                Action::Good
            }
        })
        .await;
    let node = world.node(world.config()).await;
    for _ in 0..2 {
        let id = world.queue.append("d.test", &["a"], "x\r\n");
        assert_eq!(words(&world.queue.results(id, 0).await[0]), "delivered 250");
    }
    assert_eq!(remote.taken().len(), 2);
    node.leave().await;
}

#[tokio::test]
async fn a_large_body_is_fetched_by_ranges_and_a_damaged_one_gets_no_final_dot() {
    let mut world = World::new().await;
    let remote = world.domain("d.test", |_, _| Action::Good).await;
    let node = world.node(world.config()).await;
    let line = format!("{}\r\n", "x".repeat(70));
    let body = line.repeat(3 * 1024 * 1024 / line.len());
    let id = world.queue.append("d.test", &["a"], body.clone());
    assert_eq!(words(&world.queue.results(id, 0).await[0]), "delivered 250");
    assert!(remote.taken()[0].body == body.as_bytes());
    assert_eq!(world.queue.state.lock().unwrap().fetches, 3);
    for body in ["small\r\n".to_string(), body] {
        let id = world.queue.append_with("d.test", &["a"], body, |handout| {
            handout.message.as_mut().unwrap().digest = bytes::Bytes::from_static(&[0; 16]);
        });
        let results = world.queue.results(id, 0).await;
        assert_eq!(words(&results[0]), "deferred 0", "{results:?}");
        assert!(results[0].text.contains("damaged"), "{results:?}");
    }
    assert_eq!(remote.taken().len(), 1, "no final dot for a damaged body");
    node.leave().await;
}

#[tokio::test]
async fn a_dead_site_is_left_alone_and_the_queue_is_told() {
    let mut world = World::new().await;
    let remote = world
        .domain("d.test", |verb, _| {
            if verb == "CONNECT" {
                Action::Die
            } else {
                Action::Good
            }
        })
        .await;
    let node = world.node(world.config()).await;
    let ids: Vec<_> = (0..30)
        .map(|_| world.queue.append("d.test", &["a"], "x\r\n"))
        .collect();
    crate::support::eventually("told", || {
        world.queue.state.lock().unwrap().busy.first().cloned()
    })
    .await;
    crate::support::eventually("all settled or handed back", || {
        let state = world.queue.state.lock().unwrap();
        (state.settled.len() + state.released.len() >= ids.len()).then_some(())
    })
    .await;
    let tried = remote.count("CONNECT");
    assert!(tried < ids.len(), "{tried} connections for a dead site");
    assert_eq!(
        world.queue.state.lock().unwrap().busy[0].destination,
        "d.test"
    );
    // What comes now goes back without an attempt.
    let id = world.queue.append("d.test", &["a"], "x\r\n");
    crate::support::eventually("handed back", || {
        world
            .queue
            .state
            .lock()
            .unwrap()
            .released
            .contains(&id)
            .then_some(())
    })
    .await;
    node.leave().await;
}

#[tokio::test]
async fn a_leaving_node_finishes_what_is_begun_and_hands_back_the_rest() {
    let mut world = World::new().await;
    let slow = |verb: &str, _| {
        if verb == "DOT" {
            Action::Late(REPLY / 2)
        } else {
            Action::Good
        }
    };
    let remote = world.domain("d.test", slow).await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.connections_per_site = 1;
    }
    let node = world.node(config).await;
    let ids: Vec<_> = (0..5)
        .map(|_| world.queue.append("d.test", &["a"], "x\r\n"))
        .collect();
    crate::support::eventually("begun", || (remote.count("DOT") == 1).then_some(())).await;
    let left = tokio::time::Instant::now();
    node.leave().await;
    assert!(
        left.elapsed() < Duration::from_secs(4),
        "not until the drain time is over"
    );
    let state = world.queue.state.lock().unwrap();
    assert_eq!((state.settled.len(), state.released.len()), (1, 4));
    assert_eq!(words(&state.settled[0].results[0]), "delivered 250");
    assert!(ids.iter().skip(1).all(|id| state.released.contains(id)));
}
