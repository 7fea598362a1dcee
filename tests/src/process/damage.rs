//! One queue node whose disk is damaged: what its start comes to, what it mends, which files it has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{Client, Cluster, Load, Sink, Spec, judge};

/// The node whose disk it is.
pub const HURT: &str = "queue-2";
/// The others, which keep serving.
pub const OTHERS: [&str; 2] = ["queue-1", "queue-3"];
/// For whatever is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The state is flushed every 2 s.
pub const FLUSHED: Duration = Duration::from_secs(3);
/// What a node that stays away says whatever was damaged: which one it is, and what to do.
pub const STAYS_AWAY: [&str; 2] = ["queue node 2 does not start", "new node id"];

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// For an orderly end.
const END: Duration = Duration::from_secs(30);

/// A cluster with log segments of this size and mail that waits, all of it durable; then the node was stopped. There is one edge,
/// and no delivery node runs.
pub async fn stopped(sink: &Sink, segment_bytes: &str, load: Load) -> Result<(Cluster, Client)> {
    let mut spec = Spec::full(&[("d0.test", sink.port)]);
    (spec.edges, spec.deliveries) = (1, 1);
    for name in OTHERS.into_iter().chain([HURT]) {
        spec = spec.with(name, &["--segment-bytes", segment_bytes]);
    }
    let mut cluster = Cluster::start_without(spec, "delivery-").await?;
    cluster.admin()?.ready(PATIENCE).await?;
    let mut client = Client::start(&cluster.edges, load);
    client.done(PATIENCE).await?;
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await?;
    Ok((cluster, client))
}

/// What a start came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// It takes part.
    Ready,
    /// It stays away, and this was the last thing that it said.
    Refused(String),
}

/// Starts the node and waits for one or the other.
pub async fn start(cluster: &mut Cluster) -> Result<Start> {
    cluster.spawn(HURT)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let process = cluster.process(HURT)?;
        if let Some(status) = process.ended()? {
            let said = process.said();
            ensure!(!status.success(), "it ended in order: {said}");
            let last = said.lines().last().unwrap_or_default().to_owned();
            cluster.kill(HURT)?;
            return Ok(Start::Refused(last));
        }
        if cluster.is_ready(HURT).await {
            return Ok(Start::Ready);
        }
        if Instant::now() > until {
            bail!("neither ready nor refused: {}", said(cluster));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Stops the node in order.
pub async fn stop(cluster: &mut Cluster) -> Result<()> {
    cluster.terminate(HURT, END).await
}

/// The end of what the node said.
pub fn said(cluster: &mut Cluster) -> String {
    let process = cluster.process(HURT);
    process.map_or_else(|error| error.to_string(), |process| process.said())
}

/// The others are ready.
pub async fn others_serve(cluster: &mut Cluster) -> Result<()> {
    for other in OTHERS {
        cluster.ready(other).await?;
    }
    Ok(())
}

/// The entries, by group and index, whose bodies a node fetched and wrote again, by what it said.
pub fn mended(said: &str) -> BTreeSet<(u32, u64)> {
    let number = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u64>().ok()
    };
    let of = |line: &str| {
        let group = number(line, " group=")?;
        Some((u32::try_from(group).ok()?, number(line, " index=")?))
    };
    let lines = said.lines();
    lines
        .filter(|line| line.contains("is written again"))
        .filter_map(of)
        .collect()
}

/// Waits until the bodies of these entries are written again, by what the node said since octet `from` of its log.
pub async fn until_mended(
    cluster: &mut Cluster,
    from: usize,
    wanted: &BTreeSet<(u32, u64)>,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let all = cluster.all_said(HURT)?;
        let done = mended(all.get(from..).unwrap_or_default());
        if wanted.is_subset(&done) {
            return Ok(());
        }
        if Instant::now() > until {
            let left: Vec<_> = wanted.difference(&done).collect();
            let (all, said) = (wanted.len(), said(cluster));
            bail!("{} of {all} are not mended: {left:?}\n{said}", left.len());
        }
        tokio::time::sleep(2 * LOOK).await;
    }
}

/// Starts the delivery node: everything is delivered, octet for octet.
pub async fn deliver(cluster: &mut Cluster, clients: &[&Client], sink: &Sink) -> Result<()> {
    let admin = cluster.admin()?;
    cluster.spawn("delivery-1")?;
    cluster.drained(&admin, PATIENCE).await?;
    for client in clients {
        let tally = judge(client, &[sink], &[]);
        println!("{tally}");
        tally.must_hold();
    }
    Ok(())
}

/// All files below, with their lengths.
pub fn all_files(dir: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => all.append(&mut all_files(&entry.path())?),
            false => drop(all.insert(entry.path(), entry.metadata()?.len())),
        }
    }
    Ok(all)
}

/// Copies a directory with everything in it.
pub fn copy_all(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_all(&entry.path(), &to)?,
            false => drop(std::fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mended_is_read_from_what_was_said() {
        let said = "\
2026-01-01T00:00:00Z  INFO spool: a damaged body came from another replica and is written again group=3 index=41
2026-01-01T00:00:00Z ERROR spool: a damaged body is not mended yet group=3 index=42 why=\"nobody has it\"
2026-01-01T00:00:00Z  INFO spool: a damaged body came from another replica and is written again group=1 index=7
";
        assert_eq!(mended(said), BTreeSet::from([(1, 7), (3, 41)]));
    }
}
