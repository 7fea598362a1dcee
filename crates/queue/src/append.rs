//! Append: a message enters, once by its id; and what is remembered of those that are gone.

use mail::{Digest, Ulid};

use crate::apply::{Shard, after};
use crate::planted::{Mutation, planted};
use crate::{
    Append, Effect, Ending, ExpressGrant, Extent, Finished, ForgetKey, Item, ItemFacts, ItemId,
    Message, MessageFacts, Recipient, RecipientId, Report, State, Timestamp, Token,
};

/// How long a finished message's id is remembered after its Append, ms of cluster time. An edge retries an id for
/// 120 s; the rest is margin for a client library that is held up.
pub const DEDUPE_MS: u64 = 30 * 60 * 1000;

/// Finished rows that one entry looks at: an entry appends one message, so this is more than keeps up.
const SWEEP_ROWS_MAX: usize = 16;

/// The sweep waits this long when it found a row that is still remembered, ms: rows are forgotten in passing, not one
/// by one at their instant.
const SWEEP_PAUSE_MS: u64 = 1000;

/// How much younger than its ULID a message may be for the sweep in order of ULIDs to wait for it, ms. Older ids (a
/// body that came in for hours) go by way of `forgets`, else one of them would hold up the sweep.
const SWEEP_WAIT_MS: u64 = 2 * 60 * 1000;

/// What makes a message, from a client or as a report.
pub(crate) struct NewMessage<'a> {
    pub(crate) facts: &'a MessageFacts,
    pub(crate) body: Vec<Extent>,
    pub(crate) expires: Timestamp,
    pub(crate) notice: Option<Timestamp>,
    pub(crate) is_report: bool,
    pub(crate) grant_to: &'a [ExpressGrant],
}

