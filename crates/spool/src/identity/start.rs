//! The first start of a cluster, decided from what the initial members say of themselves (queue.md 4.7). Pure.
//!
//! A node whose supervisor restarts it on a lost disk looks like a node that starts for the first time. If it voted
//! again in a term that it voted in, an acknowledged message could be overwritten. So a new directory takes part only
//! when no initial member has taken part yet, or when those that have recorded this very directory before they did.

use std::collections::BTreeMap;

use super::{ClusterId, Identity, StoreState};

/// What a node says of itself when two meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node id.
    pub node: u64,
    /// The incarnation of its store.
    pub incarnation: u128,
    /// Starting or member.
    pub state: StoreState,
    /// The incarnations that it recorded; of the initial members, those it saw while it was starting.
    pub known: BTreeMap<u64, u128>,
    /// `--shards`.
    pub shards: u32,
    /// `--replication-factor`.
    pub replication_factor: u32,
    /// `--initial-cluster` in canonical form: sorted by id, "id=host:port" joined by commas.
    pub initial_cluster: String,
}

impl Introduction {
    /// What a store with this identity says, started with these arguments.
    pub fn of(identity: &Identity, replication_factor: u32, initial_cluster: &str) -> Self {
        Self {
            cluster: identity.cluster,
            node: identity.node,
            incarnation: identity.incarnation,
            state: identity.state,
            known: identity.known.clone(),
            shards: identity.shards,
            replication_factor,
            initial_cluster: initial_cluster.to_owned(),
        }
    }
}

/// What a node with a new directory does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstStart {
    /// Ask these initial members, again and again.
    Wait {
        /// Their node ids.
        asking: Vec<u64>,
    },
    /// Write the identity as a member with these incarnations, durably; then take part.
    BecomeMember {
        /// To be recorded.
        known: BTreeMap<u64, u128>,
    },
    /// Exit with this text.
    Refuse {
        /// What happened, and what to do.
        text: String,
    },
}

/// Decides from what the other initial members have said so far. `initial` are the node ids of `--initial-cluster`.
pub fn first_start(
    own: &Introduction,
    initial: &[u64],
    heard: &BTreeMap<u64, Introduction>,
) -> FirstStart {
    if own.state == StoreState::Member {
        return FirstStart::BecomeMember {
            known: own.known.clone(),
        };
    }
    if !initial.contains(&own.node) {
        let text = format!(
            "node {} is not in --initial-cluster; add it there on all initial nodes, or start it with \
             --initial-cluster-state existing to join a running cluster",
            own.node
        );
        return FirstStart::Refuse { text };
    }
    let mut asking = Vec::new();
    let mut known = BTreeMap::new();
    for node in initial.iter().copied().filter(|node| *node != own.node) {
        let Some(other) = heard.get(&node) else {
            asking.push(node);
            continue;
        };
        if let Err(text) = may_start_with(own, node, other) {
            return FirstStart::Refuse { text };
        }
        known.insert(node, other.incarnation);
    }
    if asking.is_empty() {
        FirstStart::BecomeMember { known }
    } else {
        FirstStart::Wait { asking }
    }
}

fn may_start_with(own: &Introduction, address_of: u64, other: &Introduction) -> Result<(), String> {
    if other.node != address_of {
        return Err(format!(
            "the address of node {address_of} in --initial-cluster is answered by node {}; correct the addresses",
            other.node
        ));
    }
    same_arguments(own, other)?;
    match (other.state, other.known.get(&own.node)) {
        (StoreState::Starting, _) => Ok(()),
        (StoreState::Joining, _) => Err(format!(
            "node {} was started with --initial-cluster-state existing and waits for a cluster; start all first nodes with new",
            other.node
        )),
        (StoreState::Member, Some(recorded)) if *recorded == own.incarnation => Ok(()),
        (StoreState::Member, Some(_)) => Err(took_part(own.node)),
        (StoreState::Member, None) => Err(format!(
            "node {} is a member of a cluster that began without node {}; start this node with --initial-cluster-state \
             existing to join it",
            other.node, own.node
        )),
    }
}

/// Answers a node that introduces itself: None, or why it is refused. The asking node exits with that text.
pub fn answer(own: &Introduction, asking: &Introduction) -> Option<String> {
    let refused = if asking.cluster != own.cluster {
        Err(other_cluster(own, asking))
    } else if asking.node == own.node && asking.incarnation != own.incarnation {
        Err(format!(
            "two stores call themselves node {}; give one of them a new node id and an empty directory",
            own.node
        ))
    } else {
        match (own.state, own.known.get(&asking.node)) {
            (StoreState::Member, Some(recorded)) if *recorded != asking.incarnation => {
                Err(took_part(asking.node))
            }
            (StoreState::Member, None)
                if asking.state == StoreState::Starting && asking.node != own.node =>
            {
                Err(format!(
                    "the cluster began without node {}; start it with --initial-cluster-state existing to join it",
                    asking.node
                ))
            }
            // What was compared at the first start may differ later: the factor is a document then.
            (StoreState::Member, _) => same_shards(own, asking),
            (StoreState::Starting, _) if asking.state == StoreState::Starting => {
                same_arguments(own, asking)
            }
            (StoreState::Starting | StoreState::Joining, _) => Ok(()),
        }
    };
    refused.err()
}

fn same_arguments(own: &Introduction, other: &Introduction) -> Result<(), String> {
    if own.cluster != other.cluster {
        return Err(other_cluster(own, other));
    }
    same_shards(own, other)?;
    // A member may have been started again with other arguments since; then its record decides.
    if other.state == StoreState::Member {
        return Ok(());
    }
    let differs = |what, ours: &str, theirs: &str| {
        let (us, them) = (own.node, other.node);
        Err(format!(
            "node {us} has {what} {ours}, node {them} has {theirs}; give all initial nodes the same"
        ))
    };
    if own.replication_factor != other.replication_factor {
        let (ours, theirs) = (
            own.replication_factor.to_string(),
            other.replication_factor.to_string(),
        );
        return differs("--replication-factor", &ours, &theirs);
    }
    if own.initial_cluster != other.initial_cluster {
        return differs(
            "--initial-cluster",
            &own.initial_cluster,
            &other.initial_cluster,
        );
    }
    Ok(())
}

fn same_shards(own: &Introduction, other: &Introduction) -> Result<(), String> {
    if own.shards == other.shards {
        return Ok(());
    }
    Err(format!(
        "node {} has --shards {}, node {} has {}; the number never changes after the first start, so give all nodes the \
         same",
        own.node, own.shards, other.node, other.shards
    ))
}

fn other_cluster(own: &Introduction, other: &Introduction) -> String {
    format!(
        "node {} belongs to cluster {}, node {} to cluster {}; check --cluster-id, the addresses and the data directories",
        own.node, own.cluster, other.node, other.cluster
    )
}

fn took_part(node: u64) -> String {
    format!(
        "node {node} already took part with another data directory; replace it with a new id: remove node {node} from the \
         cluster, then start a node with an id that was never used, an empty directory and --initial-cluster-state existing"
    )
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
