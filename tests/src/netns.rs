//! A network namespace for a system under test: its listeners meet nobody else's.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::child::run;

/// Namespaces that this process has made: part of their names.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A namespace with loopback up and nothing else. Dropped, it is taken away.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one. Needs root.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new() -> Result<Namespace> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("postroad-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))
            .context("cannot make a network namespace; this needs root and the package iproute2")?;
        let namespace = Namespace { name };
        run(Command::new("ip").args(["-n", &namespace.name, "link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.name, program)
    }
}

/// A command that runs in a namespace that is there. Not `ip netns exec`, which remounts /sys and hides the control groups.
pub fn command_in(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let file: PathBuf = ["/var/run/netns", namespace].iter().collect();
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", file.display()))
        .arg(program);
    command
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("a network namespace stays behind: {error}");
        }
    }
}
