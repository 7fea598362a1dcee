//! Queue nodes come and go under load: real processes, nothing acknowledged lost. `SIZE=full`: 3 to 6 to 3 with 16 shards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::QueueClient;
use proto::v1::{AddNodeRequest, MembersResponse};
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

const DOMAINS: [&str; 3] = ["d0.test", "d1.test", "d2.test"];
/// For all messages to get their 250, for the queue to be empty, for groups to be where they should be.
const PATIENCE: Duration = Duration::from_secs(300);
/// Mail passes when so many more messages got 250.
const WAIT_FOR: u64 = 50;
const LOOK: Duration = Duration::from_millis(250);

fn spec(sink: &Sink) -> Spec {
    let relays: Vec<(&str, u16)> = DOMAINS.iter().map(|d| (*d, sink.port)).collect();
    Spec {
        edges: 1,
        deliveries: 1,
        shards: size(4, 16),
        ..Spec::full(&relays)
    }
}

/// Waits until the nodes are as they should be and `done`; what is seen last is the error.
async fn until(
    admin: &QueueClient,
    what: &str,
    done: impl Fn(&MembersResponse) -> bool,
) -> MembersResponse {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = admin.admin().members().await;
        if let Ok(members) = &seen
            && done(members)
        {
            return members.clone();
        }
        assert!(Instant::now() < end, "{what}: {seen:#?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn nodes(members: &MembersResponse) -> Vec<u64> {
    members.nodes.iter().map(|node| node.node).collect()
}

/// Each group on three nodes of these, with a leader, and nothing left to do.
fn whole(members: &MembersResponse, on: &[u64]) -> bool {
    whole_with(members, on, 3)
}

/// The same with another number of copies.
fn whole_with(members: &MembersResponse, on: &[u64], copies: usize) -> bool {
    members.moves_left == 0
        && members.groups.iter().all(|group| {
            group.leader_node != 0
                && group.voters.len() == copies
                && group.learners.is_empty()
                && group.outgoing.is_empty()
                && group.voters.iter().all(|node| on.contains(node))
        })
}

/// Replicas and leaders are within one of even.
fn even(members: &MembersResponse) -> bool {
    let mut held: BTreeMap<u64, (u32, u32)> =
        nodes(members).into_iter().map(|id| (id, (0, 0))).collect();
    for group in &members.groups {
        for voter in &group.voters {
            held.entry(*voter).or_default().0 += 1;
        }
        held.entry(group.leader_node).or_default().1 += 1;
    }
    let spread = |of: fn(&(u32, u32)) -> u32| {
        let counts = || held.values().map(of);
        counts().max().unwrap_or(0) - counts().min().unwrap_or(0)
    };
    spread(|(replicas, _)| *replicas) <= 1 && spread(|(_, leads)| *leads) <= 1
}

fn add(node: u64, peer: String) -> AddNodeRequest {
    AddNodeRequest {
        node,
        peer_address: peer,
        ..AddNodeRequest::default()
    }
}

async fn load(count: u64, cluster: &Cluster) -> Client {
    let load = Load {
        pause: Duration::from_millis(30),
        ..Load::new(count, &DOMAINS)
    };
    Client::start(&cluster.edges, load)
}

/// Mail that comes for as long as nobody stops it, and stays in the queue: the only delivery node is not there. So every replica
/// that comes must get bodies, and every one that goes has some.
async fn undelivered(cluster: &mut Cluster) -> Client {
    cluster.kill("delivery-1").unwrap();
    let client = load(u64::MAX, cluster).await;
    client.acked(WAIT_FOR, PATIENCE).await.unwrap();
    client
}

/// The nodes are where they shall be, and mail comes still: all of it arrives.
async fn arrives(cluster: &mut Cluster, admin: &QueueClient, client: &mut Client) {
    let acked = client.ledger.acked();
    client.acked(acked + WAIT_FOR, PATIENCE).await.unwrap();
    client.stop().await;
    cluster.drained(admin, PATIENCE).await.unwrap();
}

/// What is refused is refused with a text that says what to do; what is moved is moved; a node that joins is known, and one
/// that leaves is gone, whether or not its replicas had arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_under_load_and_leaves_again_and_nothing_is_lost() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let mut client = load(size(600, 4_000), &cluster).await;
    let three = [1, 2, 3];
    until(&admin, "three nodes, evenly", |m| {
        whole(m, &three) && even(m)
    })
    .await;

    let refused = admin.admin().remove_node(2).await.unwrap_err().to_string();
    assert!(
        refused.contains("2 node(s) for the 3 copies of the control group"),
        "{refused}"
    );
    let refused = admin
        .admin()
        .add_node(add(0, "127.0.0.1:1".into()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("out of range"), "{refused}");

    let peer = cluster.wait_to_join(4).unwrap();
    admin.admin().add_node(add(4, peer.clone())).await.unwrap();
    admin.admin().add_node(add(4, peer)).await.unwrap();
    let ready = |m: &MembersResponse| m.nodes.iter().any(|n| n.node == 4 && n.state == "Ready");
    until(&admin, "node 4 takes part", ready).await;
    cluster.ready("queue-4").await.unwrap();
    until(&admin, "node 4 is given replicas", |m| {
        m.nodes.iter().any(|n| n.node == 4 && n.groups > 0)
    })
    .await;

    admin.admin().remove_node(4).await.unwrap();
    admin.admin().remove_node(4).await.unwrap();
    until(&admin, "node 4 is gone", |m| {
        nodes(m) == three && whole(m, &three)
    })
    .await;
    let status = cluster
        .process("queue-4")
        .unwrap()
        .end(Duration::from_secs(30))
        .await
        .unwrap();
    assert!(!status.success());
    let said = cluster.process("queue-4").unwrap().said();
    assert!(
        said.contains("node 4 was removed from the cluster"),
        "{said}"
    );
    let refused = admin
        .admin()
        .add_node(add(4, "127.0.0.1:1".into()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("above 4"), "{refused}");

    admin.admin().move_leaders(1).await.unwrap();
    until(&admin, "node 1 leads nothing", |m| {
        m.groups
            .iter()
            .all(|group| ![0, 1].contains(&group.leader_node))
    })
    .await;
    cluster.kill("queue-4").unwrap();
    client.done(PATIENCE).await.unwrap();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    judge(&client, &[&sink], &[]).must_hold();
}

/// A disk is lost: its node id is removed, another one takes its place, and the old id never comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_refused_under_its_old_id() {
    let sink = Sink::start().await.unwrap();
    let mut spec = spec(&sink);
    (spec.edges, spec.deliveries) = (0, 0);
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    until(&admin, "three nodes", |m| whole(m, &[1, 2, 3])).await;
    cluster.kill("queue-3").unwrap();
    cluster.come_back_empty(3).unwrap();
    let process = cluster.process("queue-3").unwrap();
    let status = process.end(Duration::from_secs(30)).await.unwrap();
    let said = process.said();
    assert!(!status.success(), "{status}");
    assert!(
        said.contains("node 3 already took part") && said.contains("new id"),
        "{said}"
    );
}

/// The whole way: nodes come, replicas and leaders spread, a disk is lost and replaced, nodes go.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_more_and_three_again_under_load() {
    let sink = Sink::start().await.unwrap();
    let mut cluster = Cluster::start(spec(&sink)).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let mut client = undelivered(&mut cluster).await;
    let mut now = vec![1, 2, 3];
    for node in 4..=size(5, 6) {
        let peer = cluster.wait_to_join(node).unwrap();
        admin
            .admin()
            .add_node(add(node.into(), peer))
            .await
            .unwrap();
        now.push(node.into());
    }
    until(&admin, "more nodes, evenly", |m| {
        nodes(m) == now && whole(m, &now) && even(m)
    })
    .await;
    // A disk is lost.
    cluster.kill("queue-2").unwrap();
    let new = size(6, 7);
    let peer = cluster.wait_to_join(new).unwrap();
    admin.admin().add_node(add(new.into(), peer)).await.unwrap();
    admin.admin().remove_node(2).await.unwrap();
    now.retain(|node| *node != 2);
    now.push(new.into());
    until(&admin, "the lost one is replaced", |m| {
        nodes(m) == now && whole(m, &now) && even(m)
    })
    .await;
    // It is told of the first three nodes, and must find the others before those go.
    cluster.spawn("delivery-1").unwrap();
    cluster.ready("delivery-1").await.unwrap();
    while now.len() > 3 {
        let node = now.remove(0);
        admin.admin().remove_node(node).await.unwrap();
        until(&admin, "one goes", |m| {
            nodes(m) == now && whole(m, &now) && even(m)
        })
        .await;
        cluster.kill(&format!("queue-{node}")).unwrap();
    }
    arrives(&mut cluster, &admin, &mut client).await;
    judge(&client, &[&sink], &[]).must_hold();
}

