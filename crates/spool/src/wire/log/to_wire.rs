//! From the queue's types to the schema.

use bytes::Bytes;
use mail::Ulid;
use proto::v1::{self, log_entry::Command as Wire};
use queue::{
    Admin, AdminAction, Append, Command, Facts, GrantBatch, ItemId, ItemTimer, MessageFacts,
    OpenSession, Origin, RecipientResult, Report, SettleItem, Timestamp, Verdict, Window,
};

pub(super) fn entry(facts: &Facts) -> v1::LogEntry {
    v1::LogEntry {
        version: facts.command.since(),
        cluster_time_ms: facts.time.0,
        command: Some(command(&facts.command)),
    }
}

fn command(command: &Command) -> Wire {
    match command {
        Command::Append(it) => Wire::Append(append(it)),
        Command::BodyChunk { message, seq, size } => Wire::BodyChunk(v1::BodyChunkCommand {
            message: ulid(*message),
            seq: *seq,
            size: *size,
        }),
        Command::ExpireUpload { messages } => Wire::ExpireUpload(v1::ExpireUploadCommand {
            messages: messages.iter().map(|id| ulid(*id)).collect(),
        }),
        Command::OpenSession(it) => Wire::OpenSession(open_session(it)),
        Command::Window(it) => Wire::Window(window(it)),
        Command::ExpireSession { session, retry } => {
            Wire::ExpireSession(v1::ExpireSessionCommand {
                session: session.0,
                retry_ms: retry.0,
            })
        }
        Command::Settle(items) => Wire::Settle(v1::SettleCommand {
            items: items.iter().map(settle_item).collect(),
        }),
        Command::ItemTimer(it) => Wire::ItemTimer(item_timer(it)),
        Command::Admin(it) => Wire::Admin(admin(it)),
        Command::Note { actor, text } => Wire::Note(v1::NoteCommand {
            actor: actor.to_string(),
            text: text.to_string(),
        }),
        Command::SetVersion { version } => {
            Wire::SetVersion(v1::SetVersionCommand { version: *version })
        }
        Command::VerifyDigest { from, rows } => Wire::VerifyDigest(v1::VerifyDigestCommand {
            from: Bytes::copy_from_slice(from),
            rows: *rows,
        }),
    }
}

fn ulid(id: Ulid) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

pub(super) fn item(id: &ItemId) -> v1::ItemRef {
    v1::ItemRef {
        message: ulid(id.message),
        number: id.number,
    }
}

/// 0 stands for none: cluster time begins with the epoch.
fn optional(at: Option<Timestamp>) -> u64 {
    at.map_or(0, |at| at.0)
}

fn append(it: &Append) -> v1::AppendCommand {
    let grant = |g: &queue::ExpressGrant| v1::ExpressGrant {
        item: g.number,
        session: g.session.0,
        deadline_ms: g.deadline.0,
    };
    v1::AppendCommand {
        facts: Some(message(&it.facts)),
        expires_ms: it.expires.0,
        notice_ms: optional(it.notice),
        grant_to: it.grant_to.iter().map(grant).collect(),
    }
}

pub(super) fn message(it: &MessageFacts) -> v1::MessageFacts {
    v1::MessageFacts {
        message: ulid(it.message),
        tenant: it.tenant.to_string(),
        class: it.class.to_string(),
        priority: i32::from(it.priority),
        return_path: it.return_path.to_string(),
        items: it.items.iter().map(item_facts).collect(),
        size: it.size,
        digest: Bytes::copy_from_slice(&it.digest.0),
        header_size: it.header_size,
        eight_bit: it.eight_bit,
        smtputf8: it.smtputf8,
        chunks: it.chunks,
        origin: Some(origin(&it.origin)),
        trace_context: it.trace_context.to_string(),
        arrived_ms: it.arrived.0,
    }
}

fn item_facts(it: &queue::ItemFacts) -> v1::ItemFacts {
    let recipients = it
        .recipients
        .iter()
        .map(|to| v1::RecipientFacts {
            address: to.to_string(),
        })
        .collect();
    v1::ItemFacts {
        destination: it.destination.as_str().to_owned(),
        recipients,
    }
}

