//! Other programs and other certificates, while mail passes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::child::run;
use tests::kubernetes::IMAGE;

use crate::relay::{Relay, SOON};
use crate::traffic::Traffic;

/// Each queue node hands its leaderships over before it goes.
const ELECTIONS: Duration = Duration::from_secs(20);
/// A changed certificate is in use so long after its file changed, and a moment for looking.
const CERTIFICATE: Duration = Duration::from_secs(6);
/// Another name of the same image: to Kubernetes it is another image.
const NEXT: &str = "ghcr.io/postroad/postroad:next";

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn another_image_reaches_all_nodes_under_load_and_no_mail_is_lost() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        cluster.tag_image(NEXT)?;
        let traffic = Traffic::start(&relay, "upgrade")?;
        for image in [NEXT, IMAGE] {
            let start = Instant::now();
            relay.change("relaycluster", &json!({"image": image}))?;
            relay.runs(image)?;
            for (pool, nodes) in [("queuepool", 3), ("edgepool", 2), ("deliverypool", 2)] {
                relay.scaled(pool, nodes)?;
            }
            eprintln!("{image} is everywhere after {:?}", start.elapsed());
            came_in_order(&relay)?;
        }
        traffic.end(ELECTIONS)
    });
}

/// The queue's pods were made first, then those that deliver, then the edges.
fn came_in_order(relay: &Relay<'_>) -> Result<()> {
    let mut before = Vec::new();
    for component in ["queue", "delivery", "edge"] {
        let label = format!("app.kubernetes.io/component={component}");
        let path = "jsonpath={.items[*].metadata.creationTimestamp}";
        let made = relay.kubectl(&["get", "pods", "-l", &label, "-o", path])?;
        // Of one length and in UTC, so the order of the texts is that of the times.
        let made: Vec<String> = made.split_whitespace().map(Into::into).collect();
        let (last, first) = (before.iter().max(), made.iter().min());
        ensure!(
            first.is_some() && last <= first,
            "{component} at {made:?}, before it {before:?}"
        );
        before = made;
    }
    Ok(())
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_public_certificate_that_is_replaced_is_shown_within_seconds_and_open_sessions_go_on() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let files = tempfile::tempdir()?;
        let traffic = Traffic::start(&relay, "certificate")?;
        put_certificate(&relay, files.path())?;
        let smtp = json!({"name": "smtp", "protocol": "SMTP", "port": 25, "tls": {"secretNames": ["public"]}});
        relay.change("edgepool", &json!({"listeners": [smtp]}))?;
        relay.scaled("edgepool", 2)?;

        let mut edges = Vec::new();
        for pod in relay.pods("edgepool")? {
            let edge = relay.edge_at(&pod)?;
            relay.until("the edge shows its certificate", SOON, || shown(edge))?;
            edges.push((Secure::open(edge)?, edge, mounted(&relay, &pod)?));
        }
        let new = put_certificate(&relay, files.path())?;
        for (session, edge, file) in &mut edges {
            relay.until("the kubelet writes the certificate", 2 * SOON, || {
                ensure!(fs::read_to_string(&*file)? == new, "still the old one");
                Ok(())
            })?;
            let written = Instant::now();
            relay.until("the edge shows the new one", CERTIFICATE, || {
                ensure!(shown(*edge)?.trim() == new.trim(), "still the old one");
                Ok(())
            })?;
            eprintln!("{edge}: shown {:?} after it was written", written.elapsed());
            let answer = session.say("NOOP")?;
            ensure!(answer.starts_with("250"), "an open session: {answer}");
        }
        let smtp = json!({"name": "smtp", "protocol": "SMTP", "port": 25});
        relay.change("edgepool", &json!({"listeners": [smtp]}))?;
        relay.scaled("edgepool", 2)?;
        traffic.end(ELECTIONS)
    });
}

/// Makes a certificate, puts it into the Secret and gives its text.
fn put_certificate(relay: &Relay<'_>, dir: &Path) -> Result<String> {
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=mx.relay.test",
    ]);
    make.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    make.args(["-addext", "subjectAltName=DNS:mx.relay.test"]);
    run(make.arg("-keyout").arg(&key).arg("-out").arg(&certificate))?;
    let (c, k) = (certificate.display(), key.display());
    let secret = relay.kubectl(&[
        "create",
        "secret",
        "tls",
        "public",
        "--dry-run=client",
        "-o",
        "yaml",
        &format!("--cert={c}"),
        &format!("--key={k}"),
    ])?;
    relay.cluster.apply(&secret)?;
    Ok(fs::read_to_string(certificate)?)
}

/// Where the kubelet keeps a pod's copy of the certificate.
fn mounted(relay: &Relay<'_>, pod: &str) -> Result<PathBuf> {
    let uid = relay.field(&format!("pod/{pod}"), "{.metadata.uid}")?;
    let pods = relay.cluster.dir.join("kubelet/pods");
    let volumes = pods.join(uid).join("volumes/kubernetes.io~secret");
    Ok(volumes.join("tls-0/tls.crt"))
}

fn starttls(edge: SocketAddr) -> Command {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-starttls",
        "smtp",
        "-servername",
        "mx.relay.test",
    ]);
    command.args(["-connect", &edge.to_string()]);
    command
}

/// The certificate that a handshake shows.
fn shown(edge: SocketAddr) -> Result<String> {
    let said = run(starttls(edge).stdin(Stdio::null()))?;
    let begin = said.find("-----BEGIN CERTIFICATE-----");
    let end = said.find("-----END CERTIFICATE-----");
    let (begin, end) = begin.zip(end).context("no certificate was shown")?;
    Ok(format!("{}-----END CERTIFICATE-----", &said[begin..end]))
}

/// A session under TLS that stays open.
struct Secure {
    openssl: Child,
    read: BufReader<std::process::ChildStdout>,
}

impl Secure {
    fn open(edge: SocketAddr) -> Result<Secure> {
        let mut openssl = starttls(edge)
            .arg("-quiet")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let read = openssl.stdout.take().context("it is piped")?;
        let mut session = Secure {
            openssl,
            read: BufReader::new(read),
        };
        let answer = session.say("NOOP")?;
        ensure!(answer.starts_with("250"), "{answer}");
        Ok(session)
    }

    fn say(&mut self, line: &str) -> Result<String> {
        let input = self.openssl.stdin.as_mut().context("it is piped")?;
        input.write_all(format!("{line}\r\n").as_bytes())?;
        // What openssl read for itself before may stand before the answer.
        loop {
            let mut line = String::new();
            ensure!(self.read.read_line(&mut line)? > 3, "the session ended");
            if line.as_bytes()[3] == b' ' && !line.contains("HELP") {
                return Ok(line);
            }
        }
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.openssl.kill();
        let _ = self.openssl.wait();
    }
}
