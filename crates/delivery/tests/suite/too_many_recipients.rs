//! A next hop that takes fewer recipients in one transaction than a message has (RFC 5321 section 4.5.3.1.10).

use std::time::Duration;

use proto::v1::RecipientResult;

use crate::support::remote::{Action, Taken, say};
use crate::support::{World, eventually};

/// Verdict and code of each; `?` when ambiguous.
fn words(results: &[RecipientResult]) -> Vec<String> {
    let word = |result: &RecipientResult| {
        let ambiguous = if result.ambiguous { "?" } else { "" };
        format!("{:?}{ambiguous} {}", result.verdict(), result.code)
    };
    results.iter().map(word).collect()
}

/// At these RCPTs, counted over all transactions, the host says this; else all is well.
fn at(numbers: &'static [usize], line: &'static str) -> impl Fn(&str, usize) -> Action {
    move |verb, nth| match verb == "RCPT" && numbers.contains(&nth) {
        true => say(line),
        false => Action::Good,
    }
}

const TOO_MANY: &str = "452 4.5.3 too many recipients";
const BODY: &str = "Subject: x\r\n\r\n.\r\n";

#[tokio::test]
async fn who_was_one_too_many_follows_at_once_over_the_same_connection() {
    let mut world = World::new().await;
    // Two in a transaction: a b | c d | e. Some hosts give no enhanced code, and some the code of old.
    let mut remotes = Vec::new();
    for (number, line) in [
        TOO_MANY,
        "452 too many",
        "552 too many",
        "552 5.5.3 too many",
    ]
    .into_iter()
    .enumerate()
    {
        let domain = format!("d{number}.test");
        let remote = world.domain(&domain, at(&[2, 3, 4, 7], line)).await;
        let to = ["a", "b", "c", "d", "e"];
        let id = world.queue.append(&domain, &to, BODY);
        remotes.push((domain, remote, id));
    }
    let node = world.node(world.config()).await;
    for (domain, remote, id) in remotes {
        let results = world.queue.results(id, 0).await;
        assert_eq!(words(&results), ["Delivered 250"; 5], "{results:?}");
        let numbers: Vec<_> = results.iter().map(|result| result.recipient).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        let taken = remote.taken();
        let at = format!("@{domain}");
        let to = |taken: &Taken| taken.to.join(" ").replace(&at, "");
        let to: Vec<_> = taken.iter().map(to).collect();
        assert_eq!(to, ["a b", "c d", "e"]);
        assert!(taken.iter().all(|taken| taken.connection == 0));
        assert!(taken.iter().all(|taken| taken.body == BODY.as_bytes()));
        assert_eq!(remote.count("EHLO"), 1);
    }
    assert_eq!(world.queue.state.lock().unwrap().settled.len(), 4);
    node.leave().await;
}

#[tokio::test]
async fn without_progress_the_others_wait_for_their_retry() {
    let mut world = World::new().await;
    // RCPTs that are refused and how, the results, and how many transactions there were.
    let table: [(&[usize], &str, [&str; 3], usize); 4] = [
        // The second transaction has room for nobody.
        (
            &[1, 2, 3, 4],
            TOO_MANY,
            ["Delivered 250", "Deferred 452", "Deferred 452"],
            2,
        ),
        // It is not about their number.
        (
            &[1, 2],
            "452 4.2.2 mailbox full",
            ["Delivered 250", "Deferred 452", "Deferred 452"],
            1,
        ),
        (
            &[1, 2],
            "450 4.7.1 greylisted",
            ["Delivered 250", "Deferred 450", "Deferred 450"],
            1,
        ),
        // Nobody was taken.
        (
            &[0, 1, 2],
            TOO_MANY,
            ["Deferred 452", "Deferred 452", "Deferred 452"],
            1,
        ),
    ];
    let mut cases = Vec::new();
    for (number, (refused, line, expected, transactions)) in table.into_iter().enumerate() {
        let domain = format!("d{number}.test");
        let remote = world.domain(&domain, at(refused, line)).await;
        let id = world.queue.append(&domain, &["a", "b", "c"], "x\r\n");
        cases.push((id, remote, expected, transactions));
    }
    let node = world.node(world.config()).await;
    for (id, remote, expected, transactions) in cases {
        let results = world.queue.results(id, 0).await;
        assert_eq!(words(&results), expected, "{results:?}");
        assert_eq!(remote.count("MAIL"), transactions, "{results:?}");
    }
    node.leave().await;
}

