//! A queue node that was away for longer than the log is kept for it: it comes back by snapshot, under load, and holds
//! what it must hold when the others die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::client::QueueClient;
use proto::v1::{AdminAction, ItemFilter};
use tests::process::client::Outcome;
use tests::process::records::{Record, flip, records};
use tests::process::sink::Verdict;
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

/// For whatever is waited for here.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Ids of the messages that wait all the time.
const PARKED: u64 = 10_000_000;
/// Of what passes one in so many is parked: some in each segment of the log.
const PARKED_ONE_OF: usize = 200;
/// The same, for small segments.
const PARKED_ONE_OF_SMALL: usize = 12;
/// Bodies that rot on each sender: of the first ones, which are parked.
const ROTTEN: usize = 6;
/// More messages than anybody waits for.
const ENDLESS: u64 = 1_000_000;

/// What the leaders say of node 3, group by group: (group, state, entries behind).
async fn third(admin: &QueueClient) -> Vec<(u32, String, u64)> {
    let statuses = admin.admin().statuses().await;
    let statuses = statuses.into_iter().filter_map(|(_, status)| status.ok());
    let of =
        |status: proto::v1::NodeStatus| status.groups.into_iter().map(move |g| (status.node, g));
    let mut all = Vec::new();
    for (node, group) in statuses.flat_map(of) {
        if node == 3 && group.role == "Leader" {
            all.push((group.group, "leads".to_owned(), 0));
        }
        for replica in group.progress.iter().filter(|p| p.node == 3) {
            let behind = group.last_index.saturating_sub(replica.matched);
            all.push((group.group, replica.state.clone(), behind));
        }
    }
    all
}

