//! `postroad members list|add|remove|move-leaders` and `postroad queue groups`: the nodes of the queue, and where its groups
//! are.

use std::time::Duration;

use proto::v1::{AddNodeRequest, MemberGroup, MemberNode, MembersResponse};
use serde_json::{Value, json};

use super::table::{plain, span, table};
use super::{connect, print_json};
use crate::failure::Failure;
use crate::settings::{self, MembersCommand, Output};

/// Between two looks at a node that leaves.
const LOOK: Duration = Duration::from_secs(1);

/// Asks or acts.
pub async fn run(command: MembersCommand) -> Result<(), Failure> {
    match command {
        MembersCommand::List(settings) => list(settings).await,
        MembersCommand::Add(settings) => {
            let client = connect(&settings.connection)?;
            let add = AddNodeRequest {
                node: settings.node.into(),
                peer_address: settings.peer,
                client_address: settings.client.unwrap_or_default(),
                zone: settings.zone,
            };
            println!("{}", client.admin().add_node(add).await?);
            Ok(())
        }
        MembersCommand::Remove(settings) => remove(settings).await,
        MembersCommand::MoveLeaders(settings) => {
            let client = connect(&settings.connection)?;
            let done = client.admin().move_leaders(settings.node.into()).await?;
            println!("{done}");
            Ok(())
        }
        MembersCommand::Copies(settings) => {
            let client = connect(&settings.connection)?;
            let done = client
                .admin()
                .set_replication_factor(settings.factor)
                .await?;
            println!("{done}");
            Ok(())
        }
    }
}

async fn list(settings: settings::MembersList) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let found = client.admin().members().await?;
    if settings.output == Output::Json {
        print_json(&members_json(&found));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = found.nodes.iter().map(node_row).collect();
    let heading = [
        "NODE",
        "ZONE",
        "STATE",
        "GROUPS",
        "LEADS",
        "HEARD",
        "VERSION",
        "PEERS AT",
        "CLIENTS AT",
        "REMARK",
    ];
    print!("{}", table(&heading, &rows));
    println!(
        "\n{} copies of {} shards and the control group; the next node needs an id above {}",
        found.replication_factor, found.shards, found.highest_node
    );
    match found.moves_left {
        0 => println!("every group is where it should be"),
        left => println!(
            "{left} move(s) left until every group is where it should be: postroad queue groups"
        ),
    }
    Ok(())
}

fn node_row(node: &MemberNode) -> Vec<String> {
    let mut remarks = Vec::new();
    if node.full {
        remarks.push("its disk is full".to_owned());
    }
    if node.rests_ms > 0 {
        remarks.push(format!("does not lead for {}", span(node.rests_ms)));
    }
    if !node.trouble.is_empty() {
        remarks.push(plain(&node.trouble));
    }
    let heard = match node.version.as_str() {
        "" => "never".to_owned(),
        _ => format!("{} ago", span(node.silent_ms)),
    };
    vec![
        node.node.to_string(),
        dash(&node.zone),
        node.state.clone(),
        node.groups.to_string(),
        node.leads.to_string(),
        heard,
        dash(&node.version),
        dash(&node.peer_address),
        dash(&node.client_address),
        remarks.join("; "),
    ]
}

fn dash(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => plain(text),
    }
}

async fn remove(settings: settings::MembersRemove) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let node = u64::from(settings.node);
    println!("{}", client.admin().remove_node(node).await?);
    if !settings.wait {
        return Ok(());
    }
    loop {
        let found = client.admin().members().await?;
        if !found.nodes.iter().any(|known| known.node == node) {
            println!("node {node} is gone");
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `postroad queue groups`.
///
/// # Errors
/// Code 1 when a group has no leader.
pub async fn groups(settings: settings::MembersList) -> Result<(), Failure> {
    let client = connect(&settings.connection)?;
    let found = client.admin().members().await?;
    match settings.output {
        Output::Json => print_json(&members_json(&found)),
        Output::Table => {
            let rows: Vec<Vec<String>> = found.groups.iter().map(group_row).collect();
            let heading = ["SHARD", "LEADER", "TERM", "NODES", "LAG", "STATE"];
            print!("{}", table(&heading, &rows));
        }
    }
    let without = found.groups.iter().filter(|group| group.leader_node == 0);
    let without: Vec<String> = without.map(|group| name(group.group)).collect();
    match without.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "without a leader: {}; a majority of their nodes must run",
            without.join(", ")
        ))),
    }
}

fn name(group: u32) -> String {
    match group {
        spool::CONTROL_GROUP => "control".to_owned(),
        group => (group - 1).to_string(),
    }
}

fn numbers(nodes: &[u64]) -> String {
    let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
    nodes.join(",")
}

fn group_row(group: &MemberGroup) -> Vec<String> {
    vec![
        name(group.group),
        match group.leader_node {
            0 => "none".to_owned(),
            node => node.to_string(),
        },
        group.term.to_string(),
        numbers(&group.voters),
        group.lag.to_string(),
        state(group),
    ]
}

fn state(group: &MemberGroup) -> String {
    if group.leader_node == 0 {
        return format!("no leader; it belongs on {}", numbers(&group.placed));
    }
    if !group.outgoing.is_empty() {
        return format!(
            "changes from {} to {}",
            numbers(&group.outgoing),
            numbers(&group.voters)
        );
    }
    if !group.learners.is_empty() {
        return format!(
            "{} catches up; it belongs on {}",
            numbers(&group.learners),
            numbers(&group.placed)
        );
    }
    match group.voters == group.placed {
        true => "whole".to_owned(),
        false => format!("is to move to {}", numbers(&group.placed)),
    }
}

fn members_json(found: &MembersResponse) -> Value {
    let nodes: Vec<Value> = found
        .nodes
        .iter()
        .map(|n| {
            json!({ "node": n.node, "peer_address": n.peer_address, "client_address": n.client_address, "zone": n.zone,
                    "state": n.state, "version": n.version, "groups": n.groups, "leads": n.leads,
                    "silent_ms": n.silent_ms, "full": n.full, "rests_ms": n.rests_ms, "trouble": n.trouble })
        })
        .collect();
    let groups: Vec<Value> = found
        .groups
        .iter()
        .map(|g| {
            json!({ "group": g.group, "leader_node": g.leader_node, "term": g.term, "voters": g.voters,
                    "learners": g.learners, "outgoing": g.outgoing, "placed": g.placed,
                    "preferred_leader": g.preferred_leader, "lag": g.lag })
        })
        .collect();
    json!({ "shards": found.shards, "replication_factor": found.replication_factor, "nodes": nodes, "groups": groups,
            "moves_left": found.moves_left, "highest_node": found.highest_node })
}
