//! What a queue node is told of destinations: how much of each is wanted, and which back off. It makes work go better
//! and is never needed, so it waits behind everything else and for room on the stream: there may be ten thousand
//! destinations, and what keeps the lease sessions alive goes over the same stream.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use proto::v1;
use v1::lease_request::What as Request;

use super::{BUSY_MAX, Effect, Leases, WINDOW_DEFAULT, WINDOWS_MAX};

/// How often the destinations whose back-off is over are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// One thing to say; what exactly is looked up when it is said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hint {
    /// Its window changed.
    Window(String),
    /// It backs off.
    Busy(String),
}

/// What one stream has not been told, each once, oldest first.
#[derive(Debug, Default)]
pub(super) struct Hints {
    order: VecDeque<Hint>,
    known: HashSet<Hint>,
}

impl Hints {
    pub(super) fn push(&mut self, hint: Hint) {
        if self.known.insert(hint.clone()) {
            self.order.push_back(hint);
        }
    }

    fn pop(&mut self) -> Option<Hint> {
        let hint = self.order.pop_front()?;
        self.known.remove(&hint);
        Some(hint)
    }
}

impl Leases {
    /// This many unsettled items of a destination are wanted from each shard.
    pub(crate) fn window(&mut self, destination: &str, items: u32) {
        let before = self.windows.get(destination).copied();
        if before.unwrap_or(WINDOW_DEFAULT) == items {
            return;
        }
        if items == WINDOW_DEFAULT {
            self.windows.remove(destination);
        } else if self.windows.len() < WINDOWS_MAX || before.is_some() {
            self.windows.insert(destination.to_string(), items);
        } else {
            return;
        }
        for link in self.links.values_mut() {
            link.hints.push(Hint::Window(destination.to_string()));
        }
    }

    /// A destination is backing off: hand out nothing of it for so long.
    pub(crate) fn busy(&mut self, destination: &str, pause: Duration, now: Instant) {
        if self.busy.len() >= BUSY_MAX && !self.busy.contains_key(destination) {
            self.prune(now);
        }
        if self.busy.len() < BUSY_MAX || self.busy.contains_key(destination) {
            self.busy.insert(destination.to_string(), now + pause);
            for link in self.links.values_mut() {
                link.hints.push(Hint::Busy(destination.to_string()));
            }
        }
    }

    /// A lease session stands on the stream with this serial. The queue knows of a back-off by lease session, so one
    /// that was told before it began does not hold for it.
    pub(super) fn repeat_busy(&mut self, serial: u64) {
        let link = self.links.values_mut().find(|link| link.serial == serial);
        if let Some(link) = link {
            for destination in self.busy.keys() {
                link.hints.push(Hint::Busy(destination.clone()));
            }
        }
    }

    /// Forgets, now and then, which destinations backed off once.
    pub(super) fn prune_now_and_then(&mut self, now: Instant) {
        if self.pruned.is_none_or(|last| now - last >= PRUNE_EVERY) {
            self.prune(now);
        }
    }

    fn prune(&mut self, now: Instant) {
        self.pruned = Some(now);
        self.busy.retain(|_, until| *until > now);
    }

    /// What is to be told to the queue node at `address`, at most `room` requests; the rest waits for more room.
    pub(crate) fn hints(&mut self, address: &str, room: usize, now: Instant) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(link) = self.links.get_mut(address) else {
            return out;
        };
        while out.len() < room {
            let Some(hint) = link.hints.pop() else { break };
            let request = match hint {
                Hint::Window(destination) => {
                    let items = self.windows.get(&destination).copied();
                    let items = items.unwrap_or(WINDOW_DEFAULT);
                    Request::Window(v1::DestinationWindow { destination, items })
                }
                Hint::Busy(destination) => {
                    let until = self.busy.get(&destination).copied();
                    let left = until.and_then(|until| until.checked_duration_since(now));
                    let Some(left) = left.filter(|left| !left.is_zero()) else {
                        continue;
                    };
                    let for_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                    Request::Busy(v1::DestinationBusy {
                        destination,
                        for_ms,
                    })
                }
            };
            out.push(Effect::Send(address.to_string(), request));
        }
        out
    }
}
