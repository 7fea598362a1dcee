//! What happens to a relay that nobody asked for, while mail passes: nothing of it is lost, and what is declared becomes so
//! again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tests::process::size;

use crate::operator;
use crate::relay::{COMES_UP, Relay, SOON};
use crate::traffic::Traffic;

/// A leader that goes is followed by another within an election or two.
const ELECTIONS: Duration = Duration::from_secs(20);
/// An evicted node hands over what it leads, which may take its grace period of a minute, and starts again.
const COMES_BACK: Duration = Duration::from_secs(120);
/// Steps that last long enough to be met in the middle: a node joins, another hands its groups over. The others are over within a
/// second on a fast machine; there the operator is killed when it can be, and at each of their writes by the fail points in `scale`.
const KILLS: usize = 2;

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn of_two_queue_nodes_that_are_evicted_at_once_the_second_stays() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "evicted")?;
        let pods = relay.pods("queuepool")?;
        let first = uid(&relay, &pods[0])?;
        evict(&relay, &pods[0])?;
        let refusal = evict(&relay, &pods[1])
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        ensure!(
            refusal.contains("disruption budget"),
            "the second was not refused: {refusal}"
        );
        comes_back(&relay, &pods[0], &first)?;
        relay.scaled("queuepool", 3)?;
        ensure!(relay.pods("queuepool")? == pods, "not the same nodes");
        // Now the second may go.
        let second = uid(&relay, &pods[1])?;
        relay.until("the second is evicted", SOON, || evict(&relay, &pods[1]))?;
        comes_back(&relay, &pods[1], &second)?;
        relay.scaled("queuepool", 3)?;
        traffic.end(ELECTIONS)
    });
}

fn uid(relay: &Relay<'_>, pod: &str) -> Result<String> {
    relay.field(&format!("pod/{pod}"), "{.metadata.uid}")
}

/// Waits until another pod of the name is ready: until then the pool's status may still be the one of before.
fn comes_back(relay: &Relay<'_>, pod: &str, before: &str) -> Result<()> {
    relay.until(&format!("{pod} is back"), COMES_BACK, || {
        let ready = "{.status.conditions[?(@.type=='Ready')].status}";
        let ready = relay.field(&format!("pod/{pod}"), ready)?;
        ensure!(uid(relay, pod)? != before, "it has not gone yet");
        ensure!(ready == "True", "it is not ready");
        Ok(())
    })
}

/// As `kubectl drain` does it.
fn evict(relay: &Relay<'_>, pod: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/mail/pods/{pod}/eviction");
    let eviction = format!(
        "{{\"apiVersion\":\"policy/v1\",\"kind\":\"Eviction\",\"metadata\":{{\"name\":\"{pod}\",\"namespace\":\"mail\"}}}}"
    );
    relay
        .cluster
        .feed(&["create", "--raw", &path, "-f", "-"], &eviction)
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn a_queue_node_that_lost_its_volume_is_replaced_under_a_new_id_though_the_operator_is_killed_at_its_steps()
 {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "volume")?;
        let pods = relay.pods("queuepool")?;
        let lost = pods.last().cloned().unwrap_or_default();
        let start = Instant::now();
        relay.kubectl(&["delete", "pvc", &format!("data-{lost}"), "--wait=false"])?;
        relay.kubectl(&["delete", "pod", &lost, "--force", "--grace-period=0"])?;
        let (mut seen, mut killed_in) = (BTreeSet::new(), BTreeSet::new());
        while !(replaced(&relay, &lost)? && relay.pods("queuepool")?.len() == 3) {
            if start.elapsed() > COMES_UP {
                bail!("not replaced; steps seen: {seen:?}");
            }
            let step = under_way(&relay)?;
            let new = !step.is_empty() && !killed_in.contains(&step);
            // What was written in between was another step.
            if new && operator::kill_leader(&relay)? && under_way(&relay)? == step {
                eprintln!("the operator was killed at {:?}: {step}", start.elapsed());
                killed_in.insert(step.clone());
            }
            seen.insert(step);
            std::thread::sleep(Duration::from_millis(100));
        }
        relay.scaled("queuepool", 3)?;
        eprintln!("replaced after {:?}; steps seen: {seen:?}", start.elapsed());
        ensure!(
            killed_in.len() >= KILLS,
            "the operator was killed in these steps only: {killed_in:?}"
        );
        traffic.end(ELECTIONS)
    });
}

/// The queue knows the node no more.
fn replaced(relay: &Relay<'_>, pod: &str) -> Result<bool> {
    let members = relay.field("queuepool/postroad", "{.status.members[*].podName}")?;
    let members: Vec<&str> = members.split_whitespace().collect();
    Ok(members.len() == 3 && !members.contains(&pod))
}

/// What the operator is at; empty: nothing.
fn under_way(relay: &Relay<'_>) -> Result<String> {
    let step = "{.status.operation.type} {.status.operation.nodeID} {.status.operation.step}";
    let step = relay.field("queuepool/postroad", step)?;
    Ok(step.trim().to_owned())
}

#[test]
#[ignore = "needs the cluster of tests/cluster/up"]
fn while_the_api_server_is_away_mail_goes_on_and_afterwards_what_is_declared_becomes_so() {
    crate::explained("mail", |cluster| {
        let relay = Relay::ready(cluster)?;
        let traffic = Traffic::start(&relay, "headless")?;
        let away = Duration::from_secs(size(30, 120));
        // What is asked for in the last moment waits.
        relay.scale("edgepool", 3)?;
        relay.scale("queuepool", 4)?;
        ensure!(cluster.script("apiserver").arg("stop").status()?.success());
        let start = Instant::now();
        while start.elapsed() < away {
            traffic.passes(20)?;
        }
        ensure!(cluster.script("apiserver").arg("start").status()?.success());
        let back = Instant::now();
        relay.scaled("edgepool", 3)?;
        relay.scaled("queuepool", 4)?;
        eprintln!(
            "as declared {:?} after the API server came back",
            back.elapsed()
        );
        traffic.end(ELECTIONS)
    });
}
