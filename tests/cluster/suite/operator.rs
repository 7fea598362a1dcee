//! The operator as this machine sees it: processes, which a signal reaches without asking anybody.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::relay::{OPERATOR, Relay};

/// The kernel keeps fifteen letters of a name.
const COMM: &str = "postroad-operat";

/// The operator's own, in the relay's eyes.
const DEPLOYMENT: &str = "deployment/postroad-operator";
/// See `operator/src/fail_point.rs`: how it ends, and what it says then.
const DIED: &str = "86";
const SAYS: &str = "fail point: the operator ends after ";

/// The operator dies after everything that it writes for a queue pool.
pub const DIES_AT_WRITES: &str = "POSTROAD_FAIL_POINTS=all";
/// The operator takes domains' word for how long a minute is.
pub const TEST_CLOCK: &str = "POSTROAD_TEST_CLOCK=true";
/// Neither.
const AS_USUAL: [&str; 2] = ["POSTROAD_FAIL_POINTS-", "POSTROAD_TEST_CLOCK-"];

/// From now on the operator runs with this in its environment.
pub fn runs_with(relay: &Relay<'_>, variable: &str) -> Result<()> {
    set(relay, &[variable])
}

/// It runs as the chart has it.
pub fn runs_as_usual(relay: &Relay<'_>) -> Result<()> {
    set(relay, &AS_USUAL)
}

fn set(relay: &Relay<'_>, variables: &[&str]) -> Result<()> {
    let ours = |rest: &[&str]| {
        let all = [["--namespace", OPERATOR].as_slice(), rest].concat();
        relay.cluster.kubectl(&all).map(drop)
    };
    ours(&[["set", "env", DEPLOYMENT].as_slice(), variables].concat())?;
    ours(&["rollout", "status", DEPLOYMENT, "--timeout=2m"])
}

/// What operators wrote that died of it since the last question. Each has a new pod, which waits for nothing before it starts.
pub fn deaths(relay: &Relay<'_>) -> Result<Vec<String>> {
    let cluster = relay.cluster;
    let in_ours = |rest: &[&str]| cluster.kubectl(&[["-n", OPERATOR].as_slice(), rest].concat());
    let status = "{range .items[*]}{.metadata.name} {.status.containerStatuses[0]..terminated.exitCode}{\"\\n\"}{end}";
    let pods = in_ours(&["get", "pods", "-o", &format!("jsonpath={status}")])?;
    let mut writes = Vec::new();
    for line in pods.lines() {
        let Some((pod, status)) = line.split_once(' ') else {
            continue;
        };
        if !status.split_whitespace().any(|status| status == DIED) {
            continue;
        }
        let log = in_ours(&["logs", "--previous", pod]).or_else(|_| in_ours(&["logs", pod]))?;
        let last = log.lines().rev().find_map(|line| line.split_once(SAYS));
        let (_, write) = last.with_context(|| format!("{pod} does not say why it died: {log}"))?;
        let name = |letter: &char| letter.is_ascii_alphabetic() || *letter == '-';
        writes.push(write.chars().take_while(name).collect());
        in_ours(&["delete", "pod", pod, "--force", "--grace-period=0"])?;
    }
    Ok(writes)
}

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
