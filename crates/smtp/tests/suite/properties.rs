//! What holds for any input: packets change nothing, nothing panics, what is kept stays bounded, and both sessions wired
//! against each other deliver any content octet for octet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::{Envelope, Host, Mailbox, Reply, ReversePath};
use proptest::prelude::*;
use smtp::{client, server};

/// The limits of a line and of a header block, octets.
const LINE_BYTES: usize = 40;
const HEADER_BYTES: usize = 60;

fn host(name: &str) -> Host {
    Host::parse(name).unwrap()
}

fn greeted_server(now: Instant) -> server::Session {
    let mut config = server::Config::new(host("mx.example.org"));
    config.message_bytes_max = 300;
    config.recipients_max = 3;
    // So small that dialogues reach them.
    config.text_line_bytes_max = LINE_BYTES;
    config.header_bytes_max = HEADER_BYTES;
    config.refuse_early_talkers = false;
    server::Session::new(Arc::new(config), now)
}

/// What a server did, without how it was cut into pieces.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    replies: Vec<u8>,
    questions: Vec<String>,
    committed: Vec<Vec<u8>>,
    closed: bool,
    body: Vec<u8>,
}

/// Yes to everything, but every fifth recipient is unknown and every fourth commit finds the queue full.
fn drain(session: &mut server::Session, seen: &mut Seen, now: Instant) {
    for _ in 0..100_000 {
        match session.drain() {
            server::Output::Write(bytes) => seen.replies.extend_from_slice(&bytes),
            server::Output::Body(bytes) => seen.body.extend_from_slice(&bytes),
            server::Output::Forget => seen.body.clear(),
            server::Output::Ask(question) => {
                let count = seen.questions.len();
                seen.questions.push(format!("{question:?}"));
                let answer = match question {
                    server::Question::Commit(commit) => {
                        assert_eq!(commit.size, seen.body.len() as u64);
                        assert!(commit.header.size as u64 <= commit.size);
                        seen.committed.push(std::mem::take(&mut seen.body));
                        match count % 4 {
                            0 => server::Answer::Refuse(Reply::queue_full()),
                            _ => server::Answer::Committed(Reply::committed()),
                        }
                    }
                    server::Question::Rcpt(_) if count.is_multiple_of(5) => {
                        server::Answer::Refuse(Reply::unknown_recipient())
                    }
                    _ => server::Answer::Accept,
                };
                session.answer(answer, now);
            }
            server::Output::Wait(until) => {
                assert!(until > now);
                return;
            }
            server::Output::StartTls => panic!("not offered"),
            server::Output::Close => return seen.closed = true,
        }
    }
    panic!("the session never waits");
}

fn serve(input: &[u8], pieces: &[usize]) -> Seen {
    let now = Instant::now();
    let mut session = greeted_server(now);
    let mut seen = Seen::default();
    drain(&mut session, &mut seen, now);
    let mut rest = input;
    for piece in pieces.iter().cycle() {
        if rest.is_empty() || seen.closed {
            break;
        }
        let (head, tail) = rest.split_at((*piece).min(rest.len()));
        session.feed(Bytes::copy_from_slice(head), now);
        drain(&mut session, &mut seen, now);
        rest = tail;
    }
    seen
}

/// A message whose lines are near the limits: of a line, also with dots before it, and of a header block.
fn message() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        2 => "[.]{0,3}x{36,42}\r\n",
        2 => "h: x{10,40}\r\n",
        1 => "[.: \t]{0,2}x{0,30}\r\n",
        1 => Just("\r\n".to_owned()),
    ];
    proptest::collection::vec(line, 0..8).prop_map(|lines| {
        let transaction = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n";
        format!("EHLO c.example\r\n{transaction}{}.\r\n", lines.concat())
    })
}

/// Dialogues that often make sense, and often nearly do.
fn dialogue() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => Just("EHLO c.example\r\n".to_owned()),
        8 => Just("MAIL FROM:<a@example.com> SIZE=100\r\n".to_owned()),
        8 => Just("RCPT TO:<b@example.org>\r\n".to_owned()),
        8 => Just("DATA\r\n".to_owned()),
        8 => Just("Received: x\r\n\r\nhello\r\n.\r\n".to_owned()),
        4 => Just(".\r\n".to_owned()),
        6 => message(),
        2 => Just("RSET\r\n".to_owned()),
        1 => "[A-Z]{4} [ -~]{0,20}\r\n",
        1 => "[.a\r\n]{1,8}",
        1 => "x{200,400}\r\n",
        1 => Just("QUIT\r\n".to_owned()),
    ];
    proptest::collection::vec(line, 0..40).prop_map(|lines| lines.concat().into_bytes())
}

