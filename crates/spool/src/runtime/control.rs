//! The control group on the state thread: its entries, and what its leader proposes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use queue::control::{Cluster, ControlCommand, ControlEffect, ControlState, NodeRow};

use super::{Health, Introduced};
use crate::directory::Directory;
use crate::event::Ticket;
use crate::node::{Ack, Committed, Proposal};
use crate::state::GroupState;

/// A proposal of which nothing was heard is made again after this.
const PROPOSE_AGAIN: Duration = Duration::from_secs(2);

/// The control group.
pub struct Control {
    rows: GroupState,
    state: ControlState,
    own: u64,
    cluster: Cluster,
    initial_nodes: Vec<u64>,
    introduced: Introduced,
    tickets: Arc<AtomicU64>,
    leads: Option<u64>,
    ready: bool,
    proposed: BTreeMap<u64, Instant>,
    wall_ms: u64,
}

impl Control {
    /// As its row was recovered. `cluster` and `initial_nodes` are what the first leader creates.
    ///
    /// # Errors
    /// The row is damaged: this node's data is lost.
    pub fn new(
        rows: GroupState,
        own: u64,
        cluster: Cluster,
        initial_nodes: Vec<u64>,
        introduced: Introduced,
        tickets: Arc<AtomicU64>,
    ) -> Result<Control, crate::wire::log::WireError> {
        let state = crate::wire::control::state_from_bytes(&rows.blob())?;
        let (leads, ready) = (None, false);
        let proposed = BTreeMap::new();
        Ok(Control {
            rows,
            state,
            own,
            cluster,
            initial_nodes,
            introduced,
            tickets,
            leads,
            ready,
            proposed,
            wall_ms: 0,
        })
    }

    /// A snapshot took the place of its row.
    ///
    /// # Errors
    /// The row cannot be understood.
    pub fn replace(
        &mut self,
        rows: GroupState,
        directory: &Directory,
    ) -> Result<(), crate::wire::log::WireError> {
        self.state = crate::wire::control::state_from_bytes(&rows.blob())?;
        self.rows = rows;
        self.publish(directory);
        Ok(())
    }

    /// This replica's part changed.
    pub fn role(&mut self, leads: bool, term: u64, wall_ms: u64) {
        self.leads = leads.then_some(term);
        self.ready = leads && self.rows.applied().1 == term;
        self.wall_ms = wall_ms;
        self.proposed.clear();
    }

    /// Tickets are not kept: what was proposed shows in the state, or is proposed again.
    pub fn tickets(&mut self, _tickets: Vec<(u64, Ticket)>) {}

    /// A proposal that has no known index.
    pub fn failed(&mut self, _ticket: Ticket) {
        self.proposed.clear();
    }

    /// Applies an entry.
    pub fn apply(
        &mut self,
        entry: &Committed,
        context: Bytes,
        directory: &Directory,
        health: &Health,
    ) {
        if entry.index <= self.rows.applied().0 {
            return;
        }
        if !context.is_empty() && entry.kind == crate::log::EntryKind::Normal {
            match crate::wire::control::decode(&context) {
                Ok(command) => self.command(&command, directory, health),
                Err(error) => {
                    health.stop_for_good(&format!(
                        "entry {} of the control group: {error}",
                        entry.index
                    ));
                    return;
                }
            }
        }
        self.rows.set_applied(entry.index, entry.term);
        self.ready |= self.leads == Some(entry.term);
    }

    fn command(&mut self, command: &ControlCommand, directory: &Directory, health: &Health) {
        for effect in self.state.apply(command) {
            match effect {
                ControlEffect::Created(cluster) => {
                    tracing::info!(
                        shards = cluster.shards,
                        replication_factor = cluster.replication_factor,
                        "the cluster is created"
                    );
                }
                ControlEffect::AlreadyCreated(_) => {}
                ControlEffect::Announced { node } => {
                    self.proposed.remove(&node);
                    if let Some(row) = self.state.nodes.get(&node) {
                        directory.set_client_address(node, &row.client_address);
                    }
                }
                ControlEffect::Refused { node, why } if node == self.own => {
                    health.stop_for_good(&why.to_string())
                }
                ControlEffect::Refused { node, why } => {
                    tracing::warn!(node, %why, "a node is not taken")
                }
            }
        }
        self.rows
            .set_blob(crate::wire::control::state_to_bytes(&self.state));
    }

    /// The addresses that the state knew at start.
    pub fn publish(&self, directory: &Directory) {
        for (node, row) in &self.state.nodes {
            directory.set_client_address(*node, &row.client_address);
        }
    }

    /// What the leader proposes: the cluster itself first, then each node that introduced itself with something new.
    pub fn run(&mut self, now: Instant) -> Vec<Proposal> {
        if !self.ready || self.leads.is_none() {
            return Vec::new();
        }
        let mut commands = Vec::new();
        if self.state.cluster.is_none() {
            let create = ControlCommand::CreateCluster {
                cluster: self.cluster,
                initial_nodes: self.initial_nodes.clone(),
            };
            commands.push((0, create));
        } else {
            for (node, row) in self.introduced.rows() {
                let row: NodeRow = row;
                if self.state.nodes.get(&node) != Some(&row) {
                    commands.push((node, ControlCommand::AnnounceNode { node, row }));
                }
            }
        }
        let mut proposals = Vec::new();
        for (key, command) in commands {
            if self
                .proposed
                .get(&key)
                .is_some_and(|at| now < *at + PROPOSE_AGAIN)
            {
                continue;
            }
            self.proposed.insert(key, now);
            proposals.push(Proposal {
                ticket: self.tickets.fetch_add(1, Ordering::Relaxed),
                context: crate::wire::control::encode(&command, self.wall_ms),
                data: Bytes::new(),
                ack: Ack::Apply,
                urgent: true,
            });
        }
        proposals
    }

    /// The rows, for errors.
    pub fn rows(&mut self) -> &mut GroupState {
        &mut self.rows
    }
}
