//! The client against scripted queue nodes: redirects, broken streams, giving up, and ten thousand at once.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proto::v1::{
    AppendOutcome, ItemRef, Keepalive, LeaseHello, LeaseRequest, SettleOutcome as Wire,
    SettleRequest, lease_event, lease_request,
};
use proto::{AppendResult, CallError, Role, SettleOutcome, Ulid, ulid_bytes};

use crate::support::{Pki, Say, led_by, listen, message, nobody, start, start_on};

const LONG: Duration = Duration::from_secs(30);
const CREATED: Say = Say::Append(AppendOutcome::Created);

fn id(n: u128) -> Ulid {
    Ulid::from_parts(1_700_000_000_000, n)
}

#[tokio::test]
async fn a_redirect_is_followed() {
    let pki = Pki::new("mail");
    let leader = start(
        pki.node(Role::Queue, "2"),
        |_| led_by("", 1, &[]),
        |_, _| CREATED,
    )
    .await;
    let hint = leader.address.clone();
    // The first believes to lead until it is asked.
    let first = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        move |_, _| Say::Ask(hint.clone()),
    )
    .await;
    let client = pki.client(Role::Edge, &[&first.address], LONG);
    let view = client.ready(LONG).await.unwrap();
    assert_eq!(view.known_leader(0), Some(first.address.as_str()));

    let body = Bytes::from_static(b"Subject: hello\r\n\r\n");
    assert_eq!(
        client.append(0, message(id(1), &body)).await,
        AppendResult::Created
    );
    assert_eq!((first.times_seen(id(1)), leader.times_seen(id(1))), (1, 1));
}

#[tokio::test]
async fn a_stream_broken_after_the_write_is_retried_with_the_same_id() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, nth| match nth {
            0 => Say::Break,
            1 => Say::Append(AppendOutcome::Busy),
            _ => Say::Append(AppendOutcome::AlreadyQueued),
        },
    )
    .await;
    let client = pki.client(Role::Edge, &[&node.address], LONG);
    client.ready(LONG).await.unwrap();
    let outcome = client
        .append(0, message(id(7), &Bytes::from_static(b"x")))
        .await;
    assert_eq!(outcome, AppendResult::AlreadyQueued);
    assert_eq!(node.times_seen(id(7)), 3);
}

#[tokio::test]
async fn final_outcomes_are_not_retried() {
    use AppendOutcome::*;
    let pki = Pki::new("mail");
    let script = |id: Ulid, _| {
        Say::Append([Full, Conflict, Stale, UploadGone, ChunkStored, Invalid][id.random() as usize])
    };
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        script,
    )
    .await;
    let client = pki.client(Role::Edge, &[&node.address], LONG);
    let expected = [
        AppendResult::Full,
        AppendResult::Conflict,
        AppendResult::Stale,
        AppendResult::UploadGone,
        AppendResult::ChunkStored,
        AppendResult::Invalid(String::new()),
    ];
    for (n, expected) in (0..).zip(expected) {
        assert_eq!(
            client.append(0, message(id(n), &Bytes::new())).await,
            expected
        );
        assert_eq!(node.times_seen(id(n)), 1);
    }
}

#[tokio::test]
async fn giving_up_says_whether_anything_was_written() {
    let pki = Pki::new("mail");
    let short = Duration::from_millis(700);
    // 1: never answered. 2: Busy all the time. 3: broken once, then NotLeader all the time.
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |id, nth| match (id.random(), nth) {
            (1, _) => Say::Nothing,
            (2, _) => Say::Append(AppendOutcome::Busy),
            (_, 0) => Say::Break,
            _ => Say::Ask(String::new()),
        },
    )
    .await;
    let client = pki.client(Role::Edge, &[&node.address], short);
    client.ready(LONG).await.unwrap();
    let ask = |n| client.append(0, message(id(n), &Bytes::new()));
    assert_eq!(ask(1).await, AppendResult::GaveUp { unknown: true });
    assert_eq!(ask(2).await, AppendResult::GaveUp { unknown: false });
    assert_eq!(ask(3).await, AppendResult::GaveUp { unknown: true });

    let lonely = Pki::new("mail").client(Role::Edge, &[&nobody().await], short);
    let outcome = lonely.append(0, message(id(4), &Bytes::new())).await;
    assert_eq!(outcome, AppendResult::GaveUp { unknown: false });
    let error = lonely.ready(short).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot connect to 127.0.0.1"),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_that_waits_at_a_deposed_leader_moves_to_the_new_one() {
    let pki = Pki::new("mail");
    let new = start(
        pki.node(Role::Queue, "2"),
        |_| led_by("", 1, &[]),
        |_, _| CREATED,
    )
    .await;
    let old = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let client = pki.client(Role::Edge, &[&old.address], LONG);
    client.ready(LONG).await.unwrap();
    let body = Bytes::new();
    let mut append = std::pin::pin!(client.append(0, message(id(1), &body)));
    loop {
        tokio::select! {
            outcome = &mut append => panic!("nobody answered, and yet {outcome:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        if old.times_seen(id(1)) == 1 {
            break;
        }
    }
    old.topology
        .send_replace(led_by(&new.address, 2, &[&old.address, &new.address]));
    assert_eq!(append.await, AppendResult::Created);
    assert_eq!(new.times_seen(id(1)), 1);
}

