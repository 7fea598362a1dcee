//! A model of Kubernetes and of the queue for the planner's tests: it does what a step says, asserts that nobody is harmed by it, and
//! has its own troubles.

use super::super::*;

/// Turns of the model until a new pod's process runs, and until one that was told to go is gone.
const TURNS: u8 = 2;
/// An image whose process never runs.
pub const BAD: &str = "bad";

#[derive(Clone, Debug)]
pub enum Trouble {
    /// Nothing; the model moves on.
    None,
    /// The operator dies before it does what it decided.
    OperatorDies,
    /// A pod goes away.
    PodGone(u64),
    /// A pod is evicted, where the disruption budget lets it.
    Evicted(u64),
    /// A pod and its volume go away, when the queue would survive it.
    VolumeGone(u64),
    /// The Kubernetes node of a pod dies, when the queue would survive it or does not know the pod's node: the pod is told to go,
    /// and nobody is there to end it.
    NeverEnds(u64),
    /// Somebody scales.
    Scale(usize),
    /// Somebody wants another number of copies.
    Copies(usize),
    /// The image changes; one of them is [`BAD`].
    Image(u8),
    /// The queue does not answer.
    QueueSilent,
    /// For so many turns no pod finds a place to run.
    NoRoom(u8),
    /// A group has no leader for so many turns, the control group perhaps: no node is ready, and each is needed.
    Leaderless(u8, bool),
}

/// Kubernetes and the queue, as far as the planner sees them.
pub struct Model {
    pub desired: Desired,
    pub claims: BTreeMap<u64, Claim>,
    pods: BTreeMap<u64, Pod>,
    pub members: BTreeMap<u64, Member>,
    highest: u64,
    begun: bool,
    /// Copies that the queue has.
    factor: usize,
    ids: BTreeSet<u64>,
    /// Turns since a pod was made, or told to go.
    age: BTreeMap<u64, u8>,
    /// See [`Trouble::NeverEnds`]: nodes whose pods are like that, and say what they said last.
    dead: BTreeSet<u64>,
    /// See [`Trouble::Leaderless`].
    leaderless: u8,
    control: bool,
    /// See [`Trouble::NoRoom`].
    no_room: u8,
}

impl Model {
    pub fn new(replicas: usize, factor: usize) -> Model {
        Model {
            desired: Desired {
                replicas: replicas.max(factor),
                replication_factor: factor,
                hash: "a".into(),
                begun: false,
                replace_after_ms: Some(1000),
            },
            claims: BTreeMap::new(),
            pods: BTreeMap::new(),
            members: BTreeMap::new(),
            highest: 0,
            begun: false,
            factor: 0,
            ids: BTreeSet::new(),
            age: BTreeMap::new(),
            dead: BTreeSet::new(),
            leaderless: 0,
            control: false,
            no_room: 0,
        }
    }

    /// A member answers when its process runs and its disk is there.
    fn up(&self, node: u64) -> bool {
        let runs = self.pods.get(&node).is_some_and(|pod| pod.runs);
        self.claims.contains_key(&node) && runs && !self.dead.contains(&node)
    }

    /// It does so and was not told to go.
    fn stays(&self, node: u64) -> bool {
        self.up(node) && !self.pods[&node].leaving
    }

    /// Whoever joins has no vote yet.
    fn has_majority(&self) -> bool {
        let voters = self.members.iter().filter(|(_, member)| !member.joining);
        let up = voters.clone().filter(|(node, _)| self.up(**node)).count();
        self.begun && up * 2 > voters.count()
    }

    fn answers(&self) -> bool {
        self.has_majority() && !(self.leaderless > 0 && self.control)
    }

    fn settled(&self) -> bool {
        let mut members = self.members.iter();
        self.leaderless == 0
            && members.all(|(node, member)| self.up(*node) && !member.leaving && !member.joining)
    }

    pub fn observe(&self, silent: bool) -> Observed {
        let queue = (self.answers() && !silent).then(|| Queue {
            members: self.members.clone(),
            highest_node: self.highest,
            replication_factor: self.factor,
            leaderless: self.leaderless.into(),
            settled: self.settled(),
        });
        Observed {
            claims: self.claims.clone(),
            pods: self.pods.clone(),
            queue,
        }
    }

