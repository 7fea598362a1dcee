//! Round trips of every command, the door's refusals, and entries that must stop a replica.

use std::sync::Arc;

use mail::{Destination, Digest, Ulid};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use queue::*;

use super::*;

fn text() -> impl Strategy<Value = Arc<str>> {
    "[a-zA-Z0-9 äöü.@-]{0,40}".prop_map(Arc::from)
}

fn ulid() -> impl Strategy<Value = Ulid> {
    any::<u128>().prop_map(|n| Ulid::from_bytes(n.to_be_bytes()))
}

fn item() -> impl Strategy<Value = ItemId> {
    (ulid(), any::<u32>()).prop_map(|(message, number)| ItemId { message, number })
}

fn time() -> impl Strategy<Value = Timestamp> {
    (1..u64::MAX).prop_map(Timestamp)
}

fn origin() -> impl Strategy<Value = Origin> {
    vec("[a-z0-9<>@.]{0,20}", 10).prop_map(|mut t| {
        let mut next = || t.pop().unwrap_or_default();
        Origin {
            message_id: next(),
            tag: next(),
            meta: next(),
            client_address: next(),
            helo: next(),
            principal: next(),
            listener: next(),
            tls_version: next(),
            tls_cipher: next(),
            edge: next(),
        }
    })
}

fn message() -> impl Strategy<Value = MessageFacts> {
    let items = vec((text(), vec(text(), 0..4)), 0..3);
    let ids = (ulid(), any::<[u8; 16]>(), -9..=9_i8, any::<[bool; 2]>());
    (
        ids,
        [text(), text(), text(), text()],
        items,
        any::<(u64, u32, u32)>(),
        origin(),
        time(),
    )
        .prop_map(
            |(
                (message, digest, priority, flags),
                [tenant, class, return_path, trace_context],
                items,
                numbers,
                origin,
                arrived,
            )| {
                let item = |(to, recipients): (Arc<str>, _)| ItemFacts {
                    destination: Destination::from_canonical(&to),
                    recipients,
                };
                MessageFacts {
                    message,
                    tenant,
                    class,
                    priority,
                    return_path,
                    items: items.into_iter().map(item).collect(),
                    size: numbers.0,
                    digest: Digest(digest),
                    header_size: numbers.1,
                    eight_bit: flags[0],
                    smtputf8: flags[1],
                    chunks: numbers.2,
                    origin: Arc::new(origin),
                    trace_context,
                    arrived,
                }
            },
        )
}

fn append() -> impl Strategy<Value = Append> {
    let grant =
        (any::<(u32, u64)>(), time()).prop_map(|((number, session), deadline)| ExpressGrant {
            number,
            session: LeaseSessionId(session),
            deadline,
        });
    (message(), time(), option::of(time()), vec(grant, 0..3)).prop_map(
        |(facts, expires, notice, grant_to)| Append {
            facts,
            expires,
            notice,
            grant_to,
        },
    )
}

fn result() -> impl Strategy<Value = RecipientResult> {
    let verdict = prop_oneof![
        Just(Verdict::Delivered),
        Just(Verdict::Deferred),
        Just(Verdict::Failed)
    ];
    let numbers = (any::<(u32, u32, u32)>(), 0..1000_u16, any::<[bool; 2]>());
    (
        verdict,
        numbers,
        [text(), text(), text(), text(), text()],
        vec(text(), 0..3),
    )
        .prop_map(
            |(
                verdict,
                (n, code, flags),
                [enhanced, text, remote_host, remote_address, tls],
                dkim_selectors,
            )| {
                RecipientResult {
                    recipient: n.0,
                    verdict,
                    code,
                    enhanced,
                    text,
                    remote_host,
                    remote_address,
                    tls,
                    connect_ms: n.1,
                    total_ms: n.2,
                    dkim_selectors,
                    never_reached: flags[0],
                    ambiguous: flags[1],
                }
            },
        )
}

