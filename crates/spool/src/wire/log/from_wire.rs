//! From the schema to the queue's types.

use std::sync::Arc;

use mail::{Digest, Ulid};
use proto::v1::{self, log_entry::Command as Wire};
use queue::{
    Admin, AdminAction, Append, Command, ExpressGrant, GrantBatch, ItemFacts, ItemId, ItemTimer,
    LeaseSessionId, MessageFacts, OpenSession, Origin, RecipientResult, Report, SettleItem,
    Timestamp, Token, Verdict, Window,
};

use super::{WireError, intern};

fn broken(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError::Field {
        field,
        problem: problem.into(),
    }
}

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or_else(|| broken(field, "is missing"))
}

fn each<A, B>(
    from: Vec<A>,
    convert: impl FnMut(A) -> Result<B, WireError>,
) -> Result<Vec<B>, WireError> {
    from.into_iter().map(convert).collect()
}

fn sixteen(bytes: &[u8], field: &'static str) -> Result<[u8; 16], WireError> {
    bytes
        .try_into()
        .map_err(|_| broken(field, format!("has {} octets instead of 16", bytes.len())))
}

pub(super) fn ulid(bytes: &[u8]) -> Result<Ulid, WireError> {
    sixteen(bytes, "message").map(Ulid::from_bytes)
}

pub(super) fn item(it: Option<v1::ItemRef>) -> Result<ItemId, WireError> {
    let it = need(it, "item")?;
    Ok(ItemId {
        message: ulid(&it.message)?,
        number: it.number,
    })
}

/// 0 stands for none.
fn optional(ms: u64) -> Option<Timestamp> {
    (ms != 0).then_some(Timestamp(ms))
}

pub(super) fn command(wire: Wire) -> Result<Command, WireError> {
    Ok(match wire {
        Wire::Append(it) => Command::Append(Box::new(append(it)?)),
        Wire::BodyChunk(it) => Command::BodyChunk {
            message: ulid(&it.message)?,
            seq: it.seq,
            size: it.size,
        },
        Wire::ExpireUpload(it) => Command::ExpireUpload {
            messages: each(it.messages, |id| ulid(&id))?,
        },
        Wire::OpenSession(it) => Command::OpenSession(open_session(it)?),
        Wire::Window(it) => Command::Window(Window {
            keepalives: it.keepalives.into_iter().map(LeaseSessionId).collect(),
            grants: each(it.grants, batch)?,
            extends: each(it.extends, batch)?,
        }),
        Wire::ExpireSession(it) => Command::ExpireSession {
            session: LeaseSessionId(it.session),
            retry: Timestamp(it.retry_ms),
        },
        Wire::Settle(it) => Command::Settle(each(it.items, settle_item)?),
        Wire::ItemTimer(it) => Command::ItemTimer(ItemTimer {
            item: item(it.item)?,
            expire: it.expire,
            reports: each(it.reports, report)?,
        }),
        Wire::Admin(it) => Command::Admin(Admin {
            action: admin_action(it.action)?,
            items: each(it.items, |id| item(Some(id)))?,
            actor: it.actor.into(),
            reason: it.reason.into(),
        }),
        Wire::SetVersion(it) => Command::SetVersion {
            version: it.version,
        },
        Wire::VerifyDigest(it) => Command::VerifyDigest {
            from: it.from.as_ref().into(),
            rows: it.rows,
        },
        Wire::Note(it) => Command::Note {
            actor: it.actor.into(),
            text: it.text.into(),
        },
        Wire::AnnounceNode(_)
        | Wire::CreateCluster(_)
        | Wire::AddNode(_)
        | Wire::RemoveNode(_)
        | Wire::ForgetNode(_)
        | Wire::Place(_)
        | Wire::Rest(_)
        | Wire::EndRest(_)
        | Wire::PutConfig(_)
        | Wire::SetReplicationFactor(_) => {
            return Err(WireError::WrongGroup { belongs: "control" });
        }
    })
}

fn append(it: v1::AppendCommand) -> Result<Append, WireError> {
    let grant = |g: v1::ExpressGrant| ExpressGrant {
        number: g.item,
        session: LeaseSessionId(g.session),
        deadline: Timestamp(g.deadline_ms),
    };
    Ok(Append {
        facts: message(need(it.facts, "append.facts")?)?,
        expires: Timestamp(it.expires_ms),
        notice: optional(it.notice_ms),
        grant_to: it.grant_to.into_iter().map(grant).collect(),
    })
}