#[tokio::test]
async fn topology_comes_from_the_next_node_when_the_first_is_down() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| CREATED,
    )
    .await;
    let client = pki.client(
        Role::Edge,
        &[&nobody().await, &node.address, &nobody().await],
        LONG,
    );
    let view = client.ready(LONG).await.unwrap();
    assert_eq!(view.known_leader(0), Some(node.address.as_str()));
    assert!(view.cluster_time_ms(std::time::Instant::now()) >= Some(1_700_000_000_000));
}

#[tokio::test]
async fn a_settle_goes_on_until_there_is_an_outcome() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, nth| match nth {
            0 => Say::Break,
            1 => Say::Ask(String::new()),
            2 => Say::Settle(Wire::Busy),
            3 => Say::Settle(Wire::Unknown),
            _ => Say::Settle(Wire::Fenced),
        },
    )
    .await;
    // Its limit for appends does not count here.
    let client = pki.client(Role::Delivery, &[&node.address], Duration::from_millis(1));
    client.ready(LONG).await.unwrap();
    let item = Some(ItemRef {
        message: ulid_bytes(id(1)),
        number: 0,
    });
    let request = SettleRequest {
        item,
        token: 3,
        ..SettleRequest::default()
    };
    assert_eq!(client.settle(request).await, SettleOutcome::Fenced);
    assert_eq!(node.times_seen(id(1)), 5);
}

#[tokio::test]
async fn a_body_is_fetched_from_the_leader_or_gone() {
    let pki = Pki::new("mail");
    let leader = start(
        pki.node(Role::Queue, "2"),
        |_| led_by("", 1, &[]),
        |id, _| match id.random() {
            1 => CREATED,
            _ => Say::Nothing,
        },
    )
    .await;
    let hint = leader.address.clone();
    let first = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        move |_, _| Say::Ask(hint.clone()),
    )
    .await;
    let client = pki.client(Role::Delivery, &[&first.address], LONG);
    client.ready(LONG).await.unwrap();
    assert_eq!(
        client.fetch(0, id(1), 0, 1 << 20).await.unwrap().len(),
        1 << 20
    );
    assert!(matches!(
        client.fetch(0, id(2), 0, 10).await,
        Err(CallError::Gone)
    ));
}

#[tokio::test]
async fn a_lease_stream_carries_both_ways() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let client = pki.client(Role::Delivery, &[&node.address], LONG);
    let (ask, events) = client
        .lease(&node.address, LeaseHello::default())
        .await
        .unwrap();
    for sequence in 0..100 {
        let what = lease_request::What::Keepalive(Keepalive {
            shard: 0,
            session: 5,
            sequence,
        });
        ask.send(LeaseRequest { what: Some(what) }).await.unwrap();
    }
    drop(ask);
    let heard: Vec<_> = events.collect().await;
    let sequences: Vec<u64> = heard
        .into_iter()
        .map(|event| match event.unwrap().what {
            Some(lease_event::What::KeptAlive(kept)) => kept.sequence,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sequences, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn ten_thousand_appends_are_answered_out_of_order() {
    let pki = Pki::new("mail");
    let (listener, address) = listen().await;
    // Each message has its own outcome, so that an answer given to the wrong one shows.
    let outcome = |id: Ulid| match id.random() % 3 {
        0 => AppendOutcome::Created,
        1 => AppendOutcome::AlreadyQueued,
        _ => AppendOutcome::Full,
    };
    let script = move |id: Ulid, _| Say::Append(outcome(id));
    let node = start_on(
        listener,
        address,
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        97,
        script,
    );
    let client = pki.client(Role::Edge, &[&node.address], LONG);
    client.ready(LONG).await.unwrap();
    let body = Bytes::from(vec![b'x'; 1024]);
    let appends = (0..10_000u128).map(|n| {
        let (client, body) = (&client, &body);
        async move { (n, client.append(0, message(id(n), body)).await) }
    });
    let results: Vec<_> = futures::stream::iter(appends)
        .buffer_unordered(2_000)
        .collect()
        .await;
    assert_eq!(results.len(), 10_000);
    for (n, result) in results {
        let expected = [
            AppendResult::Created,
            AppendResult::AlreadyQueued,
            AppendResult::Full,
        ];
        assert_eq!(result, expected[(n % 3) as usize], "message {n}");
    }
}

#[tokio::test]
async fn a_dropped_append_leaves_the_stream_to_the_others() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |id, _| match id.random() {
            1 => Say::Nothing,
            _ => CREATED,
        },
    )
    .await;
    let client = pki.client(Role::Edge, &[&node.address], LONG);
    client.ready(LONG).await.unwrap();
    let dropped = client.append(0, message(id(1), &Bytes::new()));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), dropped)
            .await
            .is_err()
    );
    assert_eq!(
        client.append(0, message(id(2), &Bytes::new())).await,
        AppendResult::Created
    );
}
