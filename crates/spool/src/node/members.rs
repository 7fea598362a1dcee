//! What a group knows of its other replicas: who lags, what of the log they still need, and how to help them.

use std::collections::BTreeSet;

use raft::eraftpb::{Message, MessageType};
use raft::{GetEntriesContext, ProgressState};

use super::group::Fetching;
use super::planted::Mutation;
use super::{Action, FetchEntry, Group, GroupStatus, PeerStatus};
use crate::storage::Wanted;

/// Reads under way for lagging followers of one group: each is a message long, so this bounds the memory.
const FETCHES_MAX: usize = 4;
/// Whom one read may be for. More could only be repetitions: a group has fewer replicas.
const FETCH_CONTEXTS_MAX: usize = 16;

impl Group {
    /// A new leader knows nothing of the others yet: their silence begins now.
    pub(super) fn begin_to_lead(&mut self) {
        let peers: Vec<u64> = self.raw.raft.prs().iter().map(|(&peer, _)| peer).collect();
        for peer in peers {
            self.heard.insert(peer, self.ticks);
        }
        self.needs_snapshot.clear();
        self.advanced.clear();
        self.begin_steps();
        self.pace_full_peers();
    }

    /// The members changed: the silence of a new one begins now, and nothing is remembered of one that left.
    pub(super) fn meet_members(&mut self) {
        let peers: BTreeSet<u64> = self.raw.raft.prs().iter().map(|(&peer, _)| peer).collect();
        for peer in &peers {
            self.heard.entry(*peer).or_insert(self.ticks);
        }
        self.heard.retain(|peer, _| peers.contains(peer));
        self.needs_snapshot.retain(|peer| peers.contains(peer));
        self.advanced.retain(|peer, _| peers.contains(peer));
        self.drop_snapshots(|peer| !peers.contains(&peer));
        self.pace_full_peers();
    }

