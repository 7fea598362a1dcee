//! Where the members of a group must come to, once nothing goes wrong any more.

use std::collections::BTreeSet;

use crate::sim::churn::{Churn, FACTOR_MAX, slot_of};
use crate::sim::world::World;

/// Calm steps in which every node that was added holds what it shall, and every one that was removed is gone.
const CONVERGE_STEPS: u64 = 9000;

impl World {
    /// Once nothing goes wrong, every group comes to where it shall be, nobody stays in a joint configuration, and whoever
    /// was removed is gone.
    pub fn converge(&mut self) -> Result<(), String> {
        if self.churn.is_none() {
            return Ok(());
        }
        // Each voter may have to go, and its successor be sent the whole log.
        let logs = u64::from(FACTOR_MAX) * self.model.committed();
        self.until(
            CONVERGE_STEPS + self.entry_steps(logs),
            "the group does not come to where it shall be",
            |world| {
                let Some(churn) = &world.churn else {
                    return true;
                };
                let voters = &churn.placement().voters;
                let there = |peer: &u64| world.replicas[slot_of(*peer)].peer == *peer;
                churn.is_settled()
                    && voters.iter().all(there)
                    && world
                        .replicas
                        .iter()
                        .filter(|replica| replica.hosted.is_some() && !replica.dead)
                        .all(|replica| voters.contains(&replica.peer))
            },
        )
        .map_err(|error| {
            let churn = self.churn.as_ref();
            let placement = churn.map(Churn::placement);
            let leaving = churn.map(|churn| &churn.state.leaving);
            format!("{error}; {placement:?}, leaving: {leaving:?}")
        })?;
        let voters: BTreeSet<u64> = self.model.latest_voters();
        match self.churn.as_ref().map(|churn| &churn.placement().voters) {
            Some(wanted) if *wanted != voters => Err(format!(
                "the members are {voters:?}, and should be {wanted:?}"
            )),
            _ => Ok(()),
        }
    }
}
