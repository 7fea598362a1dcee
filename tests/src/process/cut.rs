//! Cutting one queue node off from the others, while their clients reach all of them: packet filter rules on loopback.
//!
//! Each queue node of such a cluster runs under a group id of its own, by which the kernel knows whose packets it sees.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// The first group id; nobody's on a usual machine.
pub const FIRST_GROUP: u32 = 54_000;

static MADE: AtomicU32 = AtomicU32::new(0);

/// A node that is cut off; dropped, it is whole again.
pub struct Cut {
    table: String,
}

impl Cut {
    /// Nothing passes between the node that runs under `group` and listens for its peers on `port`, and those that
    /// listen on `others`. Needs root and the package nftables.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn off(group: u32, port: u16, others: &[u16]) -> Result<Cut> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let table = format!("postroad_{}_{number}", std::process::id());
        let others: Vec<String> = others.iter().map(u16::to_string).collect();
        let others = others.join(", ");
        nft(&format!(
            "table inet {table} {{\nchain out {{\ntype filter hook output priority 0; policy accept;\n\
             oif lo meta skgid {group} tcp dport {{ {others} }} drop\n\
             oif lo meta skgid {group} tcp sport {port} drop\n\
             oif lo meta skgid != {group} tcp dport {port} drop\n}}\n}}\n"
        ))?;
        Ok(Cut { table })
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}\n", self.table)) {
            eprintln!("a packet filter stays behind: {error:#}");
        }
    }
}

fn nft(rules: &str) -> Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cutting a node off needs the program nft (package nftables)")?;
    let mut stdin = nft.stdin.take().context("it was asked for")?;
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    let output = nft.wait_with_output()?;
    ensure!(
        output.status.success(),
        "nft (it needs root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
