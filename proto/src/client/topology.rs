//! Who leads: what the queue nodes say about it, merged, and the task that listens to two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use ulid::Ulid;

use super::{CALL_TIMEOUT, Nodes, explain};
use crate::v1::queue_client::QueueClient as Stub;
use crate::v1::{Topology, WatchTopologyRequest};

/// Topology comes at least every 5 s; three times that without any is a dead node.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The first pause after a node that cannot be followed; doubled up to the next, with jitter of a half.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A cluster that starts is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A node that was followed for less than this is not left on a caller's wish: callers come in crowds.
const FOLLOW_MIN: Duration = Duration::from_secs(2);

/// Who leads a group, as far as known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leader {
    term: u64,
    node: u64,
    address: String,
}

/// The queue as this node knows it.
#[derive(Clone, Debug, Default)]
pub struct TopologyView {
    cluster_id: Bytes,
    shards: u32,
    leaders: BTreeMap<u32, Leader>,
    nodes: BTreeMap<u64, String>,
    cluster_time: Option<(u64, Instant)>,
    trouble: Option<String>,
}

impl TopologyView {
    /// 16 octets; empty before the first node answered.
    pub fn cluster_id(&self) -> &[u8] {
        &self.cluster_id
    }

    /// How many shards there are; 0 before the first node answered.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// The shard of a message: the low byte of its id mod `shards`. 0 before the first node answered.
    pub fn shard_of(&self, message: Ulid) -> u32 {
        u32::from(message.to_bytes()[15]) % self.shards.max(1)
    }

    /// The client address of the shard's leader, when one is known.
    pub fn known_leader(&self, shard: u32) -> Option<&str> {
        self.leader_of_group(shard + 1)
    }

    /// The client address of a group's leader; group 0 is control.
    pub fn leader_of_group(&self, group: u32) -> Option<&str> {
        self.leaders
            .get(&group)
            .map(|leader| leader.address.as_str())
            .filter(|a| !a.is_empty())
    }

    /// Each leader's address with the shards that it leads.
    pub fn leaders(&self) -> BTreeMap<&str, Vec<u32>> {
        let mut led: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for shard in 0..self.shards {
            if let Some(address) = self.known_leader(shard) {
                led.entry(address).or_default().push(shard);
            }
        }
        led
    }

    /// Client addresses of all queue nodes, by node id.
    pub fn nodes(&self) -> &BTreeMap<u64, String> {
        &self.nodes
    }

    /// An estimate of cluster time, ms since 1970: what was heard last and the time since. `None` before any leader
    /// has said it. Late by the way of one message, never early.
    pub fn cluster_time_ms(&self, now: Instant) -> Option<u64> {
        let (ms, heard) = self.cluster_time?;
        let since = now.saturating_duration_since(heard).as_millis();
        Some(ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX)))
    }

    /// Why no node can be followed just now; `None` while one is.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn has_address(&self, address: &str) -> bool {
        self.nodes.values().any(|known| known == address)
            || self
                .leaders
                .values()
                .any(|leader| leader.address == address)
    }

    /// Everybody who could be asked: the configured ones, then those that were learned.
    pub(super) fn addresses(&self, configured: &[String]) -> Vec<String> {
        let learned = self
            .nodes
            .values()
            .filter(|a| !a.is_empty() && !configured.contains(a));
        configured.iter().chain(learned).cloned().collect()
    }

    /// See [`super::QueueClient::new_message_id`].
    pub(super) fn choose_id(&self, now_ms: u64, random: u128) -> Ulid {
        let drawn = Ulid::from_parts(now_ms, random & ((1 << Ulid::RAND_BITS) - 1));
        let mut bytes = drawn.to_bytes();
        // Going on from the drawn shard spreads the mail of a shard without a leader unevenly, for seconds.
        for _ in 0..self.shards {
            let id = Ulid::from_bytes(bytes);
            if self.known_leader(self.shard_of(id)).is_some() {
                return id;
            }
            bytes[15] = bytes[15].wrapping_add(1);
        }
        drawn
    }

    /// Takes in what a node says. An older term is old news; in the same term a leader once known stays known.
    pub(crate) fn merge(&mut self, heard: Topology, now: Instant) {
        self.cluster_id = heard.cluster_id;
        self.shards = heard.shards;
        self.trouble = None;
        for group in heard.groups {
            let new = Leader {
                term: group.term,
                node: group.leader_node,
                address: if group.leader_node == 0 {
                    String::new()
                } else {
                    group.leader_address
                },
            };
            let keep = self.leaders.get(&group.group).is_some_and(|known| {
                known.term > new.term
                    || (known.term == new.term && new.node == 0 && known.node != 0)
            });
            if !keep {
                self.leaders.insert(group.group, new);
            }
        }
        if !heard.nodes.is_empty() {
            self.nodes = heard
                .nodes
                .into_iter()
                .map(|n| (n.node, n.client_address))
                .collect();
        }
        if heard.cluster_time_ms > 0 {
            // Nodes differ by what each applied; the estimate never goes back.
            let before = self.cluster_time_ms(now).unwrap_or(0);
            self.cluster_time = Some((heard.cluster_time_ms.max(before), now));
        }
    }
}