fn reports() -> impl Strategy<Value = Vec<Report>> {
    let report = (message(), any::<u64>(), time()).prop_map(|(facts, offset, expires)| Report {
        facts,
        offset,
        expires,
    });
    vec(report, 0..2)
}

fn settle_item() -> impl Strategy<Value = SettleItem> {
    let flags = any::<[bool; 2]>();
    (
        item(),
        any::<[u64; 2]>(),
        flags,
        vec(result(), 0..3),
        option::of(time()),
        reports(),
    )
        .prop_map(
            |(item, [token, session], [release, give_up], results, retry, reports)| SettleItem {
                item,
                token: Token(token),
                session: LeaseSessionId(session),
                release,
                results,
                retry,
                give_up,
                reports,
            },
        )
}

fn batches() -> impl Strategy<Value = Vec<GrantBatch>> {
    let batch = (any::<u64>(), vec((item(), time()), 0..3));
    vec(
        batch.prop_map(|(session, items)| GrantBatch {
            session: LeaseSessionId(session),
            items,
        }),
        0..3,
    )
}

fn command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![
        Just(AdminAction::Hold),
        Just(AdminAction::Release),
        Just(AdminAction::Retry),
        Just(AdminAction::Drop)
    ];
    let open = (
        text(),
        any::<[u8; 16]>(),
        text(),
        vec(item(), 0..3),
        vec(item(), 0..3),
        time(),
    )
        .prop_map(
            |(node, incarnation, boot_id, past_dot, handed_back, retry)| OpenSession {
                node,
                sequence: u64::from(incarnation[0]),
                incarnation,
                boot_id,
                past_dot,
                handed_back,
                retry,
            },
        );
    let window = (vec(any::<u64>(), 0..3), batches(), batches()).prop_map(
        |(keepalives, grants, extends)| Window {
            keepalives: keepalives.into_iter().map(LeaseSessionId).collect(),
            grants,
            extends,
        },
    );
    prop_oneof![
        append().prop_map(|it| Command::Append(Box::new(it))),
        (ulid(), any::<u32>(), any::<u32>()).prop_map(|(message, seq, size)| Command::BodyChunk {
            message,
            seq,
            size
        }),
        vec(ulid(), 0..3).prop_map(|messages| Command::ExpireUpload { messages }),
        open.prop_map(Command::OpenSession),
        window.prop_map(Command::Window),
        (any::<u64>(), time()).prop_map(|(session, retry)| Command::ExpireSession {
            session: LeaseSessionId(session),
            retry
        }),
        vec(settle_item(), 0..3).prop_map(Command::Settle),
        (item(), any::<bool>(), reports()).prop_map(|(item, expire, reports)| Command::ItemTimer(
            ItemTimer {
                item,
                expire,
                reports
            }
        )),
        (action, vec(item(), 0..3), text(), text()).prop_map(|(action, items, actor, reason)| {
            Command::Admin(Admin {
                action,
                items,
                actor,
                reason,
            })
        }),
        (text(), text()).prop_map(|(actor, text)| Command::Note { actor, text }),
        (1_u32..=STATE_MACHINE_VERSION).prop_map(|version| Command::SetVersion { version }),
        (vec(any::<u8>(), 0..20), any::<u32>()).prop_map(|(from, rows)| Command::VerifyDigest {
            from: from.into(),
            rows,
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_comes_back(time in any::<u64>(), command in command()) {
        let facts = Facts { time: Timestamp(time), command };
        prop_assert_eq!(decode(&encode(&facts), STATE_MACHINE_VERSION).unwrap(), facts);
    }

    #[test]
    fn mail_is_told_by_its_tag(time in any::<u64>(), command in command()) {
        let mail = matches!(command, Command::Append(_) | Command::BodyChunk { .. });
        let context = encode(&Facts { time: Timestamp(time), command });
        prop_assert_eq!(brings_mail(&context), mail);
    }

    #[test]
    fn damage_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, STATE_MACHINE_VERSION);
        let _ = brings_mail(&bytes);
    }
}

