//! Replicas that this node is given and that it gives up, as the control group orders.

use std::collections::BTreeSet;

use queue::control::Placement;

use super::super::control::{Control, not_leader, put_elsewhere};
use super::super::recover::first_members;
use super::{Shard, StateThread};
use crate::config::Error;
use crate::directory::{log_group, node_of, peer_of};
use crate::event::{GroupOrder, LogEvent, MembersCall, PutCall, RaftEvent, StateEvent};
use crate::log::HardState;
use crate::node::{Group, GroupConfig, Plan};
use crate::oversee::{Deed, Hosted, deed};
use crate::storage::GroupLog;

impl StateThread {
    /// Takes what the control group's leader says of all groups. It comes again and again, so nothing is remembered of it
    /// but what it makes.
    pub(super) fn orders(&mut self, orders: Vec<GroupOrder>) {
        let own = self.directory.own();
        let mut plans = Vec::new();
        for order in orders {
            let hosted = self.replica(order.group).map(|replica| Hosted {
                peer: peer_of(own, replica),
                made_at: self.made_at.get(&replica).copied().unwrap_or(0),
                leaving: self.leaving.contains(&order.group),
            });
            match deed(own, &order, hosted, &self.gone) {
                Some(Deed::Create(peer)) => self.create(peer, &order),
                Some(Deed::Destroy(peer)) => self.destroy(order.group, peer),
                None => {}
            }
            if self.hosted(order.group).is_some() {
                plans.push((order.group, plan(&order.placement)));
            }
        }
        let _ = self.to.raft.send(RaftEvent::Plans(plans));
    }

    /// What the log and the metadata call this node's replica of a group.
    pub(super) fn replica(&self, group: u32) -> Option<u32> {
        match group {
            crate::CONTROL_GROUP => Some(self.control.as_ref()?.replica()),
            _ => Some(self.shards.get(&group)?.rows.group()),
        }
    }

    /// The peer id of this node's replica of a group.
    fn hosted(&self, group: u32) -> Option<u64> {
        let replica = self.replica(group)?;
        Some(peer_of(self.directory.own(), replica))
    }

    fn create(&mut self, peer: u64, order: &GroupOrder) {
        let group = order.group;
        let first = Placement {
            voters: order.first.iter().copied().collect(),
            ..Placement::default()
        };
        match self.make(group, peer, &first, order.placement.version) {
            Ok(made) => {
                tracing::info!(group, peer, "this node is given a replica");
                let _ = self.to.raft.send(RaftEvent::Create(Box::new(made)));
            }
            Err(Error::Store(error)) => {
                self.store_failed(
                    &format!("a replica of group {group} cannot be made"),
                    &error,
                );
            }
            Err(error) => {
                self.health.stop_for_good(&format!(
                    "a replica of group {group} cannot be made: {error}"
                ));
                let _ = self.to.raft.send(RaftEvent::Stop);
            }
        }
    }

    /// An empty replica. What it begins with is what its group's log began with, in case that it gets the log from there; a
    /// snapshot brings the members of its own moment.
    fn make(
        &mut self,
        group: u32,
        peer: u64,
        first: &Placement,
        version: u64,
    ) -> Result<Group, Error> {
        let replica = log_group(group, peer);
        let members = first_members(first);
        let row = crate::wire::members::to_bytes(&members);
        self.store.create(replica, &row, version)?;
        self.made_at.insert(replica, version);
        let rows = self.store.group(replica)?;
        let voters = members.voters.iter().map(|peer| node_of(*peer)).collect();
        self.directory.set_voters(group, voters);
        let mut config = GroupConfig::new(group, peer, members);
        config.log_group = replica;
        config.limits.silent_ticks = self.silent_ticks;
        config.brings_mail = crate::wire::log::brings_mail;
        let log = GroupLog::new(self.budget.clone());
        let made = Group::new(config, log, HardState::default(), 0)?;
        if group == crate::CONTROL_GROUP {
            let control = Control::new(rows, self.control_settings.clone());
            self.control = Some(control.map_err(|e| Error::Recovered(e.to_string()))?);
        } else {
            self.shards.insert(group, Shard::new(rows));
        }
        Ok(made)
    }

    fn destroy(&mut self, group: u32, peer: u64) {
        if self.leaving.insert(group) {
            let _ = self.to.raft.send(RaftEvent::Destroy { group, peer });
        }
    }