/// What can be represented is taken: sizes are the business of the door, not of the log.
pub(super) fn message(it: v1::MessageFacts) -> Result<MessageFacts, WireError> {
    let priority =
        i8::try_from(it.priority).map_err(|_| broken("priority", "is not between -9 and 9"))?;
    let digest = Digest(sixteen(&it.digest, "digest")?);
    Ok(MessageFacts {
        message: ulid(&it.message)?,
        tenant: intern::text(&it.tenant),
        class: intern::text(&it.class),
        priority,
        return_path: it.return_path.into(),
        items: it.items.into_iter().map(item_facts).collect(),
        size: it.size,
        digest,
        header_size: it.header_size,
        eight_bit: it.eight_bit,
        smtputf8: it.smtputf8,
        chunks: it.chunks,
        origin: Arc::new(it.origin.map(origin).unwrap_or_default()),
        trace_context: it.trace_context.into(),
        arrived: Timestamp(it.arrived_ms),
    })
}

fn item_facts(it: v1::ItemFacts) -> ItemFacts {
    ItemFacts {
        destination: intern::destination(&it.destination),
        recipients: it
            .recipients
            .into_iter()
            .map(|to| to.address.into())
            .collect(),
    }
}

fn origin(it: v1::Origin) -> Origin {
    Origin {
        message_id: it.message_id,
        tag: it.tag,
        meta: it.meta,
        client_address: it.client_address,
        helo: it.helo,
        principal: it.principal,
        listener: it.listener,
        tls_version: it.tls_version,
        tls_cipher: it.tls_cipher,
        edge: it.edge,
    }
}

fn open_session(it: v1::OpenSessionCommand) -> Result<OpenSession, WireError> {
    Ok(OpenSession {
        node: it.node.into(),
        incarnation: sixteen(&it.incarnation, "incarnation")?,
        boot_id: it.boot_id.into(),
        past_dot: each(it.past_dot, |id| item(Some(id)))?,
        handed_back: each(it.handed_back, |id| item(Some(id)))?,
        retry: Timestamp(it.retry_ms),
        sequence: it.sequence,
    })
}

fn batch(it: v1::GrantBatch) -> Result<GrantBatch, WireError> {
    let items = each(it.items, |grant| {
        Ok((item(grant.item)?, Timestamp(grant.deadline_ms)))
    })?;
    Ok(GrantBatch {
        session: LeaseSessionId(it.session),
        items,
    })
}

fn settle_item(it: v1::SettleItem) -> Result<SettleItem, WireError> {
    Ok(SettleItem {
        item: item(it.item)?,
        token: Token(it.token),
        session: LeaseSessionId(it.session),
        release: it.release,
        results: each(it.results, result)?,
        retry: optional(it.retry_ms),
        give_up: it.give_up,
        reports: each(it.reports, report)?,
    })
}

pub(super) fn result(it: v1::RecipientResult) -> Result<RecipientResult, WireError> {
    let verdict = match v1::Verdict::try_from(it.verdict) {
        Ok(v1::Verdict::Delivered) => Verdict::Delivered,
        Ok(v1::Verdict::Deferred) => Verdict::Deferred,
        Ok(v1::Verdict::Failed) => Verdict::Failed,
        Ok(v1::Verdict::Unspecified) | Err(_) => {
            return Err(broken("verdict", format!("{} is none", it.verdict)));
        }
    };
    let code = u16::try_from(it.code).ok().filter(|code| *code < 1000);
    Ok(RecipientResult {
        recipient: it.recipient,
        verdict,
        code: code.ok_or_else(|| broken("code", format!("{} is no reply code", it.code)))?,
        enhanced: intern::text(&it.enhanced),
        text: it.text.into(),
        remote_host: intern::text(&it.remote_host),
        remote_address: intern::text(&it.remote_address),
        tls: intern::text(&it.tls),
        connect_ms: it.connect_ms,
        total_ms: it.total_ms,
        dkim_selectors: it
            .dkim_selectors
            .iter()
            .map(|name| intern::text(name))
            .collect(),
        never_reached: it.never_reached,
        ambiguous: it.ambiguous,
    })
}

fn report(it: v1::ReportFacts) -> Result<Report, WireError> {
    Ok(Report {
        facts: message(need(it.facts, "report.facts")?)?,
        offset: it.offset,
        expires: Timestamp(it.expires_ms),
    })
}

fn admin_action(action: i32) -> Result<AdminAction, WireError> {
    match v1::AdminAction::try_from(action) {
        Ok(v1::AdminAction::Hold) => Ok(AdminAction::Hold),
        Ok(v1::AdminAction::Release) => Ok(AdminAction::Release),
        Ok(v1::AdminAction::Retry) => Ok(AdminAction::Retry),
        Ok(v1::AdminAction::Drop) => Ok(AdminAction::Drop),
        Ok(v1::AdminAction::Unspecified) | Err(_) => {
            Err(broken("action", format!("{action} is none")))
        }
    }
}