/// A queue that began with single copies gets three of each group while mail goes through; from then on a node may die.
#[tokio::test(flavor = "multi_thread")]
async fn single_copies_become_three_under_load_and_then_a_node_may_die() {
    let sink = Sink::start().await.unwrap();
    let mut spec = spec(&sink);
    for queue in ["queue-1", "queue-2", "queue-3"] {
        spec = spec.with(queue, &["--replication-factor", "1"]);
    }
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let mut client = undelivered(&mut cluster).await;
    let three = [1, 2, 3];
    until(&admin, "single copies", |m| whole_with(m, &three, 1)).await;
    let refused = admin.admin().set_replication_factor(5).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("need 5 nodes, and 3 can have one"), "{text}");
    // Once every node's program was heard of, the control group takes the command.
    let end = Instant::now() + PATIENCE;
    while let Err(refused) = admin.admin().set_replication_factor(3).await {
        let text = refused.to_string();
        assert!(text.contains("older program"), "{text}");
        assert!(Instant::now() < end, "{text}");
        tokio::time::sleep(LOOK).await;
    }
    until(&admin, "three copies, evenly", |m| {
        whole(m, &three) && even(m)
    })
    .await;
    cluster.kill("queue-2").unwrap();
    cluster.spawn("delivery-1").unwrap();
    arrives(&mut cluster, &admin, &mut client).await;
    judge(&client, &[&sink], &[]).must_hold();
}
