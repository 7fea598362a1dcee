//! Telling every node who there is and where the groups shall be, and hearing what it holds: the hands and eyes of the
//! control group's leader. It runs on every node and does something only where orders are published.
//!
//! What is told is what the control group has committed, each placement with its version; so what arrives twice, late or
//! from a leader of yesterday changes nothing. A group moves by its own leader, which proposes one step after another
//! through the group's own log ([`crate::node::Plan`]); nothing of the way is kept anywhere else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use proto::v1::peer_client::PeerClient;
use queue::control::Placement;
use tokio::sync::{oneshot, watch};
use tonic::transport::Channel;

use super::Introducer;
use super::control::Orders;
use crate::config::Config;
use crate::event::{GroupOrder, Mailboxes, RaftEvent, StateEvent};
use crate::peer::Peers;

/// Between two rounds. A node learns of a change within this; each round costs a few kilobytes a node.
const ROUND: Duration = Duration::from_millis(500);
/// A node that does not answer within this is asked again in a later round.
const ANSWER: Duration = Duration::from_secs(2);

/// What a node does with what it is told.
#[derive(Clone)]
pub struct Steered {
    /// Who this node is, and whom it knows.
    pub introducer: Introducer,
    /// To the threads.
    pub mail: Mailboxes,
    /// The streams to other nodes.
    pub peers: Peers,
    /// Who leads and where nodes are.
    pub directory: crate::directory::Directory,
}

impl Steered {
    /// Takes what the control group's leader says, and reports.
    pub async fn take(&self, name: &str, request: &v1::SteerRequest) -> v1::SteerReport {
        let mut report = self.introducer.report();
        if let Err(refusal) = self.introducer.steered(name, request) {
            report.refusal = refusal;
            return report;
        }
        let of = |f: fn(&v1::AnnounceNodeCommand) -> String| -> BTreeMap<u64, String> {
            request
                .nodes
                .iter()
                .map(|node| (node.node, f(node)))
                .collect()
        };
        self.peers.update(&of(|node| node.peer_address.clone()));
        self.directory
            .set_nodes(&of(|node| node.client_address.clone()));
        let orders = request.groups.iter().map(order).collect();
        let _ = self.mail.state.send(StateEvent::Orders(orders));
        let (to, replicas) = oneshot::channel();
        let _ = self.mail.raft.send(RaftEvent::Report(to));
        if let Ok(Ok(replicas)) = tokio::time::timeout(ANSWER, replicas).await {
            report.replicas = replicas;
        }
        report.full = self.directory.own_full();
        report
    }
}

fn order(wire: &v1::GroupOrder) -> GroupOrder {
    GroupOrder {
        group: wire.group,
        placement: Placement {
            version: wire.version,
            voters: wire.voters.iter().copied().collect(),
            leader: wire.leader,
            ..Placement::default()
        },
        settled: wire.settled,
        first: wire.first.clone(),
    }
}

/// Tells all nodes, round after round, while this node leads the control group.
pub async fn steer(
    config: Config,
    steered: Steered,
    mut orders: watch::Receiver<Option<Arc<Orders>>>,
) {
    let mut asked: BTreeMap<u64, tokio::task::JoinHandle<()>> = BTreeMap::new();
    let mut channels: BTreeMap<u64, (String, Channel)> = BTreeMap::new();
    loop {
        let now = orders.borrow_and_update().clone();
        let Some(now) = now else {
            channels.clear();
            if orders.changed().await.is_err() {
                return;
            }
            continue;
        };
        asked.retain(|_, task| !task.is_finished());
        channels.retain(|node, (address, _)| now.addresses.get(node) == Some(address));
        for (node, address) in &now.addresses {
            if asked.contains_key(node) {
                continue;
            }
            let mut request = now.request.clone();
            let sender = steered.introducer.sender();
            request.from_node = sender.node;
            request.from_incarnation = sender.incarnation;
            request.to_node = *node;
            let (steered, node) = (steered.clone(), *node);
            let task = if node == config.node {
                tokio::spawn(async move {
                    let report = steered.take(&node.to_string(), &request).await;
                    tell(&steered, node, Ok(report));
                })
            } else {
                let channel = match channels.get(&node) {
                    Some((_, channel)) => Ok(channel.clone()),
                    None => connect(&config, node, address),
                };
                if let Ok(channel) = &channel {
                    channels.insert(node, (address.clone(), channel.clone()));
                }
                tokio::spawn(async move {
                    let report = match channel {
                        Ok(channel) => ask(channel, request).await,
                        Err(error) => Err(error),
                    };
                    tell(&steered, node, report);
                })
            };
            asked.insert(node, task);
        }
        tokio::time::sleep(ROUND).await;
    }
}

fn connect(config: &Config, node: u64, address: &str) -> Result<Channel, String> {
    let connector = proto::tls::Connector::to_node(config.tls.clone(), &node.to_string());
    Ok(proto::tls::endpoint(address)?.connect_with_connector_lazy(connector))
}

async fn ask(channel: Channel, request: v1::SteerRequest) -> Result<v1::SteerReport, String> {
    let mut client = PeerClient::new(channel);
    match tokio::time::timeout(ANSWER, client.steer(request)).await {
        Ok(Ok(report)) => Ok(report.into_inner()),
        Ok(Err(status)) => Err(proto::client::explain(&status)),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

fn tell(steered: &Steered, node: u64, report: Result<v1::SteerReport, String>) {
    let report = report.map(Box::new);
    let _ = steered.mail.state.send(StateEvent::Heard { node, report });
}
