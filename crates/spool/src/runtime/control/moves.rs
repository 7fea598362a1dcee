//! What the control group's leader sees of the nodes, and where it moves groups to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1;
use queue::control::place::{Change, Map};
use queue::control::{ControlCommand, NodeRow, Placement, first_peers, node_of};

use super::{Control, Orders, What};
use crate::wire::control::{node_from_wire, node_to_wire};
use crate::wire::members::from_row;

/// Groups that change their members at once. Each move copies a replica: more of them at once would only make each slower,
/// and the mail that passes meanwhile.
const MOVES_AT_ONCE: usize = 4;
/// A new leader looks so long before it moves anything: every node reports twice in that time.
const LOOK_FIRST: Duration = Duration::from_secs(2);
/// What a node said counts for so long.
pub(super) const REPORT_COUNTS: Duration = Duration::from_secs(3);
/// A node that says nothing for so long is given no replicas. It keeps those it has until somebody removes it.
pub(super) const SILENT: Duration = Duration::from_secs(5);
/// Members must be as they shall be for so long before replicas that are no members are destroyed: every voter has heard of
/// the commit by then, so that none still needs the vote of one that left.
const SETTLED_AFTER: Duration = Duration::from_millis(1_500);
/// A removed node that says nothing is forgotten after this: its disk is lost, or it was stopped.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// A node that was forgotten is told so for this long.
const FAREWELL: Duration = Duration::from_secs(10);

/// What was heard of a node.
pub(super) struct Heard {
    /// When it last answered.
    pub(super) at: Instant,
    pub(super) report: v1::SteerReport,
}

/// What the leader sees. All of it is gone with the leader: the next one looks for itself.
#[derive(Default)]
pub(super) struct Sight {
    pub(super) heard: BTreeMap<u64, Heard>,
    /// Why a node was not reached, or does not listen.
    pub(super) trouble: BTreeMap<u64, String>,
    /// (version, since when) of placements that the members agree with.
    agree: BTreeMap<u32, (u64, Instant)>,
    /// Versions that were seen to be settled: that is never undone.
    settled: BTreeMap<u32, u64>,
    /// Nodes that were forgotten: their addresses, and when.
    farewell: BTreeMap<u64, (String, Instant)>,
}

impl Sight {
    /// What nodes say of themselves.
    pub(super) fn rows(&self) -> BTreeMap<u64, NodeRow> {
        let rows = self
            .heard
            .values()
            .filter_map(|heard| heard.report.node.clone());
        rows.filter_map(|row| node_from_wire(row).ok()).collect()
    }

    /// What the leader of a group says of it: the one of the highest term, if it is no old news.
    pub(super) fn leader_of(&self, group: u32, now: Instant) -> Option<(u64, &v1::ReplicaReport)> {
        let fresh = self
            .heard
            .iter()
            .filter(|(_, heard)| now < heard.at + REPORT_COUNTS);
        let replicas = fresh.flat_map(|(node, heard)| {
            heard
                .report
                .replicas
                .iter()
                .map(move |replica| (*node, replica))
        });
        let leaders = replicas.filter(|(_, replica)| replica.group == group && replica.leads);
        leaders.max_by_key(|(_, replica)| replica.term)
    }

    /// How long nothing was heard of a node; `None`: never.
    pub(super) fn silence(&self, node: u64, now: Instant) -> Option<Duration> {
        let heard = self.heard.get(&node)?;
        Some(now.saturating_duration_since(heard.at))
    }

    fn speaks(&self, node: u64, now: Instant) -> bool {
        self.silence(node, now)
            .is_some_and(|silence| silence < SILENT)
    }
}