    /// What happens by itself: pods start and end, the first nodes find each other, groups move.
    pub fn live(&mut self) {
        for age in self.age.values_mut() {
            *age = age.saturating_add(1);
        }
        self.pods
            .retain(|node, pod| !pod.leaving || self.age[node] < TURNS || self.dead.contains(node));
        for (node, pod) in &mut self.pods {
            pod.overdue = pod.leaving && self.age[node] >= TURNS;
            pod.runs |= pod.hash != BAD && self.age[node] >= TURNS && self.no_room == 0;
        }
        let first = self.claims.values().find_map(|claim| claim.initial.clone());
        if let Some(first) = first
            && !self.begun
            && first.iter().all(|node| self.up(*node))
        {
            self.begun = true;
            self.desired.begun = true;
            self.factor = first.len();
            self.highest = *first.last().expect("at least one");
            self.members = first
                .iter()
                .map(|node| (*node, Member::default()))
                .collect();
        }
        let up: BTreeSet<u64> = self
            .members
            .keys()
            .copied()
            .filter(|node| self.up(*node))
            .collect();
        for (node, member) in &mut self.members {
            if up.contains(node) {
                member.joining = false;
                member.silent_ms = 0;
            } else if !member.joining {
                member.silent_ms += 400;
            }
        }
        // As the program has it: a node is ready while it knows a leader of every group.
        let led = self.has_majority() && self.leaderless == 0;
        for (node, pod) in &mut self.pods {
            pod.ready = pod.runs && led && !self.dead.contains(node);
        }
        self.leaderless = self.leaderless.saturating_sub(1);
        self.no_room = self.no_room.saturating_sub(1);
        // Groups are moved while a majority is there.
        if self.answers() {
            self.members.retain(|_, member| !member.leaving);
        }
        // Somebody leads who was not asked not to, if there is one. A process that starts anew has forgotten the question.
        for (node, member) in &mut self.members {
            member.rests &= up.contains(node);
        }
        let willing = self.members.iter().filter(|(node, _)| up.contains(node));
        let leads = willing.min_by_key(|(node, member)| (member.rests, **node));
        let leads = leads.map(|(node, _)| *node);
        for (node, member) in &mut self.members {
            member.leads = u32::from(Some(*node) == leads);
        }
    }

    pub fn act(&mut self, step: &Step) {
        match step {
            Step::Done | Step::Wait(_) => {}
            Step::CreateClaim { node, initial } => {
                assert!(self.ids.insert(*node), "node id {node} was given twice");
                assert!(
                    *node > self.highest,
                    "node id {node} belonged to another disk"
                );
                let claim = Claim {
                    initial: initial.clone(),
                    used: false,
                    retired: false,
                };
                self.claims.insert(*node, claim);
            }
            Step::CreatePod { node } => {
                let claim = self.claims.get_mut(node);
                claim.expect("a pod has a disk").used = true;
                let pod = Pod {
                    hash: self.desired.hash.clone(),
                    runs: false,
                    ready: false,
                    leaving: false,
                    overdue: false,
                };
                self.age.insert(*node, 0);
                assert!(
                    self.pods.insert(*node, pod).is_none(),
                    "two pods of node {node}"
                );
            }
            Step::AddNode { node } => {
                assert!(self.pods.contains_key(node), "node {node} is not there");
                self.highest = self.highest.max(*node);
                let joins = Member {
                    joining: true,
                    ..Member::default()
                };
                self.members.entry(*node).or_insert(joins);
            }
            Step::RemoveNode { node } => self.remove(*node),
            Step::SetReplicationFactor { factor } => {
                assert!(
                    self.settled() || *factor < self.factor,
                    "copies are made while others are behind"
                );
                assert!(self.members.len() >= *factor, "fewer nodes than copies");
                self.factor = *factor;
            }
            Step::MoveLeaders { node } => {
                assert!(self.settled(), "leaders are moved while copies are behind");
                self.members.get_mut(node).expect("a member").rests = true;
            }
            Step::DeletePod { node } => {
                let member = self.members.contains_key(node);
                let mut others = self.members.keys().filter(|other| *other != node);
                let sound = others.all(|other| self.stays(*other));
                let needed = member && self.up(*node);
                assert!(!needed || sound, "a second process was taken down");
                self.end(*node);
            }
            Step::Retire { node } => {
                assert!(
                    !self.members.contains_key(node),
                    "the disk of a member was given up"
                );
                self.claims.get_mut(node).expect("it is there").retired = true;
            }
        }
    }

