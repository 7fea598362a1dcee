//! A destination with several hosts: what the first one does not take, the next ones are asked for.

use proto::v1::{RecipientResult, Verdict};

use crate::support::World;
use crate::support::remote::{Action, Remote, say};

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

/// Two servers that behave alike, at the two addresses of one host.
async fn at_two_addresses(
    world: &mut World,
    host: &str,
    script: impl Fn(&str, usize) -> Action + Clone + Send + Sync + 'static,
) -> [Remote; 2] {
    let both = [
        world.remote(host, script.clone()).await,
        world.remote(host, script).await,
    ];
    let ips = both.iter().map(|remote| remote.address.ip()).collect();
    world
        .dns
        .set_addresses(host, dns::AddressAnswer::Found(ips));
    both
}

/// A greylist or a full disk was asked again at each address of the host that had just said it.
#[tokio::test]
async fn what_a_host_says_of_a_mail_it_says_for_all_its_addresses() {
    let mut world = World::new().await;
    let mut cases = Vec::new();
    for (number, (verb, action)) in [
        ("MAIL", say("451 4.3.0 busy")),
        ("RCPT", say("450 4.7.1 greylisted")),
        ("DOT", say("451 4.3.0 scanner down")),
    ]
    .into_iter()
    .enumerate()
    {
        let case = format!("{verb} {action:?}");
        let script = move |at: &str, _: usize| match at == verb {
            true => action.clone(),
            false => Action::Good,
        };
        let (domain, alone) = (format!("d{number}.test"), format!("alone{number}.test"));
        world.mx(
            &domain,
            &[(1, &format!("mx0.{domain}")), (2, &format!("mx1.{domain}"))],
        );
        let first = at_two_addresses(&mut world, &format!("mx0.{domain}"), script.clone()).await;
        let second = world
            .remote(&format!("mx1.{domain}"), |_, _| Action::Good)
            .await;
        let id = world.queue.append(&domain, &["a"], "x\r\n");
        world.mx(&alone, &[(1, &format!("mx0.{alone}"))]);
        let only = at_two_addresses(&mut world, &format!("mx0.{alone}"), script).await;
        let waits = world.queue.append(&alone, &["a"], "x\r\n");
        cases.push((case, id, first, second, waits, only));
    }
    let node = world.node(world.config()).await;
    for (case, id, first, second, waits, only) in cases {
        let results = world.queue.results(id, 0).await;
        let expected = [(Verdict::Delivered, 250, "second")];
        assert_eq!(words(&results), expected, "{case}: {results:?}");
        assert_eq!(second.taken().len(), 1, "{case}");
        let results = world.queue.results(waits, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Deferred, "{case}");
        for host in [first, only] {
            let asked = host.iter().map(|remote| remote.count("MAIL"));
            assert_eq!(asked.sum::<usize>(), 1, "{case}");
        }
    }
    node.leave().await;
}

#[tokio::test]
async fn an_address_that_is_not_reached_gives_way_to_the_next_one_of_its_host() {
    let mut world = World::new().await;
    let dark: std::net::IpAddr = "127.0.0.250".parse().unwrap();
    let mut cases = Vec::new();
    // Nobody listens at the first address, or who does hangs up in the middle, or closes.
    for (number, (verb, action)) in [
        ("", Action::Good),
        ("MAIL", say("421 4.3.2 closing")),
        ("CONNECT", Action::Die),
        ("MAIL", Action::Die),
        ("DATA", Action::Die),
    ]
    .into_iter()
    .enumerate()
    {
        let domain = format!("d{number}.test");
        let host = format!("mx0.{domain}");
        world.mx(&domain, &[(1, &host)]);
        let script = move |at: &str, _: usize| match at == verb {
            true => action.clone(),
            false => Action::Good,
        };
        let bad = world.remote(&host, script).await;
        let good = world.remote(&host, |_, _| Action::Good).await;
        let first = if verb.is_empty() {
            dark
        } else {
            bad.address.ip()
        };
        let ips = vec![first, good.address.ip()];
        world
            .dns
            .set_addresses(&host, dns::AddressAnswer::Found(ips));
        let id = world.queue.append(&domain, &["a"], "x\r\n");
        cases.push((verb, id, good));
    }
    let node = world.node(world.config()).await;
    for (verb, id, good) in cases {
        let results = world.queue.results(id, 0).await;
        let expected = [(Verdict::Delivered, 250, "first")];
        assert_eq!(words(&results), expected, "{verb}: {results:?}");
        assert_eq!(good.taken().len(), 1, "{verb}");
    }
    node.leave().await;
}

/// What a host lacks is known at one of its addresses; that another one of them was dark is no reason to wait.
#[tokio::test]
async fn a_host_that_was_asked_at_one_of_its_addresses_was_asked() {
    let mut world = World::new().await;
    world.mx("d.test", &[(1, "mx0.d.test")]);
    let plain = |verb: &str, _: usize| match verb {
        "EHLO" => say("250 remote.test"),
        _ => Action::Good,
    };
    let remote = world.remote("mx0.d.test", plain).await;
    let ips = vec!["127.0.0.250".parse().unwrap(), remote.address.ip()];
    world
        .dns
        .set_addresses("mx0.d.test", dns::AddressAnswer::Found(ips));
    let node = world.node(world.config()).await;
    let body = "Subject: x\r\n\r\n\u{fc}\r\n";
    let id = world.queue.append_with("d.test", &["a"], body, |handout| {
        handout.message.as_mut().unwrap().eight_bit = true;
    });
    let results = world.queue.results(id, 0).await;
    assert_eq!(words(&results), [(Verdict::Failed, 0, "first")]);
    assert_eq!(results[0].enhanced, "5.6.3");
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
