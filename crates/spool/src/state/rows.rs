//! Each kind of row, as octets.

use std::sync::Arc;

use mail::{Digest, Ulid};
use queue::{
    DestinationCounts, Ending, Extent, Finished, InFlight, Item, LeaseSession, LeaseSessionId,
    Mark, Message, Origin, Recipient, RecipientResult, ShardState, State, Timestamp, Token, Upload,
    Verdict,
};

use super::codec::{Reader, Row, put_number, put_text};
use crate::wire::log::intern;

fn put_time(out: &mut Vec<u8>, at: Timestamp) {
    put_number(out, at.0);
}

fn time(from: &mut Reader<'_>) -> Option<Timestamp> {
    from.number().map(Timestamp)
}

fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    put_number(out, extents.len() as u64);
    for extent in extents {
        put_number(out, extent.index);
        put_number(out, extent.offset);
        put_number(out, extent.length);
    }
}

fn extents(from: &mut Reader<'_>) -> Option<Vec<Extent>> {
    let count = from.small()?;
    let extent = |_| {
        Some(Extent {
            index: from.number()?,
            offset: from.number()?,
            length: from.number()?,
        })
    };
    (0..count).map(extent).collect()
}

fn put_ending(out: &mut Vec<u8>, ending: Ending) {
    out.push(match ending {
        Ending::Delivered => 0,
        Ending::Failed => 1,
        Ending::Dropped => 2,
    });
}

fn ending(from: &mut Reader<'_>) -> Option<Ending> {
    match from.byte()? {
        0 => Some(Ending::Delivered),
        1 => Some(Ending::Failed),
        2 => Some(Ending::Dropped),
        _ => None,
    }
}

impl Row for Message {
    fn write(&self, out: &mut Vec<u8>) {
        put_text(out, &self.tenant);
        put_text(out, &self.class);
        out.push(self.priority as u8);
        put_text(out, &self.return_path);
        put_time(out, self.arrived);
        put_time(out, self.appended);
        put_time(out, self.expires);
        out.push(u8::from(self.notice.is_some()));
        put_time(out, self.notice.unwrap_or_default());
        put_number(out, self.size);
        out.extend_from_slice(&self.digest.0);
        put_number(out, u64::from(self.header_size));
        out.extend([self.eight_bit, self.smtputf8, self.is_report].map(u8::from));
        put_extents(out, &self.body);
        put_number(out, u64::from(self.items_left));
        put_ending(out, self.ending);
        put_origin(out, &self.origin);
        put_text(out, &self.trace_context);
    }

    fn read(from: &mut Reader<'_>) -> Option<Message> {
        let (tenant, class) = (intern::text(from.str()?), intern::text(from.str()?));
        let (priority, return_path) = (from.byte()? as i8, from.text()?);
        let (arrived, appended, expires) = (time(from)?, time(from)?, time(from)?);
        let (noticed, notice) = (from.flag()?, time(from)?);
        let (size, digest, header_size) = (from.number()?, Digest(from.fixed()?), from.small()?);
        let (eight_bit, smtputf8, is_report) = (from.flag()?, from.flag()?, from.flag()?);
        Some(Message {
            tenant,
            class,
            priority,
            return_path,
            arrived,
            appended,
            expires,
            notice: noticed.then_some(notice),
            size,
            digest,
            header_size,
            eight_bit,
            smtputf8,
            is_report,
            body: extents(from)?,
            items_left: from.small()?,
            ending: ending(from)?,
            origin: Arc::new(origin(from)?),
            trace_context: from.text()?,
        })
    }

    fn weight(&self) -> usize {
        // The origin's ten strings cost their headers at least.
        400 + self.return_path.len()
            + self.origin.meta.len()
            + self.origin.message_id.len()
            + self.body.len() * 24
    }
}

fn put_origin(out: &mut Vec<u8>, it: &Origin) {
    let texts = [
        &it.message_id,
        &it.tag,
        &it.meta,
        &it.client_address,
        &it.helo,
        &it.principal,
        &it.listener,
        &it.tls_version,
        &it.tls_cipher,
        &it.edge,
    ];
    texts.iter().for_each(|text| put_text(out, text));
}

