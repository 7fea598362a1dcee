//! First starts as conversations between three nodes.

use super::*;

const CLUSTER: ClusterId = ClusterId([9; 16]);
const INITIAL: [u64; 3] = [1, 2, 3];

/// Nodes that are up, by id, as they would introduce themselves.
#[derive(Default)]
struct Town {
    up: BTreeMap<u64, Introduction>,
    disks: u128,
}

impl Town {
    /// Starts a node on an empty directory.
    fn starts(&mut self, node: u64) {
        self.disks += 1;
        let identity = Identity::starting(CLUSTER, node, self.disks, 16);
        self.up
            .insert(node, Introduction::of(&identity, 3, "1=a:1,2=b:1,3=c:1"));
    }

    fn change(&mut self, node: u64, change: impl FnMut(&mut Introduction)) {
        self.up.get_mut(&node).into_iter().for_each(change);
    }

    /// The node asks all that are up, and does what follows. A refusal by the one asked ends it as well.
    fn asks(&mut self, node: u64) -> FirstStart {
        let own = self.up[&node].clone();
        let others: BTreeMap<u64, Introduction> = self
            .up
            .iter()
            .filter(|(id, _)| **id != node)
            .map(|(id, other)| (*id, other.clone()))
            .collect();
        if let Some(text) = others.values().find_map(|other| answer(other, &own)) {
            return FirstStart::Refuse { text };
        }
        let decided = first_start(&own, &INITIAL, &others);
        if let FirstStart::BecomeMember { known } = &decided {
            self.change(node, |own: &mut Introduction| {
                own.state = StoreState::Member;
                own.known = known.clone();
            });
        }
        decided
    }

    fn becomes_member(&mut self, node: u64) -> bool {
        matches!(self.asks(node), FirstStart::BecomeMember { .. })
    }

    fn refused(&mut self, node: u64) -> String {
        match self.asks(node) {
            FirstStart::Refuse { text } => text,
            other => panic!("node {node} is not refused: {other:?}"),
        }
    }
}

fn three_members() -> Town {
    let mut town = Town::default();
    INITIAL.iter().for_each(|node| town.starts(*node));
    INITIAL
        .iter()
        .for_each(|node| assert!(town.becomes_member(*node), "node {node}"));
    town
}

#[test]
fn three_that_start_at_once_become_members() {
    let town = three_members();
    assert_eq!(town.up[&2].known, BTreeMap::from([(1, 1), (3, 3)]));
}

#[test]
fn nobody_takes_part_before_all_have_been_seen() {
    let mut town = Town::default();
    town.starts(1);
    assert_eq!(town.asks(1), FirstStart::Wait { asking: vec![2, 3] });
    town.starts(3);
    assert_eq!(town.asks(1), FirstStart::Wait { asking: vec![2] });
    town.starts(2);
    assert!(town.becomes_member(1));
}

#[test]
fn one_that_crashed_midway_goes_on_with_its_directory() {
    let mut town = Town::default();
    INITIAL.iter().for_each(|node| town.starts(*node));
    assert!(town.becomes_member(1));
    // Node 2 crashes with its identity written: the same incarnation comes back, and node 1 recorded it.
    let node = town.up.remove(&2);
    assert!(
        town.up[&3].state == StoreState::Starting
            && town.asks(3) == FirstStart::Wait { asking: vec![2] }
    );
    town.up.extend(node.map(|node| (2, node)));
    assert!(town.becomes_member(2));
    assert!(town.becomes_member(3));
}

#[test]
fn an_emptied_directory_started_with_the_same_arguments_is_refused() {
    let mut town = three_members();
    town.starts(2);
    let text = town.refused(2);
    assert!(
        text.contains("node 2 already took part") && text.contains("new id"),
        "{text}"
    );
    // The decision alone refuses as well, should the refusal get lost.
    let own = town.up[&2].clone();
    let heard = BTreeMap::from([(1, town.up[&1].clone())]);
    assert!(matches!(
        first_start(&own, &INITIAL, &heard),
        FirstStart::Refuse { .. }
    ));
}

