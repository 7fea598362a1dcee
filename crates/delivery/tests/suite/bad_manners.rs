//! Next hops that cost more than a refusal: what one of them does neither fills this node nor keeps mail waiting.

use std::time::{Duration, Instant};

use proto::v1::Verdict;

use crate::support::remote::Action;
use crate::support::{World, eventually};

/// It was heard for as long as a host may take no octets, and all of that was kept.
#[tokio::test]
async fn a_host_that_floods_instead_of_reading_is_left_at_once() {
    const PATIENCE: Duration = Duration::from_secs(15);
    // More than the sockets of both ends hold.
    const BODY_BYTES: usize = 16 << 20;
    let mut world = World::new().await;
    let flood = |verb: &str, _| match verb {
        "CONTENT" => Action::Flood,
        _ => Action::Good,
    };
    let remote = world.domain("d.test", flood).await;
    let mut config = world.config();
    if let Some(settings) = &mut config.settings {
        settings.reply_timeout = PATIENCE;
    }
    let node = world.node(config).await;
    let line = format!("{}\r\n", "x".repeat(70));
    let body = line.repeat(BODY_BYTES / line.len());
    let begun = Instant::now();
    let id = world.queue.append("d.test", &["a"], body);
    let results = world.queue.results(id, 0).await;
    let took = begun.elapsed();
    assert_eq!(results[0].verdict(), Verdict::Deferred, "{results:?}");
    assert!(results[0].text.contains("has no end"), "{results:?}");
    assert!(took < PATIENCE / 2, "{took:?}");
    assert_eq!(remote.count("CONTENT"), 1);
    node.leave().await;
}

#[tokio::test]
async fn nothing_waits_for_the_reply_to_quit() {
    let mut world = World::new().await;
    let silent = |verb: &str, nth| match (verb, nth) {
        ("QUIT", 0) => Action::Hang,
        _ => Action::Good,
    };
    let remote = world.domain("d.test", silent).await;
    let mut config = world.config();
    config.idle = Duration::from_millis(50);
    if let Some(settings) = &mut config.settings {
        settings.connections_per_site = 1;
    }
    let node = world.node(config).await;
    for number in 0..2 {
        let begun = Instant::now();
        let id = world.queue.append("d.test", &["a"], "x\r\n");
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
        let took = begun.elapsed();
        assert!(took < smtp::limits::QUIT_TIMEOUT / 2, "{number}: {took:?}");
        eventually("QUIT", || (remote.count("QUIT") > number).then_some(())).await;
    }
    node.leave().await;
}

/// Each item comes as the time of the connection that took the one before it ends, or nearly so.
#[tokio::test]
async fn an_item_that_comes_as_a_connection_ends_waits_for_nobody() {
    const IDLE: Duration = Duration::from_millis(20);
    let mut world = World::new().await;
    let silent = |verb: &str, _| match verb {
        "QUIT" => Action::Hang,
        _ => Action::Good,
    };
    world.domain("d.test", silent).await;
    let mut config = world.config();
    config.idle = IDLE;
    if let Some(settings) = &mut config.settings {
        settings.connections_per_site = 1;
    }
    let node = world.node(config).await;
    for number in 0..40 {
        let begun = Instant::now();
        let id = world.queue.append("d.test", &["a"], "x\r\n");
        let results = world.queue.results(id, 0).await;
        assert_eq!(results[0].verdict(), Verdict::Delivered, "{results:?}");
        let took = begun.elapsed();
        assert!(took < smtp::limits::QUIT_TIMEOUT / 2, "{number}: {took:?}");
        tokio::time::sleep(IDLE - Duration::from_millis(number % 10)).await;
    }
    node.leave().await;
}
