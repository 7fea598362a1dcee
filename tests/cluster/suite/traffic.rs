//! Mail that passes while something is done to the relay: a client that writes down what got 250, a next hop outside of the
//! cluster that keeps what it is given, and the judge between them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::kubernetes::HOST;
use tests::process::{Client, Load, Sink, judge};
use tokio::runtime::Runtime;

use crate::relay::{Relay, SOON};
use crate::smtp;

/// Sessions at once.
const SESSIONS: usize = 4;
/// Between two messages of one session: some forty messages a second, so that a machine with two cores has time for the rest.
const PAUSE: Duration = Duration::from_millis(100);
/// Mail that was deferred comes again after five minutes; what is older than this is lost.
const ARRIVES: Duration = Duration::from_secs(400);

/// See the module.
pub struct Traffic<'a> {
    relay: &'a Relay<'a>,
    name: String,
    client: Client,
    sink: Sink,
    runtime: Runtime,
}

impl<'a> Traffic<'a> {
    /// Declares the domain `<name>.test`, whose mail goes to this machine, and sends as soon as every edge takes it.
    pub fn start(relay: &'a Relay<'a>, name: &str) -> Result<Traffic<'a>> {
        let runtime = Runtime::new()?;
        let sink = runtime.block_on(Sink::at(HOST))?;
        let domain = format!("{name}.test");
        declare(relay, name, sink.port)?;
        let edge = relay.edge()?;
        let mut load = Load::new(u64::MAX, &[&domain]);
        load.connections = SESSIONS;
        load.pause = PAUSE;
        let client = {
            let _inside = runtime.enter();
            Client::start_at(vec![edge], load)
        };
        let traffic = Traffic {
            relay,
            name: name.to_owned(),
            client,
            sink,
            runtime,
        };
        traffic.passes(20)?;
        Ok(traffic)
    }

    /// Messages that got 250 so far.
    pub fn acked(&self) -> u64 {
        self.client.ledger.acked()
    }

    /// Waits until so many more messages got 250.
    pub fn passes(&self, more: u64) -> Result<()> {
        let count = self.acked() + more;
        self.runtime.block_on(self.client.acked(count, SOON))
    }

    /// Sends no more: every message that was begun got its 250.
    pub fn stop(&mut self) {
        self.runtime.block_on(self.client.stop());
    }

    /// Ends it, and judges as [`Traffic::arrived`] does.
    pub fn end(mut self, silence: Duration) -> Result<()> {
        self.passes(20)?;
        self.stop();
        self.arrived(silence)
    }

    /// Each message that got 250 must arrive as it was sent, none twice without a reason, and nothing may have been refused
    /// for good; while it was sent, for no longer than `silence` nothing at all may have been accepted.
    pub fn arrived(self, silence: Duration) -> Result<()> {
        let acked = self.acked();
        let end = Instant::now() + ARRIVES;
        let tally = loop {
            let tally = judge(&self.client, &[&self.sink], &[]);
            if tally.lost.is_empty() {
                break tally;
            }
            if Instant::now() > end {
                bail!(
                    "{} of {acked} messages did not arrive: {tally}",
                    tally.lost.len()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        if let Some(fault) = tally.fault() {
            bail!("{fault}");
        }
        let attempts = self.client.ledger.attempts();
        let ends = attempts.values().flatten().map(|attempt| attempt.ended);
        let (first, last) = (ends.clone().min(), ends.max());
        let (first, last) = first.zip(last).context("nothing was sent")?;
        let longest = self.client.ledger.longest_silence(first, last);
        eprintln!(
            "{}: {tally}; in {:?}, the longest without a 250: {longest:?}",
            self.name,
            last - first
        );
        ensure!(
            longest <= silence,
            "for {longest:?} nothing was accepted, and {silence:?} is the most for this"
        );
        let domain = format!("relaydomain/{}", self.name);
        self.relay.kubectl(&["delete", &domain]).map(drop)
    }
}

/// Declares the domain `<name>.test` whose mail goes to a port of this machine, and waits until every edge takes it.
pub fn declare(relay: &Relay<'_>, name: &str, port: u16) -> Result<()> {
    relay.cluster.apply(&format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}, namespace: mail}}\nspec:\n  \
         domain: {name}.test\n  inbound: {{targets: [{{host: {HOST}, port: {port}}}]}}\n"
    ))?;
    accepted(relay, &format!("anybody@{name}.test"))
}

/// Waits until every edge takes mail to a recipient, from anybody.
pub fn accepted(relay: &Relay<'_>, recipient: &str) -> Result<()> {
    accepted_from(relay, "sender@origin.test", recipient)
}

/// Waits until every edge takes mail of a sender to a recipient.
pub fn accepted_from(relay: &Relay<'_>, sender: &str, recipient: &str) -> Result<()> {
    let what = format!("every edge takes mail from {sender} to {recipient}");
    relay.until(&what, SOON, || {
        for pod in relay.pods("edgepool")? {
            let edge = relay.edge_at(&pod)?;
            let answer = smtp::recipient(edge, sender, recipient)?;
            ensure!(answer.starts_with("250"), "{pod}: {answer}");
        }
        Ok(())
    })
}