#[test]
fn a_directory_lost_before_its_node_took_part_is_refused_by_those_who_recorded_it() {
    let mut town = Town::default();
    INITIAL.iter().for_each(|node| town.starts(*node));
    assert!(town.becomes_member(1));
    town.starts(3);
    assert!(town.refused(3).contains("node 3 already took part"));
}

#[test]
fn a_directory_lost_while_all_are_starting_is_replaced() {
    let mut town = Town::default();
    INITIAL.iter().for_each(|node| town.starts(*node));
    town.starts(3);
    INITIAL
        .iter()
        .for_each(|node| assert!(town.becomes_member(*node)));
    assert_eq!(town.up[&1].known[&3], 4);
}

#[test]
fn an_emptied_directory_waits_while_the_others_are_down() {
    let mut town = Town::default();
    town.starts(2);
    assert_eq!(town.asks(2), FirstStart::Wait { asking: vec![1, 3] });
}

#[test]
fn members_meet_again_after_a_restart() {
    let mut town = three_members();
    INITIAL
        .iter()
        .for_each(|node| assert!(town.becomes_member(*node)));
    // The factor is a document by now; the flags of a member are not compared.
    town.change(1, |own| own.replication_factor = 5);
    assert!(town.becomes_member(2));
}

#[test]
fn a_single_node_needs_nobody() {
    let identity = Identity::starting(CLUSTER, 1, 5, 4);
    let own = Introduction::of(&identity, 1, "1=a:1");
    let decided = first_start(&own, &[1], &BTreeMap::new());
    assert_eq!(
        decided,
        FirstStart::BecomeMember {
            known: BTreeMap::new()
        }
    );
}

#[test]
fn different_arguments_are_refused_with_both_values() {
    let told = |change: fn(&mut Introduction)| {
        let mut town = Town::default();
        INITIAL.iter().for_each(|node| town.starts(*node));
        town.change(3, change);
        let by_three = town.refused(3);
        let own = town.up[&1].clone();
        match first_start(&own, &INITIAL, &town.up) {
            FirstStart::Refuse { text } => format!("{by_three} {text}"),
            other => panic!("not refused: {other:?}"),
        }
    };
    assert!(told(|three| three.shards = 8).contains("--shards 16"));
    assert!(told(|three| three.replication_factor = 1).contains("--replication-factor 3"));
    assert!(
        told(|three| three.initial_cluster = "1=a:1".into())
            .contains("--initial-cluster 1=a:1,2=b:1")
    );
    assert!(told(|three| three.cluster = ClusterId([1; 16])).contains("--cluster-id"));
}

#[test]
fn an_address_that_another_node_answers_is_refused() {
    let mut town = Town::default();
    INITIAL.iter().for_each(|node| town.starts(*node));
    let heard = BTreeMap::from([(2, town.up[&3].clone())]);
    let decided = first_start(&town.up[&1], &INITIAL, &heard);
    assert!(matches!(decided, FirstStart::Refuse { text } if text.contains("answered by node 3")));
}

#[test]
fn a_node_that_nobody_knows_is_refused() {
    let mut town = three_members();
    town.starts(4);
    assert!(town.refused(4).contains("existing"));
    let decided = first_start(&town.up[&4], &INITIAL, &BTreeMap::new());
    assert!(
        matches!(decided, FirstStart::Refuse { text } if text.contains("not in --initial-cluster"))
    );
}

#[test]
fn a_second_store_under_the_same_id_is_refused() {
    let mut town = three_members();
    let one = town.up[&1].clone();
    town.starts(1);
    assert!(answer(&one, &town.up[&1]).is_some_and(|text| text.contains("two stores")));
    assert_eq!(answer(&one, &one), None);
}
