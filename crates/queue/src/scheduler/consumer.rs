//! One consumer of a shard: its ring of lanes, its windows and what is Busy for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mail::Destination;

use super::lane::LaneId;
use crate::Timestamp;

/// Unsettled items of a destination that a consumer gets until it says otherwise.
pub const WINDOW_ITEMS: u32 = 20;

/// Destinations of which a consumer can say something: one that says more keeps the defaults for the rest.
pub const FLOWS_MAX: usize = 100_000;

/// What a consumer wants of a destination, and has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Flow {
    window: Option<u32>,
    unsettled: u32,
    busy: Option<Timestamp>,
}

impl Flow {
    fn window(&self) -> u32 {
        self.window.unwrap_or(WINDOW_ITEMS)
    }
}

/// See the file's text.
#[derive(Debug, Default)]
pub(super) struct Consumer {
    connected: bool,
    /// Empty: all.
    classes: Vec<Arc<str>>,
    ring: VecDeque<LaneId>,
    /// Which lanes are in the ring.
    in_ring: Vec<bool>,
    flows: BTreeMap<Destination, Flow>,
}

impl Consumer {
    /// Whether anything changed: then the lanes are to be offered.
    pub(super) fn connect(&mut self, classes: Vec<Arc<str>>) -> bool {
        if self.connected && self.classes == classes {
            return false;
        }
        (self.connected, self.classes) = (true, classes);
        true
    }

    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        self.ring.clear();
        self.in_ring.clear();
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn accepts(&self, class: &str) -> bool {
        self.classes.is_empty() || self.classes.iter().any(|accepted| **accepted == *class)
    }

    /// A lane with something ready comes to the end of the ring, if it is not in it.
    pub(super) fn offer(&mut self, id: LaneId, class: &str) {
        if !self.connected || !self.accepts(class) {
            return;
        }
        let slot = id as usize;
        if slot >= self.in_ring.len() {
            self.in_ring.resize(slot + 1, false);
        }
        if !std::mem::replace(&mut self.in_ring[slot], true) {
            self.ring.push_back(id);
        }
    }

    pub(super) fn next_lane(&mut self) -> Option<LaneId> {
        let id = self.ring.pop_front()?;
        self.in_ring[id as usize] = false;
        Some(id)
    }

    /// Whether an item of the destination may go out.
    pub(super) fn is_open(&self, destination: &Destination) -> bool {
        let flow = self.flows.get(destination).copied().unwrap_or_default();
        flow.busy.is_none() && flow.unsettled < flow.window()
    }

    pub(super) fn is_busy(&self, destination: &Destination) -> bool {
        self.flows
            .get(destination)
            .is_some_and(|flow| flow.busy.is_some())
    }

    pub(super) fn add_unsettled(&mut self, destination: &Destination) {
        self.change(destination, |flow| {
            flow.unsettled = flow.unsettled.saturating_add(1)
        });
    }

    /// Whether this opened the window.
    pub(super) fn remove_unsettled(&mut self, destination: &Destination) -> bool {
        let open = self.is_open(destination);
        self.change(destination, |flow| {
            flow.unsettled = flow.unsettled.saturating_sub(1)
        });
        !open && self.is_open(destination)
    }

    pub(super) fn set_window(&mut self, destination: &Destination, items: u32) {
        if self.may_say(destination) {
            self.change(destination, |flow| {
                flow.window = (items != WINDOW_ITEMS).then_some(items)
            });
        }
    }

    /// Until when it was Busy before.
    pub(super) fn set_busy(
        &mut self,
        destination: &Destination,
        until: Timestamp,
    ) -> Option<Timestamp> {
        let mut before = None;
        if self.may_say(destination) {
            self.change(destination, |flow| before = flow.busy.replace(until));
        }
        before
    }

    pub(super) fn end_busy(&mut self, destination: &Destination) {
        self.change(destination, |flow| flow.busy = None);
    }

    fn may_say(&self, destination: &Destination) -> bool {
        self.flows.len() < FLOWS_MAX || self.flows.contains_key(destination)
    }

    fn change(&mut self, destination: &Destination, change: impl FnOnce(&mut Flow)) {
        if let Some(flow) = self.flows.get_mut(destination) {
            change(flow);
            if *flow == Flow::default() {
                self.flows.remove(destination);
            }
            return;
        }
        let mut flow = Flow::default();
        change(&mut flow);
        if flow != Flow::default() {
            self.flows.insert(destination.clone(), flow);
        }
    }
}
