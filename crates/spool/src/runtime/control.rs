//! The control group on the state thread: its entries, and what its leader proposes.

mod calls;
mod compare;
mod declared;
mod list;

pub use calls::not_leader;
pub use declared::put_elsewhere;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1;
use queue::control::{Cluster, ControlCommand, ControlEffect, ControlState};
use tokio::sync::{oneshot, watch};

use super::{Health, Introduced};
use crate::desk::ConfigDesk;
use crate::directory::Directory;
use crate::event::Ticket;
use crate::node::{Ack, Committed, Proposal};
use crate::oversee::{Overseer, What};
use crate::state::GroupState;

/// A proposal of which nothing was heard is made again after this.
const PROPOSE_AGAIN: Duration = Duration::from_secs(2);

/// How often the leader looks at nodes and groups and plans: its thread has mail to see to, and every look goes through all
/// groups and nodes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a control group is made with, now or when this node is given a replica of it.
#[derive(Clone)]
pub struct ControlSettings {
    /// This node.
    pub own: u64,
    /// What the first leader creates.
    pub cluster: Cluster,
    /// The nodes of `--initial-cluster`.
    pub initial_nodes: Vec<u64>,
    /// What nodes said of themselves at first contact.
    pub introduced: Introduced,
    /// Tickets are unique within the process.
    pub tickets: Arc<AtomicU64>,
    /// What this node, while it leads the control group, tells all nodes.
    pub orders: watch::Sender<Option<Arc<Orders>>>,
    /// What is declared, for the services.
    pub desk: ConfigDesk,
    /// Versions of the state machine that this program says it knows.
    pub known: u32,
}

/// What the control group's leader tells every node.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Without sender and receiver.
    pub request: v1::SteerRequest,
    /// Whom to tell, with peer addresses; nodes that are gone since moments too, so that they hear it.
    pub addresses: BTreeMap<u64, String>,
}

/// The control group.
pub struct Control {
    rows: GroupState,
    state: ControlState,
    settings: ControlSettings,
    leads: Option<u64>,
    ready: bool,
    next_look: Instant,
    proposed: BTreeMap<What, Instant>,
    wall_ms: u64,
    /// Tickets whose entries are committed and not yet applied.
    by_index: BTreeMap<u64, Ticket>,
    /// Who waits for an entry.
    waiting: BTreeMap<Ticket, oneshot::Sender<v1::ChangeMembersResponse>>,
    /// Who waits for a Put.
    puts: BTreeMap<Ticket, oneshot::Sender<v1::PutConfigResponse>>,
    overseer: Overseer,
    pass: compare::Pass,
}