/// Waits until the four shards' leaders say so of node 3.
async fn until(admin: &QueueClient, what: &str, holds: impl Fn(&str, u64) -> bool) {
    let begun = Instant::now();
    loop {
        let seen = third(admin).await;
        let shards = seen.iter().filter(|(group, ..)| *group > 0);
        let done = shards.filter(|(_, state, behind)| holds(state, *behind));
        if done.count() == 4 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "waits until {what}: {seen:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// From final dot to 250, of what was answered since: median, 99 %, worst.
fn waits(client: &Client, from: Instant, to: Instant) -> String {
    let attempts = client.ledger.attempts();
    let acked = attempts
        .values()
        .flatten()
        .filter(|a| a.outcome == Outcome::Acked && a.ended >= from && a.ended <= to);
    let mut times: Vec<Duration> = acked.map(|a| a.ended - a.begun).collect();
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    let (median, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    let worst = times.last().copied().unwrap_or_default();
    format!(
        "{} acked: median {median:.1?}, p99 {p99:.1?}, worst {worst:.1?}",
        times.len()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_comes_back_by_snapshot_and_then_the_others_die() {
    let open = Arc::new(AtomicBool::new(false));
    let seen = open.clone();
    let parked = move |id| match id < PARKED || seen.load(Ordering::SeqCst) {
        true => Verdict::Accept,
        false => Verdict::Defer,
    };
    let sink = Sink::with(Box::new(parked), Duration::ZERO).await.unwrap();
    // Of what passes while it is away some is parked as well, in each segment of the log: so none of them dies as a whole.
    let seen = open.clone();
    let later = move |_| match seen.load(Ordering::SeqCst) {
        true => Verdict::Accept,
        false => Verdict::Defer,
    };
    let slow = Sink::with(Box::new(later), Duration::ZERO).await.unwrap();
    let mut spec = Spec::full(&[
        ("live.test", sink.port),
        ("parked.test", sink.port),
        ("slow.test", slow.port),
    ]);
    for id in 1..=3 {
        let keep = size("2MiB", "64MiB");
        let segment = size("1MiB", "16MiB");
        let args = ["--retain-log-bytes", keep, "--segment-bytes", segment];
        spec = spec.with(&format!("queue-{id}"), &args);
        spec = spec.with(&format!("queue-{id}"), &["--retain-log-seconds", "1"]);
    }
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let waiting = Load {
        first: PARKED,
        octets: (5_000, 60_000),
        ..Load::new(size(300, 10_000), &["parked.test"])
    };
    let mut waiting = Client::start(&cluster.edges, waiting);
    waiting.done(PATIENCE).await.unwrap();

    // It is away while more passes than the log keeps for it.
    cluster
        .terminate("queue-3", Duration::from_secs(20))
        .await
        .unwrap();
    let mut domains = vec!["live.test"; size(PARKED_ONE_OF_SMALL, PARKED_ONE_OF) - 1];
    domains.push("slow.test");
    let load = Load {
        octets: (10_000, 40_000),
        ..Load::new(ENDLESS, &domains)
    };
    let mut client = Client::start(&cluster.edges, load);
    let away = Instant::now();
    client
        .acked(size(800, 80_000), size(PATIENCE, 10 * PATIENCE))
        .await
        .unwrap();
    until(&admin, "its entries are gone", |state, _| {
        state == "needs snapshot"
    })
    .await;
    println!("without: {}", waits(&client, away, Instant::now()));

    // Meanwhile bodies that live rot on both of those who could send it a snapshot, each its own: they come from the other.
    let mut rotten = BTreeSet::new();
    for name in ["queue-1", "queue-2"] {
        let all = records(&cluster.data(name)).unwrap();
        let body = |r: &&Record| r.kind == 1 && r.payload > 5_000;
        let fresh: Vec<&Record> = all
            .iter()
            .filter(body)
            .filter(|r| !rotten.contains(&r.entry()))
            .take(ROTTEN)
            .collect();
        for record in &fresh {
            flip(&record.file, record.in_body()).unwrap();
        }
        rotten.extend(fresh.iter().map(|r| r.entry()));
    }
    assert_eq!(rotten.len(), 2 * ROTTEN);

    // It comes back under load.
    let back = Instant::now();
    cluster.spawn("queue-3").unwrap();
    until(&admin, "it has caught up", |state, behind| {
        state == "leads" || state == "replicate" && behind < 100
    })
    .await;
    println!(
        "back by snapshot after {:.1?}; meanwhile {}",
        back.elapsed(),
        waits(&client, back, Instant::now())
    );
    let metrics = cluster.metrics("queue-3").await.unwrap();
    let installed = metrics
        .lines()
        .filter(|line| line.starts_with("postroad_snapshot"))
        .collect::<Vec<_>>();
    println!("{installed:#?}");
    assert!(
        installed.iter().any(|line| line.contains("installed")),
        "{metrics}"
    );

    let mut fetched = 0.0;
    for name in ["queue-1", "queue-2"] {
        let metrics = cluster.metrics(name).await.unwrap();
        let counts = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("postroad_bodies_fetched_total "));
        fetched += counts.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
    }
    println!("{fetched} rotten bodies came from another replica");
    assert!(fetched >= 1.0, "what rots at the sender was met");

    // It and one other are a majority now: each of the others may die.
    for name in ["queue-1", "queue-2"] {
        let dead = Instant::now();
        cluster.kill(name).unwrap();
        client
            .acked(client.ledger.acked() + 200, PATIENCE)
            .await
            .unwrap();
        println!("200 more {:.1?} after {name} died", dead.elapsed());
        cluster.spawn(name).unwrap();
        cluster.ready(name).await.unwrap();
        until(&admin, "every shard has a leader", |_, _| true).await;
        client
            .acked(client.ledger.acked() + 200, PATIENCE)
            .await
            .unwrap();
    }
    client.stop().await;

    // Nothing is lost: neither what passed nor what waited, whose bodies node 3 has by snapshot.
    open.store(true, Ordering::SeqCst);
    let filter = ItemFilter {
        state: "Waiting".to_owned(),
        ..ItemFilter::default()
    };
    let begun = Instant::now();
    while cluster.queued(&admin).await.unwrap_or(1) > 0 {
        assert!(begun.elapsed() < PATIENCE, "the queue is not empty");
        if let Ok((items, _)) = admin.admin().list(&filter, 1_000).await {
            let items = items.into_iter().filter_map(|i| i.item).collect();
            let retry = AdminAction::Retry;
            let _ = admin.admin().act(retry, items, "test", "it goes on").await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for client in [&waiting, &client] {
        let tally = judge(client, &[&sink, &slow], &[]);
        println!("{tally}");
        tally.must_hold();
    }
    cluster.all_run().unwrap();
}
