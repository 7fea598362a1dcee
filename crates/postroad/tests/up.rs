//! `postroad up` as a person meets it: the real program, real sockets, a mail server behind it.

use std::time::Duration;

mod world;

use world::{Place, Sink, without_trace};

/// Lines that a careless relay changes, in a file with LF line ends.
const MESSAGE: &[u8] =
    b"Subject: bytes\nX-Folded: a\n\tb\n\n.\n..\n.dot\n trailing  \n\ngr\xc3\xbc\xc3\x9fe\n";

fn with_crlf(text: &[u8]) -> Vec<u8> {
    let text = text.split_inclusive(|byte| *byte == b'\n');
    text.flat_map(|line| [&line[..line.len() - 1], b"\r\n"].concat())
        .collect()
}

/// What `queue list` says.
fn list(place: &Place, more: &[&str]) -> serde_json::Value {
    let all = [&["queue", "list", "-o", "json"][..], more].concat();
    let out = place.ask(&all);
    assert!(out.status.success());
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Of a message that is the only one: with room for it nothing is left, whatever else is asked for.
fn only_what_was_not_shown_is_more(place: &Place) {
    let all = list(place, &["--limit", "1"]);
    assert_eq!(all["more"], false);
    let id = all["items"][0]["message"].as_str().unwrap();
    let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for (limit, shown, more) in [("1", 1, false), ("0", 0, true)] {
        let found = list(place, &["--limit", limit, id, unknown]);
        assert_eq!(found["items"].as_array().unwrap().len(), shown);
        assert_eq!(found["more"], more, "--limit {limit}");
    }
}

#[test]
fn a_message_arrives_octet_for_octet_and_the_end_is_orderly() {
    let sink = Sink::start();
    let place = Place::new(sink.port);
    let up = place.up(&[]);
    place.send(MESSAGE);
    assert_eq!(without_trace(&sink.next(), "Subject:"), with_crlf(MESSAGE));

    assert!(place.get("/readyz").starts_with("HTTP/1.1 200"));
    for metric in [
        "postroad_accepted_messages_total",
        "postroad_node_certificate_expiry_timestamp_seconds{certificate=\"ca\"}",
    ] {
        assert!(place.get("/metrics").contains(metric), "{metric}");
    }
    let status = || {
        let out = place.ask(&["status", "-o", "json"]);
        assert!(out.status.success());
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    assert_eq!(status()["nodes"][0]["node"], 1);
    // What is applied is durable at the next flush of the state, and `status` says so.
    let flushed = |status: &serde_json::Value| {
        let groups = status["nodes"][0]["groups"].as_array().unwrap();
        let durable = |g: &serde_json::Value| g["durable_applied"].as_u64().unwrap();
        groups
            .iter()
            .all(|g| durable(g) > 0 && Some(durable(g)) == g["applied"].as_u64())
    };
    while !flushed(&status()) {
        std::thread::sleep(Duration::from_millis(100));
    }

    assert!(up.stop().success());
    // Nobody is there any more, and a script can tell.
    assert_eq!(place.ask(&["status"]).status.code(), Some(3));
}

#[test]
fn what_waited_when_it_was_killed_is_delivered_once_after_the_restart() {
    // The port is ours, but nobody answers at it yet.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let place = Place::new(port);
    let up = place.up(&["--replicas", "3"]);
    place.send(MESSAGE);
    let waits = |state: &str| {
        let out = place.ask(&["queue", "summary", "-o", "json"]);
        let summary: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        summary[state].as_u64().unwrap()
    };
    while waits("waiting") == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let counted = || {
        let all = place.get("/metrics");
        let lines = all.lines();
        let of_groups = lines.filter(|line| line.starts_with("postroad_queue_messages_count{"));
        let counts = of_groups.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>()
    };
    // A leader counts every second.
    while counted() != 1.0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    only_what_was_not_shown_is_more(&place);
    let refused = place.ask(&["queue", "drop", "--all"]);
    assert_eq!(refused.status.code(), Some(2), "nobody said --yes");
    up.kill();

    let sink = Sink::on(std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
    let up = place.up(&[]);
    assert_eq!(waits("messages"), 1);
    assert!(place.ask(&["queue", "retry", "--all"]).status.success());
    assert_eq!(without_trace(&sink.next(), "Subject:"), with_crlf(MESSAGE));
    while waits("messages") > 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sink.is_silent_for(Duration::from_millis(300)));
    assert!(up.stop().success());
}
