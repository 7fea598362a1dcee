//! What is declared goes to the queue and from there to every node, against real processes: three queue nodes, two edges, two
//! delivery nodes, none of which reads a file of resources.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use proto::Role;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::Value;
use tests::process::{Cluster, Sink, Spec};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What takes longer on a loaded machine does not work.
const PATIENCE: Duration = Duration::from_secs(30);

fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

fn write(dir: &Path, resources: &str) {
    std::fs::write(dir.join("all.yaml"), resources).unwrap();
}

fn relay_domain(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

fn inbound(name: &str, domain: &str, port: u16) -> String {
    relay_domain(
        name,
        &format!("{{domain: {domain}, inbound: {{targets: [{{host: 127.0.0.1, port: {port}}}]}}}}"),
    )
}

/// Sends a message and gives the reply that decided: the one to RCPT when that is no 250, else the one to the final dot.
async fn send(edge: u16, from: &str, to: &str, message: &str) -> String {
    let stream = TcpStream::connect(("127.0.0.1", edge)).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut last = String::new();
    let commands = [
        String::new(),
        "EHLO client.test\r\n".to_owned(),
        format!("MAIL FROM:<{from}>\r\n"),
        format!("RCPT TO:<{to}>\r\n"),
        "DATA\r\n".to_owned(),
        format!("{message}\r\n.\r\n"),
    ];
    for command in commands {
        write.write_all(command.as_bytes()).await.unwrap();
        loop {
            last = lines.next_line().await.unwrap().expect("a reply");
            if last.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        }
        if !last.starts_with(['2', '3']) {
            break;
        }
    }
    last
}

/// Waits until the sink has a message, and gives its first octets.
async fn arrived(sink: &Sink, id: u64) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(copies) = sink.copies().get(&id) {
            return String::from_utf8_lossy(&copies[0].begin).into_owned();
        }
        assert!(Instant::now() < until, "message {id} did not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so many nodes watch and have all that is declared.
async fn all_have_it(cluster: &Cluster, count: usize) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let asked = cluster.postroad(&["config", "status", "-o", "json"]).await;
        let status = json(&asked.unwrap());
        let nodes = status["nodes"].as_array().unwrap();
        if nodes.len() == count && nodes.iter().all(|node| node["current"] == true) {
            return status;
        }
        assert!(Instant::now() < until, "{status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn message(id: u64, from: &str) -> String {
    format!("From: {from}\r\nSubject: {id}\r\nX-Id: {id}\r\n\r\nhello")
}

fn spec() -> Spec {
    Spec {
        declared: true,
        ..Spec::full(&[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_in_effect_everywhere_and_outlives_the_queue_nodes() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec()).await.unwrap();
    let (files, edges) = (cluster.files(), cluster.edges.clone());
    let dir = files.to_str().unwrap().to_owned();
    let refused = send(edges[0], "a@b.test", "x@shop.test", "").await;
    assert!(refused.starts_with("550 5.7.1"), "{refused}");
    all_have_it(&cluster, 7).await;

    write(&files, &inbound("shop", "shop.test", sink.port));
    let begun = Instant::now();
    let applied = cluster.postroad(&["apply", "-f", &dir]).await.unwrap();
    let took = begun.elapsed();
    assert!(applied.status.success(), "{}", said(&applied));
    // The command said that all have it: so the next mail to any edge is taken, and leaves.
    for (id, edge) in (1..).zip(&edges) {
        let reply = send(*edge, "a@b.test", "x@shop.test", &message(id, "a@b.test")).await;
        assert!(reply.starts_with("250"), "{reply}");
        arrived(&sink, id).await;
    }
    println!(
        "apply, with the start of its process: {took:.2?}; after it mail through both edges in {:.2?}; {}",
        begun.elapsed() - took,
        String::from_utf8_lossy(&applied.stdout).trim()
    );
    all_have_it(&cluster, 7).await;

    // How long a change takes to every node: from the answer to the Put to the last acknowledgement.
    let mut effective: Vec<u64> = Vec::new();
    for n in 0..5 {
        let two = inbound("shop", "shop.test", sink.port) + &inbound("more", "more.test", 1000 + n);
        write(&files, &two);
        let applied = json(
            &cluster
                .postroad(&["apply", "-f", &dir, "-o", "json"])
                .await
                .unwrap(),
        );
        effective.push(applied["waited_ms"].as_u64().unwrap());
    }
    println!("applied to acknowledged by all 7 nodes, ms: {effective:?}");

    // Another writer is told whose it is, and changes nothing.
    let other = cluster
        .postroad(&["apply", "-f", &dir, "--writer", "intruder"])
        .await
        .unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(
        said(&other).contains("belongs to apply"),
        "{}",
        said(&other)
    );

    // All queue nodes die at once; what was declared is there again, for nodes that start too.
    for name in cluster.names("queue-") {
        cluster.kill(&name).unwrap();
    }
    cluster.kill("edge-1").unwrap();
    for name in cluster.names("queue-") {
        cluster.spawn(&name).unwrap();
    }
    cluster.spawn("edge-1").unwrap();
    cluster.ready("edge-1").await.unwrap();
    let reply = send(edges[0], "a@b.test", "x@shop.test", &message(9, "a@b.test")).await;
    assert!(reply.starts_with("250"), "{reply}");
    arrived(&sink, 9).await;

    let listed = cluster.postroad(&["get", "RelayDomain"]).await.unwrap();
    assert!(
        said(&listed).contains("RelayDomain/default/shop"),
        "{}",
        said(&listed)
    );
    let metrics = cluster.metrics("edge-1").await.unwrap();
    assert!(
        metrics.contains("postroad_config_revision{role=\"edge\"}"),
        "{metrics}"
    );

    // What is not declared any more is refused again: by all that are connected, so these come first.
    all_have_it(&cluster, 7).await;
    write(&files, &inbound("more", "more.test", sink.port));
    let pruned = cluster
        .postroad(&["apply", "-f", &dir, "--prune", "complete"])
        .await
        .unwrap();
    assert!(pruned.status.success(), "{}", said(&pruned));
    for edge in &edges {
        let refused = send(*edge, "a@b.test", "x@shop.test", "").await;
        assert!(refused.starts_with("550 5.7.1"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_key_signs_at_delivery_nodes_and_reaches_no_other() {
    let sink = Sink::start().await.unwrap();
    let seal = tempfile::tempdir().unwrap();
    std::fs::write(seal.path().join("1"), [7; 32]).unwrap();
    let seal_dir = seal.path().to_str().unwrap().to_owned();
    let mut spec = spec();
    for delivery in ["delivery-1", "delivery-2"] {
        spec = spec.with(delivery, &["--seal", &seal_dir]);
    }
    let cluster = Cluster::start(spec).await.unwrap();
    let files = cluster.files();
    let dir = files.to_str().unwrap().to_owned();
    let secret = files.join("secrets/key");
    std::fs::create_dir_all(&secret).unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    std::fs::write(secret.join("private.key"), key.serialize_pem()).unwrap();
    let sends = "{domain: from.test, outbound: {networks: [127.0.0.0/8], dkim: {mode: Imported, keys: [{selector: s1, secretName: key}]}}}";
    write(
        &files,
        &(inbound("shop", "shop.test", sink.port) + &relay_domain("from", sends)),
    );

    let without = cluster.postroad(&["apply", "-f", &dir]).await.unwrap();
    assert!(said(&without).contains("--seal"), "{}", said(&without));
    let applied = cluster
        .postroad(&["apply", "-f", &dir, "--seal", &seal_dir])
        .await
        .unwrap();
    assert!(applied.status.success(), "{}", said(&applied));
    let reply = send(
        cluster.edges[0],
        "a@from.test",
        "x@shop.test",
        &message(1, "a@from.test"),
    )
    .await;
    assert!(reply.starts_with("250"), "{reply}");
    let copy = arrived(&sink, 1).await;
    assert!(
        copy.starts_with("DKIM-Signature:")
            && copy.contains("d=from.test")
            && copy.contains("s=s1"),
        "{copy}"
    );

    let keys = |documents: Vec<proto::v1::ConfigDocument>| {
        let keys = documents.into_iter().map(|document| document.key);
        keys.filter(|key| key.starts_with("DkimKey/"))
            .collect::<Vec<_>>()
    };
    for role in [Role::Edge, Role::Queue, Role::Operator, Role::Admin] {
        let told = cluster.told(role).await.unwrap();
        assert!(!told.upserts.is_empty(), "{role} gets what is for all");
        assert_eq!(keys(told.upserts), Vec::<String>::new(), "{role}");
    }
    let told = cluster.told(Role::Delivery).await.unwrap();
    assert_eq!(keys(told.upserts.clone()), ["DkimKey/default/from-s1"]);
    let body = &told
        .upserts
        .iter()
        .find(|one| one.key.starts_with("DkimKey/"))
        .unwrap()
        .body;
    let pem = key.serialize_pem();
    let line = pem.lines().nth(1).unwrap().as_bytes();
    assert!(
        !body.windows(line.len()).any(|window| window == line),
        "it is sealed"
    );
}