/// The nodes that are followed now. Two at a time, so that one that hangs, which nobody can tell from one that has
/// nothing to say for six seconds, does not keep the others' elections from this client.
#[derive(Default)]
struct Followed(Mutex<BTreeSet<String>>);

impl Followed {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next address from `turn` on that nobody follows.
    fn choose(&self, addresses: &[String], turn: usize) -> Option<String> {
        let mut followed = self.lock();
        let from = turn % addresses.len().max(1);
        let in_turn = addresses.iter().cycle().skip(from).take(addresses.len());
        let address = in_turn
            .into_iter()
            .find(|a| !followed.contains(*a))?
            .clone();
        followed.insert(address.clone());
        Some(address)
    }

    /// Whether nobody is followed any more.
    fn leave(&self, address: &str) -> bool {
        let mut followed = self.lock();
        followed.remove(address);
        followed.is_empty()
    }
}

/// Follows the topology at two nodes as long as the client lives, and at others when one cannot be followed.
pub(super) async fn follow(
    nodes: Arc<Nodes>,
    publish: watch::Sender<Arc<TopologyView>>,
    elsewhere: Arc<Notify>,
) {
    let followed = Followed::default();
    let turn: usize = rand::random_range(0..usize::MAX / 2);
    let follower = |turn| follow_in_turn(&nodes, &publish, &elsewhere, &followed, turn);
    tokio::join!(follower(turn), follower(turn + 1));
}

