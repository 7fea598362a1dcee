//! Shared copies of the strings that most entries have in common: tenants, classes, destinations, node names.

use std::cell::RefCell;
use std::sync::Arc;

use mail::Destination;

/// Slots a thread and kind: enough for the busy destinations of a node, and 64 KiB at the most with their text.
const SLOTS: usize = 512;

/// Longer texts are rarely repeated and would hold memory.
const LENGTH_MAX: usize = 64;

thread_local! {
    static TEXTS: RefCell<Vec<Option<Arc<str>>>> = RefCell::new(vec![None; SLOTS]);
    static DESTINATIONS: RefCell<Vec<Option<Destination>>> = RefCell::new(vec![None; SLOTS]);
}

/// A direct-mapped cache: a colliding text takes the slot over, so memory is bounded and there is nothing to evict.
fn shared<T: Clone>(
    slots: &RefCell<Vec<Option<T>>>,
    text: &str,
    as_str: impl Fn(&T) -> &str,
    make: impl Fn(&str) -> T,
) -> T {
    if text.len() > LENGTH_MAX {
        return make(text);
    }
    let mut slots = slots.borrow_mut();
    let slot = &mut slots[slot_of(text)];
    if let Some(known) = slot.as_ref().filter(|known| as_str(known) == text) {
        return known.clone();
    }
    let fresh = make(text);
    *slot = Some(fresh.clone());
    fresh
}

/// FNV-1a: these texts are short, and the worst that a chosen collision does is to cost an allocation.
fn slot_of(text: &str) -> usize {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as usize % SLOTS
}

pub(crate) fn text(text: &str) -> Arc<str> {
    TEXTS.with(|slots| shared(slots, text, |known| known, |text| Arc::from(text)))
}

pub(crate) fn destination(text: &str) -> Destination {
    DESTINATIONS.with(|slots| {
        shared(
            slots,
            text,
            Destination::as_str,
            Destination::from_canonical,
        )
    })
}
