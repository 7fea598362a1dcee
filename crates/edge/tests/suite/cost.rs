//! What a message costs the edge: printed, never asserted.
//! `cargo test -p edge --release --test suite cost -- --ignored --nocapture`

use std::time::Duration;

use crate::world::World;

const SESSIONS: usize = 20;
const MESSAGES: usize = 250;
const BODY_BYTES: usize = 10 << 10;

#[tokio::test]
#[ignore = "prints figures for a person"]
async fn cost_of_a_message_on_a_kept_connection() {
    let edge = tokio::runtime::Builder::new_multi_thread();
    let edge = { edge }
        .worker_threads(1)
        .thread_name("edge")
        .enable_all()
        .build()
        .unwrap();
    let world = World::on(edge.handle().clone(), |_| {}, Duration::from_secs(120)).await;
    let mut content = b"Subject: x\r\n\r\n".to_vec();
    while content.len() < BODY_BYTES {
        content.extend_from_slice(
            b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n",
        );
    }
    let before = edge_ticks();
    let mut tasks = Vec::new();
    for _ in 0..SESSIONS {
        let mut client = world.client().await;
        let content = content.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..MESSAGES {
                let reply = client
                    .mail("a@client.example", &["b@else.example"], &content)
                    .await;
                assert!(reply.starts_with("250 "), "{reply}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let ticks = edge_ticks() - before;
    // USER_HZ is 100 on Linux: a tick is 10 ms.
    println!(
        "{:.1} us CPU a message at the edge, gRPC and TLS to the queue included",
        ticks as f64 * 1e4 / (SESSIONS * MESSAGES) as f64
    );
    edge.shutdown_background();
}

/// User and system time of the threads named `edge`.
fn edge_ticks() -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        if let Some((name, rest)) = stat.split_once(") ")
            && name.ends_with("(edge")
        {
            let fields: Vec<&str> = rest.split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks
}
