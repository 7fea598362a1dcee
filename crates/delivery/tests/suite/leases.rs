//! The lease protocol over real streams: fences, broken streams, and what a restart finds in the journal.

use std::time::Duration;

use mail::Ulid;
use proto::v1::Verdict;

use crate::support::remote::Action;
use crate::support::{World, eventually};

/// What the queue is told of a message for two recipients that a host may have taken: nobody can know.
async fn perhaps_delivered(world: &World, message: Ulid) {
    let results = world.queue.results(message, 0).await;
    let got: Vec<_> = results
        .iter()
        .map(|result| (result.recipient, result.verdict(), result.ambiguous))
        .collect();
    assert_eq!(
        got,
        [(0, Verdict::Deferred, true), (1, Verdict::Deferred, true)]
    );
}

#[tokio::test]
async fn an_unanswered_node_sends_no_final_dot() {
    let mut world = World::new().await;
    // The reply to DATA comes after the fence.
    let late = Duration::from_millis(900);
    let remote = world
        .domain("d.test", move |verb, _| {
            if verb == "DATA" {
                Action::Late(late)
            } else {
                Action::Good
            }
        })
        .await;
    let mut config = world.config();
    (config.keepalive_every, config.fence_after) =
        (Duration::from_millis(100), Duration::from_millis(500));
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = Duration::from_secs(5);
    }
    let node = world.node(config).await;
    let id = world.queue.append("d.test", &["a"], "x\r\n");
    eventually("DATA", || (remote.count("DATA") == 1).then_some(())).await;
    world.queue.state.lock().unwrap().mute = true;
    eventually("handed back", || {
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
    assert_eq!(remote.count("DOT"), 0);
    assert!(
        !*node.ready.borrow(),
        "a node without lease sessions is not ready"
    );
    assert!(world.queue.state.lock().unwrap().settled.is_empty());
    node.leave().await;
    assert!(remote.taken().is_empty());
}

#[tokio::test]
async fn a_broken_stream_is_reattached_with_what_is_held() {
    let mut world = World::new().await;
    let late = Duration::from_millis(300);
    let remote = world
        .domain("d.test", move |verb, _| {
            if verb == "DOT" {
                Action::Late(late)
            } else {
                Action::Good
            }
        })
        .await;
    let node = world.node(world.config()).await;
    let id = world.queue.append("d.test", &["a"], "x\r\n");
    eventually("past the dot", || (remote.count("DOT") == 1).then_some(())).await;
    world.queue.break_stream();
    let again = eventually("reattached", || {
        world
            .queue
            .state
            .lock()
            .unwrap()
            .reattached
            .first()
            .cloned()
    })
    .await;
    let held: Vec<_> = again
        .holding
        .iter()
        .map(|held| (held.item.clone().unwrap().message, held.past_dot))
        .collect();
    assert_eq!(
        held,
        [(bytes::Bytes::copy_from_slice(&id.to_bytes()), true)]
    );
    assert_eq!(
        world.queue.results(id, 0).await[0].verdict(),
        Verdict::Delivered
    );
    // The new stream has credit of its own.
    let id = world.queue.append("d.test", &["a"], "x\r\n");
    assert_eq!(
        world.queue.results(id, 0).await[0].verdict(),
        Verdict::Delivered
    );
    assert_eq!(
        world.queue.state.lock().unwrap().opens.len(),
        1,
        "the lease session is the same"
    );
    node.leave().await;
}

#[tokio::test]
async fn a_killed_node_settles_first_what_its_journal_knows() {
    let mut world = World::new().await;
    let remote = world.domain("d.test", |_, _| Action::Good).await;
    let silent = world
        .domain("silent.test", |verb, _| {
            if verb == "DOT" {
                Action::Hang
            } else {
                Action::Good
            }
        })
        .await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.final_reply_timeout = Duration::from_secs(60);
    }
    let node = world.node(config.clone()).await;
    world.queue.state.lock().unwrap().deaf = true;
    let delivered = world.queue.append("d.test", &["a"], "x\r\n");
    let unknown = world.queue.append("silent.test", &["a", "b"], "x\r\n");
    eventually("sent", || {
        (remote.taken().len() == 1 && silent.count("DOT") == 1).then_some(())
    })
    .await;
    // The result of the first is in the journal as soon as it came.
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The node's death: its files are what is left.
    let data = world.dir.path().join("data-after");
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(config.data_dir.join("journal"), data.join("journal")).unwrap();
    node.task.abort();
    world.queue.state.lock().unwrap().deaf = false;

    let again = world
        .node(delivery::Config {
            data_dir: data,
            ..config
        })
        .await;
    assert_eq!(
        world.queue.results(delivered, 0).await[0].verdict(),
        Verdict::Delivered
    );
    perhaps_delivered(&world, unknown).await;
    {
        let state = world.queue.state.lock().unwrap();
        let open = state.opens.last().unwrap();
        let held: Vec<_> = open
            .holding
            .iter()
            .map(|held| held.item.clone().unwrap().message)
            .collect();
        assert_eq!(
            held,
            [bytes::Bytes::copy_from_slice(&unknown.to_bytes())],
            "what is settled is not claimed"
        );
    }
    assert_eq!(remote.taken().len(), 1, "nothing is sent twice");
    again.leave().await;
}

