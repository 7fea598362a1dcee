//! A site: destinations that share their hosts, the items that wait for it, and the connections that serve them.
//!
//! Each connection is a task that pulls from its site's queue, so a message costs no task and a kept connection starts
//! the next one at once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::attempt::Work;
use crate::resolve::Via;
use crate::window::Window;

/// Items of a destination that are worth a word about its window: below, the default does.
const ITEMS_NOTABLE: u32 = 16;
/// Items in hand for each connection: one in the transaction, the rest cover the way to the queue and back.
const ITEMS_PER_CONNECTION: u32 = 8;
/// Destinations of one site that are counted: a smart host has all of them. Those beyond keep the default window.
const DESTINATIONS_SEEN_MAX: usize = 10_000;
/// Unsettled items of one destination wanted from one shard at most.
const WINDOW_ITEMS_MAX: u32 = 256;

/// One site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) via: Via,
    state: Mutex<State>,
    /// One permit for each item that came while connections were idle.
    pub(crate) wake: Notify,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Work>,
    window: Window,
    connections: u32,
    dialing: u32,
    idle: u32,
    dead_until: Option<Instant>,
    /// A transaction came to its end there, and it was not found dead since.
    proven: bool,
    used: Instant,
    seen: HashMap<String, Seen>,
}

/// One destination of a site.
#[derive(Debug)]
struct Seen {
    /// Items that came.
    items: u32,
    /// The window announced for it.
    announced: u32,
    used: Instant,
}

/// What became of an item that was given to a site.
#[derive(Debug)]
pub(crate) enum Enqueued {
    /// A connection will take it.
    Waits,
    /// Start one more connection.
    Connect,
    /// The site is dead for so long: hand the item back.
    Dead(Box<Work>, Duration),
}

impl Site {
    pub(crate) fn new(via: Via, connections_max: u32, now: Instant) -> Arc<Site> {
        let state = State {
            queue: VecDeque::new(),
            window: Window::new(connections_max),
            connections: 0,
            dialing: 0,
            idle: 0,
            dead_until: None,
            proven: false,
            used: now,
            seen: HashMap::new(),
        };
        Arc::new(Site {
            via,
            state: Mutex::new(state),
            wake: Notify::new(),
        })
    }

    /// Gives it an item.
    pub(crate) fn enqueue(&self, work: Work, now: Instant) -> Enqueued {
        let mut state = self.state();
        state.used = now;
        if let Some(left) = state
            .dead_until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|d| !d.is_zero())
        {
            return Enqueued::Dead(Box::new(work), left);
        }
        state.queue.push_back(work);
        if state.idle > 0 {
            self.wake.notify_one();
        }
        if state.claim() {
            Enqueued::Connect
        } else {
            Enqueued::Waits
        }
    }

    /// No item waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().queue.is_empty()
    }

    /// The next item.
    pub(crate) fn pop(&self) -> Option<Work> {
        self.state().queue.pop_front()
    }

    /// All items.
    pub(crate) fn drain(&self) -> Vec<Work> {
        self.state().queue.drain(..).collect()
    }

    /// How many unsettled items of a destination to ask of each of `shards`, when that is news.
    pub(crate) fn news(&self, destination: &str, shards: u32, now: Instant) -> Option<u32> {
        let mut state = self.state();
        let connections = state.window.connections();
        let wanted = (connections * ITEMS_PER_CONNECTION)
            .div_ceil(shards.max(1))
            .next_power_of_two();
        // Of a host that may be silent no more is taken in hand: it would be kept from others until the dialing is given up.
        let wanted = wanted.min(match state.proven {
            true => WINDOW_ITEMS_MAX,
            false => crate::lease::WINDOW_DEFAULT,
        });
        let Some(seen) = state.seen.get_mut(destination) else {
            if state.seen.len() < DESTINATIONS_SEEN_MAX {
                let seen = Seen {
                    items: 1,
                    announced: crate::lease::WINDOW_DEFAULT,
                    used: now,
                };
                state.seen.insert(destination.to_string(), seen);
            }
            return None;
        };
        seen.used = now;
        seen.items = seen.items.saturating_add(1);
        let news = seen.announced != wanted && seen.items >= ITEMS_NOTABLE;
        news.then(|| seen.announced = wanted).map(|()| wanted)
    }

    /// Forgets the destinations of which nothing came since `since`. Gives those whose window is not the default: the
    /// queue need not remember them either.
    pub(crate) fn forget_unused(&self, since: Instant) -> Vec<String> {
        let mut state = self.state();
        let old = state.seen.extract_if(|_, seen| seen.used < since);
        old.filter(|(_, seen)| seen.announced != crate::lease::WINDOW_DEFAULT)
            .map(|(destination, _)| destination)
            .collect()
    }

    /// A connection's task begins to wait for work (`true`) or no longer does.
    pub(crate) fn idle(&self, idle: bool) {
        let mut state = self.state();
        state.idle = if idle {
            state.idle + 1
        } else {
            state.idle.saturating_sub(1)
        };
    }

    /// A connection stands (`true`), or its task looks for a host again.
    pub(crate) fn standing(&self, standing: bool) {
        let mut state = self.state();
        state.dialing = if standing {
            state.dialing.saturating_sub(1)
        } else {
            state.dialing + 1
        };
    }

    /// A transaction ended on a live connection.
    pub(crate) fn succeeded(&self) {
        let mut state = self.state();
        state.window.succeeded();
        state.dead_until = None;
        state.proven = true;
    }

    /// No host could be reached. `Some`: the site is dead for so long.
    pub(crate) fn failed(&self, now: Instant, chance: u8) -> Option<Duration> {
        let mut state = self.state();
        let pause = state.window.failed(chance)?;
        state.dead_until = Some(now + pause);
        state.proven = false;
        Some(pause)
    }

    /// A connection's task takes no item any more: it ends while dialing (`dialing`), or its connection does. `true`: start
    /// another one, claimed.
    pub(crate) fn ended(&self, dialing: bool, now: Instant) -> bool {
        let mut state = self.state();
        state.used = now;
        state.connections = state.connections.saturating_sub(1);
        if dialing {
            state.dialing = state.dialing.saturating_sub(1);
        }
        state.claim()
    }

    /// `true`: a connection is claimed because items wait that nobody will take.
    pub(crate) fn claim(&self) -> bool {
        self.state().claim()
    }

    /// A claimed connection will not be made now.
    pub(crate) fn unclaim(&self) {
        let mut state = self.state();
        state.connections = state.connections.saturating_sub(1);
        state.dialing = state.dialing.saturating_sub(1);
    }

    /// Destinations of which items wait.
    pub(crate) fn waiting_destinations(&self) -> HashSet<String> {
        self.state()
            .queue
            .iter()
            .map(|work| work.destination().to_string())
            .collect()
    }

    /// Nothing happened here since `since`, and nothing is going on.
    pub(crate) fn unused_since(&self, since: Instant) -> bool {
        let state = self.state();
        state.queue.is_empty() && state.connections == 0 && state.used < since
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a few assignments that do not panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn claim(&mut self) -> bool {
        let taken_care_of = (self.idle + self.dialing) as usize;
        if self.queue.len() <= taken_care_of || self.connections >= self.window.connections() {
            return false;
        }
        self.connections += 1;
        self.dialing += 1;
        true
    }
}
