//! The planner against a model of Kubernetes and of the queue, with trouble: the operator dies between deciding and doing, pods
//! are evicted or never end, volumes are lost, people scale. Whatever happens, no id is given twice, nobody is removed who is
//! needed, and when the trouble ends the pool becomes what is declared.

use proptest::prelude::*;

use super::*;
use model::{BAD, Model, Trouble};

#[path = "plan_model.rs"]
mod model;

/// More steps than any of these pools needs, with the model's own moves in between.
const STEPS_MAX: usize = 400;

fn troubles() -> impl Strategy<Value = Vec<Trouble>> {
    let one = prop_oneof![
        6 => Just(Trouble::None),
        2 => Just(Trouble::OperatorDies),
        1 => Just(Trouble::QueueSilent),
        2 => (1..9_u64).prop_map(Trouble::PodGone),
        1 => (1..9_u64).prop_map(Trouble::Evicted),
        1 => (1..9_u64).prop_map(Trouble::VolumeGone),
        1 => (1..9_u64).prop_map(Trouble::NeverEnds),
        1 => (1..7_usize).prop_map(Trouble::Scale),
        1 => prop_oneof![Just(1_usize), Just(3), Just(5)].prop_map(Trouble::Copies),
        1 => (0..4_u8).prop_map(Trouble::Image),
        1 => (1..30_u8).prop_map(Trouble::NoRoom),
        1 => (1..16_u8, any::<bool>()).prop_map(|(turns, control)| Trouble::Leaderless(turns, control)),
    ];
    prop::collection::vec(one, 0..120)
}

proptest! {
    #[test]
    fn whatever_happens_the_pool_becomes_what_is_declared(
        replicas in 1..7_usize,
        factor in prop_oneof![Just(1_usize), Just(3), Just(5)],
        troubles in troubles(),
    ) {
        let mut model = Model::new(replicas, factor);
        for trouble in &troubles {
            model.trouble(trouble);
            let seen = model.observe(matches!(trouble, Trouble::QueueSilent));
            let step = plan(&model.desired, &seen);
            if !matches!(trouble, Trouble::OperatorDies) {
                model.act(&step);
            }
            model.live();
        }
        if model.desired.hash == BAD {
            model.desired.hash = "good".into();
        }
        let mut last = Step::Done;
        for _ in 0..STEPS_MAX {
            last = plan(&model.desired, &model.observe(false));
            if model.at_rest(&last) && model.as_declared() {
                return Ok(());
            }
            model.act(&last);
            model.live();
        }
        prop_assert!(false, "still {last:?} after {STEPS_MAX} steps");
    }
}

/// What is done until nothing happens any more.
fn run(model: &mut Model) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..60 {
        let step = plan(&model.desired, &model.observe(false));
        model.act(&step);
        model.live();
        if !matches!(step, Step::Done | Step::Wait(_)) {
            steps.push(step);
        }
    }
    steps
}

#[test]
fn a_lost_disk_is_replaced_under_a_new_id_before_the_lost_node_goes() {
    let mut model = Model::new(3, 3);
    run(&mut model);
    model.trouble(&Trouble::VolumeGone(2));
    let steps = run(&mut model);
    let expected = [
        Step::CreateClaim {
            node: 4,
            initial: None,
        },
        Step::CreatePod { node: 4 },
        Step::AddNode { node: 4 },
        Step::RemoveNode { node: 2 },
    ];
    assert_eq!(steps, expected);
}

/// The Kubernetes node of a queue node died, and nobody deletes it: the pod is on its way out for ever.
#[test]
fn a_pod_that_never_ends_holds_up_neither_nodes_nor_images() {
    let mut model = Model::new(3, 3);
    run(&mut model);
    model.trouble(&Trouble::NeverEnds(2));
    run(&mut model);
    assert!(model.as_declared(), "replaced: {:?}", model.members);
    model.trouble(&Trouble::Scale(4));
    run(&mut model);
    model.trouble(&Trouble::Image(1));
    run(&mut model);
    assert!(model.as_declared(), "it goes on: {:?}", model.members);
    let seen = model.observe(false);
    let why = plan(&model.desired, &seen);
    assert_eq!(why, Step::Wait(ends(2, &seen.pods[&2])));
    assert!(!seen.claims[&2].retired, "its pod may still write there");
    model.trouble(&Trouble::PodGone(2));
    assert_eq!(run(&mut model), [Step::Retire { node: 2 }]);
}

/// The new node's pod came to a Kubernetes node that died: another new one comes, and what is left of the first goes with its pod.
#[test]
fn a_new_node_whose_pod_never_ends_is_not_waited_for() {
    let mut model = Model::new(3, 3);
    run(&mut model);
    model.trouble(&Trouble::NoRoom(3));
    model.trouble(&Trouble::Scale(4));
    while !model.observe(false).pods.contains_key(&4) {
        let step = plan(&model.desired, &model.observe(false));
        model.act(&step);
    }
    model.trouble(&Trouble::NeverEnds(4));
    run(&mut model);
    assert!(model.as_declared(), "5 came: {:?}", model.members);
    model.trouble(&Trouble::Image(1));
    run(&mut model);
    assert!(model.as_declared(), "it goes on: {:?}", model.members);
    model.trouble(&Trouble::PodGone(4));
    assert_eq!(run(&mut model), [Step::Retire { node: 4 }]);
}

