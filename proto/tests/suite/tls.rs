//! Who gets in and who does not, over real sockets, and what the refusals say.

use std::fs;
use std::time::Duration;

use proto::client::explain;
use proto::tls::{Connector, endpoint};
use proto::v1::queue_client::QueueClient as Stub;
use proto::v1::{LeaseHello, WatchTopologyRequest};
use proto::{NodeTls, Role};
use tonic::Status;

use crate::support::{Pki, Say, led_by, start};

const SOON: Duration = Duration::from_secs(5);

async fn watch(connector: Connector, address: &str) -> Result<(), Status> {
    let channel = endpoint(address)
        .unwrap()
        .connect_with_connector_lazy(connector);
    let mut stub = Stub::new(channel);
    stub.watch_topology(WatchTopologyRequest::default())
        .await
        .map(|_| ())
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let (ours, theirs) = (Pki::new("mail"), Pki::new("post"));
    let node = start(
        ours.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let client = theirs.client(Role::Edge, &[&node.address], SOON);
    let error = client
        .ready(Duration::from_millis(500))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("spiffe://mail/queue/1 was not made by this cluster's CA"),
        "{error}"
    );

    // The same name and another CA is another cluster too; here the server finds out, as the client trusts it.
    let mixed = theirs.issue(Role::Edge, "mixed");
    fs::copy(ours.dir.path().join("ca/ca.crt"), mixed.join("ca.crt")).unwrap();
    let error = NodeTls::load(&mixed).unwrap_err().to_string();
    assert!(
        error.contains("tls.crt") && error.contains("not made by this cluster's CA"),
        "{error}"
    );
}

#[tokio::test]
async fn a_role_without_the_right_is_told_which_it_needs() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let edge = pki.client(Role::Edge, &[&node.address], SOON);
    edge.ready(SOON).await.unwrap();
    let status = edge
        .lease(&node.address, LeaseHello::default())
        .await
        .unwrap_err();
    let text = explain(&status);
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(
        text.contains("spiffe://mail/edge/client") && text.contains("role delivery"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_talks_only_to_queue_nodes() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Delivery, "x"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let error = watch(Connector::new(pki.node(Role::Edge, "e")), &node.address)
        .await
        .unwrap_err();
    let text = explain(&error);
    assert!(
        text.contains("spiffe://mail/delivery/x has the role delivery, expected queue"),
        "{text}"
    );
}

#[tokio::test]
async fn a_replaced_certificate_is_used_for_the_next_handshake() {
    let pki = Pki::new("mail");
    let dir = pki.issue(Role::Queue, "1");
    let tls = std::sync::Arc::new(NodeTls::load(&dir).unwrap());
    let node = start(tls.clone(), |me| led_by(me, 1, &[me]), |_, _| Say::Nothing).await;
    let edge = pki.node(Role::Edge, "e");
    let to = |name| watch(Connector::to_node(edge.clone(), name), &node.address);
    to("1").await.unwrap();
    let error = explain(&to("2").await.unwrap_err());
    assert!(
        error.contains("is spiffe://mail/queue/1, expected queue node 2"),
        "{error}"
    );

    let next = pki.issue(Role::Queue, "2");
    fs::copy(next.join("tls.key"), dir.join("tls.key")).unwrap();
    tls.look_again();
    to("1")
        .await
        .expect("a key without its certificate: the former pair stays");

    fs::copy(next.join("tls.crt"), dir.join("tls.crt")).unwrap();
    tls.look_again();
    to("2").await.unwrap();
    assert_eq!(tls.identity().name, "2");

    let post = Pki::new("post");
    let foreign = post.issue(Role::Queue, "3");
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        fs::copy(foreign.join(file), dir.join(file)).unwrap();
    }
    tls.look_again();
    to("2")
        .await
        .expect("another cluster's certificate is not taken up");
}

#[tokio::test]
async fn a_silent_connection_holds_up_nobody() {
    let pki = Pki::new("mail");
    let node = start(
        pki.node(Role::Queue, "1"),
        |me| led_by(me, 1, &[me]),
        |_, _| Say::Nothing,
    )
    .await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(&node.address).await.unwrap());
    }
    let edge = Connector::new(pki.node(Role::Edge, "e"));
    tokio::time::timeout(SOON, watch(edge, &node.address))
        .await
        .unwrap()
        .unwrap();
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let pki = Pki::new("mail");
    let error = NodeTls::load(pki.dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("ca.crt") && error.contains("postroad pki issue"),
        "{error}"
    );

    let dir = pki.issue(Role::Edge, "a");
    fs::copy(
        pki.issue(Role::Edge, "b").join("tls.key"),
        dir.join("tls.key"),
    )
    .unwrap();
    let error = NodeTls::load(&dir).unwrap_err().to_string();
    assert!(
        error.contains("tls.key does not go with tls.crt")
            || error.contains("tls.key: does not go with"),
        "{error}"
    );

    fs::write(dir.join("tls.crt"), "no PEM").unwrap();
    let error = NodeTls::load(&dir).unwrap_err().to_string();
    assert!(
        error.contains("tls.crt") && error.contains("no certificate"),
        "{error}"
    );
}
