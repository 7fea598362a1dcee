//! The driver of the lease side: a stream to each leader, and the one task that holds [`Leases`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use proto::client::LeaseStream;
use proto::{TopologyView, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::attempt::Work;
use crate::connection::now;
use crate::item::ItemId;
use crate::lease::{Effect, Leases};
use crate::node::{Node, Said};

/// Events taken from a stream at once.
const EVENTS_BATCH: usize = 64;
/// Batches that wait for the task; a stream beyond is read no further.
const BATCHES_WAITING_MAX: usize = 8;
/// How often the time is looked at: fences and keepalives need no finer clock.
const TICK: Duration = Duration::from_millis(250);
/// Of a stream's places for requests, one part in so many is for what is said of destinations; the rest is kept for what
/// keeps lease sessions alive.
const HINTS_PART: usize = 4;
/// Between two tries to reach a queue node.
const RECONNECT_AFTER: Duration = Duration::from_millis(300);

/// What comes from the streams.
enum Heard {
    Up(String, mpsc::Sender<v1::LeaseRequest>, Box<LeaseStream>),
    Events(String, u64, Vec<v1::LeaseEvent>),
    Down(String, u64),
}

struct Link {
    serial: u64,
    ask: mpsc::Sender<v1::LeaseRequest>,
    reader: CancellationToken,
}

/// The task's state.
struct Driver {
    node: Arc<Node>,
    leases: Leases,
    hello: v1::LeaseHello,
    links: HashMap<String, Link>,
    connecting: HashSet<String>,
    wanted: Vec<String>,
    heard: mpsc::Sender<Heard>,
    /// Ends the streams' tasks with the driver.
    over: CancellationToken,
}

/// Runs until `over`.
pub(crate) async fn run(
    node: Arc<Node>,
    leases: Leases,
    hello: v1::LeaseHello,
    mut said: mpsc::UnboundedReceiver<Said>,
    ready: watch::Sender<bool>,
    over: CancellationToken,
) {
    let (heard, mut hearing) = mpsc::channel(BATCHES_WAITING_MAX);
    let mut topology = node.queue.topology();
    let (links, connecting) = (HashMap::new(), HashSet::new());
    let mut driver = Driver {
        node,
        leases,
        hello,
        links,
        connecting,
        wanted: Vec::new(),
        heard,
        over: over.clone(),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let view = topology.borrow_and_update().clone();
    driver.topology(&view);
    loop {
        let mut out = Vec::new();
        tokio::select! {
            () = over.cancelled() => return,
            () = driver.node.leaving.cancelled(), if !driver.leases.is_leaving() => driver.leases.leave(),
            Ok(()) = topology.changed() => {
                let view = topology.borrow_and_update().clone();
                driver.topology(&view);
            }
            Some(heard) = hearing.recv() => driver.hear(heard, &mut out),
            Some(said) = said.recv() => driver.listen(said),
            () = driver.node.credit.notified() => {}
            _ = tick.tick() => {
                driver.node.tidy(now());
                driver.connect();
            }
        }
        driver.leases.tick(&mut driver.node.hand(), now(), &mut out);
        driver.carry_out(out);
        driver.hint();
        let is_ready = driver.leases.ready();
        ready.send_if_modified(|ready| std::mem::replace(ready, is_ready) != is_ready);
    }
}

impl Driver {
    fn topology(&mut self, view: &TopologyView) {
        self.node
            .shards
            .store(view.shards().max(1), Ordering::Relaxed);
        let leader = |shard| (shard, view.known_leader(shard).map(str::to_string));
        let leaders: Vec<_> = (0..view.shards()).map(leader).collect();
        self.wanted = self.leases.topology(&leaders, view.nodes().len());
        self.connect();
    }

    /// Opens the streams that are wanted and not there.
    fn connect(&mut self) {
        for address in &self.wanted {
            if self.links.contains_key(address) || !self.connecting.insert(address.clone()) {
                continue;
            }
            let (queue, heard, address) =
                (self.node.queue.clone(), self.heard.clone(), address.clone());
            let (hello, over) = (self.hello.clone(), self.over.clone());
            tokio::spawn(over.run_until_cancelled_owned(async move {
                let up = match queue.lease(&address, hello).await {
                    Ok((ask, stream)) => Heard::Up(address, ask, Box::new(stream)),
                    Err(status) => {
                        tracing::debug!(address, error = %status, "no Lease stream");
                        tokio::time::sleep(RECONNECT_AFTER).await;
                        // Serial 0 is no stream's: only the trying is over.
                        Heard::Down(address, 0)
                    }
                };
                let _ = heard.send(up).await;
            }));
        }
    }

    fn hear(&mut self, heard: Heard, out: &mut Vec<Effect>) {
        match heard {
            Heard::Up(address, ask, stream) => {
                self.connecting.remove(&address);
                let serial = self.leases.link_up(&address, &mut self.node.hand());
                let reader = self.over.child_token();
                let read = read(address.clone(), serial, stream, self.heard.clone());
                tokio::spawn(reader.clone().run_until_cancelled_owned(read));
                self.links.insert(
                    address,
                    Link {
                        serial,
                        ask,
                        reader,
                    },
                );
            }
            Heard::Events(address, serial, events) => {
                // What a stream still said before it was given up is old.
                if self
                    .links
                    .get(&address)
                    .is_none_or(|link| link.serial != serial)
                {
                    return;
                }
                let node = self.node.clone();
                let mut hand = node.hand();
                for event in events {
                    self.leases.event(serial, event, &mut hand, now(), out);
                }
            }
            Heard::Down(address, serial) => {
                self.connecting.remove(&address);
                self.down(&address, serial);
            }
        }
    }

    fn down(&mut self, address: &str, serial: u64) {
        self.leases.link_down(address, serial);
        if self
            .links
            .get(address)
            .is_some_and(|link| link.serial == serial)
            && let Some(link) = self.links.remove(address)
        {
            link.reader.cancel();
        }
    }

    fn listen(&mut self, said: Said) {
        match said {
            Said::Window(destination, items) => self.leases.window(&destination, items),
            Said::Busy(destination, pause) => self.leases.busy(&destination, pause, now()),
            Said::SettledFirst(shard) => self.leases.settled_first(shard),
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(address, what) => self.send(&address, what),
                Effect::Work(shard, handout) => {
                    if let Some(item) = ItemId::from_wire(handout.item.as_ref()) {
                        self.node.enqueue(Work {
                            item,
                            shard,
                            handout,
                            decided: Vec::new(),
                            lost: 0,
                            signature: self.node.signatures.of(item.message),
                        });
                    }
                }
                Effect::Recalled(request) => self.node.settle_request(request),
                Effect::Forgotten(item) => {
                    self.node.hand().drop_item(item);
                    self.node.forget(item);
                }
                Effect::Release {
                    shard,
                    item,
                    token,
                    session,
                } => self.node.release(shard, item, token, session),
            }
        }
    }

    /// Says of destinations what there is room for; the next tick goes on.
    fn hint(&mut self) {
        let room = |link: &Link| {
            let places = link.ask.max_capacity();
            let kept = places - places / HINTS_PART;
            link.ask.capacity().saturating_sub(kept)
        };
        let links = self.links.iter();
        let rooms: Vec<_> = links.map(|(at, link)| (at.clone(), room(link))).collect();
        for (address, room) in rooms {
            let hints = self.leases.hints(&address, room, now());
            self.carry_out(hints);
        }
    }

    fn send(&mut self, address: &str, what: v1::lease_request::What) {
        let Some(link) = self.links.get(address) else {
            return;
        };
        if link
            .ask
            .try_send(v1::LeaseRequest { what: Some(what) })
            .is_err()
        {
            // The queue node reads no more, or the stream broke: a new one begins with what is held.
            let serial = link.serial;
            tracing::debug!(
                address,
                "the Lease stream takes no more requests; it is opened again"
            );
            self.down(address, serial);
        }
    }
}

/// Reads a stream to its end.
async fn read(address: String, serial: u64, stream: Box<LeaseStream>, heard: mpsc::Sender<Heard>) {
    let mut batches = stream.ready_chunks(EVENTS_BATCH);
    while let Some(batch) = batches.next().await {
        let mut events = Vec::with_capacity(batch.len());
        for event in batch {
            match event {
                Ok(event) => events.push(event),
                Err(status) => tracing::debug!(address, error = %status, "the Lease stream broke"),
            }
        }
        if heard
            .send(Heard::Events(address.clone(), serial, events))
            .await
            .is_err()
        {
            return;
        }
    }
    let _ = heard.send(Heard::Down(address, serial)).await;
}