impl Control {
    /// As its row was recovered.
    ///
    /// # Errors
    /// The row is damaged: this node's data is lost.
    pub fn new(
        rows: GroupState,
        settings: ControlSettings,
    ) -> Result<Control, crate::wire::log::WireError> {
        let state = crate::wire::control::state_from_bytes(&rows.blob())?;
        declared::check_version(&state, settings.known)?;
        let recovered = declared::recover(&rows)?;
        settings.desk.write(|all| *all = recovered);
        Ok(Control {
            rows,
            state,
            settings,
            leads: None,
            ready: false,
            next_look: Instant::now(),
            proposed: BTreeMap::new(),
            wall_ms: 0,
            by_index: BTreeMap::new(),
            waiting: BTreeMap::new(),
            puts: BTreeMap::new(),
            overseer: Overseer::new(Instant::now()),
            pass: compare::Pass::new(Instant::now()),
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
        declared::check_version(&self.state, self.settings.known)?;
        let recovered = declared::recover(&rows)?;
        self.settings.desk.write(|all| *all = recovered);
        self.rows = rows;
        self.publish(directory);
        Ok(())
    }

    /// This replica's part changed.
    pub fn role(&mut self, leads: bool, term: u64, wall_ms: u64) {
        self.leads = leads.then_some(term);
        self.wall_ms = wall_ms;
        self.proposed.clear();
        // Whoever asked hears nothing, and asks the next leader: everything may be asked twice.
        self.waiting.clear();
        self.puts.clear();
        self.by_index.clear();
        self.set_ready(leads && self.rows.applied().1 == term);
        if !self.ready {
            self.settings.orders.send_replace(None);
        }
    }

    fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
        self.settings.desk.set_open(ready);
        self.overseer = Overseer::new(Instant::now());
        self.pass = compare::Pass::new(Instant::now());
    }

    /// Proposals that are committed, by index.
    pub fn tickets(&mut self, tickets: Vec<(u64, Ticket)>) {
        let waited = |(_, ticket): &(u64, Ticket)| {
            self.waiting.contains_key(ticket) || self.puts.contains_key(ticket)
        };
        let tickets: Vec<_> = tickets.into_iter().filter(waited).collect();
        self.by_index.extend(tickets);
    }

    /// A proposal that has no known index.
    pub fn failed(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.puts.remove(&ticket);
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
            match crate::wire::control::decode(&context, self.settings.known) {
                Ok(ControlCommand::PutConfig(put)) => self.put_applied(entry.index, &put),
                Ok(ControlCommand::VerifyDigest { from, rows }) => {
                    self.proposed.remove(&What::Digest);
                    self.digest(entry.index, (&from, rows), directory, health);
                }
                Ok(command) => {
                    let effects = self.command(&command, directory, health);
                    self.answer(entry.index, &effects);
                }
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
        if !self.ready && self.leads == Some(entry.term) {
            self.set_ready(true);
        }
    }

    /// The members of this group changed with an entry: they are kept with its index.
    pub fn members_changed(&mut self, row: Bytes) {
        self.rows.set_conf_state(row);
    }

    fn command(
        &mut self,
        command: &ControlCommand,
        directory: &Directory,
        health: &Health,
    ) -> Vec<ControlEffect> {
        let effects = self.state.apply(command);
        for effect in &effects {
            match effect {
                ControlEffect::Created(cluster) => {
                    tracing::info!(
                        shards = cluster.shards,
                        replication_factor = cluster.replication_factor,
                        "the cluster is created"
                    );
                }
                ControlEffect::Announced { node } => {
                    self.proposed.remove(&What::Announce(*node));
                    if let Some(row) = self.state.nodes.get(node) {
                        directory.set_client_address(*node, &row.client_address);
                    }
                }
                ControlEffect::Placed { group } => {
                    self.proposed.remove(&What::Place(*group));
                }
                ControlEffect::Gone { node } => {
                    tracing::info!(node, "a node was removed and holds nothing any more");
                }
                ControlEffect::Refused { node, why } => {
                    let own = *node == self.settings.own;
                    if own && matches!(command, ControlCommand::AnnounceNode { .. }) {
                        health.stop_for_good(&why.to_string());
                    } else {
                        tracing::warn!(node, %why, "refused");
                    }
                }
                ControlEffect::Copies { factor } => {
                    tracing::info!(factor, "every group is to have so many copies");
                }
                ControlEffect::AlreadyCreated(_)
                | ControlEffect::Added { .. }
                | ControlEffect::Leaving { .. }
                | ControlEffect::Rested { .. } => {}
            }
        }
        self.rows
            .set_blob(crate::wire::control::state_to_bytes(&self.state));
        effects
    }

    /// The addresses that the state knew at start.
    pub fn publish(&self, directory: &Directory) {
        for (node, row) in &self.state.nodes {
            directory.set_client_address(*node, &row.client_address);
        }
    }

    /// What the leader proposes: the cluster itself first, then what nodes say of themselves, then where groups go.
    pub fn run(&mut self, now: Instant, wall_ms: u64, members_know: u32) -> Vec<Proposal> {
        if !self.ready || self.leads.is_none() || now < self.next_look {
            return Vec::new();
        }
        self.next_look = now + LOOK_EVERY;
        self.wall_ms = wall_ms;
        let commands = match self.state.cluster {
            None => {
                let create = ControlCommand::CreateCluster {
                    cluster: self.settings.cluster,
                    initial_nodes: self.settings.initial_nodes.clone(),
                };
                vec![(What::Create, create)]
            }
            Some(_) => {
                self.overseer.look(&self.state, now);
                self.publish_orders(now);
                let mut commands = self.announcements();
                commands.extend(self.raise_version(members_know));
                commands.extend(self.compare(now));
                let pending = |what| self.proposed.contains_key(&what);
                let moves = self.overseer.moves(&self.state, &pending, now, wall_ms);
                commands.extend(moves);
                commands
            }
        };
        let mut proposals = Vec::new();
        for (what, command) in commands {
            let before = self.proposed.get(&what);
            if before.is_some_and(|at| now < *at + PROPOSE_AGAIN) {
                continue;
            }
            self.proposed.insert(what, now);
            proposals.push(self.proposal(&command));
        }
        proposals
    }

    /// A node answered, or did not.
    pub fn heard(&mut self, node: u64, report: Result<Box<v1::SteerReport>, String>, now: Instant) {
        if self.leads.is_some() {
            self.overseer.hear(node, report, now);
        }
    }

    /// What every node is told from now on.
    fn publish_orders(&mut self, now: Instant) {
        let term = self.leads.unwrap_or(0);
        if let Some((request, addresses)) = self.overseer.orders(&self.state, term, now) {
            let orders = Orders { request, addresses };
            self.settings.orders.send_replace(Some(Arc::new(orders)));
        }
    }

    fn announcements(&self) -> Vec<(What, ControlCommand)> {
        let mut rows = self.settings.introduced.rows();
        rows.extend(self.overseer.rows());
        let state = &self.state;
        let news = rows.into_iter().filter(|(node, row)| {
            let known = state.nodes.get(node);
            let joins = state.joining.contains(node) || state.expected.contains(node);
            let same = known.is_some_and(|known| known.incarnation == row.incarnation);
            (joins || same) && known != Some(&state.announced(*node, row))
        });
        news.map(|(node, row)| {
            let command = ControlCommand::AnnounceNode { node, row };
            (What::Announce(node), command)
        })
        .collect()
    }

    fn proposal(&self, command: &ControlCommand) -> Proposal {
        Proposal {
            ticket: self.settings.tickets.fetch_add(1, Ordering::Relaxed),
            context: crate::wire::control::encode(command, self.wall_ms),
            data: Bytes::new(),
            ack: Ack::Apply,
            urgent: true,
        }
    }

    /// What the log and the metadata call this replica.
    pub fn replica(&self) -> u32 {
        self.rows.group()
    }

    /// The rows, for flushes and errors.
    pub fn rows(&mut self) -> &mut GroupState {
        &mut self.rows
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.settings.orders.send_replace(None);
        self.settings.desk.set_open(false);
        self.settings.desk.write(|all| *all = Default::default());
    }
}
