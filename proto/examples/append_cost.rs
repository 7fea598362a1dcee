//! What an append costs: CPU of both ends over mutual TLS on loopback, in one process with two workers.
//!
//! `cargo run --release -p proto --example append_cost [messages] [in flight] [body octets]`

#[allow(dead_code, reason = "the tests of the client say more")]
#[path = "../tests/suite/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use proto::v1::AppendOutcome;
use proto::{AppendResult, Role, Ulid};
use support::{Pki, Say, led_by, listen, message, start_on};

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|a| a.parse::<usize>().expect("a number"));
    let messages = arguments.next().unwrap_or(200_000);
    let in_flight = arguments.next().unwrap_or(1_024);
    let octets = arguments.next().unwrap_or(10 * 1024);

    let pki = Pki::new("bench");
    let (listener, address) = listen().await;
    let script = |_: Ulid, _| Say::Append(AppendOutcome::Created);
    // 32 answers in a frame, as a node that commits in batches gives them.
    let node = start_on(
        listener,
        address,
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        32,
        script,
    );
    let client = pki.client(Role::Edge, &[&node.address], Duration::from_secs(60));
    client
        .ready(Duration::from_secs(10))
        .await
        .expect("the node tells its topology");

    let body = Bytes::from(vec![b'x'; octets]);
    let run = |count: usize| {
        let (client, body) = (&client, &body);
        futures::stream::iter(0..count as u128)
            .map(move |n| client.append(0, message(Ulid::from_parts(1, n), body)))
            .buffer_unordered(in_flight)
            .for_each(|result| async move { assert_eq!(result, AppendResult::Created) })
    };
    run(messages / 20).await;
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    run(messages).await;
    let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
    println!(
        "{messages} x {octets} octets, {in_flight} in flight: {:.1} us CPU a message (both ends), {:.0} a second",
        cpu * 1e6 / messages as f64,
        messages as f64 / wall,
    );
}

/// User and system time of this process; Linux counts it in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |n: usize| fields[n].parse::<f64>().expect("a number of ticks");
    (ticks(11) + ticks(12)) / 100.0
}