/// An item whose reply was still waited for was left to its lease session, which ran out: another node sent it at once.
#[tokio::test]
async fn what_is_past_its_dot_when_the_drain_time_ends_is_settled_as_perhaps_delivered() {
    let mut world = World::new().await;
    let silent = world
        .domain("silent.test", |verb, _| match verb {
            "DOT" => Action::Hang,
            _ => Action::Good,
        })
        .await;
    let before_dot = world
        .domain("slow.test", |verb, _| match verb {
            "DATA" => Action::Hang,
            _ => Action::Good,
        })
        .await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = Duration::from_secs(60);
        settings.final_reply_timeout = Duration::from_secs(60);
        settings.drain = Duration::from_millis(300);
    }
    let node = world.node(config).await;
    let unknown = world.queue.append("silent.test", &["a", "b"], "x\r\n");
    let unsent = world.queue.append("slow.test", &["a"], "x\r\n");
    eventually("begun", || {
        (silent.count("DOT") == 1 && before_dot.count("DATA") == 1).then_some(())
    })
    .await;
    let left = tokio::time::Instant::now();
    node.leave().await;
    assert!(
        left.elapsed() < Duration::from_secs(10),
        "it waits for the answers of the queue, not of the hosts"
    );
    perhaps_delivered(&world, unknown).await;
    let state = world.queue.state.lock().unwrap();
    assert_eq!(state.settled.len(), 1);
    assert_eq!(state.released, [unsent]);
}

/// A node that had mail for thousands of destinations could not say all that it knew of them on a new stream: the stream
/// was given up for being full, again and again, and nothing that keeps a lease session alive was ever sent.
#[tokio::test]
async fn a_node_that_knows_of_thousands_of_destinations_survives_a_broken_stream() {
    const DESTINATIONS: usize = 2_000;
    let mut world = World::new().await;
    let remote = world.domain("shop.test", |_, _| Action::Good).await;
    let declared = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: shop, namespace: t}
spec: {domain: shop.test, inbound: {}}
---
apiVersion: postroad.dev/v1alpha1
kind: DeliveryPool
metadata: {name: out, namespace: t}
spec: {egress: {smartHost: {host: gone.test}}}
";
    world.catalog = resource::load_dir(vec![("t.yaml".into(), declared.into())]).unwrap();
    let mut config = world.config();
    (config.keepalive_every, config.fence_after) =
        (Duration::from_millis(200), Duration::from_secs(3));
    let node = world.node(config).await;
    let told = || world.queue.state.lock().unwrap().busy.len();
    // The smart host is dead after a few; each destination after that is told to back off.
    while told() == 0 {
        let id = world.queue.append("first.test", &["a"], "x\r\n");
        world.queue.results(id, 0).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for number in 0..DESTINATIONS {
        let domain = format!("d{number}.test");
        world.queue.append(&domain, &["a"], "x\r\n");
    }
    eventually("told", || (told() >= DESTINATIONS).then_some(())).await;
    let before = told();
    world.queue.break_stream();
    eventually("told again", || {
        (told() >= before + DESTINATIONS).then_some(())
    })
    .await;
    // Longer than the fence: the lease session lives on by its keepalives.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(*node.ready.borrow());
    {
        let state = world.queue.state.lock().unwrap();
        assert_eq!((state.opens.len(), state.reattached.len()), (1, 1));
    }
    let id = world.queue.append("shop.test", &["a"], "x\r\n");
    assert_eq!(
        world.queue.results(id, 0).await[0].verdict(),
        Verdict::Delivered
    );
    assert_eq!(remote.taken().len(), 1);
    node.leave().await;
}
