//! What the queue says of itself. The control group's leader knows all of it; without one each node still tells of its own
//! copies, which is enough to say what is wrong and too little to change anything.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::client::AdminClient;
use proto::v1::{MemberNode, MembersResponse, NodeStatus};

/// A queue that does not answer by then does not answer: the next look is not far.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Entries that a copy may lack while it is still in step: what is on its way under load.
const IN_STEP_LAG: u64 = 10_000;

/// The queue as it says.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its nodes by id.
    pub nodes: BTreeMap<u64, Node>,
    /// Raft groups, the control group included.
    pub groups: usize,
    /// Those that somebody leads.
    pub led: usize,
    /// Those with all their copies in step.
    pub in_step: usize,
    /// What only the leader of the control group knows; `None` while there is none.
    pub overview: Option<Overview>,
}

/// See [`Answer::overview`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// No id up to this one may be given to another disk.
    pub highest_node: u64,
    /// Copies of each group.
    pub replication_factor: u32,
    /// Steps until every group is where it should be.
    pub moves_left: u32,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Added, and not heard of yet.
    Joining,
    /// It says that it is there.
    Ready,
    /// It says nothing.
    #[default]
    Silent,
    /// It was told to go.
    Leaving,
}

/// A queue node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Where it is in its life.
    pub stage: Stage,
    /// Not heard of for so long.
    pub silent_ms: u64,
    /// It was asked not to lead.
    pub rests: bool,
    /// Of its program; empty: not known.
    pub version: String,
    /// Where it is, as it says itself; empty: not known.
    pub zone: String,
    /// Copies that it holds.
    pub groups: usize,
    /// Groups that it leads.
    pub leads: usize,
}

/// Asks the control group's leader; when nobody leads it, each node.
///
/// # Errors
/// Why no node answered.
pub async fn ask(admin: &AdminClient) -> Result<Answer, String> {
    if let Ok(Ok(members)) = tokio::time::timeout(TIMEOUT, admin.members()).await {
        return Ok(whole(&members));
    }
    let statuses = tokio::time::timeout(TIMEOUT, admin.statuses())
        .await
        .map_err(|_| format!("no answer for {} s", TIMEOUT.as_secs()))?;
    let mut last = "no node is known".to_owned();
    let mut answered = Vec::new();
    for (address, status) in statuses {
        match status {
            Ok(status) => answered.push(status),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    match answered.is_empty() {
        true => Err(last),
        false => Ok(put_together(&answered)),
    }
}

/// The answer of the control group's leader.
fn whole(members: &MembersResponse) -> Answer {
    let node = |node: &MemberNode| Node {
        stage: match node.state.as_str() {
            "Joining" => Stage::Joining,
            "Ready" => Stage::Ready,
            "Leaving" => Stage::Leaving,
            _ => Stage::Silent,
        },
        silent_ms: node.silent_ms,
        rests: node.rests_ms > 0,
        version: node.version.clone(),
        zone: node.zone.clone(),
        groups: node.groups as usize,
        leads: node.leads as usize,
    };
    let speaks = |id: &u64| {
        let mut nodes = members.nodes.iter();
        nodes.any(|node| node.node == *id && !["Silent", "Joining"].contains(&node.state.as_str()))
    };
    let groups = members.groups.iter();
    let in_step = groups.clone().filter(|group| {
        let moved = group.voters == group.placed && group.learners.is_empty();
        let heard = group.voters.iter().all(speaks);
        group.leader_node > 0 && moved && heard && group.lag <= IN_STEP_LAG
    });
    Answer {
        nodes: members.nodes.iter().map(|n| (n.node, node(n))).collect(),
        groups: members.groups.len(),
        led: groups.clone().filter(|group| group.leader_node > 0).count(),
        in_step: in_step.count(),
        overview: Some(Overview {
            highest_node: members.highest_node,
            replication_factor: members.replication_factor,
            moves_left: members.moves_left,
        }),
    }
}

/// Each node tells of all nodes and of its own copies; leaders tell how far their followers are.
fn put_together(answered: &[NodeStatus]) -> Answer {
    let mut answer = Answer::default();
    for status in answered {
        for node in &status.nodes {
            answer.nodes.entry(node.node).or_default();
        }
    }
    let mut groups: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
    for status in answered {
        let leads = status.groups.iter().filter(|group| group.role == "Leader");
        for group in &status.groups {
            groups.entry(group.group).or_default();
        }
        for group in leads.clone() {
            let reached = |lag: u64| lag <= IN_STEP_LAG;
            let mut copies = group.progress.iter();
            let in_step = copies.all(|copy| {
                copy.recent_active && reached(group.last_index.saturating_sub(copy.matched))
            });
            groups.insert(group.group, (true, in_step));
        }
        let known = Node {
            stage: Stage::Ready,
            version: status.version.clone(),
            groups: status.groups.len(),
            leads: leads.count(),
            ..Node::default()
        };
        answer.nodes.insert(status.node, known);
    }
    answer.groups = groups.len();
    answer.led = groups.values().filter(|(led, _)| *led).count();
    answer.in_step = groups.values().filter(|(_, in_step)| *in_step).count();
    answer
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