#[tokio::test]
async fn what_befalls_the_second_transaction_takes_nothing_from_the_first() {
    let mut world = World::new().await;
    // What happens where in the second transaction, and the result of who was too many.
    let table = [
        ("MAIL", say("451 4.3.0 busy"), "Deferred 451"),
        ("MAIL", say("421 4.3.2 closing"), "Deferred 421"),
        ("MAIL", say("550 5.7.1 not you"), "Failed 550"),
        ("DATA", say("451 4.3.0 busy"), "Deferred 451"),
        ("DOT", say("554 5.7.1 spam"), "Failed 554"),
        ("MAIL", Action::Die, "Deferred 0"),
        ("DATA", Action::Hang, "Deferred 0"),
        ("DOT", Action::Die, "Deferred? 0"),
    ];
    let mut cases = Vec::new();
    for (number, (verb, action, expected)) in table.into_iter().enumerate() {
        let domain = format!("d{number}.test");
        let case = format!("{verb} {action:?}");
        // Another host would take it: it is not asked, for this one has delivered.
        let (first, second) = (format!("mx0.{domain}"), format!("mx1.{domain}"));
        world.mx(&domain, &[(1, &first), (2, &second)]);
        let script = move |at: &str, nth: usize| match (at, nth) {
            ("RCPT", 1) => say(TOO_MANY),
            (at, 1) if at == verb => action.clone(),
            _ => Action::Good,
        };
        let remote = world.remote(&first, script).await;
        let other = world.remote(&second, |_, _| Action::Good).await;
        let id = world.queue.append(&domain, &["a", "b"], "x\r\n");
        cases.push((case, expected, id, remote, other));
    }
    let node = world.node(world.config()).await;
    for (case, expected, id, remote, other) in cases {
        let results = world.queue.results(id, 0).await;
        let got = words(&results);
        assert_eq!(got, ["Delivered 250", expected], "{case}: {results:?}");
        assert_eq!(remote.taken().len(), 1, "{case}");
        assert_eq!(other.count("CONNECT"), 0, "{case}");
    }
    assert!(world.queue.state.lock().unwrap().released.is_empty());
    node.leave().await;
}

#[tokio::test]
async fn a_transaction_that_fails_at_data_is_followed_by_no_other() {
    let mut world = World::new().await;
    let script = |verb: &str, nth: usize| match (verb, nth) {
        ("RCPT", 1) => say(TOO_MANY),
        ("DATA", _) => say("451 4.3.0 busy"),
        _ => Action::Good,
    };
    let remote = world.domain("d.test", script).await;
    let node = world.node(world.config()).await;
    let id = world.queue.append("d.test", &["a", "b"], "x\r\n");
    let results = world.queue.results(id, 0).await;
    assert_eq!(words(&results), ["Deferred 451", "Deferred 452"]);
    assert_eq!(remote.count("MAIL"), 1);
    node.leave().await;
}

/// The host takes one recipient; what it does in the second transaction is the test's.
fn one_at_first(verb: &'static str, action: Action) -> impl Fn(&str, usize) -> Action {
    move |at, nth| match (at, nth) {
        ("RCPT", 1) => say(TOO_MANY),
        (at, 1) if at == verb => action.clone(),
        _ => Action::Good,
    }
}

#[tokio::test]
async fn a_node_that_falls_silent_in_the_second_transaction_settles_the_first() {
    let mut world = World::new().await;
    let late = Action::Late(Duration::from_millis(2_500));
    let remote = world.domain("d.test", one_at_first("DATA", late)).await;
    let mut config = world.config();
    (config.keepalive_every, config.fence_after) =
        (Duration::from_millis(100), Duration::from_millis(1_500));
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = Duration::from_secs(10);
    }
    let node = world.node(config).await;
    let id = world.queue.append("d.test", &["a", "b"], "x\r\n");
    eventually("DATA", || (remote.count("DATA") == 2).then_some(())).await;
    world.queue.state.lock().unwrap().mute = true;
    let results = world.queue.results(id, 0).await;
    assert_eq!(words(&results), ["Delivered 250", "Deferred 0"]);
    assert_eq!(remote.count("DOT"), 1, "no second one");
    assert!(world.queue.state.lock().unwrap().released.is_empty());
    node.leave().await;
}

#[tokio::test]
async fn a_node_that_dies_in_the_second_transaction_knows_of_the_first() {
    let mut world = World::new().await;
    let mut cases = Vec::new();
    for (verb, expected) in [("DATA", "Deferred 452"), ("DOT", "Deferred? 0")] {
        let domain = format!("{}.test", verb.to_lowercase());
        let remote = world
            .domain(&domain, one_at_first(verb, Action::Hang))
            .await;
        cases.push((verb, domain, remote, expected));
    }
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = Duration::from_secs(60);
        settings.final_reply_timeout = Duration::from_secs(60);
    }
    let node = world.node(config.clone()).await;
    let mut sent = Vec::new();
    for (verb, domain, remote, expected) in cases {
        let id = world.queue.append(&domain, &["a", "b"], "x\r\n");
        sent.push((verb, remote, id, expected));
    }
    for (verb, remote, ..) in &sent {
        eventually(verb, || (remote.count(verb) == 2).then_some(())).await;
    }
    // The node's death: its files are what is left.
    let data = world.dir.path().join("data-after");
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(config.data_dir.join("journal"), data.join("journal")).unwrap();
    node.task.abort();
    let again = world
        .node(delivery::Config {
            data_dir: data,
            ..config
        })
        .await;
    for (verb, remote, id, expected) in sent {
        let results = world.queue.results(id, 0).await;
        let got = words(&results);
        assert_eq!(got, ["Delivered 250", expected], "{verb}: {results:?}");
        assert_eq!(remote.taken().len(), 1, "{verb}");
    }
    again.leave().await;
}

#[tokio::test]
async fn a_leaving_node_whose_time_is_over_settles_the_first_transaction() {
    let mut world = World::new().await;
    let script = one_at_first("DATA", Action::Hang);
    let remote = world.domain("d.test", script).await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = Duration::from_secs(60);
        settings.drain = Duration::from_millis(300);
    }
    let node = world.node(config).await;
    let id = world.queue.append("d.test", &["a", "b"], "x\r\n");
    eventually("DATA", || (remote.count("DATA") == 2).then_some(())).await;
    node.leave().await;
    let results = world.queue.results(id, 0).await;
    assert_eq!(words(&results), ["Delivered 250", "Deferred 452"]);
    assert!(world.queue.state.lock().unwrap().released.is_empty());
}
