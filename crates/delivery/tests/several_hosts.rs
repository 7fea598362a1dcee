//! A destination with several hosts: what the first one does not take, the next ones are asked for.

mod support;

use proto::v1::{RecipientResult, Verdict};
use support::World;
use support::remote::{Action, Remote, say};

/// A host in order of preference, with what it does at which verb.
async fn hosts(world: &mut World, domain: &str, scripts: &[(&'static str, Action)]) -> Vec<Remote> {
    let names: Vec<_> = (0..scripts.len())
        .map(|n| format!("mx{n}.{domain}"))
        .collect();
    let records: Vec<_> = (1..).zip(names.iter().map(String::as_str)).collect();
    world.mx(domain, &records);
    let mut remotes = Vec::new();
    for (name, (verb, action)) in names.iter().zip(scripts) {
        let (verb, action) = (*verb, action.clone());
        let script = move |at: &str, _| match at == verb {
            true => action.clone(),
            false => Action::Good,
        };
        remotes.push(world.remote(name, script).await);
    }
    remotes
}

fn words(results: &[RecipientResult]) -> Vec<(Verdict, u32, &str)> {
    let host = |result: &RecipientResult| match result.remote_host.split_once('.') {
        Some(("mx0", _)) => "first",
        Some(("mx1", _)) => "second",
        _ => "none",
    };
    results
        .iter()
        .map(|result| (result.verdict(), result.code, host(result)))
        .collect()
}

#[tokio::test]
async fn what_one_host_defers_the_next_one_takes() {
    let mut world = World::new().await;
    let mut cases = Vec::new();
    for (number, (verb, action)) in [
        ("MAIL", say("451 4.3.0 queue file write error")),
        ("MAIL", say("452 4.3.1 disk full")),
        ("RCPT", say("450 4.7.1 greylisted")),
        ("RCPT", say("421 4.7.0 too much")),
        ("DATA", say("451 4.3.0 busy")),
        ("DOT", say("451 4.3.0 scanner down")),
    ]
    .into_iter()
    .enumerate()
    {
        let domain = format!("d{number}.test");
        let case = format!("{verb} {action:?}");
        let remotes = hosts(&mut world, &domain, &[(verb, action), ("", Action::Good)]).await;
        let id = world.queue.append(&domain, &["a", "b"], "x\r\n");
        cases.push((case, id, remotes));
    }
    let node = world.node(world.config()).await;
    for (case, id, remotes) in cases {
        let results = world.queue.results(id, 0).await;
        let second = (Verdict::Delivered, 250, "second");
        assert_eq!(words(&results), [second; 2], "{case}: {results:?}");
        assert_eq!(remotes[0].count("MAIL"), 1, "{case}");
        assert_eq!(remotes[1].taken().len(), 1, "{case}");
    }
    node.leave().await;
}

#[tokio::test]
async fn each_host_is_asked_once_and_a_refusal_for_good_stands() {
    let mut world = World::new().await;
    let busy = || say("451 4.3.0 busy");
    let all_busy = hosts(
        &mut world,
        "busy.test",
        &[("MAIL", busy()), ("RCPT", busy())],
    )
    .await;
    let refused = hosts(
        &mut world,
        "refused.test",
        &[("RCPT", say("550 5.1.1 nobody")), ("", Action::Good)],
    )
    .await;
    // A host that breaks says less than one that spoke.
    let broken = hosts(
        &mut world,
        "broken.test",
        &[("MAIL", busy()), ("MAIL", Action::Die)],
    )
    .await;
    // One recipient refused for good, one for now: only that one goes on, and both results come together.
    world.mx(
        "mixed.test",
        &[(1, "mx0.mixed.test"), (2, "mx1.mixed.test")],
    );
    let first = |verb: &str, nth| match (verb, nth) {
        ("RCPT", 0) => say("550 5.1.1 nobody"),
        ("RCPT", 1) => say("450 4.2.0 later"),
        _ => Action::Good,
    };
    world.remote("mx0.mixed.test", first).await;
    let mixed = world.remote("mx1.mixed.test", |_, _| Action::Good).await;
    // One recipient taken: the attempt has succeeded, the other one waits.
    world.mx("part.test", &[(1, "mx0.part.test"), (2, "mx1.part.test")]);
    let first = |verb: &str, nth| match (verb, nth) {
        ("RCPT", 1) => say("450 4.2.0 later"),
        _ => Action::Good,
    };
    world.remote("mx0.part.test", first).await;
    let part = world.remote("mx1.part.test", |_, _| Action::Good).await;

    let node = world.node(world.config()).await;
    let results = |domain: &'static str| {
        let id = world.queue.append(domain, &["a", "b"], "x\r\n");
        world.queue.results(id, 0)
    };
    // Often: that hosts defer mail is no reason to leave a site alone.
    for _ in 0..7 {
        let got = results("busy.test").await;
        assert_eq!(words(&got), [(Verdict::Deferred, 451, "second"); 2]);
    }
    assert_eq!(
        (all_busy[0].count("MAIL"), all_busy[1].count("MAIL")),
        (7, 7)
    );
    let got = results("refused.test").await;
    assert_eq!(words(&got), [(Verdict::Failed, 550, "first"); 2]);
    assert_eq!(refused[1].count("CONNECT"), 0);
    let got = results("broken.test").await;
    assert_eq!(words(&got), [(Verdict::Deferred, 451, "first"); 2]);
    assert_eq!(broken[1].count("MAIL"), 1);
    let got = results("mixed.test").await;
    let expected = [
        (Verdict::Failed, 550, "first"),
        (Verdict::Delivered, 250, "second"),
    ];
    assert_eq!(words(&got), expected);
    assert_eq!(mixed.taken()[0].to, ["b@mixed.test"]);
    let got = results("part.test").await;
    let expected = [
        (Verdict::Delivered, 250, "first"),
        (Verdict::Deferred, 450, "first"),
    ];
    assert_eq!(words(&got), expected);
    assert_eq!(part.count("CONNECT"), 0);
    node.leave().await;
}

#[tokio::test]
async fn mail_fails_for_what_a_host_lacks_only_when_all_lack_it() {
    let mut world = World::new().await;
    let plain = || ("EHLO", say("250 remote.test"));
    let one = hosts(&mut world, "one.test", &[plain(), ("", Action::Good)]).await;
    let none = hosts(&mut world, "none.test", &[plain(), plain()]).await;
    let dead = hosts(
        &mut world,
        "dead.test",
        &[plain(), ("CONNECT", Action::Die)],
    )
    .await;
    let later = hosts(
        &mut world,
        "later.test",
        &[("MAIL", say("451 busy")), plain()],
    )
    .await;
    let node = world.node(world.config()).await;
    let send = |domain: &'static str, body: &'static str, eight_bit: bool| {
        let change = |handout: &mut proto::v1::Handout| {
            handout.message.as_mut().unwrap().eight_bit = eight_bit;
        };
        let id = world.queue.append_with(domain, &["a"], body, change);
        world.queue.results(id, 0)
    };
    let body = "Subject: x\r\n\r\n\u{fc}\r\n";
    let got = send("one.test", body, true).await;
    assert_eq!(words(&got), [(Verdict::Delivered, 250, "second")]);
    assert_eq!(one[0].count("MAIL"), 0);
    let got = send("none.test", body, true).await;
    assert_eq!(words(&got), [(Verdict::Failed, 0, "second")]);
    assert_eq!(got[0].enhanced, "5.6.3");
    assert_eq!(none[1].count("CONNECT"), 1);
    // A host that was not reached, or that said "later", may well have it.
    let got = send("dead.test", body, true).await;
    assert_eq!(words(&got), [(Verdict::Deferred, 0, "first")]);
    assert_eq!(got[0].enhanced, "4.6.3");
    assert_eq!(dead[1].count("CONNECT"), 1);
    let got = send("later.test", body, true).await;
    assert_eq!(words(&got), [(Verdict::Deferred, 451, "first")]);
    assert_eq!(later[1].count("CONNECT"), 1);
    // What needs nothing goes anywhere.
    let got = send("none.test", "Subject: x\r\n\r\nu\r\n", false).await;
    assert_eq!(words(&got), [(Verdict::Delivered, 250, "first")]);
    node.leave().await;
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_content_is_heard() {
    let mut world = World::new().await;
    let remote = world
        .domain("d.test", |verb, _| match verb {
            "CONTENT" => say("552 5.3.4 too big for us"),
            _ => Action::Good,
        })
        .await;
    let node = world.node(world.config()).await;
    let line = format!("{}\r\n", "x".repeat(70));
    // From one write to many fetches: the host closes with the rest unread.
    for octets in [20 << 10, 200 << 10, 6 << 20] {
        let body = line.repeat(octets / line.len());
        let id = world.queue.append("d.test", &["a"], body);
        let results = world.queue.results(id, 0).await;
        let got = (results[0].verdict(), results[0].code);
        assert_eq!(got, (Verdict::Failed, 552), "{octets}: {results:?}");
        assert_eq!(results[0].enhanced, "5.3.4");
    }
    assert_eq!(remote.count("CONTENT"), 3);
    node.leave().await;
}
