//! One shard as its node sees it: which stream knows of its lease session, and what time makes of that.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proto::v1;
use v1::lease_request::What as Request;

use super::{Effect, Leases};
use crate::hand::Hand;

/// How long an unanswered OpenSession is waited for before it is sent again: longer than an election.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// What is known of one shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) leader: Option<String>,
    /// The serial of the stream that knows of the lease session.
    pub(super) link: Option<u64>,
    pub(super) session: Option<u64>,
    /// The last OpenSession: its sequence, and when it was sent. Only its answer counts: an earlier one that commits later,
    /// or before, opens a lease session that this one ends.
    pub(super) opening: Option<(u64, Instant)>,
    pub(super) retry_at: Option<Instant>,
    pub(super) sequence: u64,
    pub(super) last_keepalive: Option<Instant>,
    pub(super) unanswered: VecDeque<(u64, Instant)>,
    /// Results of the journal that must reach the queue before a lease session is opened.
    pub(super) first: usize,
}

impl Leases {
    /// Fences, opens, reattaches or keeps alive.
    pub(super) fn tick_shard(
        &mut self,
        number: usize,
        hand: &mut Hand,
        now: Instant,
        out: &mut Vec<Effect>,
    ) {
        let (id, leaving) = (number as u32, self.leaving);
        let keepalive_every = self.keepalive_every;
        let shard = &mut self.shards[number];
        if let Some(session) = shard
            .session
            .filter(|session| hand.live(id, now) != Some(*session))
        {
            tracing::warn!(
                shard = id,
                session,
                "the shard's leader has not answered for 20 s: this node stops sending under its lease session; a new one is opened"
            );
            metrics::counter!("postroad_lease_sessions_fenced_total").increment(1);
            hand.end(id);
            shard.close();
        }
        if shard
            .opening
            .is_some_and(|(_, since)| now - since >= OPEN_TIMEOUT)
        {
            (shard.opening, shard.link) = (None, None);
        }
        let Some(link) = shard
            .leader
            .as_ref()
            .and_then(|leader| self.links.get(leader))
        else {
            return;
        };
        let address = shard.leader.clone().unwrap_or_default();
        let waits = shard.retry_at.is_some_and(|at| now < at);
        match (shard.session, shard.link == Some(link.serial)) {
            (None, false) if leaving || waits || shard.first > 0 => {}
            (None, false) => {
                self.last_open += 1;
                let open = v1::OpenSession {
                    shard: id,
                    holding: hand.past_dot(id),
                    sequence: self.last_open,
                };
                out.push(Effect::Send(address, Request::Open(open)));
                (shard.link, shard.opening) = (Some(link.serial), Some((self.last_open, now)));
            }
            (None, true) => {}
            (Some(_), false) if waits => {}
            (Some(session), false) => {
                let holding = hand.holding(id, session);
                let reattach = v1::Reattach {
                    shard: id,
                    session,
                    holding,
                };
                out.push(Effect::Send(address.clone(), Request::Reattach(reattach)));
                let serial = link.serial;
                shard.link = Some(serial);
                out.push(Effect::Send(address, shard.keepalive(id, session, now)));
                self.repeat_busy(serial);
            }
            (Some(session), true) => {
                if shard
                    .last_keepalive
                    .is_none_or(|last| now - last >= keepalive_every)
                {
                    out.push(Effect::Send(address, shard.keepalive(id, session, now)));
                }
            }
        }
    }
}

impl Shard {
    pub(super) fn keepalive(&mut self, id: u32, session: u64, now: Instant) -> Request {
        self.sequence += 1;
        self.last_keepalive = Some(now);
        self.unanswered.push_back((self.sequence, now));
        Request::Keepalive(v1::Keepalive {
            shard: id,
            session,
            sequence: self.sequence,
        })
    }

    pub(super) fn close(&mut self) {
        (self.session, self.link, self.opening, self.last_keepalive) = (None, None, None, None);
        self.unanswered.clear();
    }
}
