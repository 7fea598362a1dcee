//! The README's section on Kubernetes, word for word: what stands there is what is run.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use tests::child::run;
use tests::kubernetes::{World, checkout};

use crate::relay::{INSTALLED, Relay, SOON};

const SECTION: &str = "\n## On Kubernetes\n";

/// The lines of one of the section's blocks for a shell.
pub fn block(number: usize) -> Result<String> {
    let text = fs::read_to_string(checkout().join("README.md"))?;
    let (_, section) = text.split_once(SECTION).context("the section is gone")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut blocks = section.split("```sh\n").skip(1);
    let found = blocks
        .nth(number)
        .and_then(|block| block.split("```").next());
    Ok(found.context("so many blocks are not there")?.to_owned())
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn what_the_readme_says_relays_a_message_to_a_postfix_outside() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let world = World::start()?;
        let start = Instant::now();
        // Its scaling is done at once with the domain: so do people.
        cluster
            .shell(&block(1)?)
            .context("the README's second lines on Kubernetes")?;
        relay.wait("relaydomain/example-com", "condition=Accepted", SOON)?;
        let edge = relay.edge()?.to_string();
        relay.until("an edge accepts mail to the domain", SOON, || {
            run(Command::new("swaks")
                .args(["--server", &edge, "--hide-all"])
                .args([
                    "--helo",
                    "client.test",
                    "--from",
                    "sender@origin.test",
                    "--to",
                    "alice@example.com",
                ]))
        })?;
        let accepted = start.elapsed();
        world.mailbox("alice", 1, SOON)?;
        eprintln!(
            "installed in {:?}; mail to a new domain is accepted after {accepted:?} and arrived after {:?}",
            INSTALLED.get(),
            start.elapsed()
        );
        relay.scaled("edgepool", 4)?;
        relay
            .kubectl(&["delete", "relaydomain", "example-com"])
            .map(drop)
    });
}