impl Control {
    /// A node answered, or did not.
    pub fn heard(&mut self, node: u64, report: Result<Box<v1::SteerReport>, String>, now: Instant) {
        if self.leads.is_none() {
            return;
        }
        match report {
            Ok(report) => {
                match report.refusal.is_empty() {
                    true => self.sight.trouble.remove(&node),
                    false => self.sight.trouble.insert(node, report.refusal.clone()),
                };
                let report = *report;
                self.sight.heard.insert(node, Heard { at: now, report });
            }
            Err(why) => {
                self.sight.trouble.insert(node, why);
            }
        }
    }

    /// Which groups are where they shall be.
    pub(super) fn look(&mut self, now: Instant) {
        for (id, placement) in &self.state.groups {
            if self.sight.settled.get(id) == Some(&placement.version) {
                continue;
            }
            let says = self
                .sight
                .leader_of(*id, now)
                .map(|(_, replica)| agrees(replica, placement));
            match says {
                Some(true) => {
                    let agree = self
                        .sight
                        .agree
                        .entry(*id)
                        .or_insert((placement.version, now));
                    if agree.0 != placement.version {
                        *agree = (placement.version, now);
                    }
                    if now >= agree.1 + SETTLED_AFTER {
                        self.sight.settled.insert(*id, placement.version);
                    }
                }
                Some(false) => {
                    self.sight.agree.remove(id);
                }
                None => {}
            }
        }
    }

    pub(super) fn is_settled(&self, group: u32, placement: &Placement) -> bool {
        self.sight.settled.get(&group) == Some(&placement.version)
    }

    /// On its way to a node that is to leave meanwhile, by the word of the group's leader: it may turn round.
    fn is_in_vain(&self, group: u32, placement: &Placement, map: &Map, now: Instant) -> bool {
        let Some((_, replica)) = self.sight.leader_of(group, now) else {
            return false;
        };
        let voters = replica.members.as_ref().map(|members| &members.voters);
        let mut missing = placement
            .voters
            .iter()
            .filter(|peer| voters.is_some_and(|v| !v.contains(peer)));
        missing.any(|peer| {
            map.nodes
                .get(&node_of(*peer))
                .is_none_or(|node| !node.hosts)
        })
    }

    /// The next moves, and what else follows from what is seen.
    pub(super) fn moves(&mut self, now: Instant) -> Vec<(What, ControlCommand)> {
        if now < self.ready_at + LOOK_FIRST {
            return Vec::new();
        }
        let mut commands = self.forget(now);
        commands.extend(self.end_rests());
        let mut map = self.state.map();
        let mut busy: BTreeSet<u32> = BTreeSet::new();
        for (id, placement) in &self.state.groups {
            let free =
                self.is_settled(*id, placement) || self.is_in_vain(*id, placement, &map, now);
            if !free || self.proposed.contains_key(&What::Place(*id)) {
                busy.insert(*id);
            }
        }
        let mut moving = busy.len();
        let mut moved = BTreeSet::new();
        while moving < MOVES_AT_ONCE
            && let Some((group, change)) = map.next(&busy)
        {
            busy.insert(group);
            if let Change::Add { node } | Change::Replace { new: node, .. } = change
                && !self.sight.speaks(node, now)
            {
                continue;
            }
            map.apply(group, change);
            moved.insert(group);
            moving += 1;
        }
        commands.extend(self.places(&map, &moved, &busy));
        commands
    }

    /// The moved ones as they shall be, and of the others those that another node should lead.
    fn places(
        &self,
        map: &Map,
        moved: &BTreeSet<u32>,
        busy: &BTreeSet<u32>,
    ) -> Vec<(What, ControlCommand)> {
        let leaders = map.leaders();
        let placements = self.state.groups.iter();
        let changed = placements.filter(|(id, placement)| {
            let leader = leaders
                .get(id)
                .is_some_and(|leader| *leader != placement.leader);
            moved.contains(id) || leader && !busy.contains(id)
        });
        changed
            .filter_map(|(id, placement)| {
                let command = ControlCommand::Place {
                    group: *id,
                    version: placement.version,
                    voters: map.groups.get(id)?.voters.clone(),
                    leader: leaders.get(id).copied().unwrap_or(0),
                    settled: self.is_settled(*id, placement),
                };
                Some((What::Place(*id), command))
            })
            .collect()
    }

