//! The promise, held against real processes: three queue nodes, two edges, two delivery nodes, a client that keeps
//! books, and somebody who pulls plugs. `SIZE=full` sends 20,000 messages.

use std::time::{Duration, Instant};

use tests::process::judge::Killed;
use tests::process::sink::Verdict;
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

const DOMAINS: [&str; 7] = [
    "d0.test", "d1.test", "d2.test", "d3.test", "d4.test", "d5.test", "d6.test",
];
/// For all messages to get their 250, and for the queue to be empty after that.
const PATIENCE: Duration = Duration::from_secs(600);
/// Transactions that one delivery node can have past the final dot: 20 connections to the one site.
const UNSURE_MAX: usize = 20;
/// What follows a kill is looked at so long.
const AFTERMATH: Duration = Duration::from_secs(5);

fn spec(sink: &Sink) -> Spec {
    let relays: Vec<(&str, u16)> = DOMAINS.iter().map(|d| (*d, sink.port)).collect();
    Spec::full(&relays)
}

/// Kills a node of each kind in turn while mail flows; each is started again before the next.
#[tokio::test(flavor = "multi_thread")]
async fn what_got_250_arrives_whoever_is_killed() {
    // The next hop thinks for a moment before its 250, so that a delivery node can die meanwhile.
    let thinks = Duration::from_millis(20);
    let sink = Sink::with(Box::new(|_| Verdict::Accept), thinks)
        .await
        .unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = size(3_000, 20_000);
    // By progress, so that there is always mail under way.
    let victims: &[&str] = &[
        "queue",
        "queue",
        "delivery-1",
        "queue",
        "edge-1",
        "queue",
        "delivery-2",
        "queue",
    ];
    let begun = Instant::now();
    let load = Load {
        pause: size(Duration::from_millis(30), Duration::from_millis(3)),
        ..Load::new(count, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    let (mut killed, mut gaps) = (Vec::new(), Vec::new());
    for (n, victim) in (1u64..).zip(victims) {
        client.acked(count * n / 10, PATIENCE).await.unwrap();
        let victim = match *victim {
            "queue" => cluster.leads_most(&admin).await.unwrap(),
            other => other.to_owned(),
        };
        assert!(client.ledger.acked() < count, "there is mail under way");
        cluster.kill(&victim).unwrap();
        let at = Instant::now();
        gaps.push((victim.clone(), at));
        if victim.starts_with("delivery") {
            let hostname = format!("{victim}.chaos.test");
            killed.push(Killed { hostname, at });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.spawn(&victim).unwrap();
        cluster.ready(&victim).await.unwrap();
    }
    client.done(PATIENCE).await.unwrap();
    let acked = begun.elapsed();
    let unsure = cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &killed);
    println!("{tally}");
    println!(
        "all 250s after {acked:.1?}, empty after {:.1?}; {unsure} items retried by hand: their connection was cut after the \
         final dot",
        begun.elapsed()
    );
    for (victim, at) in gaps {
        println!(
            "{victim} killed: nobody got 250 for {:.2?}, the slowest 250 took {:.2?}",
            client.ledger.longest_silence(at, at + AFTERMATH),
            client.ledger.longest_wait(at, at + AFTERMATH)
        );
    }
    tally.must_hold();
    assert_eq!(tally.acked as u64, count);
    // More would be mail that waits half an hour without any delivery node having died over it.
    assert!(unsure <= killed.len() * UNSURE_MAX, "{unsure} items");
    assert_eq!(
        sink.strange(),
        Vec::<String>::new(),
        "no reports, no strangers"
    );
}

/// The power of the whole rack fails, more than once.
#[tokio::test(flavor = "multi_thread")]
async fn what_got_250_outlives_all_queue_processes_at_once() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = size(1_500, 20_000);
    let begun = Instant::now();
    let load = Load {
        pause: size(Duration::from_millis(10), Duration::ZERO),
        ..Load::new(count, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    let queues = cluster.names("queue-");
    let mut gaps = Vec::new();
    for quarter in 1..=3 {
        client.acked(count * quarter / 4, PATIENCE).await.unwrap();
        let at = Instant::now();
        for name in &queues {
            cluster.kill(name).unwrap();
        }
        for name in &queues {
            cluster.spawn(name).unwrap();
        }
        for name in &queues {
            cluster.ready(name).await.unwrap();
        }
        gaps.push((at, at.elapsed()));
    }
    client.done(PATIENCE).await.unwrap();
    let acked = begun.elapsed();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    println!(
        "all 250s after {acked:.1?}, empty after {:.1?}",
        begun.elapsed()
    );
    for (at, ready) in gaps {
        println!(
            "all killed: ready again after {ready:.2?}, nobody got 250 for {:.2?}",
            client.ledger.longest_silence(at, at + ready + AFTERMATH)
        );
    }
    tally.must_hold();
    assert_eq!(tally.acked as u64, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_queue_node_refuses_to_take_part_and_says_what_to_do() {
    let mut spec = Spec::full(&[("d0.test", 1)]);
    (spec.edges, spec.deliveries) = (0, 0);
    let mut cluster = Cluster::start(spec).await.unwrap();
    cluster.kill("queue-2").unwrap();
    let data = cluster.data("queue-2");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    cluster.spawn("queue-2").unwrap();
    let process = cluster.process("queue-2").unwrap();
    let status = process.end(Duration::from_secs(30)).await.unwrap();
    let said = process.said();
    assert!(!status.success(), "{status}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("node 2 already took part") && last.contains("new id"),
        "{said}"
    );
    // It goes on refusing, and the others go on without it.
    cluster.spawn("queue-2").unwrap();
    let process = cluster.process("queue-2").unwrap();
    let status = process.end(Duration::from_secs(30)).await.unwrap();
    assert!(!status.success(), "{status}");
    for name in ["queue-1", "queue-3"] {
        cluster.ready(name).await.unwrap();
    }
}

/// A rolling restart of everything: an upgrade. Nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_loses_nothing_and_refuses_nothing_for_good() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = size(2_000, 20_000);
    let load = Load {
        pause: size(Duration::from_millis(30), Duration::from_millis(3)),
        ..Load::new(count, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    let mut all = cluster.names("queue-");
    all.extend(cluster.names("edge-"));
    all.extend(cluster.names("delivery-"));
    let mut gaps = Vec::new();
    for (n, name) in (1u64..).zip(&all) {
        client.acked(count * n / 10, PATIENCE).await.unwrap();
        let at = Instant::now();
        cluster
            .terminate(name, Duration::from_secs(30))
            .await
            .unwrap();
        gaps.push((name, at, at.elapsed()));
        cluster.spawn(name).unwrap();
        cluster.ready(name).await.unwrap();
    }
    client.done(PATIENCE).await.unwrap();
    let unsure = cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    for (name, at, left) in gaps {
        println!(
            "{name} left in {left:.2?}: nobody got 250 for {:.2?}, the slowest 250 took {:.2?}",
            client.ledger.longest_silence(at, at + AFTERMATH),
            client.ledger.longest_wait(at, at + AFTERMATH)
        );
    }
    tally.must_hold();
    assert_eq!(
        (
            tally.acked as u64,
            tally.unknown,
            tally.resent,
            tally.redelivered,
            unsure
        ),
        (count, 0, 0, 0, 0),
        "an orderly end leaves no doubt about any message: {tally}"
    );
}