fn origin(from: &mut Reader<'_>) -> Option<Origin> {
    let mut next = || from.str().map(str::to_owned);
    Some(Origin {
        message_id: next()?,
        tag: next()?,
        meta: next()?,
        client_address: next()?,
        helo: next()?,
        principal: next()?,
        listener: next()?,
        tls_version: next()?,
        tls_cipher: next()?,
        edge: next()?,
    })
}

impl Row for Item {
    fn write(&self, out: &mut Vec<u8>) {
        put_text(out, self.destination.as_str());
        match &self.state {
            State::Waiting { due } => {
                out.push(0);
                put_time(out, *due);
            }
            State::Leased {
                session,
                token,
                deadline,
            } => {
                out.push(1);
                for n in [session.0, token.0, deadline.0] {
                    put_number(out, n);
                }
            }
            State::Held { reason } => {
                out.push(2);
                put_text(out, reason);
            }
        }
        for n in [self.attempts, self.unreached, self.lost] {
            put_number(out, u64::from(n));
        }
        match &self.mark {
            None => out.push(0),
            Some(Mark::Hold { reason }) => {
                out.push(1);
                put_text(out, reason);
            }
            Some(Mark::Drop) => out.push(2),
        }
        put_number(out, u64::from(self.recipients));
        put_number(out, u64::from(self.recipients_left));
        out.push(u8::from(self.notice_sent));
        put_time(out, self.timer);
        put_text(out, &self.reason);
    }

    fn read(from: &mut Reader<'_>) -> Option<Item> {
        Some(Item {
            destination: intern::destination(from.str()?),
            state: match from.byte()? {
                0 => State::Waiting { due: time(from)? },
                1 => State::Leased {
                    session: LeaseSessionId(from.number()?),
                    token: Token(from.number()?),
                    deadline: time(from)?,
                },
                2 => State::Held {
                    reason: from.text()?,
                },
                _ => return None,
            },
            attempts: from.small()?,
            unreached: from.small()?,
            lost: from.small()?,
            mark: match from.byte()? {
                0 => None,
                1 => Some(Mark::Hold {
                    reason: from.text()?,
                }),
                2 => Some(Mark::Drop),
                _ => return None,
            },
            recipients: from.small()?,
            recipients_left: from.small()?,
            notice_sent: from.flag()?,
            timer: time(from)?,
            reason: from.text()?,
        })
    }

    fn weight(&self) -> usize {
        64 + self.reason.len()
    }
}

impl Row for Recipient {
    fn write(&self, out: &mut Vec<u8>) {
        put_text(out, &self.address);
        out.push(u8::from(self.result.is_some()));
        if let Some(result) = &self.result {
            result.write(out);
        }
    }

    fn read(from: &mut Reader<'_>) -> Option<Recipient> {
        let address = from.text()?;
        let result = match from.flag()? {
            true => Some(RecipientResult::read(from)?),
            false => None,
        };
        Some(Recipient { address, result })
    }

    fn weight(&self) -> usize {
        32 + self.address.len()
            + self
                .result
                .as_ref()
                .map_or(0, |result| 64 + result.text.len())
    }
}

impl Row for RecipientResult {
    fn write(&self, out: &mut Vec<u8>) {
        put_number(out, u64::from(self.recipient));
        out.push(match self.verdict {
            Verdict::Delivered => 1,
            Verdict::Deferred => 2,
            Verdict::Failed => 3,
        });
        put_number(out, u64::from(self.code));
        for t in [
            &self.enhanced,
            &self.text,
            &self.remote_host,
            &self.remote_address,
            &self.tls,
        ] {
            put_text(out, t);
        }
        put_number(out, u64::from(self.connect_ms));
        put_number(out, u64::from(self.total_ms));
        put_number(out, self.dkim_selectors.len() as u64);
        self.dkim_selectors
            .iter()
            .for_each(|name| put_text(out, name));
        out.extend([self.never_reached, self.ambiguous].map(u8::from));
    }