impl Shard<'_> {
    pub(crate) fn append(&mut self, append: &Append) {
        let facts = &append.facts;
        if let Some(digest) = self.known(facts.message) {
            let message = facts.message;
            self.drop_upload(message);
            // The first body is kept, whatever comes after it under the same id.
            self.emit(match digest == facts.digest {
                true => Effect::AlreadyQueued { message },
                false => Effect::Conflict { message },
            });
            return;
        }
        let body = match facts.chunks {
            0 => {
                self.drop_upload(facts.message);
                self.keep(Extent {
                    index: self.index,
                    offset: 0,
                    length: facts.size,
                })
            }
            chunks => match self.take_upload(facts.message, chunks, facts.size) {
                Some(body) => body,
                None => {
                    return self.emit(Effect::UploadGone {
                        message: facts.message,
                    });
                }
            },
        };
        self.create(NewMessage {
            facts,
            body,
            expires: append.expires,
            notice: append.notice,
            is_report: false,
            grant_to: &append.grant_to,
        });
    }

    /// Writes the reports of an entry: each is a message of its own, about `about`.
    pub(crate) fn append_reports(&mut self, reports: &[Report], about: &Message) {
        // RFC 5321 6.1: no report about a report, and none to the null path.
        if about.is_report || about.return_path.is_empty() {
            return;
        }
        for report in reports {
            if self.known(report.facts.message).is_some() {
                continue;
            }
            let body = self.keep(Extent {
                index: self.index,
                offset: report.offset,
                length: report.facts.size,
            });
            self.create(NewMessage {
                facts: &report.facts,
                body,
                expires: report.expires,
                notice: None,
                is_report: true,
                grant_to: &[],
            });
        }
    }

    /// The digest of a message that lives or is remembered.
    pub(crate) fn known(&mut self, id: Ulid) -> Option<Digest> {
        if let Some(message) = self.rows.messages().get(&id) {
            return Some(message.digest);
        }
        self.rows
            .finished()
            .get(&id)
            .map(|finished| finished.digest)
    }

    /// From now on these octets of this entry are referred to.
    fn keep(&mut self, extent: Extent) -> Vec<Extent> {
        if extent.length == 0 {
            return Vec::new();
        }
        self.emit(Effect::BodyKept(extent));
        vec![extent]
    }

    fn create(&mut self, new: NewMessage<'_>) {
        let facts = new.facts;
        let id = facts.message;
        let message = Message {
            tenant: facts.tenant.clone(),
            class: facts.class.clone(),
            priority: facts.priority,
            return_path: if new.is_report {
                "".into()
            } else {
                facts.return_path.clone()
            },
            arrived: facts.arrived,
            appended: self.now,
            expires: new.expires,
            notice: new.notice,
            size: facts.size,
            digest: facts.digest,
            header_size: facts.header_size,
            eight_bit: facts.eight_bit,
            smtputf8: facts.smtputf8,
            body: new.body,
            items_left: facts
                .items
                .iter()
                .filter(|item| !item.recipients.is_empty())
                .count() as u32,
            is_report: new.is_report,
            ending: Ending::Delivered,
            origin: facts.origin.clone(),
            trace_context: facts.trace_context.clone(),
        };
        self.state.messages = self.state.messages.saturating_add(1);
        self.state.bytes = self.state.bytes.saturating_add(facts.size);
        self.emit(Effect::Created { message: id });
        for (number, item) in (0u32..).zip(&facts.items) {
            if !item.recipients.is_empty() {
                self.create_item(
                    ItemId {
                        message: id,
                        number,
                    },
                    item,
                    &message,
                    new.grant_to,
                );
            }
        }
        match message.items_left {
            0 => self.finish(id, &message, Ending::Delivered),
            _ => self.rows.messages().put(id, message),
        }
    }

    fn create_item(
        &mut self,
        id: ItemId,
        facts: &ItemFacts,
        message: &Message,
        grant_to: &[ExpressGrant],
    ) {
        for (number, address) in (0u32..).zip(&facts.recipients) {
            self.rows.recipients().put(
                RecipientId { item: id, number },
                Recipient {
                    address: address.clone(),
                    result: None,
                },
            );
        }
        let recipients = facts.recipients.len() as u32;
        let token = Token(self.index);
        let express = grant_to.iter().find(|grant| grant.number == id.number);
        let grant = express.filter(|grant| self.session_lives(grant.session));
        let state = match grant {
            Some(grant) => State::Leased {
                session: grant.session,
                token,
                deadline: grant.deadline,
            },
            None => State::Waiting { due: self.now },
        };
        if let (Some(express), None) = (express, grant) {
            self.emit(Effect::GrantSkipped {
                item: id,
                session: express.session,
            });
        }
        let item = Item {
            destination: facts.destination.clone(),
            state,
            attempts: 0,
            unreached: 0,
            lost: 0,
            mark: None,
            recipients,
            recipients_left: recipients,
            notice_sent: false,
            timer: message
                .notice
                .map_or(message.expires, |notice| notice.min(message.expires)),
            reason: "".into(),
        };
        self.place(id, None, Some(item), message);
        if let Some(grant) = grant {
            self.emit(Effect::Granted {
                item: id,
                session: grant.session,
                token,
                deadline: grant.deadline,
                destination: facts.destination.clone(),
            });
        }
    }

    /// Keeps the id of a finished message, as long as its Append is young.
    pub(crate) fn remember(&mut self, id: Ulid, message: &Message, ending: Ending) {
        let kept_ms = match planted(Mutation::ForgetEarly) {
            true => 2000,
            false => DEDUPE_MS,
        };
        let forget = message.appended.plus(kept_ms);
        if forget <= self.now {
            return;
        }
        if id < self.state.sweep_from || out_of_order(id, forget) {
            self.rows.forgets().put(
                ForgetKey {
                    at: forget,
                    message: id,
                },
                (),
            );
        }
        self.rows.finished().put(
            id,
            Finished {
                digest: message.digest,
                forget,
                ending,
            },
        );
    }

    /// Forgets a bounded number of finished messages. Two cursors that only go forward, so no deleted row is ever
    /// walked over: most rows are found in order of their ULIDs, the others by `forgets`.
    pub(crate) fn sweep(&mut self) {
        if self.now < self.state.sweep_at {
            return;
        }
        let more = [self.sweep_finished(), self.sweep_forgets()].contains(&true);
        self.state.sweep_at = if more {
            self.now
        } else {
            self.now.plus(SWEEP_PAUSE_MS)
        };
    }

    fn sweep_finished(&mut self) -> bool {
        let rows = self
            .rows
            .finished()
            .range(Some(&self.state.sweep_from), SWEEP_ROWS_MAX);
        let full = rows.len() == SWEEP_ROWS_MAX;
        for (id, row) in rows {
            if !out_of_order(id, row.forget) {
                if row.forget > self.now {
                    return false;
                }
                self.rows.finished().delete(&id);
            }
            self.state.sweep_from = after(id);
        }
        full
    }

    fn sweep_forgets(&mut self) -> bool {
        let from = ForgetKey {
            at: self.state.forget_from,
            message: Ulid::nil(),
        };
        let rows = self.rows.forgets().range(Some(&from), SWEEP_ROWS_MAX);
        let full = rows.len() == SWEEP_ROWS_MAX;
        for (key, _) in rows {
            if key.at > self.now {
                return false;
            }
            self.rows.forgets().delete(&key);
            self.rows.finished().delete(&key.message);
            self.state.forget_from = key.at;
        }
        full
    }
}

/// Whether the sweep in order of ULIDs passes by this row.
fn out_of_order(id: Ulid, forget: Timestamp) -> bool {
    forget > Timestamp(id.timestamp_ms()).plus(DEDUPE_MS + SWEEP_WAIT_MS)
}