/// One Kubernetes node died, and the image of the two other nodes was no good: they are made anew all the same.
#[test]
fn a_pod_that_is_overdue_keeps_no_broken_one() {
    let desired = Model::new(3, 3).desired;
    let mut seen = outdated(false);
    let dead = seen.pods.get_mut(&2).expect("there");
    (dead.runs, dead.leaving) = (true, true);
    assert!(matches!(plan(&desired, &seen), Step::Wait(_)));
    seen.pods.get_mut(&2).expect("there").overdue = true;
    assert_eq!(plan(&desired, &seen), Step::DeletePod { node: 1 });
}

#[test]
fn of_nodes_in_zones_the_youngest_goes_where_most_are() {
    let mut model = Model::new(4, 3);
    for _ in 0..60 {
        let step = plan(&model.desired, &model.observe(false));
        model.act(&step);
        model.live();
    }
    model.desired.replicas = 3;
    let mut seen = model.observe(false);
    let queue = seen.queue.as_mut().expect("it answers");
    for (node, crowd) in [(1, 1), (2, 2), (3, 2), (4, 1)] {
        queue.members.get_mut(&node).expect("a member").crowd = crowd;
    }
    assert_eq!(
        plan(&model.desired, &seen),
        Step::RemoveNode { node: 3 },
        "4 would leave two in one zone and none in its own"
    );
}

/// Five became one, node 1's disk was lost meanwhile, and the pod of the one that is left is being made anew: nobody answers, and
/// no pod is there that would say that this queue began long ago.
#[test]
fn a_first_disk_that_was_lost_is_not_made_again_while_the_last_pod_is_away() {
    let model = Model::new(1, 1);
    let claim = Claim {
        initial: Some((1..=5).collect()),
        used: true,
        retired: false,
    };
    let seen = Observed {
        claims: BTreeMap::from([(2, claim)]),
        ..Observed::default()
    };
    assert_eq!(plan(&model.desired, &seen), Step::CreatePod { node: 2 });
}

/// Three nodes of an image that is out of date, none of them ready.
fn outdated(runs: bool) -> Observed {
    let pod = |hash: &str, runs| Pod {
        hash: hash.into(),
        runs,
        ready: false,
        leaving: false,
        overdue: false,
    };
    let claim = Claim {
        initial: Some(BTreeSet::from([1, 2, 3])),
        used: true,
        retired: false,
    };
    Observed {
        claims: (1..=3).map(|node| (node, claim.clone())).collect(),
        pods: (1..=3).map(|node| (node, pod("old", runs))).collect(),
        queue: None,
    }
}

#[test]
fn while_a_group_has_no_leader_no_pod_is_taken_for_broken() {
    let desired = Model::new(3, 3).desired;
    let mut seen = outdated(true);
    assert!(matches!(plan(&desired, &seen), Step::Wait(_)));
    let members = (1..=3).map(|node| (node, Member::default()));
    seen.queue = Some(Queue {
        members: members.collect(),
        highest_node: 3,
        replication_factor: 3,
        leaderless: 1,
        settled: false,
    });
    assert!(matches!(plan(&desired, &seen), Step::Wait(_)));
    // The others are well, or the queue does without it.
    let mut well = seen.clone();
    for node in [1, 3] {
        well.pods.get_mut(&node).expect("there").ready = true;
    }
    assert_eq!(plan(&desired, &well), Step::DeletePod { node: 2 });
    let queue = seen.queue.as_mut().expect("it answers");
    queue.members.get_mut(&3).expect("there").silent_ms = UNHEARD_MS;
    assert_eq!(plan(&desired, &seen), Step::DeletePod { node: 3 });
}

#[test]
fn of_pods_that_never_started_one_goes_at_a_time_and_the_next_when_the_new_one_runs() {
    let desired = Model::new(3, 3).desired;
    let mut seen = outdated(false);
    assert_eq!(plan(&desired, &seen), Step::DeletePod { node: 1 });
    seen.pods.get_mut(&1).expect("there").leaving = true;
    assert!(matches!(plan(&desired, &seen), Step::Wait(_)));
    let new = Pod {
        hash: desired.hash.clone(),
        leaving: false,
        ..seen.pods[&1].clone()
    };
    seen.pods.insert(1, new);
    assert!(matches!(plan(&desired, &seen), Step::Wait(_)));
    seen.pods.get_mut(&1).expect("there").runs = true;
    assert_eq!(plan(&desired, &seen), Step::DeletePod { node: 2 });
}

/// Three nodes, and a fourth that was asked for and finds no place to run.
#[test]
fn a_node_that_finds_no_room_can_be_taken_back() {
    for turns in 0..6 {
        let mut model = Model::new(3, 3);
        let go_on = |model: &mut Model, turns: usize| {
            for _ in 0..turns {
                let step = plan(&model.desired, &model.observe(false));
                model.act(&step);
                model.live();
            }
        };
        go_on(&mut model, 20);
        model.trouble(&Trouble::NoRoom(u8::MAX));
        model.trouble(&Trouble::Scale(4));
        go_on(&mut model, turns);
        assert!(
            turns < 1 || model.claims.len() == 4,
            "the fourth is asked for"
        );
        model.trouble(&Trouble::Scale(3));
        go_on(&mut model, 20);
        assert!(
            model.as_declared(),
            "after {turns} turns: {:?}",
            model.members
        );
    }
}

#[test]
fn a_queue_whose_volumes_are_all_gone_is_not_begun_anew() {
    let mut model = Model::new(3, 3);
    model.desired.begun = true;
    let nothing = Observed::default();
    assert!(matches!(plan(&model.desired, &nothing), Step::Wait(_)));
    model.desired.begun = false;
    let queue = Queue {
        highest_node: 3,
        ..Queue::default()
    };
    let seen = Observed {
        queue: Some(queue),
        ..Observed::default()
    };
    assert!(matches!(plan(&model.desired, &seen), Step::Wait(_)));
}
