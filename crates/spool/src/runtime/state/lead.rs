//! The shards' leaders on this node: they come with a term, run after each burst of events, and end with it.

use std::time::Instant;

use super::{PUBLISH_EVERY, StateThread, wall_ms};
use crate::decide::{Leader, LeaderConfig, Out, Outside, Turn};
use crate::event::RaftEvent;

impl StateThread {
    pub(super) fn role(&mut self, group: u32, leads: bool, term: u64) {
        let now = Instant::now();
        let own_ms = wall_ms();
        let others = self.directory.walls(group, now);
        if group == crate::CONTROL_GROUP {
            if let Some(control) = &mut self.control {
                control.role(leads, term, own_ms);
            }
            return;
        }
        let Some(shard) = self.shards.get_mut(&group) else {
            return;
        };
        if shard
            .leader
            .as_ref()
            .is_some_and(|l| leads && l.term == term)
        {
            return;
        }
        if let Some(former) = shard.leader.take() {
            let address = self.directory.leader_address(group);
            former.ended(&mut self.streams, &address);
            self.streams.leader_changed(group - 1);
            shard.tickets.clear();
        }
        if leads {
            tracing::info!(group, term, "leads");
            let config = LeaderConfig {
                group,
                term,
                policy: self.policy.clone(),
                seed: self.seed,
                tickets: self.tickets.clone(),
            };
            let mut leader = Leader::elected(config, &mut shard.rows, own_ms, &others, now);
            let mut out = Out::default();
            if shard.rows.applied().1 == term {
                leader.begin(&mut Turn {
                    rows: &mut shard.rows,
                    streams: &mut self.streams,
                    bodies: &mut self.bodies,
                    now,
                    out: &mut out,
                });
            }
            shard.leader = Some(leader);
            self.send(group, out);
        }
    }

    /// Takes over what is declared of retries; it counts for what is decided from now on.
    pub(super) fn follow_retry(&mut self) {
        // Nobody tells any more: what was told stays.
        if !self.retry.has_changed().unwrap_or(false) {
            return;
        }
        let retry = *self.retry.borrow_and_update();
        if let Err(error) = retry.validate() {
            tracing::error!(%error, "the retry times that are declared cannot be; the former ones stay");
            return;
        }
        self.policy.retry = retry;
        let leaders = self.shards.values_mut().filter_map(|s| s.leader.as_mut());
        leaders.for_each(|leader| leader.set_retry(retry));
    }

    pub(super) fn run_leaders(&mut self) {
        let (now, wall) = (Instant::now(), wall_ms());
        let mut outs = Vec::new();
        for (group, shard) in &mut self.shards {
            let Some(leader) = &mut shard.leader else {
                continue;
            };
            let mut out = Out::default();
            let mut turn = Turn {
                rows: &mut shard.rows,
                streams: &mut self.streams,
                bodies: &mut self.bodies,
                now,
                out: &mut out,
            };
            let outside = Outside {
                wall_ms: wall,
                members_know: self.directory.members_know(*group).min(self.known),
            };
            leader.run(outside, &mut turn);
            outs.push((*group, out));
            if now >= self.next_publish {
                self.directory.set_cluster_time(leader.time(now).0);
            }
        }
        for (group, out) in outs {
            self.send(group, out);
        }
        if let Some(control) = &mut self.control {
            let know = self.directory.members_know(crate::CONTROL_GROUP);
            let proposals = control.run(now, wall_ms(), know.min(self.known));
            self.propose_control(proposals);
        }
        if now >= self.next_publish {
            self.next_publish = now + PUBLISH_EVERY;
            self.directory.publish();
        }
    }

    pub(super) fn send(&mut self, group: u32, out: Out) {
        if !out.proposals.is_empty() {
            let (proposals, replies) = (out.proposals, out.replies);
            let _ = self.to.raft.send(RaftEvent::Propose {
                group,
                proposals,
                replies,
            });
        }
        for (pending, pieces) in out.reads {
            let _ = self.headers.send((group, pending, pieces));
        }
    }
}
