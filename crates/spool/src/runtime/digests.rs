//! Digests of rows, compared: this replica's own against what the others say of the same entry.
//!
//! Each replica tells all others what it found, not only the leader: it may be the leader that has drifted. A replica
//! whose rows differ from those of a majority that agrees is wrong, and stops itself; where no majority agrees, people
//! must look.

use std::collections::BTreeMap;

/// The newest entries of a group that are remembered: a replica that is further behind is compared by later ones.
const ENTRIES_MAX: usize = 64;

/// Of each group, the newest that are told to the others again and again: frames may be lost.
const TOLD_MAX: usize = 8;

/// 16 octets.
type Octets = [u8; 16];

/// What is known of one group, by index of the entry and node.
type Known = BTreeMap<u64, BTreeMap<u64, Octets>>;

/// What a comparison comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing is wrong, or too few have said something.
    Fine,
    /// This replica differs from a majority that agrees.
    OwnDiffers {
        /// Of the entry.
        index: u64,
        /// Who agrees.
        with: Vec<u64>,
    },
    /// Another one does; it finds that out by itself.
    OtherDiffers {
        /// Of the entry.
        index: u64,
        /// Who.
        node: u64,
    },
    /// They differ, and no majority agrees.
    Split {
        /// Of the entry.
        index: u64,
    },
}

/// All of them.
#[derive(Debug, Default)]
pub struct Digests {
    groups: BTreeMap<u32, Known>,
}

impl Digests {
    /// `node` found `digest` at the entry `index` of a group. `own`: this node. What that means for it.
    pub fn found(
        &mut self,
        own: u64,
        voters: &[u64],
        (group, index): (u32, u64),
        node: u64,
        digest: Octets,
    ) -> Judgement {
        let known = self.groups.entry(group).or_default();
        let before = known.entry(index).or_default().insert(node, digest);
        while known.len() > ENTRIES_MAX {
            known.pop_first();
        }
        match known.get(&index) {
            Some(at) if before != Some(digest) => judge(own, voters, index, node, at),
            _ => Judgement::Fine,
        }
    }

    /// What this node tells the others.
    pub fn own(&self, own: u64) -> Vec<(u32, u64, Octets)> {
        let of_group = |(group, known): (&u32, &Known)| {
            let newest = known.iter().rev();
            let own = newest.filter_map(move |(index, at)| Some((*index, *at.get(&own)?)));
            let group = *group;
            own.take(TOLD_MAX)
                .map(move |(index, digest)| (group, index, digest))
                .collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).collect()
    }
}

fn judge(own: u64, voters: &[u64], index: u64, node: u64, at: &BTreeMap<u64, Octets>) -> Judgement {
    let mut counts: BTreeMap<Octets, Vec<u64>> = BTreeMap::new();
    for (voter, digest) in at.iter().filter(|(node, _)| voters.contains(node)) {
        counts.entry(*digest).or_default().push(*voter);
    }
    let all_agree = at.values().all(|digest| Some(digest) == at.get(&node));
    if all_agree {
        return Judgement::Fine;
    }
    let majority = counts
        .into_iter()
        .find(|(_, nodes)| nodes.len() > voters.len() / 2);
    match (majority, at.get(&own)) {
        (Some((digest, with)), Some(mine)) if *mine != digest => {
            Judgement::OwnDiffers { index, with }
        }
        (Some((digest, _)), _) => {
            let other = at.iter().find(|(_, found)| **found != digest);
            other.map_or(Judgement::Fine, |(node, _)| Judgement::OtherDiffers {
                index,
                node: *node,
            })
        }
        // Somebody has not spoken yet, and would decide it.
        (None, _) if voters.iter().any(|voter| !at.contains_key(voter)) => Judgement::Fine,
        (None, _) => Judgement::Split { index },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Octets = [1; 16];
    const B: Octets = [2; 16];
    const C: Octets = [3; 16];

    /// What node 1 of three concludes from each finding in turn.
    fn conclude(found: &[(u64, Octets)]) -> Vec<Judgement> {
        let mut digests = Digests::default();
        let each = found
            .iter()
            .map(|(node, digest)| digests.found(1, &[1, 2, 3], (4, 9), *node, *digest));
        each.collect()
    }

    #[test]
    fn the_one_that_differs_from_two_that_agree_is_wrong() {
        let differs = Judgement::OwnDiffers {
            index: 9,
            with: vec![2, 3],
        };
        assert_eq!(
            conclude(&[(1, A), (2, B), (3, B), (3, B)]),
            [Judgement::Fine, Judgement::Fine, differs, Judgement::Fine]
        );
        let other = Judgement::OtherDiffers { index: 9, node: 3 };
        assert_eq!(conclude(&[(3, B), (2, A), (1, A)]).pop(), Some(other));
    }

    #[test]
    fn nobody_stops_when_no_majority_agrees() {
        let split = Judgement::Split { index: 9 };
        assert_eq!(conclude(&[(1, A), (2, B), (3, C)]).pop(), Some(split));
        assert_eq!(
            conclude(&[(1, A), (2, A), (3, A)]).pop(),
            Some(Judgement::Fine)
        );
    }

    #[test]
    fn a_node_that_does_not_vote_decides_nothing_and_memory_is_bounded() {
        let mut digests = Digests::default();
        digests.found(1, &[1], (4, 9), 1, A);
        let learner = digests.found(1, &[1], (4, 9), 7, B);
        assert_eq!(learner, Judgement::OtherDiffers { index: 9, node: 7 });
        for index in 0..1000 {
            digests.found(1, &[1], (4, index), 1, A);
        }
        assert_eq!(digests.groups[&4].len(), ENTRIES_MAX);
        assert_eq!(digests.own(1).len(), TOLD_MAX);
        assert_eq!(digests.own(1)[0], (4, 999, A));
    }
}
