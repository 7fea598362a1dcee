//! Placement: which node holds a replica of which group, and who should lead it. Pure: nodes, groups and the number of
//! copies come in, the next step comes out.
//!
//! The planner is a descent. A step is taken only when it makes, in this order of weight, less of: replicas on nodes
//! that must have none, replicas above or below the number of copies, replicas of one group that share a zone, and the
//! sum of squares of what nodes hold. Every step lowers that, so repeated steps end; what they end at is
//! [`Map::desired`]. Without zones, that is even within one: where two nodes differ by two, the fuller one has a group
//! that the other has not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A node as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// May be empty: then all such nodes share the zone without a name.
    pub zone: Arc<str>,
    /// It may have replicas; if not, it loses those that it has.
    pub hosts: bool,
    /// It could take one more now: it answers and has room. If not, it keeps what it has, and others are chosen.
    pub takes: bool,
    /// It should lead.
    pub leads: bool,
}

/// A group as it is placed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// Nodes with a replica that votes.
    pub voters: BTreeSet<u64>,
    /// Who should lead; 0: nobody is chosen yet.
    pub leader: u64,
}

/// One step: never more than one replica of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Fewer copies than there should be.
    Add {
        /// The new one.
        node: u64,
    },
    /// More copies than there should be.
    Remove {
        /// The one that goes.
        node: u64,
    },
    /// A copy moves; the new one is whole before the old one goes.
    Replace {
        /// The one that goes.
        old: u64,
        /// The new one.
        new: u64,
    },
}

/// All that the planner looks at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Map {
    /// By node id.
    pub nodes: BTreeMap<u64, Node>,
    /// By number.
    pub groups: BTreeMap<u32, Group>,
    /// Copies of each group.
    pub factor: usize,
}

/// The first map of a cluster: the same on each of its first nodes, which know nothing yet but the list of themselves.
pub fn first_map(nodes: &[u64], groups: u32, factor: usize) -> Map {
    let node = Node {
        zone: "".into(),
        hosts: true,
        takes: true,
        leads: true,
    };
    let mut map = Map {
        nodes: nodes.iter().map(|id| (*id, node.clone())).collect(),
        groups: (0..groups).map(|id| (id, Group::default())).collect(),
        factor,
    };
    for id in 0..groups {
        while let Some(node) = map.best_for(id, None)
            && map.groups[&id].voters.len() < factor
        {
            map.apply(id, Change::Add { node });
        }
    }
    for (id, leader) in map.leaders() {
        if let Some(group) = map.groups.get_mut(&id) {
            group.leader = leader;
        }
    }
    map
}

impl Map {
    /// The best step for a group that is not `busy`; `None`: all is as it should be, or nothing can be bettered now.
    pub fn next(&self, busy: &BTreeSet<u32>) -> Option<(u32, Change)> {
        let idle = || self.groups.iter().filter(|(id, _)| !busy.contains(*id));
        idle()
            .find_map(|(id, group)| Some((*id, self.repair(*id, group)?)))
            .or_else(|| idle().find_map(|(id, group)| Some((*id, self.spread(*id, group)?))))
            .or_else(|| self.even_out(busy))
    }

    /// Takes a step.
    pub fn apply(&mut self, group: u32, change: Change) {
        let Some(group) = self.groups.get_mut(&group) else {
            return;
        };
        match change {
            Change::Add { node } => {
                group.voters.insert(node);
            }
            Change::Remove { node } => {
                group.voters.remove(&node);
            }
            Change::Replace { old, new } => {
                group.voters.remove(&old);
                group.voters.insert(new);
            }
        }
        if !group.voters.contains(&group.leader) {
            group.leader = 0;
        }
    }

    /// Where repeated steps lead, and how many there are.
    pub fn desired(&self) -> (Map, usize) {
        let (mut map, mut steps) = (self.clone(), 0);
        while let Some((group, change)) = map.next(&BTreeSet::new()) {
            map.apply(group, change);
            steps += 1;
        }
        (map, steps)
    }

    /// Replicas on each node.
    pub fn held(&self) -> BTreeMap<u64, usize> {
        let mut held: BTreeMap<u64, usize> = self.nodes.keys().map(|id| (*id, 0)).collect();
        for voter in self.groups.values().flat_map(|group| &group.voters) {
            *held.entry(*voter).or_default() += 1;
        }
        held
    }

