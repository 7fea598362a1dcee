//! Keys sort on disk as they do in memory, and everything comes back as it was written.

use std::sync::Arc;

use mail::{Destination, Digest, Ulid};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use queue::*;

use crate::state::codec::{self, Reader, Row};
use crate::state::key::{self, Key};

fn text() -> impl Strategy<Value = Arc<str>> {
    // Short and of few letters, so that one is often the beginning of the other; \u{1} sorts next to the NUL.
    "[ab\u{1}é]{0,4}".prop_map(Arc::from)
}

fn ulid() -> impl Strategy<Value = Ulid> {
    prop_oneof![0..3_u128, any::<u128>()].prop_map(|n| Ulid::from_bytes(n.to_be_bytes()))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, any::<u64>()]
}

fn item() -> impl Strategy<Value = ItemId> {
    (ulid(), any::<u32>()).prop_map(|(message, number)| ItemId { message, number })
}

fn due() -> impl Strategy<Value = DueKey> {
    (number(), text(), text(), any::<i8>(), number(), item()).prop_map(
        |(minute, class, to, rank, due, item)| DueKey {
            minute,
            class,
            destination: Destination::from_canonical(&to),
            rank,
            due: Timestamp(due),
            item,
        },
    )
}

fn holds<K: Key + std::fmt::Debug>(a: K, b: K) -> Result<(), TestCaseError> {
    let (x, y) = (key::prefixed(7, &a), key::prefixed(7, &b));
    prop_assert_eq!(x.cmp(&y), a.cmp(&b));
    prop_assert_eq!(key::parse::<K>(&x), Some(a));
    Ok(())
}

fn comes_back<R: Row + PartialEq + std::fmt::Debug>(row: R) -> Result<(), TestCaseError> {
    let bytes = codec::encode(&row);
    prop_assert_eq!(codec::decode::<R>(&bytes), Some(row));
    prop_assert!(codec::decode::<R>(&bytes[..bytes.len() - 1]).is_none());
    Ok(())
}

fn result() -> impl Strategy<Value = RecipientResult> {
    let verdict = prop_oneof![
        Just(Verdict::Delivered),
        Just(Verdict::Deferred),
        Just(Verdict::Failed)
    ];
    (
        verdict,
        any::<(u32, u16, u32, u32, bool, bool)>(),
        vec(text(), 5),
        vec(text(), 0..3),
    )
        .prop_map(|(verdict, n, t, dkim_selectors)| RecipientResult {
            recipient: n.0,
            verdict,
            code: n.1,
            enhanced: t[0].clone(),
            text: t[1].clone(),
            remote_host: t[2].clone(),
            remote_address: t[3].clone(),
            tls: t[4].clone(),
            connect_ms: n.2,
            total_ms: n.3,
            dkim_selectors,
            never_reached: n.4,
            ambiguous: n.5,
        })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        number().prop_map(|due| State::Waiting {
            due: Timestamp(due)
        }),
        any::<[u64; 3]>().prop_map(|[session, token, deadline]| State::Leased {
            session: LeaseSessionId(session),
            token: Token(token),
            deadline: Timestamp(deadline)
        }),
        text().prop_map(|reason| State::Held { reason }),
    ]
}

fn item_row() -> impl Strategy<Value = Item> {
    let mark = prop_oneof![
        Just(Mark::Drop),
        text().prop_map(|reason| Mark::Hold { reason })
    ];
    (
        state(),
        option::of(mark),
        any::<([u32; 5], bool, u64)>(),
        text(),
        text(),
    )
        .prop_map(|(state, mark, (n, notice_sent, timer), to, reason)| Item {
            destination: Destination::from_canonical(&to),
            state,
            attempts: n[0],
            unreached: n[1],
            lost: n[2],
            mark,
            recipients: n[3],
            recipients_left: n[4],
            notice_sent,
            timer: Timestamp(timer),
            reason,
        })
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Delivered),
        Just(Ending::Failed),
        Just(Ending::Dropped)
    ]
}

fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let extent = any::<[u64; 3]>().prop_map(|[index, offset, length]| Extent {
        index,
        offset,
        length,
    });
    vec(extent, 0..4)
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = any::<([u64; 4], u32, u32, i8, [bool; 3], [u8; 16])>();
    (
        vec(text(), 14),
        numbers,
        option::of(number()),
        extents(),
        ending(),
    )
        .prop_map(|(t, n, notice, body, ending)| {
            let word = |n: usize| t[n].to_string();
            Message {
                tenant: t[0].clone(),
                class: t[1].clone(),
                priority: n.3,
                return_path: t[2].clone(),
                arrived: Timestamp(n.0[0]),
                appended: Timestamp(n.0[1]),
                expires: Timestamp(n.0[2]),
                notice: notice.map(Timestamp),
                size: n.0[3],
                digest: Digest(n.5),
                header_size: n.1,
                eight_bit: n.4[0],
                smtputf8: n.4[1],
                body,
                items_left: n.2,
                is_report: n.4[2],
                ending,
                origin: Arc::new(Origin {
                    message_id: word(3),
                    tag: word(4),
                    meta: word(5),
                    client_address: word(6),
                    helo: word(7),
                    principal: word(8),
                    listener: word(9),
                    tls_version: word(10),
                    tls_cipher: word(11),
                    edge: word(12),
                }),
                trace_context: t[13].clone(),
            }
        })
}

proptest! {
    #[test]
    fn keys_sort_on_disk_as_in_memory(a in due(), b in due(), n in any::<[u32; 2]>()) {
        holds(a.item, b.item)?;
        holds(a.item.message, b.item.message)?;
        holds(a.destination.clone(), b.destination.clone())?;
        holds((LeaseSessionId(a.minute), a.item), (LeaseSessionId(b.minute), b.item))?;
        holds(LeaseSessionId(a.minute), LeaseSessionId(b.minute))?;
        holds(a.minute, b.minute)?;
        holds(TimerKey { at: a.due, item: a.item }, TimerKey { at: b.due, item: b.item })?;
        holds(ForgetKey { at: a.due, message: a.item.message }, ForgetKey { at: b.due, message: b.item.message })?;
        holds(RecipientId { item: a.item, number: n[0] }, RecipientId { item: b.item, number: n[1] })?;
        holds(a, b)?;
    }

    #[test]
    fn due_keys_of_one_minute_and_class_differ_in_the_rest(a in due(), b in due()) {
        holds(a.clone(), DueKey { minute: a.minute, class: a.class.clone(), ..b.clone() })?;
        holds(a.clone(), DueKey { minute: a.minute, class: a.class.clone(), destination: a.destination.clone(), ..b })?;
    }

    #[test]
    fn rows_come_back(
        message in message(), item in item_row(), address in text(), result in option::of(result()), chunks in extents(),
        n in any::<[u64; 3]>(), small in any::<([u8; 16], u128)>(), ending in ending(),
    ) {
        let at = Timestamp(n[2]);
        comes_back(message)?;
        comes_back(item)?;
        comes_back(LeaseSession { node: address.clone(), incarnation: small.0, sequence: 3, boot_id: "b".into(), opened: at })?;
        comes_back(Recipient { address, result })?;
        comes_back(InFlight { token: Token(n[0]), deadline: at })?;
        comes_back(DestinationCounts { waiting: n[0], leased: n[1], held: n[2] })?;
        comes_back(Finished { digest: Digest(small.0), forget: at, ending })?;
        comes_back(Upload { chunks, bytes: n[0], last: at })?;
        let (time, sweep_from) = (Timestamp(n[0]), Ulid::from_bytes(small.1.to_be_bytes()));
        comes_back(ShardState { time, bytes: n[1], held: n[2], sweep_from, sweep_at: at, ..ShardState::default() })?;
        comes_back(())?;
    }

    #[test]
    fn damaged_rows_are_refused_without_panic(bytes in vec(any::<u8>(), 0..80)) {
        let _ = codec::decode::<Message>(&bytes);
        let _ = codec::decode::<Item>(&bytes);
        let _ = DueKey::read(&mut Reader(&bytes));
    }
}
