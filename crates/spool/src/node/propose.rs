//! Proposals: from a ticket to an index, and from an index to the answer.

use raft::eraftpb::{Entry, Message, MessageType};

use super::group::Waiter;
use super::planted::Mutation;
use super::{Action, Group, Proposal, Refusal};

impl Group {
    pub(super) fn propose(&mut self, proposals: Vec<Proposal>) {
        // A follower would forward proposals to the leader, and a leader that is leaving would drop them.
        let leaving = self.raw.raft.lead_transferee;
        if !self.leads() || leaving.is_some() {
            let leader = leaving.or(Some(self.raw.raft.leader_id).filter(|&leader| leader != 0));
            return self.refuse(proposals, Refusal::NotLeader { leader });
        }
        if self.unapplied_bytes > self.config.limits.unapplied_bytes {
            return self.refuse(proposals, Refusal::Busy);
        }
        let (proposals, slowed) = self.slow_down(proposals);
        self.refuse(slowed, Refusal::Busy);
        let (most, most_bytes) = (
            self.config.limits.proposal_entries,
            self.config.limits.proposal_bytes,
        );
        let mut batch: Vec<Proposal> = Vec::new();
        let mut bytes = 0;
        for proposal in proposals {
            let more = proposal.context.len() + proposal.data.len();
            if !batch.is_empty() && (batch.len() >= most || bytes + more > most_bytes) {
                self.propose_batch(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += more;
            batch.push(proposal);
        }
        if !batch.is_empty() {
            self.propose_batch(batch);
        }
    }

    /// One message to Raft. It tells no index: the entries are at the end of the log, or nowhere.
    fn propose_batch(&mut self, batch: Vec<Proposal>) {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.peer_id;
        let entry = |proposal: &Proposal| Entry {
            context: proposal.context.clone(),
            data: proposal.data.clone(),
            ..Entry::default()
        };
        message.set_entries(batch.iter().map(entry).collect::<Vec<_>>().into());
        let before = self.raw.raft.raft_log.last_index();
        let outcome = self.raw.step(message);
        let after = self.raw.raft.raft_log.last_index();
        match outcome {
            Ok(()) if after == before + batch.len() as u64 => {
                let term = self.raw.raft.term;
                for (
                    index,
                    Proposal {
                        ticket,
                        ack,
                        urgent,
                        ..
                    },
                ) in (before + 1..).zip(batch)
                {
                    self.waiters.insert(
                        index,
                        Waiter {
                            term,
                            ticket,
                            ack,
                            urgent,
                        },
                    );
                }
            }
            Err(raft::Error::ProposalDropped) if after == before => {
                self.refuse(batch, Refusal::Busy);
            }
            _ => {
                let tickets = batch.into_iter().map(|proposal| proposal.ticket);
                self.actions
                    .extend(tickets.map(|ticket| Action::Unknown { ticket }));
            }
        }
    }

    fn refuse(&mut self, proposals: Vec<Proposal>, why: Refusal) {
        let tickets = proposals.into_iter().map(|proposal| proposal.ticket);
        self.actions
            .extend(tickets.map(|ticket| Action::Refused { ticket, why }));
    }

    /// Answers what is committed. The commit index may be ahead of our own disk: a majority is what counts.
    pub(super) fn answer_waiters(&mut self) {
        if self.planted(Mutation::Fifo) {
            return self.answer_in_order();
        }
        let log = &self.raw.raft.raft_log;
        let reached = if self.planted(Mutation::AckProposed) {
            log.last_index()
        } else if self.planted(Mutation::AckLocal) {
            log.persisted
        } else {
            log.committed
        };
        while let Some(first) = self.waiters.first_entry() {
            if *first.key() > reached {
                break;
            }
            let (index, waiter) = first.remove_entry();
            // An index alone says nothing: a later leader may have put another entry there.
            let ours = self
                .raw
                .raft
                .raft_log
                .term(index)
                .is_ok_and(|term| term == waiter.term)
                || self.planted(Mutation::NoTermCheck);
            let Waiter { ticket, ack, .. } = waiter;
            self.actions.push(if ours {
                Action::Committed { ticket, index, ack }
            } else {
                Action::Unknown { ticket }
            });
        }
    }
}