    /// The pod is told to go.
    fn end(&mut self, node: u64) {
        self.pods.get_mut(&node).expect("it is there").leaving = true;
        self.age.insert(node, 0);
    }

    fn remove(&mut self, node: u64) {
        let staying = self.members.keys().filter(|other| **other != node).count();
        assert!(staying >= self.factor, "fewer nodes than copies would stay");
        let up = self
            .members
            .keys()
            .filter(|other| **other != node && self.up(**other))
            .count();
        assert!(
            self.up(node) <= self.settled(),
            "a sound node goes while copies are behind"
        );
        assert!(
            up * 2 > self.members.len() - 1,
            "a removal that no majority would survive"
        );
        let leaving = self
            .members
            .values()
            .filter(|member| member.leaving)
            .count();
        assert_eq!(leaving, 0, "two removals at once");
        self.members.get_mut(&node).expect("a member").leaving = true;
    }

    pub fn trouble(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::PodGone(node) => {
                self.pods.remove(node);
                self.dead.remove(node);
            }
            Trouble::Evicted(node) => {
                let sound = |pod: &Pod| pod.ready && !pod.leaving;
                if self.pods.contains_key(node) && self.pods.values().all(sound) {
                    self.end(*node);
                }
            }
            Trouble::NeverEnds(node) => {
                let unknown = self.begun && !self.members.contains_key(node);
                if self.pods.contains_key(node) && (unknown || self.survives_a_loss()) {
                    self.end(*node);
                    self.dead.insert(*node);
                }
            }
            Trouble::VolumeGone(node) => {
                if self.survives_a_loss() {
                    self.pods.remove(node);
                    self.dead.remove(node);
                    self.claims.remove(node);
                    // A disk that the queue never heard of was nobody's: its id may be given to another.
                    if *node > self.highest {
                        self.ids.remove(node);
                    }
                }
            }
            Trouble::Scale(replicas) => {
                self.desired.replicas = (*replicas).max(self.desired.replication_factor);
            }
            Trouble::Copies(copies) => {
                self.desired.replication_factor = *copies;
                self.desired.replicas = self.desired.replicas.max(*copies);
            }
            Trouble::Image(0) => self.desired.hash = BAD.into(),
            Trouble::Image(image) => self.desired.hash = format!("{image}"),
            Trouble::Leaderless(turns, control) => {
                (self.leaderless, self.control) = (*turns, *control);
            }
            Trouble::NoRoom(turns) => self.no_room = *turns,
            Trouble::None | Trouble::OperatorDies | Trouble::QueueSilent => {}
        }
    }

    /// One disk at a time, as the promise says: not while another node is away.
    fn survives_a_loss(&self) -> bool {
        let whole = self.members.keys().all(|member| self.stays(*member));
        self.begun && self.settled() && whole && self.members.len() > 2
    }

    /// But for what is left of nodes whose pods never end.
    pub fn as_declared(&self) -> bool {
        let claims = self.claims.iter().filter(|(_, claim)| !claim.retired);
        let live = claims.filter(|(node, _)| !self.dead.contains(node)).count();
        let pods = self.pods.iter();
        let pods = pods.filter(|(node, _)| !self.dead.contains(node));
        self.factor == self.desired.replication_factor
            && self.members.len() == self.desired.replicas
            && pods.clone().count() == self.desired.replicas
            && live == self.desired.replicas
            && pods.clone().all(|(_, pod)| pod.hash == self.desired.hash)
    }

    /// Nothing is to be done any more, or all that is left is to wait for a pod that never ends.
    pub fn at_rest(&self, step: &Step) -> bool {
        match step {
            Step::Wait(_) => !self.dead.is_empty(),
            step => *step == Step::Done,
        }
    }
}