    fn read(from: &mut Reader<'_>) -> Option<RecipientResult> {
        Some(RecipientResult {
            recipient: from.small()?,
            verdict: match from.byte()? {
                1 => Verdict::Delivered,
                2 => Verdict::Deferred,
                3 => Verdict::Failed,
                _ => return None,
            },
            code: from.number()?.try_into().ok()?,
            enhanced: intern::text(from.str()?),
            text: from.text()?,
            remote_host: intern::text(from.str()?),
            remote_address: intern::text(from.str()?),
            tls: intern::text(from.str()?),
            connect_ms: from.small()?,
            total_ms: from.small()?,
            dkim_selectors: {
                let count = from.small()?;
                (0..count)
                    .map(|_| from.str().map(intern::text))
                    .collect::<Option<_>>()?
            },
            never_reached: from.flag()?,
            ambiguous: from.flag()?,
        })
    }
}

impl Row for InFlight {
    fn write(&self, out: &mut Vec<u8>) {
        put_number(out, self.token.0);
        put_time(out, self.deadline);
    }

    fn read(from: &mut Reader<'_>) -> Option<InFlight> {
        Some(InFlight {
            token: Token(from.number()?),
            deadline: time(from)?,
        })
    }
}

impl Row for DestinationCounts {
    fn write(&self, out: &mut Vec<u8>) {
        for n in [self.waiting, self.leased, self.held] {
            put_number(out, n);
        }
    }

    fn read(from: &mut Reader<'_>) -> Option<DestinationCounts> {
        Some(DestinationCounts {
            waiting: from.number()?,
            leased: from.number()?,
            held: from.number()?,
        })
    }
}

impl Row for Finished {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digest.0);
        put_time(out, self.forget);
        put_ending(out, self.ending);
    }

    fn read(from: &mut Reader<'_>) -> Option<Finished> {
        Some(Finished {
            digest: Digest(from.fixed()?),
            forget: time(from)?,
            ending: ending(from)?,
        })
    }
}

impl Row for Upload {
    fn write(&self, out: &mut Vec<u8>) {
        put_extents(out, &self.chunks);
        put_number(out, self.bytes);
        put_time(out, self.last);
    }

    fn read(from: &mut Reader<'_>) -> Option<Upload> {
        Some(Upload {
            chunks: extents(from)?,
            bytes: from.number()?,
            last: time(from)?,
        })
    }

    fn weight(&self) -> usize {
        self.chunks.len() * 24
    }
}

impl Row for LeaseSession {
    fn write(&self, out: &mut Vec<u8>) {
        put_text(out, &self.node);
        out.extend_from_slice(&self.incarnation);
        put_text(out, &self.boot_id);
        put_time(out, self.opened);
        put_number(out, self.sequence);
    }

    fn read(from: &mut Reader<'_>) -> Option<LeaseSession> {
        Some(LeaseSession {
            node: from.text()?,
            incarnation: from.fixed()?,
            boot_id: from.text()?,
            opened: time(from)?,
            sequence: from.number()?,
        })
    }

    fn weight(&self) -> usize {
        128
    }
}

impl Row for ShardState {
    fn write(&self, out: &mut Vec<u8>) {
        let ShardState {
            time,
            messages,
            bytes,
            upload_bytes,
            waiting,
            leased,
            held,
            ..
        } = *self;
        for n in [time.0, messages, bytes, upload_bytes, waiting, leased, held] {
            put_number(out, n);
        }
        out.extend_from_slice(&self.sweep_from.to_bytes());
        put_time(out, self.sweep_at);
        put_time(out, self.forget_from);
        put_number(out, u64::from(self.version));
    }

    fn read(from: &mut Reader<'_>) -> Option<ShardState> {
        Some(ShardState {
            time: time(from)?,
            messages: from.number()?,
            bytes: from.number()?,
            upload_bytes: from.number()?,
            waiting: from.number()?,
            leased: from.number()?,
            held: from.number()?,
            sweep_from: Ulid::from_bytes(from.fixed()?),
            sweep_at: time(from)?,
            forget_from: time(from)?,
            version: from.small()?,
        })
    }
}