pub(super) fn origin(it: &Origin) -> v1::Origin {
    v1::Origin {
        message_id: it.message_id.clone(),
        tag: it.tag.clone(),
        meta: it.meta.clone(),
        client_address: it.client_address.clone(),
        helo: it.helo.clone(),
        principal: it.principal.clone(),
        listener: it.listener.clone(),
        tls_version: it.tls_version.clone(),
        tls_cipher: it.tls_cipher.clone(),
        edge: it.edge.clone(),
    }
}

fn open_session(it: &OpenSession) -> v1::OpenSessionCommand {
    v1::OpenSessionCommand {
        node: it.node.to_string(),
        incarnation: Bytes::copy_from_slice(&it.incarnation),
        boot_id: it.boot_id.to_string(),
        past_dot: it.past_dot.iter().map(item).collect(),
        handed_back: it.handed_back.iter().map(item).collect(),
        retry_ms: it.retry.0,
        sequence: it.sequence,
    }
}

fn window(it: &Window) -> v1::WindowCommand {
    v1::WindowCommand {
        keepalives: it.keepalives.iter().map(|session| session.0).collect(),
        grants: it.grants.iter().map(batch).collect(),
        extends: it.extends.iter().map(batch).collect(),
    }
}

fn batch(it: &GrantBatch) -> v1::GrantBatch {
    let grant = |(id, deadline): &(ItemId, Timestamp)| v1::GrantItem {
        item: Some(item(id)),
        deadline_ms: deadline.0,
    };
    v1::GrantBatch {
        session: it.session.0,
        items: it.items.iter().map(grant).collect(),
    }
}

fn settle_item(it: &SettleItem) -> v1::SettleItem {
    v1::SettleItem {
        item: Some(item(&it.item)),
        token: it.token.0,
        session: it.session.0,
        release: it.release,
        results: it.results.iter().map(result).collect(),
        retry_ms: optional(it.retry),
        reports: it.reports.iter().map(report).collect(),
        give_up: it.give_up,
    }
}

pub(super) fn result(it: &RecipientResult) -> v1::RecipientResult {
    let verdict = match it.verdict {
        Verdict::Delivered => v1::Verdict::Delivered,
        Verdict::Deferred => v1::Verdict::Deferred,
        Verdict::Failed => v1::Verdict::Failed,
    };
    v1::RecipientResult {
        recipient: it.recipient,
        verdict: verdict.into(),
        code: u32::from(it.code),
        enhanced: it.enhanced.to_string(),
        text: it.text.to_string(),
        remote_host: it.remote_host.to_string(),
        remote_address: it.remote_address.to_string(),
        tls: it.tls.to_string(),
        connect_ms: it.connect_ms,
        total_ms: it.total_ms,
        dkim_selectors: it
            .dkim_selectors
            .iter()
            .map(|name| name.to_string())
            .collect(),
        never_reached: it.never_reached,
        ambiguous: it.ambiguous,
    }
}

fn report(it: &Report) -> v1::ReportFacts {
    v1::ReportFacts {
        facts: Some(message(&it.facts)),
        offset: it.offset,
        expires_ms: it.expires.0,
    }
}

fn item_timer(it: &ItemTimer) -> v1::ItemTimerCommand {
    v1::ItemTimerCommand {
        item: Some(item(&it.item)),
        expire: it.expire,
        reports: it.reports.iter().map(report).collect(),
    }
}

fn admin(it: &Admin) -> v1::AdminCommand {
    let action = match it.action {
        AdminAction::Hold => v1::AdminAction::Hold,
        AdminAction::Release => v1::AdminAction::Release,
        AdminAction::Retry => v1::AdminAction::Retry,
        AdminAction::Drop => v1::AdminAction::Drop,
    };
    v1::AdminCommand {
        action: action.into(),
        items: it.items.iter().map(item).collect(),
        actor: it.actor.to_string(),
        reason: it.reason.to_string(),
    }
}
