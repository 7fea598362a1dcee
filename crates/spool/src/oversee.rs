//! What the control group's leader sees of the nodes, and where it moves groups to; and what a node makes of what it is
//! told. Without threads, clock or I/O: `runtime/control` and `runtime/state/placed` drive it, and so does the simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proto::v1;
use queue::control::place::Map;
use queue::control::{ControlCommand, ControlState, NodeRow, Placement, node_of};

use crate::directory::group_of;
pub use crate::directory::log_group;
use crate::event::GroupOrder;
use crate::wire::control::{node_from_wire, node_to_wire};
use crate::wire::members::from_row;

/// Groups that change their members at once. Each move copies a replica: more of them at once would only make each slower,
/// and the mail that passes meanwhile.
const MOVES_AT_ONCE: usize = 4;
/// A new leader looks so long before it moves anything: every node reports twice in that time.
const LOOK_FIRST: Duration = Duration::from_secs(2);
/// What a node said counts for so long.
const REPORT_COUNTS: Duration = Duration::from_secs(3);
/// A node that says nothing for so long is given no replicas. It keeps those it has until somebody removes it.
pub const SILENT: Duration = Duration::from_secs(5);
/// A replica on its way to a node that has been silent for so long goes elsewhere: longer than a restart takes, and short
/// beside the copying that begins anew.
const TARGET_LOST: Duration = Duration::from_secs(60);
/// Members must be as they shall be for so long before replicas that are no members are destroyed: every voter has heard of
/// the commit by then, so that none still needs the vote of one that left.
const SETTLED_AFTER: Duration = Duration::from_millis(1_500);
/// A removed node that says nothing is forgotten after this: its disk is lost, or it was stopped.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// A node that was forgotten is told so for this long.
const FAREWELL: Duration = Duration::from_secs(10);

/// What was proposed, so that it is not proposed twice at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum What {
    /// The cluster itself.
    Create,
    /// The version of the state machine.
    Version,
    /// A digest of what is here.
    Digest,
    /// What a node says of itself.
    Announce(u64),
    /// Where a group shall be.
    Place(u32),
    /// A removed node that holds nothing any more.
    Forget(u64),
    /// A node that may lead again.
    EndRest(u64),
}

/// What was heard of a node.
pub struct Heard {
    /// When it last answered.
    pub at: Instant,
    /// What it said.
    pub report: v1::SteerReport,
}

/// Where a group is on its way from and to.
struct UnderWay {
    /// Nodes that vote now.
    voters: BTreeSet<u64>,
    /// Nodes that shall vote and do not yet.
    targets: Vec<u64>,
}

/// What the leader of the control group sees. All of it is gone with the leader: the next one looks for itself.
pub struct Overseer {
    /// Since when it looks.
    since: Instant,
    /// What each node said last.
    pub heard: BTreeMap<u64, Heard>,
    /// Why a node was not reached, or does not listen.
    pub trouble: BTreeMap<u64, String>,
    /// (version, since when) of placements that the members agree with.
    agree: BTreeMap<u32, (u64, Instant)>,
    /// Versions that were seen to be settled: that is never undone.
    settled: BTreeMap<u32, u64>,
    /// Nodes that were forgotten: their addresses, and when.
    farewell: BTreeMap<u64, (String, Instant)>,
}

impl Overseer {
    /// One that begins to look now.
    pub fn new(now: Instant) -> Overseer {
        Overseer {
            since: now,
            heard: BTreeMap::new(),
            trouble: BTreeMap::new(),
            agree: BTreeMap::new(),
            settled: BTreeMap::new(),
            farewell: BTreeMap::new(),
        }
    }

    /// A node answered, or did not.
    pub fn hear(&mut self, node: u64, report: Result<Box<v1::SteerReport>, String>, now: Instant) {
        match report {
            Ok(report) => {
                match report.refusal.is_empty() {
                    true => self.trouble.remove(&node),
                    false => self.trouble.insert(node, report.refusal.clone()),
                };
                let report = *report;
                self.heard.insert(node, Heard { at: now, report });
            }
            Err(why) => {
                self.trouble.insert(node, why);
            }
        }
    }

    /// What nodes say of themselves.
    pub fn rows(&self) -> BTreeMap<u64, NodeRow> {
        let rows = self
            .heard
            .values()
            .filter_map(|heard| heard.report.node.clone());
        rows.filter_map(|row| node_from_wire(row).ok()).collect()
    }

