//! What one transaction leaves of an item: recipients for whom the host wants another one, and those that another host may
//! take.

use proto::v1;

use super::{Worker, quit};
use crate::attempt::{self, Work};
use crate::connection::{Connection, now};
use crate::route::{Hop, Route};

impl Worker {
    /// Sends one item, in as many transactions as the host wants for its recipients, one right after the other: who was only
    /// one too many does not wait for a retry (RFC 5321 section 4.5.3.1.10). Each transaction but the last one delivers it to
    /// somebody, so they end. `Some(used)`: the connection is over.
    pub(super) async fn attempt(
        &mut self,
        connection: &mut Connection,
        work: Work,
        used: bool,
    ) -> Option<bool> {
        let mut over = self.transact(connection, work, used).await;
        while let Some((work, results)) = self.rest.take() {
            if over.is_some() {
                self.node.settle(work, results, Some(&connection.hop));
                break;
            }
            over = self.transact(connection, work, true).await;
        }
        over
    }

    /// Offers an item that no host has taken yet to the other ones, each over a connection of its own, while the one to
    /// `route.hops[at]` stands and serves the site: what is wrong is more often about one mail than about a host. A host with
    /// several addresses is one host (RFC 5321 section 5.1: "multihoming"): it would give the same answer at each of them, and
    /// a greylist or a rate counts each asking.
    pub(super) async fn try_elsewhere(
        &mut self,
        mut work: Work,
        mut results: Vec<v1::RecipientResult>,
        route: &Route,
        at: usize,
    ) {
        let hops = &route.hops;
        let mut asked: Vec<&Hop> = hops.get(at).into_iter().collect();
        // One that was asked said nothing of the mail itself.
        let mut in_doubt = false;
        for hop in hops.get(at + 1..).unwrap_or_default() {
            if asked.iter().any(|host| host.is_same_host(hop)) {
                continue;
            }
            if self.node.leaving.is_cancelled() {
                break;
            }
            work.go_on(&results);
            // The host said no, also where it was after the dot: nothing is in doubt any more.
            self.node.forget(work.item);
            let begun = {
                let mut hand = self.node.hand();
                hand.requeue(work.item);
                hand.begin(work.item, now())
            };
            if let Err(stop) = begun {
                return self.node.give_up(work.item, stop);
            }
            let Ok(mut connection) = self.dial(hop).await else {
                continue;
            };
            let over = self.attempt(&mut connection, work, false).await;
            if over.is_none() {
                quit(connection).await;
            }
            let (again, said) = match (self.put_off.take(), self.carry.take()) {
                (Some((again, said)), _) => {
                    asked.push(hop);
                    (again, Some(said))
                }
                // Lost under the item: what the host before it said is the better answer.
                (None, Some((again, said))) => {
                    if attempt::is_told(&said) {
                        asked.push(hop);
                        in_doubt = true;
                    }
                    (again, None)
                }
                (None, None) => return,
            };
            (work, results) = (again, attempt::merge(results, said));
        }
        // Hosts before `at` were passed over because they could not be reached, others had no place on the route.
        let was_asked = |hop: &Hop| asked.iter().any(|host| host.is_same_host(hop));
        if in_doubt || !route.whole || !hops.iter().all(was_asked) {
            attempt::wait_for_the_rest(&mut results);
        }
        self.node.settle(work, results, None);
    }

    /// Where to connect for an item that lost its connection to `hops[at]`: there once more if that had been `used` for
    /// others, else at the next address, or, where the host said itself why, at the next host.
    pub(super) fn place_after(&self, hops: &[Hop], at: usize, used: bool) -> usize {
        if used {
            return at;
        }
        let told = |(_, results): &(Work, Vec<v1::RecipientResult>)| attempt::is_told(results);
        let told = self.carry.as_ref().is_some_and(told);
        let is_next = |next: &usize| !(told && hops[*next].is_same_host(&hops[at]));
        (at + 1..hops.len()).find(is_next).unwrap_or(hops.len())
    }
}
