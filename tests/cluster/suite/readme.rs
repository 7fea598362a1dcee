//! The README's section on Kubernetes, word for word: what stands there is what is run.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::kubernetes::{World, checkout};

use crate::dkim::{CLOCK, Domain};
use crate::operator;
use crate::relay::{INSTALLED, Relay};

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
fn what_the_readme_says_relays_a_message_to_a_postfix_outside_and_signs_it() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        operator::runs_with(&relay, operator::TEST_CLOCK)?;
        // Keys of an earlier run outlived their domain, and would be taken over.
        let old = "postroad.dev/relay-domain=example-com";
        relay.kubectl(&["delete", "secrets", "-l", old])?;
        let world = World::start()?;
        let domain = Domain {
            relay: &relay,
            world: &world,
            object: "example-com",
            name: "example.com",
        };
        let mut server = domain.serve();
        let start = Instant::now();
        // Its scaling is done at once with the domain: so do people.
        let section = "the README's second lines on Kubernetes";
        cluster.shell(&block(1)?).context(section)?;
        let declared = start.elapsed();
        let mail = block(2)?;
        let first = "the README's message";
        cluster.shell(&mail).context(first)?;
        let signers = domain.verified("alice", 1)?;
        ensure!(
            signers.is_empty(),
            "{signers:?} sign, and nobody published them"
        );
        eprintln!(
            "installed in {:?}; a new domain is in effect everywhere after {declared:?}, and the first message arrived after {:?}",
            INSTALLED.get(),
            start.elapsed()
        );

        let start = Instant::now();
        let clock = format!("{}={}", CLOCK.0, CLOCK.1);
        relay.kubectl(&["annotate", "relaydomain/example-com", &clock])?;
        domain.publish(&mut server, &domain.records(2)?);
        let active = domain.active("both keys sign", |active| active.len() == 2)?;
        cluster.shell(&mail).context(first)?;
        let signers = domain.verified("alice", 2)?;
        ensure!(
            signers == active,
            "{signers:?} signed, and {active:?} should have"
        );
        eprintln!(
            "its records published, the same message was verified outside after {:?}",
            start.elapsed()
        );
        relay.scaled("edgepool", 4)?;
        relay
            .kubectl(&["delete", "relaydomain", "example-com"])
            .map(drop)
    });
}