    /// A leader counts on a replica that was to go.
    pub(super) fn needed(&mut self, group: u32) {
        self.leaving.remove(&group);
        tracing::debug!(
            group,
            "a replica that should go stays while a leader speaks to it"
        );
    }

    /// The Raft thread has let a replica go: nothing of it comes any more, and nothing of it may come back.
    pub(super) fn destroyed(&mut self, group: u32, peer: u64) {
        if self.hosted(group) != Some(peer) {
            self.leaving.remove(&group);
            return;
        }
        match self.installing.remove(&group) {
            // A helper writes into it: it goes when that has ended, and until then none takes its place.
            Some(None) => {
                self.installing.insert(group, None);
                self.parted.insert(group, peer);
                return;
            }
            Some(Some(made)) => self.snapshots.discard(group, made.id),
            None => {}
        }
        tracing::info!(
            group,
            peer,
            "this node gave up a replica: it is no member any more"
        );
        self.leaving.remove(&group);
        let replica = log_group(group, peer);
        if let Err(error) = self.store.bury(replica) {
            self.store_failed(
                &format!("the replica of group {group} cannot be given up"),
                &error,
            );
            return;
        }
        if group == crate::CONTROL_GROUP {
            self.control = None;
        } else if let Some(mut shard) = self.shards.remove(&group)
            && let Some(leader) = shard.leader.take()
        {
            let address = self.directory.leader_address(group);
            leader.ended(&mut self.streams, &address);
            self.streams.leader_changed(group - 1);
        }
        self.made_at.remove(&replica);
        self.gone.insert(replica);
        self.to_sweep.insert(replica);
        let _ = self.log.send(LogEvent::Gone(replica));
    }

    /// Removes the rows of replicas that are gone, on a helper thread, and not while a flush or a snapshot may still write some.
    pub(super) fn sweep_if_due(&mut self) {
        if self.flushing
            || self.sweeping
            || !self.installing.is_empty()
            || self.health.stopped().is_some()
        {
            return;
        }
        let Some(replica) = self.to_sweep.pop_first() else {
            return;
        };
        let sweep = self.store.sweep(replica);
        self.tell_what_is_durable();
        self.sweeping = true;
        let state = self.to.state.clone();
        let spawned = self.helpers.spawn("sweep", move |helper| {
            let _ = state.send(StateEvent::Swept(sweep.run(|| helper.must_end())));
        });
        if let Err(error) = spawned {
            // The next start sweeps them.
            tracing::warn!(%error, "no thread to remove the rows of a replica that is gone");
            self.sweeping = false;
        }
    }

    pub(super) fn swept(&mut self, result: Result<usize, crate::state::StoreError>) {
        self.sweeping = false;
        match result {
            Ok(rows) => tracing::debug!(rows, "the rows of a replica that is gone are removed"),
            Err(error) => tracing::warn!(
                %error,
                "the rows of a replica that is gone are not removed; the next start tries again"
            ),
        }
    }

    pub(super) fn members_call(&mut self, call: MembersCall) {
        let leader = self.directory.leader_address(crate::CONTROL_GROUP);
        let Some(control) = &mut self.control else {
            return not_leader(call, &leader);
        };
        let proposal = control.call(call, &leader, std::time::Instant::now());
        self.propose_control(proposal.into_iter().collect());
    }

    pub(super) fn put_call(&mut self, call: PutCall) {
        let leader = self.directory.leader_address(crate::CONTROL_GROUP);
        let proposal = match &mut self.control {
            Some(control) => control.put(call, leader),
            None => {
                put_elsewhere(call, leader);
                None
            }
        };
        self.propose_control(proposal.into_iter().collect());
    }

    pub(super) fn propose_control(&self, proposals: Vec<crate::node::Proposal>) {
        if !proposals.is_empty() {
            let _ = self.to.raft.send(RaftEvent::Propose {
                group: crate::CONTROL_GROUP,
                proposals,
                replies: Vec::new(),
            });
        }
    }
}

fn plan(placement: &Placement) -> Plan {
    let voters: BTreeSet<u64> = placement.voters.clone();
    let leader = placement.peer_on(placement.leader).unwrap_or(0);
    Plan {
        version: placement.version,
        voters,
        leader,
    }
}
