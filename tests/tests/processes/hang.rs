//! What does not die but hangs, and what dies in the middle of a delivery: real processes. `SIZE=full` stops a node for
//! 60 s instead of 6.

use std::time::{Duration, Instant};

use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

const DOMAINS: [&str; 3] = ["d0.test", "d1.test", "d2.test"];
/// For all messages to get their 250, and for the queue to be empty after that.
const PATIENCE: Duration = Duration::from_secs(300);
/// A lease session that is not kept alive ends after 30 s; the rest is for the commit of its end, for the grant and for
/// the delivery itself.
const REGRANTED: Duration = Duration::from_secs(35);

fn spec(sink: &Sink) -> Spec {
    let relays: Vec<(&str, u16)> = DOMAINS.iter().map(|d| (*d, sink.port)).collect();
    Spec::full(&relays)
}

/// A delivery node dies while its transactions wait for the reply to DATA: no final dot was sent, so there is no reason for
/// a second copy of anything, and no reason to wait for longer than its lease session.
#[tokio::test(flavor = "multi_thread")]
async fn the_mail_of_a_killed_delivery_node_goes_to_another_once() {
    let sink = Sink::stalling("delivery-1.chaos.test").await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = 60;
    let mut client = Client::start(&cluster.edges, Load::new(count, &DOMAINS));
    client.done(PATIENCE).await.unwrap();
    let begun = Instant::now();
    // What the other node has is through, and what this one has waits.
    let rest = loop {
        let (stalled, through) = (sink.stalled(), sink.count());
        if stalled > 0 && begun.elapsed() > Duration::from_secs(3) {
            break count as usize - through;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing stalls");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    cluster.kill("delivery-1").unwrap();
    let killed = Instant::now();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    let copies = sink.copies();
    let last = copies.values().flatten().map(|copy| copy.at).max();
    let took = last.map(|at| at.saturating_duration_since(killed));
    println!("{tally}; {rest} messages were with the dead node, the last arrived after {took:.1?}");
    tally.must_hold();
    assert!(rest > 0, "the dead node had something");
    assert!(took.is_some_and(|took| took <= REGRANTED), "{took:?}");
    assert!(
        copies.values().all(|copies| copies.len() == 1),
        "no final dot was sent, so nothing comes twice"
    );
}

/// SIGSTOP on the queue node that leads most: it answers nobody and closes nothing. Then it goes on, with a term that
/// is over and a clock that has jumped.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_and_goes_on_loses_nothing() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = size(1_500, 20_000);
    let asleep = size(Duration::from_secs(6), Duration::from_secs(60));
    let load = Load {
        pause: size(Duration::from_millis(20), Duration::from_millis(10)),
        ..Load::new(count, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    client.acked(count / 10, PATIENCE).await.unwrap();
    let victim = cluster.leads_most(&admin).await.unwrap();
    cluster.process(&victim).unwrap().pause().unwrap();
    let at = Instant::now();
    tokio::time::sleep(asleep).await;
    cluster.process(&victim).unwrap().resume().unwrap();
    let woke = Instant::now();
    client.done(PATIENCE).await.unwrap();
    cluster.ready(&victim).await.unwrap();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    println!(
        "{victim} stopped for {asleep:.0?}: nobody got 250 for {:.2?}, the slowest took {:.2?}; after it went on nobody for {:.2?}",
        client.ledger.longest_silence(at, woke),
        client.ledger.longest_wait(at, woke),
        client
            .ledger
            .longest_silence(woke, woke + Duration::from_secs(10)),
    );
    tally.must_hold();
}

/// The queue node that leads most is cut off from the other two, while edges and delivery nodes reach all three: mail goes
/// on with those that are a majority, and what the one alone said counts for nothing that was promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_with_its_clients_loses_nothing() {
    let sink = Sink::start().await.unwrap();
    let spec = Spec {
        cuttable: true,
        ..spec(&sink)
    };
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let count = size(1_500, 20_000);
    let apart = size(Duration::from_secs(6), Duration::from_secs(60));
    let load = Load {
        pause: size(Duration::from_millis(20), Duration::from_millis(10)),
        ..Load::new(count, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    client.acked(count / 10, PATIENCE).await.unwrap();
    let victim = cluster.leads_most(&admin).await.unwrap();
    let cut = cluster.cut(&victim).unwrap();
    let at = Instant::now();
    tokio::time::sleep(apart).await;
    drop(cut);
    let healed = Instant::now();
    client.done(PATIENCE).await.unwrap();
    cluster.ready(&victim).await.unwrap();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    println!(
        "{victim} cut off for {apart:.0?}: nobody got 250 for {:.2?}, the slowest took {:.2?}",
        client.ledger.longest_silence(at, healed),
        client.ledger.longest_wait(at, healed),
    );
    tally.must_hold();
    let silence = client.ledger.longest_silence(at, healed);
    assert!(
        silence > Duration::from_millis(300),
        "the cut cut nothing: {silence:?}"
    );
}

/// Power that comes and goes: all queue processes killed every few seconds, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn all_queue_processes_killed_again_and_again_lose_nothing() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let (every, rounds) = (Duration::from_secs(5), size(3, 60));
    let load = Load {
        pause: Duration::from_millis(20),
        ..Load::new(u64::MAX / 2, &DOMAINS)
    };
    let mut client = Client::start(&cluster.edges, load);
    let queues = cluster.names("queue-");
    for _ in 0..rounds {
        tokio::time::sleep(every).await;
        for name in &queues {
            cluster.kill(name).unwrap();
        }
        for name in &queues {
            cluster.spawn(name).unwrap();
        }
    }
    for name in &queues {
        cluster.ready(name).await.unwrap();
    }
    let acked = client.ledger.acked();
    client.stop().await;
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{rounds} times all killed: {tally}");
    tally.must_hold();
    assert!(acked > 0, "something got through between two kills");
}