    /// raft-rs 0.7 takes a late rejection, of an append that was sent again and accepted meanwhile, as a reason to go
    /// back before what the follower has acknowledged. Where the log ends just there, the follower would wait for a
    /// snapshot for ever.
    pub(super) fn never_send_below_match(&mut self, peer: u64) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
    }

    pub(super) fn peer_full(&mut self, peer: u64, full: bool) {
        let changed = if full {
            self.full.insert(peer)
        } else {
            self.full.remove(&peer)
        };
        if !changed {
            return;
        }
        if peer == self.config.peer_id && !full {
            // What waited for room was not late, and is written from now on.
            for waits in &mut self.unpersisted {
                waits.since = self.ticks;
            }
        }
        self.pace_full_peers();
    }

    /// So many disks are full that no majority is left without them. Then no mail is taken (the state thread refuses
    /// it), and what is still proposed frees space.
    pub(super) fn majority_full(&self) -> bool {
        let voters = &self.members.voters;
        let full = voters.iter().filter(|peer| self.full.contains(peer));
        voters.len() - full.count() < voters.len() / 2 + 1
    }

    /// A full follower is spared the mail that the others can take without it. When they cannot, it is sent everything:
    /// without its disk no settle would ever be committed, and no disk would get room again.
    fn pace_full_peers(&mut self) {
        let spare = !self.majority_full();
        let peers: Vec<u64> = self.raw.raft.prs().iter().map(|(&peer, _)| peer).collect();
        for peer in peers {
            let inflight = match spare && self.full.contains(&peer) {
                true => 0,
                false => self.config.limits.inflight_messages,
            };
            if peer != self.config.peer_id {
                self.raw.raft.adjust_max_inflight_msgs(peer, inflight);
            }
        }
    }

    pub(super) fn transfer_leader(&mut self, to: Option<u64>) {
        if !self.leads() {
            return;
        }
        let voter = |peer: &u64| self.members.voters.contains(peer);
        let to = to.or_else(|| self.furthest_follower());
        if let Some(to) = to.filter(|to| *to != self.config.peer_id && voter(to)) {
            self.raw.transfer_leader(to);
        }
    }

    /// The voter with the longest log among those that answer.
    fn furthest_follower(&self) -> Option<u64> {
        let peers = self.raw.raft.prs().iter();
        let others = peers.filter(|&(&peer, progress)| {
            peer != self.config.peer_id
                && progress.recent_active
                && self.members.voters.contains(&peer)
                && !self.full.contains(&peer)
        });
        // Ties go to the lower id, so that a run can be repeated.
        others
            .map(|(&peer, progress)| (progress.matched, u64::MAX - peer))
            .max()
            .map(|(_, peer)| u64::MAX - peer)
    }

    pub(super) fn truncate(&mut self, upto: u64, over_budget: bool) {
        self.snapshots.over_budget = over_budget;
        if self.leads() {
            self.raise_floor(over_budget);
        }
        // A snapshot under way is of what was durable here; all others may have been further then.
        let held = match self.planted(Mutation::TruncatesPast) {
            true => u64::MAX,
            false => self.snapshots.holds(),
        };
        let applied = self.raw.raft.raft_log.applied();
        let upto = upto.min(applied).min(self.floor).min(held);
        if upto >= self.raw.store().first() {
            self.raw.mut_store().truncate_to(upto);
            self.actions.push(Action::Truncated {
                first: self.raw.store().first(),
            });
        }
    }

    /// The log keeps what the slowest replica lacks, because that is cheaper than a snapshot; one that was silent for long,
    /// or whose full disk makes ours full, no longer counts once the disk needs the room. It gets a snapshot then, and
    /// while that is under way the log waits for it.
    fn raise_floor(&mut self, over_budget: bool) {
        let silent = self.config.limits.silent_ticks;
        let first = self.raw.store().first();
        let mut floor = u64::MAX;
        let progress: Vec<(u64, u64)> = self
            .raw
            .raft
            .prs()
            .iter()
            .map(|(&peer, progress)| (peer, progress.matched))
            .collect();
        for (peer, matched) in progress {
            let own = peer == self.config.peer_id;
            let quiet = self.ticks - self.heard.get(&peer).copied().unwrap_or(0);
            let stuck = !own && self.is_stuck(peer, matched);
            if !own && over_budget && (quiet >= silent || stuck) {
                if self.needs_snapshot.insert(peer) {
                    let group = self.config.group;
                    tracing::warn!(
                        group,
                        peer,
                        stuck,
                        "a replica is left behind to make room, and gets a snapshot when it answers and has room: its disk \
                         is full and the others' too, or it was silent for too long"
                    );
                }
            } else if matched + 1 >= first && quiet < silent && !stuck {
                self.needs_snapshot.remove(&peer);
            }
            if let Some(index) = self.snapshot_at(peer, matched, over_budget && quiet >= silent) {
                floor = floor.min(index);
            } else if !self.needs_snapshot.contains(&peer) && !self.snapshots.wanted(peer) {
                // For one that lacks what is gone already nothing is gained by keeping the rest.
                floor = floor.min(matched);
            }
        }
        if floor != u64::MAX {
            self.floor = self.floor.max(floor);
        }
    }

    /// Its disk is full, it has not come forward for [`super::Limits::stuck_ticks`], and what the log keeps for it fills our
    /// own disk: waiting would stop everybody for one. Never when a majority would not be left that has it all.
    fn is_stuck(&mut self, peer: u64, matched: u64) -> bool {
        let advanced = self.advanced.entry(peer).or_insert((matched, self.ticks));
        if advanced.0 != matched {
            *advanced = (matched, self.ticks);
        }
        let stands = self.ticks - advanced.1 >= self.config.limits.stuck_ticks;
        let full = self.full.contains(&peer) && self.full.contains(&self.config.peer_id);
        let raft = &self.raw.raft;
        let committed = raft.raft_log.committed;
        let complete = self.members.voters.iter().filter(|&&voter| {
            voter == self.config.peer_id
                || voter != peer
                    && raft
                        .prs()
                        .get(voter)
                        .is_some_and(|p| p.matched >= committed)
        });
        stands && full && matched < committed && complete.count() > self.members.voters.len() / 2
    }

    /// Followers cannot see how far the others are. The leader's heartbeats carry it in a field that Raft uses only
    /// for ReadIndex, which nothing here does.
    pub(super) fn tell_floor(&self, message: &mut Message) {
        if message.get_msg_type() == MessageType::MsgHeartbeat && self.floor > 0 {
            message.context = self.floor.to_be_bytes().to_vec().into();
        }
    }

    pub(super) fn hear_floor(&mut self, message: &mut Message) {
        let told = std::mem::take(&mut message.context);
        if message.term >= self.raw.raft.term
            && let Ok(floor) = <[u8; 8]>::try_from(&told[..])
        {
            self.floor = self.floor.max(u64::from_be_bytes(floor));
        }
    }

    /// Turns what Raft could not read into reads for the driver.
    pub(super) fn collect_fetches(&mut self) {
        for wanted in self.raw.mut_store().take_wanted() {
            let under_way = self.fetches.len();
            let same = self
                .fetches
                .values_mut()
                .find(|fetching| fetching.low == wanted.low);
            match same {
                Some(fetching) if fetching.contexts.len() < FETCH_CONTEXTS_MAX => {
                    fetching.contexts.push(wanted.context);
                }
                None if under_way < FETCHES_MAX => self.begin_fetch(wanted),
                // Raft asks again at the follower's next heartbeat response.
                _ => {}
            }
        }
    }

    fn begin_fetch(&mut self, wanted: Wanted) {
        let Wanted {
            low,
            high,
            max_bytes,
            context,
        } = wanted;
        let log = self.raw.store();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            // What has no location is not durable, so it is cached, and Raft reads it without us.
            let Some((slot, location)) = log
                .slot(index)
                .and_then(|slot| Some((slot, slot.location?)))
            else {
                break;
            };
            bytes += slot.bytes();
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push((index, slot.term, location));
        }
        if entries.is_empty() {
            return;
        }
        let id = self.next_fetch;
        self.next_fetch += 1;
        let reads = entries.iter().map(|&(index, term, location)| FetchEntry {
            index,
            term,
            location,
        });
        self.actions.push(Action::Fetch {
            id,
            entries: reads.collect(),
        });
        let contexts: Vec<GetEntriesContext> = vec![context];
        self.fetches.insert(
            id,
            Fetching {
                low,
                entries,
                contexts,
            },
        );
    }

    /// What Admin shows. Raft's own status copies more; this is cheap enough for any number of groups.
    pub fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let mut peers: Vec<PeerStatus> = Vec::new();
        if self.leads() {
            let others = raft
                .prs()
                .iter()
                .filter(|&(&peer, _)| peer != self.config.peer_id);
            peers.extend(others.map(|(&peer, progress)| PeerStatus {
                peer,
                matched: progress.matched,
                next: progress.next_idx,
                state: match progress.state {
                    ProgressState::Probe => "probe",
                    ProgressState::Replicate => "replicate",
                    ProgressState::Snapshot => "snapshot",
                },
                learner: self.members.learners.contains(&peer),
                silent_ticks: self.ticks - self.heard.get(&peer).copied().unwrap_or(0),
                needs_snapshot: self.needs_snapshot.contains(&peer) || self.snapshots.wanted(peer),
                snapshot: self.snapshots.to(peer),
                full: self.full.contains(&peer),
            }));
            peers.sort_by_key(|peer| peer.peer);
        }
        GroupStatus {
            group: self.config.group,
            peer: self.config.peer_id,
            role: self.standing.role,
            term: raft.term,
            leader: self.standing.leader,
            first: self.raw.store().first(),
            last: log.last_index(),
            persisted: log.persisted,
            committed: log.committed,
            applied: log.applied(),
            unapplied_bytes: self.unapplied_bytes,
            disk_late: self.disk_late(),
            members: self.members.clone(),
            peers,
        }
    }
}
