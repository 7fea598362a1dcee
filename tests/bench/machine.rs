//! What the figures were measured on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

/// How long each kind of flush is tried.
const TRY: Duration = Duration::from_secs(1);
/// One write, bytes: a small message.
const WRITE: usize = 4096;
/// The file that is written again and again, bytes.
const FILE: u64 = 16 << 20;

/// Prints the facts and gives them for the JSON line.
pub fn facts(dir: &Path) -> Result<Value> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model)
        .to_owned();
    let cores = std::thread::available_parallelism()?.get();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| {
            let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
            kib.parse::<f64>().ok()
        })
        .unwrap_or_default()
        / f64::from(1 << 20);
    let (appended, rewritten) = (flushes(dir, false)?, flushes(dir, true)?);
    println!(
        "{cores} cores of {model}, {memory:.0} GiB, Linux {kernel}, load before: {load}\n\
         {}: 4 KiB write and fdatasync, appended {appended:.0}/s, into a file that is there {rewritten:.0}/s",
        dir.display()
    );
    Ok(json!({
        "cores": cores, "cpu": model, "memory_gib": memory.round(), "kernel": kernel, "load_before": load,
        "fdatasync_append": appended.round(), "fdatasync_rewrite": rewritten.round(),
    }))
}

/// Flushes a second, by one thread.
fn flushes(dir: &Path, there: bool) -> Result<f64> {
    let file = tempfile::tempfile_in(dir)?;
    if there {
        file.write_all_at(&vec![0; FILE as usize], 0)?;
        file.sync_all()?;
    }
    let page = [0x5a; WRITE];
    let (begun, mut count) = (Instant::now(), 0_u64);
    while begun.elapsed() < TRY {
        let at = count * WRITE as u64;
        file.write_all_at(&page, if there { at % FILE } else { at })?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
