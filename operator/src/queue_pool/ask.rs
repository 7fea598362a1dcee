//! What the queue says of itself, put together from the answers of its nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::client::AdminClient;
use proto::v1::NodeStatus;

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
}

/// A queue node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// It answered.
    pub answers: bool,
    /// Of its program.
    pub version: String,
    /// Copies that it holds.
    pub groups: usize,
    /// Groups that it leads.
    pub leads: usize,
}

/// Asks all nodes.
///
/// # Errors
/// Why no node answered.
pub async fn ask(admin: &AdminClient) -> Result<Answer, String> {
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
            answers: true,
            version: status.version.clone(),
            groups: status.groups.len(),
            leads: leads.count(),
        };
        answer.nodes.insert(status.node, known);
    }
    answer.groups = groups.len();
    answer.led = groups.values().filter(|(led, _)| *led).count();
    answer.in_step = groups.values().filter(|(_, in_step)| *in_step).count();
    answer
}

#[cfg(test)]
mod tests {
    use proto::v1::{GroupStatus, NodeAddress, ReplicaProgress};

    use super::*;

    fn group(group: u32, role: &str, matched: u64) -> GroupStatus {
        let copy = |node: u64, matched: u64| ReplicaProgress {
            node,
            matched,
            recent_active: true,
            ..ReplicaProgress::default()
        };
        GroupStatus {
            group,
            role: role.into(),
            last_index: 50_000,
            progress: match role {
                "Leader" => vec![copy(1, 50_000), copy(2, matched)],
                _ => Vec::new(),
            },
            ..GroupStatus::default()
        }
    }

    fn status(node: u64, groups: Vec<GroupStatus>) -> NodeStatus {
        let nodes = [1, 2, 3].map(|node| NodeAddress {
            node,
            ..NodeAddress::default()
        });
        NodeStatus {
            node,
            groups,
            nodes: nodes.to_vec(),
            ..NodeStatus::default()
        }
    }

    #[test]
    fn silent_nodes_groups_without_leader_and_copies_that_lag_are_seen() {
        let first = status(
            1,
            vec![
                group(0, "Leader", 49_999),
                group(1, "Leader", 3),
                group(2, "Follower", 0),
            ],
        );
        let second = status(
            2,
            vec![
                group(0, "Follower", 0),
                group(1, "Follower", 0),
                group(2, "Follower", 0),
            ],
        );
        let answer = put_together(&[first, second]);
        assert_eq!((answer.groups, answer.led, answer.in_step), (3, 2, 1));
        assert_eq!(answer.nodes.len(), 3);
        assert_eq!(
            (answer.nodes[&1].leads, answer.nodes[&3].answers),
            (2, false)
        );
    }
}
