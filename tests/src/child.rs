//! Processes that a test or measurement starts: ended when their handle goes, and asked what CPU time they used.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A process that is asked to end has this long before it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// Between two looks at whether a process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// A process of ours. Dropped, it is asked to end, and killed if it does not.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it, in a process group of its own: a Ctrl-C on the terminal then ends only the parent, which ends the
    /// others in order.
    ///
    /// # Errors
    /// The system's, with the program's name.
    pub fn start(name: &str, command: &mut Command) -> Result<Process> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        Ok(Process {
            child,
            name: name.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The handle of std, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `limit`, or `go_on` says no.
    pub fn wait(&mut self, limit: Duration, go_on: impl Fn() -> bool) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if !go_on() {
                bail!("interrupted while {} ran", self.name);
            }
            if Instant::now() >= until {
                bail!("{} did not end within {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself a moment ago.
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to end and waits for it.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM);
        match self.wait(GRACE, || true) {
            Ok(status) => Ok(status),
            Err(error) => {
                self.child.kill()?;
                self.child.wait()?;
                Err(error)
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error}; it was killed");
        }
    }
}

/// Runs a tool to its end and gives what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or fails; the text has what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        bail!("{shown}: {}\n{out}{err}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True when the program is found on PATH or in the folders of system programs, which a user's PATH often lacks.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(system)
        .any(|dir: std::path::PathBuf| dir.join(OsStr::new(program)).is_file())
}

/// CPU time, user and system, of these processes, of all that descend from them, and of their descendants that ended.
/// Linux tells it in ticks, usually of 10 ms.
pub fn cpu(roots: &[u32]) -> Duration {
    let stats: HashMap<u32, Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let ours = |mut pid: u32| {
        // The tree has no cycles, but it is read while it changes.
        for _ in 0..64 {
            if roots.contains(&pid) {
                return true;
            }
            match stats.get(&pid) {
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        false
    };
    let ticks = stats
        .iter()
        .filter(|(pid, _)| ours(**pid))
        .map(|(_, stat)| stat.own + stat.reaped)
        .sum();
    from_ticks(ticks)
}

/// CPU time of this process without its children.
pub fn own_cpu() -> Duration {
    stat(std::process::id()).map_or(Duration::ZERO, |stat| from_ticks(stat.own))
}

/// CPU time of all children of this process that have ended and were waited for.
pub fn reaped_cpu() -> Duration {
    stat(std::process::id()).map_or(Duration::ZERO, |stat| from_ticks(stat.reaped))
}

struct Stat {
    parent: u32,
    own: u64,
    reaped: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; numbers follow the last one.
    let (_, numbers) = text.rsplit_once(") ")?;
    let numbers: Vec<&str> = numbers.split(' ').collect();
    // proc(5) counts from 1 and from the pid; `state`, its third field, is our first.
    let field = |number: usize| numbers.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(field(4)?).ok()?,
        own: field(14)? + field(15)?,
        reaped: field(16)? + field(17)?,
    })
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_ended_children_is_counted() {
        let before = reaped_cpu();
        let mut busy = Process::start(
            "busy",
            Command::new("sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]),
        )
        .unwrap();
        assert!(
            busy.wait(Duration::from_secs(60), || true)
                .unwrap()
                .success()
        );
        assert!(reaped_cpu() > before);
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let process = Process::start("sleep", Command::new("sleep").arg("1000")).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    }
}
