//! Who there is, as the control group's leader says: how a node joins, how it learns of others, how it learns that it has no
//! place any more.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto::v1;
use queue::control::NodeRow;
use tokio::sync::watch;

use super::{INTRODUCE_AGAIN, Introducer, News};
use crate::config::{Config, Error};
use crate::identity::{Introduction, Roster, StoreState};
use crate::log::RealDisk;
use crate::wire::control::{node_from_wire, node_to_wire};

/// How often a node that waits to be added says so.
const REMIND: Duration = Duration::from_secs(60);

impl Introducer {
    /// What is known of the nodes, as it changes.
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// Peer addresses of all nodes: as the control group's leader last said, else those of the first nodes.
    pub fn addresses(&self, config: &Config) -> BTreeMap<u64, String> {
        let news = self.news.borrow();
        if news.roster.nodes.is_empty() {
            return config.initial_cluster.clone();
        }
        let nodes = news.roster.nodes.iter();
        nodes
            .map(|(id, row)| (*id, row.peer_address.to_string()))
            .collect()
    }

    /// A new directory waits until somebody adds its node: the control group's leader then calls. It introduces itself to the
    /// nodes that it was given, so that a wiped disk under an old id hears at once that it must not come back.
    pub(super) async fn wait_to_be_added(&self, config: &Config) -> Result<(), Error> {
        let mut news = self.news();
        let mut remind = tokio::time::Instant::now();
        loop {
            if tokio::time::Instant::now() >= remind {
                remind += REMIND;
                tracing::info!(
                    node = config.node,
                    address = config.advertise_peer,
                    "waits to be added: postroad members add {} --peer {}",
                    config.node,
                    config.advertise_peer
                );
            }
            for (node, address) in &config.initial_cluster {
                if *node != config.node
                    && let Err(Error::Refused(text)) = self.introduce(config, *node, address).await
                {
                    return Err(Error::Refused(text));
                }
            }
            let refused = news.borrow_and_update().refused.clone();
            if !refused.is_empty() {
                return Err(Error::Refused(refused));
            }
            let own = self.lock().identity.clone();
            let roster = self.news.borrow().roster.clone();
            let row = roster.nodes.get(&own.node);
            if row.is_some_and(|row| row.incarnation == own.incarnation.to_be_bytes()) {
                return self.take_part(config, own.known).await;
            }
            let _ = tokio::time::timeout(INTRODUCE_AGAIN, news.changed()).await;
        }
    }

    /// A node that was removed and comes back.
    pub(super) fn removed(&self, asking: &Introduction) -> Option<String> {
        let news = self.news.borrow();
        let roster = &news.roster;
        let gone = !roster.nodes.is_empty()
            && !roster.nodes.contains_key(&asking.node)
            && asking.node <= roster.highest;
        gone.then(|| removed(asking.node, roster.highest))
    }

    /// Takes what the control group's leader says of the nodes; durable when it returns.
    ///
    /// # Errors
    /// A text for the leader: this node does not listen, and why.
    pub fn steered(&self, name: &str, wire: &v1::SteerRequest) -> Result<(), String> {
        let roster = roster(wire)?;
        let mut inner = self.lock();
        inner.may_steer(name, wire)?;
        let own = &inner.identity;
        if own.state == StoreState::Joining && !roster.nodes.contains_key(&own.node) {
            return Err(format!("node {} was not added yet", own.node));
        }
        if let Some(text) = no_place(own, wire, &roster) {
            self.news.send_if_modified(|news| {
                let new = news.refused != text;
                news.refused.clone_from(&text);
                new
            });
            return Err(text);
        }
        let mut identity = own.clone();
        for (id, row) in &roster.nodes {
            let incarnation = u128::from_be_bytes(row.incarnation);
            if *id != own.node && incarnation != 0 {
                identity.known.entry(*id).or_insert(incarnation);
            }
        }
        let dir = &self.settings.dir;
        if identity != *own {
            identity.save(&RealDisk, dir).map_err(|e| e.to_string())?;
        }
        let changed = self.news.borrow().roster != roster;
        if changed && let Err(error) = roster.save(&RealDisk, dir) {
            tracing::warn!(%error, "the list of nodes is not kept; it is heard again after a restart");
        }
        inner.identity = identity;
        inner.steer_term = wire.term;
        drop(inner);
        self.news.send_if_modified(|news| {
            news.roster = roster;
            changed
        });
        Ok(())
    }

    /// What this node says of itself to the control group's leader; its replicas are added by the Raft thread.
    pub fn report(&self) -> v1::SteerReport {
        v1::SteerReport {
            state: self.to_wire().state,
            node: Some(node_to_wire(self.lock().identity.node, &self.settings.row)),
            process: self.settings.process,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }
    }
}

impl super::Inner {
    /// Whether the sender is the control group's leader of this cluster, as far as can be seen here.
    fn may_steer(&self, name: &str, wire: &v1::SteerRequest) -> Result<(), String> {
        let own = &self.identity;
        let (node, from) = (own.node, wire.from_node);
        if wire.cluster_id != own.cluster.0[..] {
            return Err(format!("node {node} belongs to another cluster"));
        }
        if wire.to_node != node {
            let to = wire.to_node;
            return Err(format!("node {node} answers at the address of node {to}"));
        }
        if from.to_string() != name {
            return Err(format!(
                "the certificate is of node {name}, the request of node {from}"
            ));
        }
        if own.state == StoreState::Starting {
            return Err(format!("node {node} waits for the other first nodes"));
        }
        let incarnation = incarnation(&wire.from_incarnation)?;
        let known = own.known.get(&from);
        if from != node && known.is_some_and(|known| *known != incarnation) {
            return Err(format!("node {from} took part with another data directory"));
        }
        if wire.term < self.steer_term {
            return Err("another node leads the control group by now".to_owned());
        }
        Ok(())
    }
}

/// Why this node cannot take part, for good.
fn no_place(
    own: &crate::identity::Identity,
    wire: &v1::SteerRequest,
    roster: &Roster,
) -> Option<String> {
    let node = own.node;
    let Some(row) = roster.nodes.get(&node) else {
        return Some(removed(node, roster.highest));
    };
    if wire.shards != own.shards {
        return Some(format!(
            "this node has --shards {}, the cluster has {}; start it with the cluster's number",
            own.shards, wire.shards
        ));
    }
    let spoken = row.incarnation != [0; 16];
    (spoken && row.incarnation != own.incarnation.to_be_bytes()).then(|| {
        format!(
            "node {node} already took part with another data directory; replace it with a new id above {}: postroad members \
             add, then postroad members remove {node}",
            roster.highest
        )
    })
}

fn removed(node: u64, highest: u64) -> String {
    format!(
        "node {node} was removed from the cluster and its id is never used again; others hold what it held, so its data can be \
         deleted. To take part again: an empty data directory and a --node-id above {highest}"
    )
}

fn roster(wire: &v1::SteerRequest) -> Result<Roster, String> {
    let nodes = wire.nodes.iter().cloned().map(node_from_wire);
    let nodes: BTreeMap<u64, NodeRow> =
        nodes.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok(Roster {
        nodes,
        highest: wire.highest_node,
    })
}

fn incarnation(bytes: &Bytes) -> Result<u128, String> {
    let sixteen = bytes.as_ref().try_into().map(u128::from_be_bytes);
    sixteen.map_err(|_| "the incarnation of the sender has not 16 octets".to_owned())
}
