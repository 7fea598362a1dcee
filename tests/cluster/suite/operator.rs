//! The operator as this machine sees it: processes, which a signal reaches without asking anybody.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::relay::{OPERATOR, Relay};

/// The kernel keeps fifteen letters of a name.
const COMM: &str = "postroad-operat";

/// Directories in /proc of all operators that run here.
fn processes() -> Result<Vec<PathBuf>> {
    let all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    // What ended meanwhile has no name any more.
    let comm = |process: &PathBuf| fs::read_to_string(process.join("comm")).unwrap_or_default();
    Ok(all.filter(|process| comm(process).trim() == COMM).collect())
}

/// Kills whoever holds the Lease where he stands; he has no time to give it up. Says whether he was there: the holder may be
/// one that was killed before.
pub fn kill_leader(relay: &Relay<'_>) -> Result<bool> {
    let lease = "lease/postroad-leader";
    let holder = relay
        .cluster
        .field(OPERATOR, lease, "{.spec.holderIdentity}")?;
    let Some((pod, _)) = holder.split_once('_') else {
        return Ok(false);
    };
    let own = format!("POD_NAME={pod}");
    for process in processes()? {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let mut variables = environment.split(|octet| *octet == 0);
        if !variables.any(|variable| variable == own.as_bytes()) {
            continue;
        }
        let number = process.file_name().and_then(|name| name.to_str());
        let number = number.and_then(|number| number.parse().ok());
        let pid = number.and_then(Pid::from_raw).context("a process id")?;
        return Ok(kill_process(pid, Signal::KILL).is_ok());
    }
    Ok(false)
}

/// The largest resident set of the operators, KiB.
pub fn rss() -> Result<u64> {
    let mut largest = None;
    for process in processes()? {
        // It may have ended since.
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        largest = largest.max(rss);
    }
    largest.context("no operator runs")
}