/// Sends one message over both sessions; what the server was given, and the client's verdicts.
fn relay(content: &[u8], pieces: usize, wire: usize) -> (Vec<u8>, Vec<client::Verdict>) {
    let now = Instant::now();
    let mut server =
        server::Session::new(Arc::new(server::Config::new(host("mx.example.org"))), now);
    let mut client = client::Session::new(Arc::new(client::Config::new(host("c.example"))), now);
    let mut envelope = Envelope::new(ReversePath::parse("a@example.com", false).unwrap());
    envelope.recipients = ["b@example.org", "c@example.org"]
        .map(|a| Mailbox::parse(a, false).unwrap())
        .to_vec();
    let mut message = Some(client::Transaction {
        envelope,
        size: content.len() as u64,
    });
    let mut chunks = content.chunks(pieces).peekable();
    let (mut got, mut verdicts) = (Vec::new(), Vec::new());
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut connected = false;
    loop {
        loop {
            match client.drain() {
                client::Output::Write(bytes) => to_server.extend_from_slice(&bytes),
                client::Output::Ask(client::Question::Next) => client.answer(
                    match message.take() {
                        Some(transaction) => client::Answer::Send(Box::new(transaction)),
                        None => client::Answer::Quit,
                    },
                    now,
                ),
                client::Output::Ask(client::Question::Body) => {
                    let bytes = Bytes::copy_from_slice(chunks.next().unwrap_or_default());
                    client.answer(
                        client::Answer::Body {
                            bytes,
                            last: chunks.peek().is_none(),
                        },
                        now,
                    );
                }
                client::Output::Ask(client::Question::PastDot) => {
                    client.answer(client::Answer::Proceed, now)
                }
                client::Output::Done(outcome) => {
                    verdicts.extend(outcome.recipients.iter().map(|r| r.verdict))
                }
                client::Output::Wait(_) => break,
                client::Output::Close => return (got, verdicts),
                other => panic!("{other:?}"),
            }
        }
        // The server speaks first.
        let sent = std::mem::take(&mut to_server);
        let greeting = (!std::mem::replace(&mut connected, true)).then_some([].as_slice());
        for piece in greeting.into_iter().chain(sent.chunks(wire)) {
            server.feed(Bytes::copy_from_slice(piece), now);
            loop {
                match server.drain() {
                    server::Output::Write(bytes) => to_client.extend_from_slice(&bytes),
                    server::Output::Body(bytes) => got.extend_from_slice(&bytes),
                    server::Output::Ask(server::Question::Commit(commit)) => {
                        assert_eq!(commit.size, got.len() as u64);
                        server.answer(server::Answer::Committed(Reply::committed()), now);
                    }
                    server::Output::Ask(_) => server.answer(server::Answer::Accept, now),
                    server::Output::Wait(_) | server::Output::Close => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        std::mem::take(&mut to_client)
            .chunks(wire)
            .for_each(|piece| client.feed(Bytes::copy_from_slice(piece), now));
    }
}

proptest! {
    #[test]
    fn packets_change_nothing(input in dialogue(), pieces in proptest::collection::vec(1..60usize, 1..5)) {
        let whole = serve(&input, &[input.len().max(1)]);
        let octets = serve(&input, &[1]);
        let cut = serve(&input, &pieces);
        // How much of an unfinished message was given out is all that may differ.
        for other in [octets, cut] {
            prop_assert_eq!(String::from_utf8_lossy(&whole.replies), String::from_utf8_lossy(&other.replies));
            prop_assert_eq!(&whole.questions, &other.questions);
            prop_assert_eq!(&whole.committed, &other.committed);
            prop_assert_eq!(whole.closed, other.closed);
        }
    }

    #[test]
    fn any_octets_leave_the_server_alive_or_closed(input in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1..500usize) {
        serve(&input, &[piece]);
        let content = [b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n".as_slice(), &input].concat();
        serve(&content, &[piece]);
    }

    #[test]
    fn any_octets_leave_the_client_with_an_outcome(lines in proptest::collection::vec(prop_oneof![
        "[2-5][0-9]{2}[ -]?[ -~]{0,10}\r\n",
        "(220|250|354) ok\r\n",
        "(250 ok\r\n){3}354 go\r\n250 done\r\n",
        "[\\x00-\\x7f]{0,40}",
        Just("250-x\r\n250 PIPELINING\r\n".to_owned()),
    ], 0..20), piece in 1..50usize) {
        let mut now = Instant::now();
        let mut session = client::Session::new(Arc::new(client::Config::new(host("c.example"))), now);
        let mut open = 0;
        let mut outcomes = 0;
        let mut closed = false;
        let input = lines.concat().into_bytes();
        let mut pieces = input.chunks(piece);
        while !closed {
            match session.drain() {
                client::Output::Ask(client::Question::Next) => {
                    let mut envelope = Envelope::new(ReversePath::Null);
                    envelope.recipients = vec![Mailbox::parse("a@b.example", false).unwrap(); 2];
                    open += 1;
                    session.answer(client::Answer::Send(Box::new(client::Transaction { envelope, size: 1 })), now);
                }
                client::Output::Ask(client::Question::Body) => {
                    session.answer(client::Answer::Body { bytes: Bytes::from_static(b"x\r\n"), last: true }, now);
                }
                client::Output::Ask(client::Question::PastDot) => session.answer(client::Answer::Proceed, now),
                client::Output::Done(outcome) => {
                    prop_assert_eq!(outcome.recipients.len(), 2);
                    outcomes += 1;
                }
                client::Output::Write(_) | client::Output::Broken(_) => {}
                client::Output::Wait(until) => match pieces.next() {
                    Some(piece) => session.feed(Bytes::copy_from_slice(piece), now),
                    None => {
                        now = until;
                        session.tick(now);
                    }
                },
                client::Output::StartTls => prop_assert!(false),
                client::Output::Close => closed = true,
            }
        }
        // Every transaction that was begun has exactly one outcome.
        prop_assert_eq!(open, outcomes);
    }

    #[test]
    fn content_arrives_octet_for_octet(lines in proptest::collection::vec("[.]{0,2}[a-zA-Z.: é\u{0}]{0,30}\r\n", 0..60), pieces in 1..200usize, wire in 1..200usize) {
        let content = lines.concat().into_bytes();
        let (got, verdicts) = relay(&content, pieces, wire);
        prop_assert_eq!(verdicts, [client::Verdict::Delivered; 2]);
        prop_assert_eq!(got, content);
    }
}

#[test]
fn large_content_arrives_octet_for_octet() {
    let content = "A line of content, and a dot.\r\n..\r\n"
        .repeat(20_000)
        .into_bytes();
    for pieces in [content.len(), 100_000, 1000] {
        let (got, verdicts) = relay(&content, pieces, 16_384);
        assert!(got == content && verdicts == [client::Verdict::Delivered; 2]);
    }
}

#[test]
fn a_driver_that_does_not_heed_backpressure_loses_its_session() {
    let now = Instant::now();
    let mut session = greeted_server(now);
    session.feed(Bytes::from_static(b"EHLO c\r\nMAIL FROM:<>\r\n"), now);
    while let server::Output::Ask(server::Question::Connect) | server::Output::Write(_) =
        session.drain()
    {
        session.answer(server::Answer::Accept, now);
    }
    assert!(!session.wants_read());
    for _ in 0..40 {
        session.feed(
            Bytes::from(vec![b'x'; 16 * 1024]),
            now + Duration::from_secs(1),
        );
    }
    while let server::Output::Write(_) | server::Output::Ask(_) = session.drain() {}
    assert_eq!(session.drain(), server::Output::Close);
}

fn client(now: Instant) -> client::Session {
    client::Session::new(Arc::new(client::Config::new(host("c.example"))), now)
}

/// The driver writes content, and feeds what comes meanwhile: it drains only when that is done.
#[test]
fn a_next_hop_that_floods_loses_its_session_and_little_of_it_is_kept() {
    let now = Instant::now();
    let mut session = client(now);
    let piece = Bytes::from(vec![b'x'; 4096]);
    let taken = (0..1000).take_while(|_| {
        session.feed(piece.clone(), now);
        !session.is_over()
    });
    assert!(taken.count() * piece.len() <= smtp::limits::REPLY_INPUT_BYTES_MAX);
    assert!(matches!(session.drain(), client::Output::Broken(_)));
    assert_eq!(session.drain(), client::Output::Close);
}

#[test]
fn replies_to_a_long_pipeline_may_all_come_before_the_driver_drains() {
    let now = Instant::now();
    let mut session = client(now);
    let talk = |session: &mut client::Session, said: &str| {
        session.feed(Bytes::copy_from_slice(said.as_bytes()), now);
        loop {
            match session.drain() {
                client::Output::Write(_) => {}
                other => return other,
            }
        }
    };
    talk(&mut session, "220 mx.example.org\r\n");
    let ready = talk(&mut session, "250-mx.example.org\r\n250 PIPELINING\r\n");
    assert_eq!(ready, client::Output::Ask(client::Question::Next));
    let mut envelope = Envelope::new(ReversePath::Null);
    envelope.recipients = vec![Mailbox::parse("b@example.org", false).unwrap(); 1000];
    let transaction = client::Transaction { envelope, size: 1 };
    session.answer(client::Answer::Send(Box::new(transaction)), now);
    assert!(matches!(talk(&mut session, ""), client::Output::Wait(_)));
    // To MAIL and to each RCPT.
    let reply = Bytes::from(format!("250 2.1.5 {}\r\n", "x".repeat(490)));
    for _ in 0..1001 {
        session.feed(reply.clone(), now);
    }
    let content = talk(&mut session, "354 go on\r\n");
    assert_eq!(content, client::Output::Ask(client::Question::Body));
}
