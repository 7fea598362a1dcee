//! `postroad up`: everything in one process, over the same connections as between machines.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::client::ClientConfig;
use proto::{NodeTls, QueueClient};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::first_start::{self, Node, Opened};
use crate::retry::RetryTimes;
use crate::role::{self, Role};
use crate::{declared, health, settings, shutdown, telemetry};

/// Smaller than a cluster's: a laptop has many other uses for its disk.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Mail is accepted after this even when the queue has no leader yet: clients are told to come back, which is better than
/// silence.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Runs until a signal comes.
pub async fn run(settings: settings::Up) -> Result<(), Failure> {
    let metrics = telemetry::start_metrics()?;
    let stop_watching = CancellationToken::new();
    // What is wrong with the directory is said before anything else is done.
    let declared = match &settings.files {
        Some(dir) => Some((dir, declared::watch_files(dir, &stop_watching).await?)),
        None => None,
    };
    let hostname = role::hostname(settings.mail.hostname.as_deref())?;
    let opened = first_start::open(&settings.data, settings.replicas)?;
    opened.follow();

    let mut queues = Vec::new();
    for node in &opened.installation.nodes {
        let config = queue_config(&settings, &opened, node, hostname.to_string())?;
        let times = match &declared {
            Some((_, declared)) => RetryTimes::Files(declared.clone()),
            None => RetryTimes::Queue,
        };
        queues.push(role::queue(config, times));
    }
    until_led(&queues).await;
    let config = role::edge_config("up", hostname.clone(), settings.listen, settings.tls)?;
    let queue = client(&opened, proto::Role::Edge)?;
    let at_edge = match &declared {
        Some((dir, declared)) => {
            declared::of_files(dir, declared.clone(), proto::Role::Edge, &stop_watching).await
        }
        None => declared::follow_queue(&queue, None, None, proto::Role::Edge, &stop_watching),
    };
    let (edge, addresses) = role::edge(config, queue, at_edge.declared.clone())?;
    let mut config = delivery::Config::new("up", hostname.to_string(), opened.delivery_dir());
    config.own_addresses = role::own_addresses(&addresses);
    config.own_listen.clone_from(&addresses);
    config.smtp_port = settings.resolver.smtp_port;
    config.tls_ca = settings.resolver.tls_ca.clone();
    let queue = client(&opened, proto::Role::Delivery)?;
    let (seal, role) = (Some(opened.seal_dir()), proto::Role::Delivery);
    let followed = match &declared {
        Some((dir, declared)) => {
            declared::of_files(dir, declared.clone(), role, &stop_watching).await
        }
        None => declared::follow_queue(&queue, None, seal, role, &stop_watching),
    };
    let resolver = role::resolver(&settings.resolver, &followed.declared)?;
    let delivery = role::delivery(config, queue, followed.declared, resolver, followed.keys);

    let stages: Vec<Vec<Role>> = vec![vec![edge], vec![delivery], queues];
    let probes = stages.iter().flatten().map(|role| role.probe.clone());
    let admin = health::serve(settings.admin_listen, probes.collect(), metrics).await?;
    let announce = || {
        let relays = match at_edge.declared.borrow().as_ref() {
            Some(catalog) if !catalog.relays_nothing() => {
                let (inbound, networks) = catalog.counts();
                format!("mail to {inbound} domain(s) and from {networks} network(s)")
            }
            _ => "no mail at all, because no RelayDomain is declared (-f DIR, or postroad apply -f DIR)".into(),
        };
        println!(
            "postroad accepts {relays} on {}; health and metrics: {}; data: {}; stop: Ctrl-C",
            list(&addresses),
            admin.map_or("off".into(), |address| format!("http://{address}")),
            settings.data.display(),
        );
    };
    shutdown::run(stages, announce).await
}

/// The queue needs a moment to recover and to elect. Who starts before it only logs that nobody is there; when it does
/// not start at all, its role says why.
async fn until_led(queues: &[Role]) {
    let until = Instant::now() + RECOVERY_PATIENCE;
    while Instant::now() < until && queues.iter().any(|queue| queue.probe.ask().is_err()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    texts.join(", ")
}

fn load(opened: &Opened, name: &str) -> Result<Arc<NodeTls>, Failure> {
    let tls = NodeTls::load(&opened.pki_dir(name)).map_err(Failure::failed)?;
    let tls = Arc::new(tls);
    tls.follow();
    Ok(tls)
}

fn client(opened: &Opened, role: proto::Role) -> Result<QueueClient, Failure> {
    Ok(QueueClient::new(ClientConfig {
        endpoints: opened.installation.nodes.iter().map(Node::client).collect(),
        tls: load(opened, role.as_str())?,
        name: "up".into(),
    }))
}

fn queue_config(
    settings: &settings::Up,
    opened: &Opened,
    node: &Node,
    hostname: String,
) -> Result<spool::Config, Failure> {
    let installation = &opened.installation;
    let initial: BTreeMap<u64, String> = installation
        .nodes
        .iter()
        .map(|node| (node.node.into(), node.peer()))
        .collect();
    let on_loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(spool::Config {
        dir: opened.queue_dir(node.node),
        node: node.node.into(),
        cluster_id: settings::parse(&installation.cluster_id).ok_or_else(|| {
            Failure::Failed(format!(
                "up.json holds `{}`, which is no cluster id; restore it, or start anew with another --data",
                installation.cluster_id
            ))
        })?,
        listen_peer: on_loopback(node.peer_port),
        listen_client: on_loopback(node.client_port),
        advertise_peer: node.peer(),
        advertise_client: node.client(),
        replication_factor: initial.len() as u32,
        initial_cluster: initial,
        initial_state: spool::InitialState::New,
        shards: installation.shards,
        tls: load(opened, &format!("queue-{}", node.node))?,
        disk_bytes: role::disk_bytes(&settings.disk),
        disk_bytes_per_second: role::disk_bytes_per_second(&settings.disk),
        segment_bytes: role::segment_bytes(&settings.disk, SEGMENT_BYTES),
        retention: role::retention(&settings.disk),
        retry: tokio::sync::watch::channel(queue::retry::Policy::default()).1,
        hostname,
        zone: String::new(),
        state_machine: spool::wire::log::STATE_MACHINE_VERSION,
    })
}