/// Follows one node after another.
async fn follow_in_turn(
    nodes: &Nodes,
    publish: &watch::Sender<Arc<TopologyView>>,
    elsewhere: &Notify,
    followed: &Followed,
    mut turn: usize,
) {
    let mut pause = PAUSE_MIN;
    let mut said = String::new();
    loop {
        let addresses = publish.borrow().addresses(&nodes.config.endpoints);
        if addresses.is_empty() {
            tracing::error!(
                "no address of a queue node is configured; nothing can be appended or leased"
            );
            return;
        }
        let Some(address) = followed.choose(&addresses, turn) else {
            // The other one follows the only node that there is.
            tokio::time::sleep(PAUSE_MAX).await;
            continue;
        };
        let started = Instant::now();
        let why = follow_one(nodes, &address, publish, elsewhere).await;
        let nobody = followed.leave(&address);
        if started.elapsed() > FOLLOW_MIN {
            pause = PAUSE_MIN;
        }
        let why = format!("{address}: {why}");
        // A node that is down is tried every second: say each reason once.
        if why != said {
            tracing::warn!(
                reason = why,
                "cannot follow the queue's topology at this node; trying the next"
            );
            said.clone_from(&why);
        }
        if nobody {
            publish.send_if_modified(|view| {
                Arc::make_mut(view).trouble = Some(why);
                false
            });
        }
        turn = turn.wrapping_add(1);
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Returns why it ended.
async fn follow_one(
    nodes: &Nodes,
    address: &str,
    publish: &watch::Sender<Arc<TopologyView>>,
    elsewhere: &Notify,
) -> String {
    let node = match nodes.get(address) {
        Ok(node) => node,
        Err(why) => return why,
    };
    let mut stub = Stub::new(node.channel.clone());
    let ask = stub.watch_topology(WatchTopologyRequest {
        name: nodes.config.name.clone(),
    });
    let mut stream = match tokio::time::timeout(CALL_TIMEOUT, ask).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return explain(&status),
        Err(_) => return format!("no answer for {} s", CALL_TIMEOUT.as_secs()),
    };
    let started = Instant::now();
    loop {
        let heard = tokio::select! {
            heard = tokio::time::timeout(SILENCE_MAX, stream.message()) => heard,
            () = elsewhere.notified(), if started.elapsed() > FOLLOW_MIN => {
                return "requests fail at the leaders that it names".into();
            }
        };
        let topology = match heard {
            Ok(Ok(Some(topology))) => topology,
            Ok(Ok(None)) => return "it ended the stream; it is shutting down".into(),
            Ok(Err(status)) => return explain(&status),
            Err(_) => return format!("it said nothing for {} s", SILENCE_MAX.as_secs()),
        };
        let known = publish.borrow().cluster_id.clone();
        if !known.is_empty() && known != topology.cluster_id {
            return "it belongs to another cluster than the node before it; correct the addresses"
                .into();
        }
        if topology.shards == 0 {
            // It has not met its cluster yet: leave it for one that has.
            return "it knows no shards yet; the cluster is still being formed".into();
        }
        publish.send_modify(|view| Arc::make_mut(view).merge(topology, Instant::now()));
        nodes.retain(&publish.borrow());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{GroupLeader, NodeAddress};

    fn heard(groups: &[(u32, u64, u64)], time: u64) -> Topology {
        Topology {
            cluster_id: Bytes::from_static(&[7; 16]),
            shards: 4,
            cluster_time_ms: time,
            groups: groups
                .iter()
                .map(|&(group, term, leader_node)| GroupLeader {
                    group,
                    term,
                    leader_node,
                    leader_address: format!("q{leader_node}:7100"),
                })
                .collect(),
            nodes: vec![NodeAddress {
                node: 1,
                client_address: "q1:7100".into(),
            }],
        }
    }

    #[test]
    fn an_older_term_does_not_bring_back_an_old_leader() {
        let mut view = TopologyView::default();
        view.merge(heard(&[(1, 5, 2)], 0), Instant::now());
        view.merge(heard(&[(1, 4, 1)], 0), Instant::now());
        assert_eq!(view.known_leader(0), Some("q2:7100"));
        view.merge(heard(&[(1, 5, 0)], 0), Instant::now());
        assert_eq!(
            view.known_leader(0),
            Some("q2:7100"),
            "the same term has the same leader"
        );
        view.merge(heard(&[(1, 6, 0)], 0), Instant::now());
        assert_eq!(
            view.known_leader(0),
            None,
            "a new term without a leader yet"
        );
        view.merge(heard(&[(1, 6, 3)], 0), Instant::now());
        assert_eq!(view.known_leader(0), Some("q3:7100"));
    }

    #[test]
    fn a_new_id_goes_to_a_shard_with_a_leader() {
        let mut view = TopologyView::default();
        assert_eq!(
            view.choose_id(1, 3).to_bytes()[15],
            3,
            "nothing known: as drawn"
        );
        view.merge(
            heard(&[(1, 1, 0), (2, 1, 0), (3, 1, 2), (4, 1, 0)], 0),
            Instant::now(),
        );
        for random in 0..512u128 {
            let id = view.choose_id(1_700_000_000_000, random);
            assert_eq!(view.shard_of(id), 2);
            assert_eq!(id.timestamp_ms(), 1_700_000_000_000);
        }
    }

    #[test]
    fn two_followers_never_follow_the_same_node() {
        let followed = Followed::default();
        let all = ["a".to_owned(), "b".to_owned()];
        assert_eq!(followed.choose(&all, 3).as_deref(), Some("b"));
        assert_eq!(followed.choose(&all, 3).as_deref(), Some("a"));
        assert_eq!(followed.choose(&all, 0), None, "both are followed");
        assert!(!followed.leave("b"), "the other still is");
        assert_eq!(followed.choose(&all[..1], 7), None);
        assert!(followed.leave("a"), "nobody is");
    }

    #[test]
    fn cluster_time_goes_on_and_never_back() {
        let start = Instant::now();
        let mut view = TopologyView::default();
        assert_eq!(view.cluster_time_ms(start), None);
        view.merge(heard(&[], 1_000), start);
        let later = start + Duration::from_millis(500);
        assert_eq!(view.cluster_time_ms(later), Some(1_500));
        view.merge(heard(&[], 1_200), later);
        assert_eq!(view.cluster_time_ms(later), Some(1_500));
        view.merge(heard(&[], 0), later);
        assert_eq!(view.cluster_time_ms(later), Some(1_500));
    }
}
