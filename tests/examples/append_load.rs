#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::queue::{Options, Queue, append};
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
#[tokio::main]
async fn main() {
    let replicas: u64 = std::env::args().nth(1).map_or(3, |a| a.parse().unwrap());
    let inflight: usize = std::env::args().nth(2).map_or(128, |a| a.parse().unwrap());
    let secs: u64 = std::env::args().nth(3).map_or(8, |a| a.parse().unwrap());
    let dir = tempfile::tempdir_in("/root/wt").unwrap();
    let q = Queue::start(
        dir.path(),
        Options {
            replicas,
            segment_bytes: 64 << 20,
            ..Options::default()
        },
    )
    .await
    .unwrap();
    let client = q.client("edge").unwrap();
    client.ready(Duration::from_secs(10)).await.unwrap();
    let body = Bytes::from({
        let mut v = b"Subject: x\r\n\r\n".to_vec();
        v.resize(10240, b'x');
        v
    });
    let n = Arc::new(AtomicU64::new(0));
    for i in 0..inflight {
        let (c, b, n) = (client.clone(), body.clone(), n.clone());
        tokio::spawn(async move {
            loop {
                append(&c, &format!("r@d{i}.test"), &b).await;
                n.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (n0, c0, t0) = (n.load(Ordering::Relaxed), cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(secs)).await;
    let (d, c, t) = (
        n.load(Ordering::Relaxed) - n0,
        cpu() - c0,
        t0.elapsed().as_secs_f64(),
    );
    println!(
        "{replicas} replicas, {inflight} in flight: {:.0}/s, {:.1} us CPU per entry, {:.0}% cpu",
        d as f64 / t,
        c * 1e6 / d as f64,
        c / t * 100.0
    );
    std::process::exit(0);
}
