//! One consumer of a shard: its ring of lanes, its windows and what is Busy for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mail::Destination;

use super::lane::LaneId;
use crate::{ItemId, Timestamp};

/// Unsettled items of a destination that a consumer gets until it says otherwise.
pub const WINDOW_ITEMS: u32 = 20;

/// Destinations of which a consumer can say something: one that says more keeps the defaults for the rest.
pub const FLOWS_MAX: usize = 100_000;

/// A destination that holds octets of a consumer's credit gets more of it only while they are at most this part (a quarter)
/// of what is left. So large mail for a host that does not answer leaves something to the others also where several shards
/// hand it out on the same credit (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
/// 1998). A first item goes out whatever its size: of each shard one.
pub const OCTETS_SHARE: u64 = 4;

/// What a consumer wants of a destination, and has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Flow {
    window: Option<u32>,
    unsettled: u32,
    /// Of the credit, by what is unsettled.
    octets: u64,
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
    /// What each unsettled item takes of the credit. What an earlier leader handed out is not here: its octets came off the
    /// credit before this leader got any.
    octets: BTreeMap<ItemId, u64>,
    /// Destinations whose lanes left the ring because their octets were too many. Each holds an unsettled item.
    full: BTreeSet<Destination>,
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
        self.full.clear();
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

    /// Whether its octets leave room for others, where so many are `left` of the credit.
    pub(super) fn fits(&self, destination: &Destination, left: u64) -> bool {
        self.flows
            .get(destination)
            .is_none_or(|flow| flow.octets <= left / OCTETS_SHARE)
    }

    /// Its lane left the ring because it does not fit.
    pub(super) fn set_full(&mut self, destination: Destination) {
        self.full.insert(destination);
    }

    /// The destinations that did not fit and do now.
    pub(super) fn take_fitting(&mut self, left: u64) -> Vec<Destination> {
        let fit = self.full.iter().filter(|full| self.fits(full, left));
        let fit: Vec<Destination> = fit.cloned().collect();
        fit.iter().for_each(|destination| {
            self.full.remove(destination);
        });
        fit
    }

    /// `octets`: what it takes of the credit.
    pub(super) fn add_unsettled(&mut self, destination: &Destination, item: ItemId, octets: u64) {
        if octets > 0 {
            self.octets.insert(item, octets);
        }
        self.change(destination, |flow| {
            flow.unsettled = flow.unsettled.saturating_add(1);
            flow.octets = flow.octets.saturating_add(octets);
        });
    }

    /// Whether this opened the window.
    pub(super) fn remove_unsettled(&mut self, destination: &Destination, item: ItemId) -> bool {
        let open = self.is_open(destination);
        let octets = self.octets.remove(&item).unwrap_or(0);
        self.change(destination, |flow| {
            flow.unsettled = flow.unsettled.saturating_sub(1);
            flow.octets = flow.octets.saturating_sub(octets);
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
