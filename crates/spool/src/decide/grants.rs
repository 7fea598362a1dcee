//! The books of grants on their way: which credit was taken for which item, and what is to be given back.
//!
//! A grant takes credit of a Lease stream when it is decided, long before its entry is applied. Whatever becomes of the
//! entry, the credit must come to one of two ends: it is spent (the item was handed out, and the node gives new credit
//! when it settles) or it goes back to the stream. Credit that is forgotten makes a node idle for ever.

use std::collections::HashMap;

use queue::scheduler::Scheduler;
use queue::{ItemId, LeaseSessionId};

/// The items whose grants ride on one entry. It goes with the entry's waiter, and ends in [`Grants::applied`] or
/// [`Grants::undone`]: there is no third way to be rid of it.
#[must_use = "the credit of a reservation is spent or given back, never forgotten"]
#[derive(Debug, Default)]
pub struct Reserved(Vec<ItemId>);

/// Credit that is taken, and credit that goes back.
#[derive(Debug, Default)]
pub struct Grants {
    taken: HashMap<ItemId, (LeaseSessionId, u64)>,
    refunds: Vec<(LeaseSessionId, u64)>,
}

impl Grants {
    /// `bytes` of a stream's credit, and one item of it, are taken for a grant that is on its way.
    pub fn take(
        &mut self,
        reserved: &mut Reserved,
        item: ItemId,
        session: LeaseSessionId,
        bytes: u64,
    ) {
        self.taken.insert(item, (session, bytes));
        reserved.0.push(item);
    }

    /// The item was granted: its credit is spent.
    pub fn granted(&mut self, item: ItemId) {
        self.taken.remove(&item);
    }

    /// The item was not granted by an entry that was applied: its credit goes back.
    pub fn skipped(&mut self, item: ItemId) {
        self.refunds.extend(self.taken.remove(&item));
    }

    /// The entry was applied. What it did not grant (an express grant beside a message that existed) goes back.
    pub fn applied(&mut self, reserved: Reserved) {
        for item in reserved.0 {
            self.skipped(item);
        }
    }

    /// The entry came to nothing, or nobody knows: the items wait again here, and the nodes have their credit back.
    pub fn undone(&mut self, reserved: Reserved, scheduler: &mut Scheduler) {
        for item in reserved.0 {
            scheduler.unpick(item);
            self.skipped(item);
        }
    }

    /// What is to be given back to the streams now.
    pub fn refunds(&mut self) -> Vec<(LeaseSessionId, u64)> {
        std::mem::take(&mut self.refunds)
    }

    /// The leader's term is over: all that is not spent goes back.
    pub fn end(&mut self) -> Vec<(LeaseSessionId, u64)> {
        let mut all = self.refunds();
        all.extend(self.taken.drain().map(|(_, taken)| taken));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: u32) -> ItemId {
        ItemId {
            message: mail::Ulid::nil(),
            number,
        }
    }

    #[test]
    fn every_credit_is_spent_or_goes_back_once() {
        let (mut grants, mut scheduler) = (Grants::default(), Scheduler::default());
        let session = LeaseSessionId(7);
        let reserve = |grants: &mut Grants, numbers: &[u32]| {
            let mut reserved = Reserved::default();
            for number in numbers {
                grants.take(&mut reserved, item(*number), session, 10);
            }
            reserved
        };
        let applied = reserve(&mut grants, &[0, 1, 2]);
        grants.granted(item(0));
        grants.skipped(item(1));
        grants.applied(applied);
        assert_eq!(grants.refunds().len(), 2, "one was granted, two were not");
        let failed = reserve(&mut grants, &[3]);
        grants.undone(failed, &mut scheduler);
        assert_eq!(grants.refunds(), [(session, 10)]);
        let on_its_way = reserve(&mut grants, &[4]);
        assert_eq!(grants.end(), [(session, 10)]);
        grants.undone(on_its_way, &mut scheduler);
        assert_eq!(grants.end(), [], "nothing goes back twice");
    }
}
