//! `kubectl scale`, each pool out and in again, while mail passes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::operator;
use crate::relay::{COMES_UP, Relay, SOON};
use crate::traffic::Traffic;

/// Nodes that drain hold nobody up.
const NO_BREAK: Duration = Duration::from_secs(10);
/// A leader that goes is followed by another within an election or two.
const ELECTIONS: Duration = Duration::from_secs(20);
/// Of the one Kubernetes node (`tests/cluster/up`).
const ZONE: &str = "a";
/// What the operator writes when a queue node comes, and when it goes (`operator/src/queue_pool/act.rs`).
const COMES: [&str; 5] = [
    "claim-created",
    "certificate-made",
    "claim-marked",
    "pod-created",
    "node-added",
];
const GOES: [&str; 3] = ["node-removed", "pod-deleted", "claim-retired"];

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn edges_and_delivery_nodes_come_and_go_under_load_and_no_mail_is_lost_or_refused() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "stateless")?;
        for nodes in [4, 2] {
            let start = Instant::now();
            // Both at once: neither knows of the other.
            relay.scale("edgepool", nodes)?;
            relay.scale("deliverypool", nodes)?;
            relay.scaled("edgepool", nodes)?;
            relay.scaled("deliverypool", nodes)?;
            eprintln!(
                "edges and delivery nodes: {nodes} after {:?}",
                start.elapsed()
            );
            traffic.passes(100)?;
        }
        traffic.end(NO_BREAK)
    });
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn queue_nodes_come_and_go_under_load_and_no_mail_is_lost_or_refused() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let before = relay.pods("queuepool")?;
        let traffic = Traffic::start(&relay, "queue")?;
        for nodes in [5, 3] {
            let start = Instant::now();
            relay.scale("queuepool", nodes)?;
            relay.scaled("queuepool", nodes)?;
            let groups = relay.field("queuepool/postroad", "{.status.groups}")?;
            eprintln!(
                "queue nodes: {nodes} after {:?}; groups {groups}",
                start.elapsed()
            );
            relay.until("copies are shared out", SOON, || spread(&relay, nodes))?;
            let zones = relay.field("queuepool/postroad", "{.status.members[*].zone}")?;
            ensure!(zones.split(' ').eq(vec![ZONE; nodes]), "{zones}");
            traffic.passes(100)?;
        }
        traffic.end(ELECTIONS)?;
        // Those that came last went first, and their volumes say of whom they were.
        ensure!(relay.pods("queuepool")? == before, "other nodes stayed");
        let retired = "{.items[*].metadata.annotations.postroad\\.dev/retired-node-id}";
        let retired = relay.field("persistentvolumeclaims", retired)?;
        ensure!(
            retired.split_whitespace().count() >= 2,
            "volumes that are kept do not say so: {retired}"
        );
        Ok(())
    });
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_queue_node_comes_and_goes_though_the_operator_dies_after_everything_that_it_writes() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "frail")?;
        operator::runs_with(&relay, operator::DIES_AT_WRITES)?;
        let all = RefCell::new(BTreeSet::new());
        for (nodes, writes) in [(4, COMES.as_slice()), (3, &GOES)] {
            let start = Instant::now();
            relay.scale("queuepool", nodes)?;
            relay.until("the operator gets there", COMES_UP, || {
                let died = operator::deaths(&relay)?;
                all.borrow_mut().extend(died);
                let all = all.borrow();
                let missing: Vec<_> = writes
                    .iter()
                    .filter(|write| !all.contains(**write))
                    .collect();
                let pods = relay.pods("queuepool")?;
                ensure!(
                    missing.is_empty() && pods.len() == nodes,
                    "{pods:?}, died after {all:?}"
                );
                Ok(())
            })?;
            relay.scaled("queuepool", nodes)?;
            eprintln!("queue nodes: {nodes} after {:?}", start.elapsed());
        }
        eprintln!("the operator died after each of: {:?}", all.borrow());
        operator::runs_as_usual(&relay)?;
        traffic.end(ELECTIONS)
    });
}

/// Each node of the queue holds copies, and its three copies of each of 17 groups are shared out evenly.
fn spread(relay: &Relay<'_>, nodes: usize) -> Result<()> {
    let held = relay.field("queuepool/postroad", "{.status.members[*].groups}")?;
    let held: Vec<usize> = held
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| held.clone())?;
    let (least, most) = (held.iter().min(), held.iter().max());
    let (least, most) = least.zip(most).context("no members")?;
    ensure!(
        held.len() == nodes && held.iter().sum::<usize>() == 3 * 17 && most - least <= 1,
        "copies that the nodes hold: {held:?}"
    );
    Ok(())
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn the_api_server_refuses_fewer_queue_nodes_than_copies_and_says_why() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let refusal = relay
            .scale("queuepool", 2)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        let text = "fewer nodes than copies: replicas must be at least replicationFactor";
        ensure!(refusal.contains(text), "not refused: {refusal}");
        relay.scaled("queuepool", 3)
    });
}