    /// Removed nodes that hold nothing any more.
    fn forget(&mut self, now: Instant) -> Vec<(What, ControlCommand)> {
        let mut gone = Vec::new();
        for &node in &self.state.leaving {
            let out = self.state.groups.iter().all(|(id, placement)| {
                placement.peer_on(node).is_none() && self.is_settled(*id, placement)
            });
            let heard = self.sight.heard.get(&node);
            let silent = match self.sight.silence(node, now) {
                Some(silence) => silence >= GONE_AFTER,
                None => now >= self.ready_at + GONE_AFTER,
            };
            let empty = heard.is_some_and(|heard| heard.report.replicas.is_empty());
            if out && (empty || silent) {
                gone.push(node);
            }
        }
        for node in &gone {
            if let Some(row) = self.state.nodes.get(node) {
                let farewell = (row.peer_address.to_string(), now);
                self.sight.farewell.insert(*node, farewell);
            }
        }
        let forget = |node| (What::Forget(node), ControlCommand::ForgetNode { node });
        gone.into_iter().map(forget).collect()
    }

    /// Who was asked to rest, and started anew or rested enough.
    fn end_rests(&self) -> Vec<(What, ControlCommand)> {
        let resting = self.state.resting.iter();
        let over = resting.filter(|(node, rest)| {
            let heard = self.sight.heard.get(*node);
            self.wall_ms >= rest.until_ms
                || heard.is_some_and(|heard| heard.report.process != rest.process)
        });
        over.map(|(&node, _)| (What::EndRest(node), ControlCommand::EndRest { node }))
            .collect()
    }

    /// What every node is told from now on.
    pub(super) fn publish_orders(&mut self, now: Instant) {
        let Some(cluster) = self.state.cluster else {
            return;
        };
        let first = first_peers(&self.state.first_nodes, &cluster);
        let groups = self
            .state
            .groups
            .iter()
            .map(|(id, placement)| v1::GroupOrder {
                group: *id,
                version: placement.version,
                voters: placement.voters.iter().copied().collect(),
                leader: placement.leader,
                settled: self.is_settled(*id, placement),
                first: first
                    .get(id)
                    .map_or_else(Vec::new, |first| first.voters.iter().copied().collect()),
            });
        let nodes = self.state.nodes.iter();
        let request = v1::SteerRequest {
            cluster_id: bytes::Bytes::copy_from_slice(&cluster.id),
            term: self.leads.unwrap_or(0),
            shards: cluster.shards,
            highest_node: self.state.highest_node,
            nodes: nodes.map(|(id, row)| node_to_wire(*id, row)).collect(),
            groups: groups.collect(),
            ..Default::default()
        };
        self.sight
            .farewell
            .retain(|_, (_, since)| now < *since + FAREWELL);
        let farewell = self.sight.farewell.iter();
        let mut addresses: BTreeMap<u64, String> = farewell
            .map(|(id, (address, _))| (*id, address.clone()))
            .collect();
        let nodes = self.state.nodes.iter();
        addresses.extend(nodes.map(|(id, row)| (*id, row.peer_address.to_string())));
        let orders = Orders { request, addresses };
        self.settings.orders.send_replace(Some(Arc::new(orders)));
    }
}

/// Whether a group's leader has exactly the members that the placement names, and is not on the way anywhere.
fn agrees(replica: &v1::ReplicaReport, placement: &Placement) -> bool {
    let members = replica.members.clone().map(from_row).unwrap_or_default();
    let voters: BTreeSet<u64> = members.voters.into_iter().collect();
    voters == placement.voters
        && members.learners.is_empty()
        && members.voters_outgoing.is_empty()
        && members.learners_next.is_empty()
}
