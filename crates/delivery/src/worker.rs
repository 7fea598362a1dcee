//! One connection's task: finds a host of the site, then serves the site's items over the connection until none comes.

use std::sync::Arc;

use mail::code::report;
use proto::v1;
use resource::DeliverySettings;
use smtp::client::{Answer, Outcome, Question, Verdict};

use crate::attempt::{self, At, Work};
use crate::body::Body;
use crate::connection::{Connection, Event, now};
use crate::hand::Stop;
use crate::node::Node;
use crate::resolve::{self, Via};
use crate::route::{Hop, Route};
use crate::site::Site;

mod dial;
mod further;

use dial::worse;

/// Connections that may be lost under one item in one attempt before it is deferred.
const LOST_MAX: u32 = 3;

/// How serving a connection ended.
enum Served {
    /// Nothing is left to do, or the node leaves.
    Enough,
    /// It had its number of messages.
    Worn,
    /// It broke; `used`: after at least one transaction, so the host may well take a new connection.
    Broken { used: bool },
}

/// An item that one transaction did not finish, and the results if nothing more becomes of it.
type Carry = Option<(Work, Vec<v1::RecipientResult>)>;

/// Runs until the site needs this connection no more. The site counted it as dialing.
pub(crate) async fn run(node: Arc<Node>, site: Arc<Site>) {
    let mut worker = Worker {
        settings: node.settings(),
        node,
        site,
        counted: true,
        dialing: true,
        carry: None,
        rest: None,
        put_off: None,
    };
    worker.visit().await;
    if let Some((work, results)) = worker.carry.take() {
        worker.node.settle(work, results, None);
    }
    worker.depart();
    worker.node.disconnected();
}

struct Worker {
    node: Arc<Node>,
    site: Arc<Site>,
    settings: DeliverySettings,
    /// The site counts its connection.
    counted: bool,
    dialing: bool,
    /// An item that lost its connection, which another one may serve.
    carry: Carry,
    /// An item whose other recipients the host wants in one more transaction.
    rest: Carry,
    /// An item that a host took for nobody, which the next one may take.
    put_off: Carry,
}

impl Worker {
    async fn visit(&mut self) {
        let config = &self.node.config;
        let found = resolve::hops(
            &self.site.via,
            &self.node.resolver,
            &self.node.own(),
            config.smtp_port,
        )
        .await;
        let route = match found {
            Ok(route) => route,
            Err(no) => {
                // The DNS spoke of the destination, not of one connection: it holds for all that wait.
                let pause = if no.permanent {
                    None
                } else {
                    self.site.failed(now(), rand::random())
                };
                return self.fail(&attempt::unroutable(&no), true, pause);
            }
        };
        let mut last: Option<v1::RecipientResult> = None;
        let mut next = 0;
        while let Some(hop) = route.hops.get(next) {
            match self.dial(hop).await {
                Err(failure) => {
                    next += 1;
                    last = Some(worse(last, *failure));
                }
                Ok(connection) => {
                    last = None;
                    self.stand(true);
                    let served = self.serve(connection, &route, next).await;
                    self.stand(false);
                    match served {
                        Served::Enough => return,
                        Served::Worn if self.site.is_empty() => return,
                        Served::Worn => {}
                        Served::Broken { used } if self.carry.is_some() => {
                            next = self.place_after(&route.hops, next, used);
                        }
                        Served::Broken { .. } => return,
                    }
                }
            }
        }
        // Every host refused, or died under the item.
        let died = self
            .carry
            .as_ref()
            .and_then(|(_, results)| results.first().cloned());
        if let Some(failure) = last.or(died) {
            // A host that has no place on the route may take what these refuse.
            let failure = if route.whole {
                failure
            } else {
                later(&failure)
            };
            let pause = self.site.failed(now(), rand::random());
            self.fail(&failure, pause.is_some(), pause);
        }
    }

    /// Nothing can be reached: settles the item that this connection was for, or all that wait.
    fn fail(
        &mut self,
        result: &v1::RecipientResult,
        all: bool,
        pause: Option<std::time::Duration>,
    ) {
        if let Some(pause) = pause {
            tracing::warn!(site = ?self.site.via, ?pause, reason = result.text, "the site is left alone for a while");
            metrics::counter!("postroad_dead_sites_total").increment(1);
            let mut destinations = self.site.waiting_destinations();
            destinations.extend(
                self.carry
                    .iter()
                    .map(|(work, _)| work.destination().to_string()),
            );
            for destination in destinations {
                self.node.say_busy(destination, pause);
            }
        }
        // An item that reached a host reports what happened there.
        let carried = self
            .carry
            .take()
            .map(|(work, results)| self.node.settle(work, results, None))
            .is_some();
        let mut waiting = if all { self.site.drain() } else { Vec::new() };
        if !carried && !all {
            waiting.extend(self.site.pop());
        }
        // A server that was declared and greets with a refusal is out of order, and says nothing of the mail. Nor is mail
        // returned that was never offered, only because what came before it was.
        let fixed = matches!(self.site.via, Via::Fixed(_));
        let result = match result.code > 0 && (all || fixed) {
            true => &later(result),
            false => result,
        };
        for work in waiting {
            let results = work.all(result);
            self.node.settle(work, results, None);
        }
    }