fn wire_append(body: &'static [u8]) -> v1::AppendMessage {
    let facts = v1::MessageFacts {
        message: Bytes::from_static(&[7; 16]),
        tenant: "default".into(),
        class: "default".into(),
        return_path: "a@example.org".into(),
        items: vec![v1::ItemFacts {
            destination: "example.net".into(),
            recipients: vec![v1::RecipientFacts {
                address: "b@example.net".into(),
            }],
        }],
        size: body.len() as u64,
        digest: Bytes::copy_from_slice(&Digest::of(body).0),
        header_size: 2,
        origin: Some(v1::Origin::default()),
        ..Default::default()
    };
    v1::AppendMessage {
        facts: Some(facts),
        body: Bytes::from_static(body),
    }
}

fn refused(change: impl FnOnce(&mut v1::MessageFacts)) -> String {
    let mut append = wire_append(b"\r\nhello\r\n");
    change(append.facts.as_mut().unwrap());
    facts_from_append(append).unwrap_err().to_string()
}

#[test]
fn the_door_takes_a_good_message_and_names_what_is_wrong_with_a_bad_one() {
    let (facts, body) = facts_from_append(wire_append(b"\r\nhello\r\n")).unwrap();
    assert_eq!(facts.items[0].destination.as_str(), "example.net");
    assert_eq!(&body[..], b"\r\nhello\r\n");

    assert!(refused(|f| f.tenant.clear()).starts_with("tenant: is empty"));
    assert!(refused(|f| f.class = "x".repeat(64)).starts_with("class: has 64 octets"));
    assert!(refused(|f| f.priority = 10).starts_with("priority"));
    assert!(refused(|f| f.items.clear()).starts_with("items"));
    assert!(
        refused(|f| f.items[0].destination = "a\0b".into()).starts_with("destination: holds NUL")
    );
    assert!(refused(|f| f.items[0].recipients.clear()).starts_with("recipients: are 0"));
    assert!(
        refused(|f| f.items[0].recipients = vec![Default::default(); 101])
            .starts_with("recipients: are 101")
    );
    assert!(refused(|f| f.origin.as_mut().unwrap().meta = "m".repeat(513)).starts_with("meta"));
    assert!(
        refused(|f| f.origin.as_mut().unwrap().message_id = "m".repeat(251))
            .starts_with("message_id")
    );
    assert!(refused(|f| f.size += 1).starts_with("size: says 10"));
    assert!(
        refused(|f| f.digest = Bytes::from_static(&[0; 16]))
            .starts_with("digest: is not the body's")
    );
    assert!(
        refused(|f| f.message = Bytes::from_static(&[0; 15])).starts_with("message: has 15 octets")
    );
    assert!(refused(|f| f.chunks = 1).starts_with("body: is present"));
}

#[test]
fn the_door_refuses_a_context_that_would_not_fit() {
    let many = |f: &mut v1::MessageFacts| f.items = vec![f.items[0].clone(); 8000];
    assert!(refused(many).contains("too many recipients"));
}

#[test]
fn an_entry_of_another_version_or_command_says_what_to_do() {
    let newer = v1::LogEntry {
        version: STATE_MACHINE_VERSION + 1,
        ..Default::default()
    };
    let error = decode(&newer.encode_to_vec(), STATE_MACHINE_VERSION).unwrap_err();
    let named = format!("state machine version {}", STATE_MACHINE_VERSION + 1);
    assert!(error.to_string().contains(&named), "{error}");
    let unknown = v1::LogEntry {
        version: STATE_MACHINE_VERSION,
        ..Default::default()
    };
    assert!(matches!(
        decode(&unknown.encode_to_vec(), STATE_MACHINE_VERSION),
        Err(WireError::UnknownCommand)
    ));
    let control = v1::log_entry::Command::AnnounceNode(Default::default());
    let control = v1::LogEntry {
        command: Some(control),
        ..unknown
    };
    assert!(matches!(
        decode(&control.encode_to_vec(), STATE_MACHINE_VERSION),
        Err(WireError::WrongGroup { .. })
    ));
}