    /// What the leader of a group says of it: the one of the highest term, if it is no old news.
    pub fn leader_of(&self, group: u32, now: Instant) -> Option<(u64, &v1::ReplicaReport)> {
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

    /// It has looked for long enough to know who answers. Until then silence means nothing.
    pub fn has_looked(&self, now: Instant) -> bool {
        now >= self.since + LOOK_FIRST
    }

    /// How long nothing was heard of a node; `None`: never.
    pub fn silence(&self, node: u64, now: Instant) -> Option<Duration> {
        let heard = self.heard.get(&node)?;
        Some(now.saturating_duration_since(heard.at))
    }

    /// How long a node has been silent at least: a leader that never heard of it knows only since when it looks.
    pub fn silent_for(&self, node: u64, now: Instant) -> Duration {
        let looked = now.saturating_duration_since(self.since);
        self.silence(node, now).unwrap_or(looked)
    }

    fn speaks(&self, node: u64, now: Instant) -> bool {
        self.silence(node, now)
            .is_some_and(|silence| silence < SILENT)
    }

    /// Looks which groups are where they shall be.
    pub fn look(&mut self, state: &ControlState, now: Instant) {
        for (id, placement) in &state.groups {
            if self.is_settled(*id, placement) {
                continue;
            }
            let says = self
                .leader_of(*id, now)
                .map(|(_, replica)| agrees(replica, placement));
            match says {
                Some(true) => {
                    let agree = self.agree.entry(*id).or_insert((placement.version, now));
                    if agree.0 != placement.version {
                        *agree = (placement.version, now);
                    }
                    if now >= agree.1 + SETTLED_AFTER {
                        self.settled.insert(*id, placement.version);
                    }
                }
                Some(false) => {
                    self.agree.remove(id);
                }
                None => {}
            }
        }
    }

    /// Whether a group's members were seen to be exactly those of this placement.
    pub fn is_settled(&self, group: u32, placement: &Placement) -> bool {
        self.settled.get(&group) == Some(&placement.version)
    }

    /// The nodes that vote in a group now, and those that its replicas are on their way to, by the word of its leader;
    /// `None`: nobody leads it now.
    fn under_way(&self, group: u32, placement: &Placement, now: Instant) -> Option<UnderWay> {
        let (_, replica) = self.leader_of(group, now)?;
        let voters = &replica.members.as_ref()?.voters;
        let wanted = placement.voters.iter();
        Some(UnderWay {
            voters: voters.iter().map(|peer| node_of(*peer)).collect(),
            targets: wanted
                .filter(|peer| !voters.contains(peer))
                .map(|peer| node_of(*peer))
                .collect(),
        })
    }

    /// On its way to a node that is to leave meanwhile, or that died: it turns round.
    fn is_in_vain(&self, way: &UnderWay, map: &Map, now: Instant) -> bool {
        way.targets.iter().any(|node| {
            self.silent_for(*node, now) >= TARGET_LOST
                || map.nodes.get(node).is_none_or(|node| !node.hosts)
        })
    }

    /// It answers, and its disk has room for a copy.
    fn takes(&self, node: u64, now: Instant) -> bool {
        let full = |heard: &Heard| heard.report.full;
        self.speaks(node, now) && !self.heard.get(&node).is_some_and(full)
    }

    /// The next moves, and what else follows from what is seen. `pending`: what was proposed already. `wall_ms`: the wall
    /// clock, milliseconds since 1970.
    pub fn moves(
        &mut self,
        state: &ControlState,
        pending: &dyn Fn(What) -> bool,
        now: Instant,
        wall_ms: u64,
    ) -> Vec<(What, ControlCommand)> {
        if !self.has_looked(now) {
            return Vec::new();
        }
        let mut commands = self.forget(state, now);
        commands.extend(self.end_rests(state, wall_ms));
        let mut map = state.map();
        for (id, node) in &mut map.nodes {
            node.takes = self.takes(*id, now);
        }
        let mut busy: BTreeSet<u32> = BTreeSet::new();
        // Only what copies now counts against [`MOVES_AT_ONCE`]: a group without a leader or with a dead target would
        // otherwise keep all others from being repaired.
        let mut moving = 0;
        let mut moved = BTreeSet::new();
        for (id, placement) in &state.groups {
            let proposed = pending(What::Place(*id));
            if self.is_settled(*id, placement) && !proposed {
                continue;
            }
            let way = self.under_way(*id, placement, now);
            if !proposed
                && let Some(way) = &way
                && self.is_in_vain(way, &map, now)
            {
                // Back to what it is; from there the planner finds another way.
                if let Some(group) = map.groups.get_mut(id) {
                    group.voters = way.voters.clone();
                }
                moved.insert(*id);
                continue;
            }
            busy.insert(*id);
            let answers = |way: &UnderWay| way.targets.iter().all(|node| self.speaks(*node, now));
            moving += usize::from(proposed || way.as_ref().is_some_and(answers));
        }
        while moving < MOVES_AT_ONCE
            && let Some((group, change)) = map.next(&busy)
        {
            busy.insert(group);
            map.apply(group, change);
            moved.insert(group);
            moving += 1;
        }
        commands.extend(self.places(state, &map, &moved, &busy));
        commands
    }

    /// The moved ones as they shall be, and of the others those that another node should lead.
    fn places(
        &self,
        state: &ControlState,
        map: &Map,
        moved: &BTreeSet<u32>,
        busy: &BTreeSet<u32>,
    ) -> Vec<(What, ControlCommand)> {
        let leaders = map.leaders();
        let placements = state.groups.iter();
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
    fn forget(&mut self, state: &ControlState, now: Instant) -> Vec<(What, ControlCommand)> {
        let mut gone = Vec::new();
        for &node in &state.leaving {
            let out = state.groups.iter().all(|(id, placement)| {
                placement.peer_on(node).is_none() && self.is_settled(*id, placement)
            });
            let heard = self.heard.get(&node);
            let silent = match self.silence(node, now) {
                Some(silence) => silence >= GONE_AFTER,
                None => now >= self.since + GONE_AFTER,
            };
            let empty = heard.is_some_and(|heard| heard.report.replicas.is_empty());
            if out && (empty || silent) {
                gone.push(node);
            }
        }
        for node in &gone {
            if let Some(row) = state.nodes.get(node) {
                let farewell = (row.peer_address.to_string(), now);
                self.farewell.insert(*node, farewell);
            }
        }
        let forget = |node| (What::Forget(node), ControlCommand::ForgetNode { node });
        gone.into_iter().map(forget).collect()
    }

    /// Who was asked to rest, and started anew or rested enough.
    fn end_rests(&self, state: &ControlState, wall_ms: u64) -> Vec<(What, ControlCommand)> {
        let resting = state.resting.iter();
        let over = resting.filter(|(node, rest)| {
            let heard = self.heard.get(*node);
            wall_ms >= rest.until_ms
                || heard.is_some_and(|heard| heard.report.process != rest.process)
        });
        over.map(|(&node, _)| (What::EndRest(node), ControlCommand::EndRest { node }))
            .collect()
    }

    /// What every node is told from now on, without sender and receiver, and whom: nodes that are gone since moments too,
    /// so that they hear it. `None`: there is no cluster yet.
    pub fn orders(
        &mut self,
        state: &ControlState,
        term: u64,
        now: Instant,
    ) -> Option<(v1::SteerRequest, BTreeMap<u64, String>)> {
        let cluster = state.cluster?;
        let first = state.first_groups();
        let groups = state.groups.iter().map(|(id, placement)| v1::GroupOrder {
            group: *id,
            version: placement.version,
            voters: placement.voters.iter().copied().collect(),
            leader: placement.leader,
            settled: self.is_settled(*id, placement),
            first: first
                .get(id)
                .map_or_else(Vec::new, |first| first.voters.iter().copied().collect()),
        });
        let nodes = state.nodes.iter();
        let request = v1::SteerRequest {
            cluster_id: bytes::Bytes::copy_from_slice(&cluster.id),
            term,
            shards: cluster.shards,
            highest_node: state.highest_node,
            nodes: nodes.map(|(id, row)| node_to_wire(*id, row)).collect(),
            groups: groups.collect(),
            ..Default::default()
        };
        self.farewell
            .retain(|_, (_, since)| now < *since + FAREWELL);
        let farewell = self.farewell.iter();
        let mut addresses: BTreeMap<u64, String> = farewell
            .map(|(id, (address, _))| (*id, address.clone()))
            .collect();
        let nodes = state.nodes.iter();
        addresses.extend(nodes.map(|(id, row)| (*id, row.peer_address.to_string())));
        Some((request, addresses))
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

/// What a node does about one of its groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Make an empty replica with this peer id.
    Create(u64),
    /// Give this replica up.
    Destroy(u64),
}

/// A replica that a node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hosted {
    /// Its Raft peer id.
    pub peer: u64,
    /// The version of the placement that it was made for: an order from before it knows nothing of it. Durable.
    pub made_at: u64,
    /// It is on its way out.
    pub leaving: bool,
}

/// What a node makes of an order, which may come late, twice, and from a leader of yesterday. `gone`: the replicas that it
/// had, as the log calls them: an order from before one was given up must not bring it back.
pub fn deed(
    own: u64,
    order: &GroupOrder,
    hosted: Option<Hosted>,
    gone: &BTreeSet<u32>,
) -> Option<Deed> {
    let wanted = order.placement.peer_on(own);
    let Some(hosted) = hosted else {
        let peer = wanted?;
        let replica = log_group(order.group, peer);
        let known = |gone: &u32| group_of(*gone) == order.group && *gone >= replica;
        return (!gone.iter().any(known)).then_some(Deed::Create(peer));
    };
    if hosted.leaving || order.placement.version < hosted.made_at {
        return None;
    }
    let out = match wanted {
        None => order.settled,
        // A second peer is given only when the first one is out for good.
        Some(wanted) => hosted.peer < wanted,
    };
    out.then_some(Deed::Destroy(hosted.peer))
}

#[cfg(test)]
#[path = "oversee_tests.rs"]
mod tests;