    /// Serves items until there are none for a while. The session has asked for the next transaction.
    async fn serve(&mut self, mut connection: Connection, route: &Route, at: usize) -> Served {
        let mut sent = 0;
        loop {
            let worn = sent >= self.settings.messages_per_connection;
            let work = if worn {
                None
            } else {
                self.next_work(&mut connection).await
            };
            let Some(work) = work else {
                if !worn {
                    // What comes from now on must not wait for the reply to QUIT, which may be long in coming.
                    self.depart();
                }
                quit(connection).await;
                return if worn { Served::Worn } else { Served::Enough };
            };
            let over = self.attempt(&mut connection, work, sent > 0).await;
            if let Some((work, results)) = self.put_off.take() {
                self.try_elsewhere(work, results, route, at).await;
            }
            if let Some(used) = over {
                return Served::Broken { used };
            }
            sent += 1;
        }
    }

    /// The next item that may be begun; `None` when the connection is to be closed.
    async fn next_work(&mut self, connection: &mut Connection) -> Option<Work> {
        let until = tokio::time::Instant::now() + self.node.config.idle;
        loop {
            while let Some(work) = self
                .carry
                .take()
                .map(|(work, _)| work)
                .or_else(|| self.site.pop())
            {
                let begun = self.node.hand().begin(work.item, now());
                match begun {
                    Ok(()) => return Some(work),
                    Err(stop) => self.node.give_up(work.item, stop),
                }
            }
            if self.node.leaving.is_cancelled() {
                return None;
            }
            self.site.idle(true);
            let event = connection.next(async {
                tokio::select! {
                    () = self.site.wake.notified() => {}
                    () = self.node.leaving.cancelled() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
            });
            let event = event.await;
            self.site.idle(false);
            let over = tokio::time::Instant::now() >= until;
            // Closed by the other end, or long enough without work. An item that came as the time ended was left to this
            // connection, for it was still counted as idle; one that comes later is not.
            if !matches!(event, Event::Interrupted) || over && self.site.is_empty() {
                return None;
            }
        }
    }

    /// One transaction for one item. `Some(used)`: the connection is over.
    async fn transact(
        &mut self,
        connection: &mut Connection,
        work: Work,
        used: bool,
    ) -> Option<bool> {
        let start = now();
        let signed = match self.node.signatures.sign(&self.node, &work).await {
            Ok(signed) if signed.must_wait => return self.hold(work, "4.3.5", "dkim key missing"),
            Ok(signed) => signed,
            Err(text) => return self.hold(work, "4.3.0", &text),
        };
        let mut transaction = match work.transaction() {
            Ok(transaction) => transaction,
            Err(text) => {
                tracing::error!(item = %work.item, text, "the queue's item cannot be sent; look at it with `postroad queue show`");
                let results = work.all(&At::default().deferred("4.3.0", &text));
                self.node.settle(work, results, None);
                return None;
            }
        };
        transaction.size += signed.fields.len() as u64;
        connection.answer(Answer::Send(Box::new(transaction)));
        let mut body = Body::new(&work);
        let mut fields = Some(signed.fields).filter(|fields| !fields.is_empty());
        let mut stopped: Option<Halt> = None;
        loop {
            let at = |connection: &Connection| At {
                selectors: signed.selectors.clone(),
                ..connection.at(start)
            };
            match connection.next(std::future::pending()).await {
                Event::Ask(Question::Next) => {}
                Event::Ask(Question::Body) if fields.is_some() => {
                    let bytes = fields.take().unwrap_or_default();
                    connection.answer(Answer::Body { bytes, last: false });
                }
                Event::Ask(Question::Body) => match body.next(&self.node, &work).await {
                    Ok((bytes, last)) => connection.answer(Answer::Body { bytes, last }),
                    Err(text) => {
                        stopped = Some(Halt::Trouble(text));
                        connection.answer(Answer::Abort);
                    }
                },
                Event::Ask(Question::PastDot) => {
                    connection.flush_if_long().await;
                    match self.pass_dot(&work, &body, &at(connection)) {
                        Ok(()) => connection.answer(Answer::Proceed),
                        Err(halt) => {
                            stopped = Some(halt);
                            connection.answer(Answer::Abort);
                        }
                    }
                }
                Event::Done(outcome) => {
                    let at = at(connection);
                    self.ended(work, &outcome, stopped, &at, &connection.hop);
                    return self.after(connection, used).await;
                }
                Event::Broken(_) | Event::Closed | Event::Interrupted | Event::StartTls => {
                    // The session says what became of a transaction before it ends; this is for a defect in it.
                    let results = work.all(
                        &at(connection).deferred("4.4.2", "the session ended without an outcome"),
                    );
                    self.node.settle(work, results, Some(&connection.hop));
                    return Some(used);
                }
            }
        }
    }

    /// A transaction has its outcome, or was `stopped`: what becomes of its item.
    fn ended(
        &mut self,
        mut work: Work,
        outcome: &Outcome,
        stopped: Option<Halt>,
        at: &At,
        hop: &Hop,
    ) {
        let partly = work.is_delivered_in_part();
        match stopped {
            Some(Halt::Stop(stop)) if !partly => self.node.give_up(work.item, stop),
            // The success counts, whosever the item is now; what is late of the rest the queue refuses.
            Some(Halt::Stop(_)) => {
                let text = "this node had to stop before the end of content";
                let results = work.all(&at.deferred("4.3.0", text));
                self.node.settle(work, results, Some(hop));
            }
            Some(Halt::Trouble(text)) => {
                let results = work.all(&at.deferred("4.3.0", &text));
                self.node.settle(work, results, Some(hop));
            }
            None if attempt::may_go_elsewhere(outcome) && work.lost < LOST_MAX && !partly => {
                work.lost += 1;
                self.node.hand().requeue(work.item);
                let results = work.results(outcome, at);
                self.carry = Some((work, results));
            }
            None => {
                let results = work.results(outcome, at);
                let mut each = outcome.recipients.iter();
                if each.any(|r| r.verdict == Verdict::Delivered || r.reply.is_some()) {
                    self.site.succeeded();
                }
                let left = work.left_over(outcome);
                if !left.is_empty() && self.node.goes_on(&work, &results) {
                    work.keep(&left, &results);
                    self.rest = Some((work, results));
                } else if attempt::next_host_may_take(&results) {
                    self.put_off = Some((work, results));
                } else {
                    self.node.settle(work, results, Some(hop));
                }
            }
        }
    }

    /// The item cannot be sent now, which is no host's doing: the connection may serve the next one.
    fn hold(&self, work: Work, enhanced: &str, text: &str) -> Option<bool> {
        let result = v1::RecipientResult {
            never_reached: true,
            ..At::default().deferred(enhanced, text)
        };
        let results = work.all(&result);
        self.node.settle(work, results, None);
        None
    }

    /// After an outcome: `None` when the connection may serve another item.
    async fn after(&self, connection: &mut Connection, used: bool) -> Option<bool> {
        loop {
            match connection.next(std::future::pending()).await {
                // An item on its way elsewhere (421) does not come back over this connection.
                Event::Ask(Question::Next) if self.carry.is_none() => return None,
                Event::Ask(Question::Next) => connection.answer(Answer::Quit),
                Event::Closed => return Some(used),
                _ => {}
            }
        }
    }

    /// May the final dot be sent? Written down first.
    fn pass_dot(&self, work: &Work, body: &Body, at: &At) -> Result<(), Halt> {
        body.check(work).map_err(Halt::Trouble)?;
        let (token, session) = self
            .node
            .hand()
            .pass_dot(work.item, now())
            .map_err(Halt::Stop)?;
        let request = work.request(token, session, work.all(&at.if_lost()));
        self.node.journal().sent_dot(&request).map_err(|error| {
            tracing::error!(item = %work.item, %error, "no final dot is sent without the journal");
            Halt::Trouble("this node cannot write its journal".into())
        })
    }

    fn stand(&mut self, standing: bool) {
        if self.counted && self.dialing == standing {
            self.site.standing(standing);
            self.dialing = !standing;
        }
    }

    /// The site counts this task's connection no more, and starts another one where items wait that nobody else will take.
    fn depart(&mut self) {
        if std::mem::take(&mut self.counted) && self.site.ended(self.dialing, now()) {
            self.node.connect(&self.site);
        }
    }
}

/// Ends a session in order.
async fn quit(mut connection: Connection) {
    connection.answer(Answer::Quit);
    while !matches!(connection.next(std::future::pending()).await, Event::Closed) {}
}

/// Why the final dot was held back.
enum Halt {
    Stop(Stop),
    Trouble(String),
}

/// The same, as something that may pass.
fn later(result: &v1::RecipientResult) -> v1::RecipientResult {
    let mut result = result.clone();
    if result.verdict() == v1::Verdict::Failed {
        result.set_verdict(v1::Verdict::Deferred);
        result.enhanced = report::NOT_ACCEPTING.to_string();
    }
    result
}
