//! Replicas that come and go on the Raft thread, and what is told of them.

use proto::v1;

use super::raft_thread::RaftThread;
use crate::directory::node_of;
use crate::event::StateEvent;
use crate::node::{ELECTION_TICKS, Group, GroupStatus, Input, Role};
use crate::wire::members::to_row;

impl RaftThread {
    /// A replica that this node has from now on.
    pub(super) fn create(&mut self, mut group: Group) {
        let id = group.status().group;
        for node in &self.full {
            tell_full(&mut group, *node, true);
        }
        self.groups.insert(id, group);
    }

    /// The members of a group are others than before.
    pub(super) fn tell_who_is_full(&mut self, group: u32) {
        if let Some(group) = self.groups.get_mut(&group) {
            for node in &self.full {
                tell_full(group, *node, true);
            }
        }
    }

    /// A replica that this node shall not have any more. Whoever waits gets an answer first; the state thread is told when
    /// nothing of it comes any more. One that a leader counts on stays, until no leader does: the control group's leader
    /// may be cut off from those that know better, and what it saw to be settled can have been undone since by a leader
    /// with an older plan.
    pub(super) fn destroy(&mut self, id: u32, peer: u64) {
        if let Some(group) = self.groups.get_mut(&id)
            && group.peer() == peer
        {
            if group.is_needed() {
                let _ = self.to.state.send(StateEvent::Needed { group: id });
                return;
            }
            group.handle(Input::Stop);
            self.drain();
            self.groups.remove(&id);
            self.durable.remove(&id);
            self.directory.forget_group(id);
        }
        let _ = self
            .to
            .state
            .send(StateEvent::Destroyed { group: id, peer });
    }
}

/// Tells a group that the disk of a node, which may have a replica of it, is full or not.
pub fn tell_full(group: &mut Group, node: u64, full: bool) {
    let members = group.members();
    let all = members.voters.iter().chain(&members.learners);
    let all = all.chain(&members.voters_outgoing).copied();
    let mut peers: Vec<u64> = all
        .chain([group.peer()])
        .filter(|p| node_of(*p) == node)
        .collect();
    peers.dedup();
    for peer in peers {
        group.handle(Input::PeerFull { peer, full });
    }
}

/// What the control group's leader hears of a replica.
pub fn report(s: &GroupStatus) -> v1::ReplicaReport {
    let peers = s.peers.iter().map(|p| v1::PeerReport {
        peer: p.peer,
        matched: p.matched,
        state: match p.needs_snapshot {
            true => "needs snapshot".to_owned(),
            false => p.state.to_owned(),
        },
        recent_active: p.silent_ticks < 2 * ELECTION_TICKS.end as u64,
    });
    v1::ReplicaReport {
        group: s.group,
        peer: s.peer,
        leads: s.role == Role::Leader,
        term: s.term,
        committed: s.committed,
        applied: s.applied,
        members: Some(to_row(&s.members)),
        peers: peers.collect(),
    }
}