    fn takes(&self, node: u64) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|node| node.hosts && node.takes)
    }

    fn hosts(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.hosts)
    }

    fn zone(&self, node: u64) -> &str {
        self.nodes.get(&node).map_or("", |node| &*node.zone)
    }

    /// Replicas of a group in a zone.
    fn in_zone(&self, group: &Group, zone: &str) -> usize {
        let voters = group.voters.iter();
        voters.filter(|voter| self.zone(**voter) == zone).count()
    }

    /// The node for one more replica of a group, as if `without` had none: the emptiest zone, then the emptiest node.
    fn best_for(&self, id: u32, without: Option<u64>) -> Option<u64> {
        let mut group = self.groups.get(&id)?.clone();
        if let Some(node) = without {
            group.voters.remove(&node);
        }
        let held = self.held();
        let takers = self.nodes.iter().filter(|(id, _)| self.takes(**id));
        takers
            .map(|(id, node)| (self.in_zone(&group, &node.zone), held[id], *id))
            .filter(|(_, _, id)| !group.voters.contains(id) && Some(*id) != without)
            .min()
            .map(|(_, _, id)| id)
    }

    /// Replicas on nodes that must have none, and the wrong number of them.
    fn repair(&self, id: u32, group: &Group) -> Option<Change> {
        let surplus = group.voters.len() > self.factor;
        if let Some(&old) = group.voters.iter().find(|voter| !self.hosts(**voter)) {
            // Without a place for the copy it stays: a group is never left with fewer than it should have.
            return match surplus {
                true => Some(Change::Remove { node: old }),
                false => self
                    .best_for(id, Some(old))
                    .map(|new| Change::Replace { old, new }),
            };
        }
        if group.voters.len() < self.factor {
            return self.best_for(id, None).map(|node| Change::Add { node });
        }
        if surplus {
            let held = self.held();
            // One that is silent or full goes first: what stays must be able to go on without it.
            let rank = |voter: &u64| {
                let crowd = self.in_zone(group, self.zone(*voter));
                (!self.takes(*voter), crowd, held[voter], *voter)
            };
            let node = group.voters.iter().max_by_key(|voter| rank(voter)).copied();
            return node.map(|node| Change::Remove { node });
        }
        None
    }

    /// Two replicas of a group share a zone while another zone has fewer.
    fn spread(&self, id: u32, group: &Group) -> Option<Change> {
        let held = self.held();
        let voters = group.voters.iter();
        let (crowd, _, old) = voters
            .map(|voter| (self.in_zone(group, self.zone(*voter)), held[voter], *voter))
            .max()?;
        let new = self.best_for(id, Some(old))?;
        let there = self.in_zone(group, self.zone(new));
        (self.zone(new) != self.zone(old) && there + 1 < crowd)
            .then_some(Change::Replace { old, new })
    }

    /// A replica from a node with many to one with at least two fewer, without crowding a zone.
    fn even_out(&self, busy: &BTreeSet<u32>) -> Option<(u32, Change)> {
        let held = self.held();
        let hosts = held.iter().filter(|(id, _)| self.hosts(**id));
        let mut nodes: Vec<(usize, u64)> = hosts.map(|(id, held)| (*held, *id)).collect();
        nodes.sort_unstable();
        let mut pairs: Vec<(usize, u64, u64)> = Vec::new();
        for &(few, new) in nodes.iter().filter(|(_, id)| self.takes(*id)) {
            for &(many, old) in nodes.iter().filter(|(many, _)| *many >= few + 2) {
                pairs.push((many - few, old, new));
            }
        }
        pairs.sort_unstable_by(|a, b| b.cmp(a));
        pairs.into_iter().find_map(|(_, old, new)| {
            let (from, to) = (self.zone(old), self.zone(new));
            let fits = |group: &Group| {
                group.voters.contains(&old)
                    && !group.voters.contains(&new)
                    && (from == to || self.in_zone(group, to) < self.in_zone(group, from))
            };
            let mut idle = self.groups.iter().filter(|(id, _)| !busy.contains(*id));
            let (id, _) = idle.find(|(_, group)| fits(group))?;
            Some((*id, Change::Replace { old, new }))
        })
    }

    /// Who should lead each group: as it is, unless that is no voter, should not lead, or leads more than others could
    /// take from it. A group whose voters all should not lead is led by one of them all the same.
    pub fn leaders(&self) -> BTreeMap<u32, u64> {
        let mut led: BTreeMap<u64, usize> = self.nodes.keys().map(|id| (*id, 0)).collect();
        let mut leaders = BTreeMap::new();
        for (id, group) in &self.groups {
            if self.candidates(group).contains(&group.leader) {
                *led.entry(group.leader).or_default() += 1;
                leaders.insert(*id, group.leader);
            }
        }
        for (id, group) in &self.groups {
            if leaders.contains_key(id) {
                continue;
            }
            let candidates = self.candidates(group).into_iter();
            if let Some((count, leader)) = candidates.map(|node| (led[&node], node)).min() {
                led.insert(leader, count + 1);
                leaders.insert(*id, leader);
            }
        }
        while let Some(path) = self.path_down(&leaders, &led) {
            let Some((first, last)) = path.first().zip(path.last()) else {
                break;
            };
            led.entry(first.1).and_modify(|count| *count -= 1);
            led.entry(last.2).and_modify(|count| *count += 1);
            leaders.extend(path.iter().map(|(group, _, to)| (*group, *to)));
        }
        leaders
    }

    fn candidates(&self, group: &Group) -> Vec<u64> {
        let known = |id: &&u64| self.nodes.contains_key(*id);
        let willing = |id: &&u64| self.nodes.get(*id).is_some_and(|node| node.leads);
        let best: Vec<u64> = group.voters.iter().filter(willing).copied().collect();
        match best.is_empty() {
            true => group.voters.iter().filter(known).copied().collect(),
            false => best,
        }
    }

    /// Groups to hand on (group, from, to), one after another, so that a node leads one less and another, which leads at
    /// least two less than that one, leads one more.
    fn path_down(
        &self,
        leaders: &BTreeMap<u32, u64>,
        led: &BTreeMap<u64, usize>,
    ) -> Option<Vec<(u32, u64, u64)>> {
        let mut starts: Vec<(usize, u64)> = led.iter().map(|(id, count)| (*count, *id)).collect();
        starts.sort_unstable_by(|a, b| b.cmp(a));
        for (most, start) in starts {
            let mut came: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
            let mut seen = BTreeSet::from([start]);
            let mut queue = VecDeque::from([start]);
            while let Some(at) = queue.pop_front() {
                if led[&at] + 2 <= most {
                    let mut path = Vec::new();
                    let mut to = at;
                    while let Some(&(group, from)) = came.get(&to) {
                        path.push((group, from, to));
                        to = from;
                    }
                    path.reverse();
                    return Some(path);
                }
                for (id, group) in self
                    .groups
                    .iter()
                    .filter(|(id, _)| leaders.get(id) == Some(&at))
                {
                    for to in self.candidates(group) {
                        if seen.insert(to) {
                            came.insert(to, (*id, at));
                            queue.push_back(to);
                        }
                    }
                }
            }
        }
        None
    }
}

impl super::ControlState {
    /// What the planner looks at.
    pub fn map(&self) -> Map {
        let worn = |id: u64| {
            let mut counts = self.placed.iter().filter(|((_, node), _)| *node == id);
            counts.any(|(_, count)| *count >= super::PLACEMENTS_MAX)
        };
        let node = |(id, row): (&u64, &super::NodeRow)| {
            let node = Node {
                zone: row.zone.clone(),
                hosts: !self.joining.contains(id) && !self.leaving.contains(id) && !worn(*id),
                takes: true,
                leads: !self.resting.contains_key(id) && !self.leaving.contains(id),
            };
            (*id, node)
        };
        let groups = self.groups.iter().map(|(id, group)| {
            let (voters, leader) = (group.nodes(), group.leader);
            (*id, Group { voters, leader })
        });
        Map {
            nodes: self.nodes.iter().map(node).collect(),
            groups: groups.collect(),
            factor: self
                .cluster
                .map_or(0, |cluster| cluster.replication_factor as usize),
        }
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
