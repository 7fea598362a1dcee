//! `postroad status`: nodes, shards, leaders, disks.

use std::collections::BTreeMap;

use proto::CallError;
use proto::v1::NodeStatus;
use serde_json::{Value, json};

use super::table::{plain, size, table};
use super::{connect, print_json};
use crate::failure::Failure;
use crate::settings::{self, Output};

type Asked = (String, Result<NodeStatus, CallError>);

/// Asks every node.
///
/// # Errors
/// Code 1 when a shard has no leader or a node stopped or did not answer, 3 when no node answered.
pub async fn run(settings: settings::Status) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let asked = client.admin().statuses().await;
    match settings.output {
        Output::Json => print_json(&json!({
            "nodes": asked.iter().map(node_json).collect::<Vec<_>>()
        })),
        Output::Table => print(&asked, settings.verbose),
    }
    judge(&asked)
}

fn print(asked: &[Asked], verbose: bool) {
    let rows: Vec<Vec<String>> = asked.iter().map(row).collect();
    print!(
        "{}",
        table(
            &[
                "NODE", "ADDRESS", "VERSION", "LEADS", "FOLLOWS", "DISK", "LIVE", "STATE"
            ],
            &rows
        )
    );
    if !verbose {
        return;
    }
    for (address, status) in asked {
        let Ok(status) = status else { continue };
        println!("\nnode {} at {address}", status.node);
        let rows: Vec<Vec<String>> = status
            .groups
            .iter()
            .map(|group| {
                let progress: Vec<String> = group
                    .progress
                    .iter()
                    .map(|replica| {
                        format!("{}:{} {}", replica.node, replica.matched, replica.state)
                    })
                    .collect();
                vec![
                    group_name(group.group),
                    group.role.clone(),
                    group.term.to_string(),
                    group.leader_node.to_string(),
                    group.committed.to_string(),
                    group.applied.to_string(),
                    group.durable_applied.to_string(),
                    progress.join(", "),
                ]
            })
            .collect();
        let heading = [
            "SHARD",
            "ROLE",
            "TERM",
            "LEADER",
            "COMMITTED",
            "APPLIED",
            "FLUSHED",
            "REPLICAS",
        ];
        print!("{}", table(&heading, &rows));
    }
}

/// Group 0 is of the whole cluster; shard s is group s + 1.
fn group_name(group: u32) -> String {
    match group {
        spool::CONTROL_GROUP => "control".into(),
        group => (group - 1).to_string(),
    }
}

fn row((address, status): &Asked) -> Vec<String> {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let mut row = vec![String::from("?"), address.clone()];
            row.extend(["", "", "", "", ""].map(String::from));
            row.push(plain(&error.to_string()));
            return row;
        }
    };
    let leads = status.groups.iter().filter(|g| g.role == "Leader").count();
    let disk = status.disk.clone().unwrap_or_default();
    let state = match (disk.stopped.as_str(), disk.full) {
        ("", false) => "ok".into(),
        ("", true) => "disk full".into(),
        (why, _) => format!("stopped: {}", plain(why)),
    };
    vec![
        status.node.to_string(),
        address.clone(),
        plain(&status.version),
        leads.to_string(),
        (status.groups.len() - leads).to_string(),
        format!("{} of {}", size(disk.used_bytes), size(disk.limit_bytes)),
        format!(
            "{} of {}",
            size(disk.live_bytes),
            size(disk.live_bytes + disk.dead_bytes)
        ),
        state,
    ]
}

fn node_json((address, status): &Asked) -> Value {
    let status = match status {
        Ok(status) => status,
        Err(error) => return json!({ "address": address, "error": error.to_string() }),
    };
    let disk = status.disk.clone().unwrap_or_default();
    let groups: Vec<Value> = status
        .groups
        .iter()
        .map(|g| {
            let replicas: Vec<Value> = g
                .progress
                .iter()
                .map(|r| {
                    json!({ "node": r.node, "matched": r.matched, "state": r.state,
                            "recent_active": r.recent_active })
                })
                .collect();
            json!({ "group": g.group, "role": g.role, "term": g.term, "leader_node": g.leader_node,
                    "first_index": g.first_index, "last_index": g.last_index, "committed": g.committed,
                    "applied": g.applied, "durable_applied": g.durable_applied, "replicas": replicas })
        })
        .collect();
    json!({
        "address": address, "node": status.node, "version": status.version, "shards": status.shards,
        "groups": groups,
        "disk": { "limit_bytes": disk.limit_bytes, "used_bytes": disk.used_bytes,
                  "free_segments": disk.free_segments, "full": disk.full, "stopped": disk.stopped,
                  "live_bytes": disk.live_bytes, "dead_bytes": disk.dead_bytes,
                  "collecting_bytes": disk.collecting_bytes },
    })
}

fn judge(asked: &[Asked]) -> Result<(), Failure> {
    let answered: Vec<&NodeStatus> = asked.iter().filter_map(|(_, s)| s.as_ref().ok()).collect();
    if answered.is_empty() {
        let why = asked
            .iter()
            .find_map(|(address, status)| Some(format!("{address}: {}", status.as_ref().err()?)));
        return Err(Failure::Unreachable(format!(
            "no queue node answers; {}",
            why.unwrap_or_else(|| "none is known".into())
        )));
    }
    let mut led: BTreeMap<u32, bool> = BTreeMap::new();
    for group in answered.iter().flat_map(|status| &status.groups) {
        *led.entry(group.group).or_default() |= group.role == "Leader";
    }
    let without: Vec<String> = led
        .iter()
        .filter(|(_, led)| !**led)
        .map(|(group, _)| group_name(*group))
        .collect();
    if !without.is_empty() {
        return Err(Failure::Failed(format!(
            "without a leader: {}; a majority of their replicas must run",
            without.join(", ")
        )));
    }
    let silent = asked.len() - answered.len();
    let stopped = answered
        .iter()
        .filter(|s| s.disk.as_ref().is_some_and(|d| !d.stopped.is_empty()))
        .count();
    match silent + stopped {
        0 => Ok(()),
        some => Err(Failure::Failed(format!(
            "{some} of {} queue nodes do not take part; the queue works without them, but bears fewer failures",
            asked.len()
        ))),
    }
}
