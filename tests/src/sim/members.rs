//! Who the members of the group are, and what must be true of them.

use std::collections::{BTreeMap, BTreeSet};

use spool::node::Membership;

use crate::sim::churn::{Churn, slot_of};
use crate::sim::world::World;

/// Entries that a learner may lack when its promotion is applied: what counts as caught up, and what was proposed in the
/// meantime.
const UNDER_WAY: u64 = 150;

impl World {
    /// The members changed, for all: never fewer votes than copies, and nobody votes who lacks what is committed.
    pub fn members_changed(
        &mut self,
        k: usize,
        index: u64,
        members: &Membership,
    ) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        replica.conf.insert(index, members.clone());
        replica.now = Some(members.clone());
        let Some(fewest) = self.churn.as_ref().map(Churn::fewest) else {
            return Ok(());
        };
        let before = self.model.latest_voters();
        if !self.model.members(index, members)? {
            return Ok(());
        }
        self.trace.fold(index);
        self.trace.fold_all(&members.voters);
        self.note(|| format!("the members are {members:?} with entry {index}"));
        if members.voters.len() < fewest {
            return Err(format!("fewer voters than copies: {members:?}"));
        }
        for peer in members.voters.iter().filter(|peer| !before.contains(peer)) {
            let replica = &self.replicas[slot_of(*peer)];
            let has = match replica.peer == *peer {
                true => replica.disk.last(),
                false => 0,
            };
            if has + UNDER_WAY < index {
                return Err(format!(
                    "peer {peer} votes from entry {index} on, and has entries to {has}"
                ));
            }
        }
        Ok(())
    }
}

/// The configurations of the log, as they are committed.
#[derive(Default)]
pub struct Configurations(BTreeMap<u64, Membership>);

impl Configurations {
    /// One, as a replica is handed it; true: for the first time.
    pub fn add(&mut self, index: u64, members: &Membership) -> Result<bool, String> {
        let sorted = sorted(members);
        match self.0.get(&index) {
            None => {
                self.0.insert(index, sorted);
                Ok(true)
            }
            Some(known) if *known == sorted => Ok(false),
            Some(known) => Err(format!(
                "the members with entry {index} are {known:?} on one replica and {sorted:?} on another"
            )),
        }
    }

    /// Everybody with a vote, in both halves of a joint configuration.
    pub fn latest_voters(&self) -> BTreeSet<u64> {
        let first = Churn::first();
        let latest = self.0.values().next_back().unwrap_or(&first);
        let all = latest.voters.iter().chain(&latest.voters_outgoing);
        all.copied().collect()
    }
}

fn sorted(members: &Membership) -> Membership {
    let sorted = |peers: &[u64]| {
        let mut peers = peers.to_vec();
        peers.sort_unstable();
        peers
    };
    Membership {
        voters: sorted(&members.voters),
        learners: sorted(&members.learners),
        voters_outgoing: sorted(&members.voters_outgoing),
        learners_next: sorted(&members.learners_next),
        auto_leave: members.auto_leave,
    }
}
