//! Ends of content that are none, each with a second message hidden behind it: whatever another server takes them for, we
//! never take two messages where a strict client sent one (CVE-2023-51764 and its relatives).

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mail::{Host, Reply};
use smtp::server::{Answer, Config, Output, Question, Session};

/// Replies, and the content of each commit.
fn play(input: &[u8], piece: usize) -> (String, Vec<Vec<u8>>) {
    let now = Instant::now();
    let config = Config::new(Host::parse("mx.example.org").unwrap());
    let mut session = Session::new(Arc::new(config), now);
    let (mut replies, mut body, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    let mut pieces = input.chunks(piece);
    loop {
        match session.drain() {
            Output::Write(bytes) => replies.extend_from_slice(&bytes),
            Output::Body(bytes) => body.extend_from_slice(&bytes),
            Output::Forget => body.clear(),
            Output::Ask(Question::Commit(_)) => {
                commits.push(std::mem::take(&mut body));
                session.answer(Answer::Committed(Reply::committed()), now);
            }
            Output::Ask(_) => session.answer(Answer::Accept, now),
            Output::Wait(_) => match pieces.next() {
                Some(piece) => session.feed(Bytes::copy_from_slice(piece), now),
                None => break,
            },
            Output::StartTls => panic!("not offered"),
            Output::Close => break,
        }
    }
    (String::from_utf8(replies).unwrap(), commits)
}

fn dialogue(end: &str) -> Vec<u8> {
    let transaction = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n";
    format!("EHLO c\r\n{transaction}hello{end}{transaction}smuggled\r\n.\r\nQUIT\r\n").into_bytes()
}

#[test]
fn variants_with_a_bare_line_end_are_refused_and_nothing_behind_them_is_read() {
    let ends = [
        "\n.\n",
        "\n.\r\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\n",
        "\r\n.\r",
        "\n\n.\n",
        "\r\r.\r",
        "\n.\r",
        "\r.\n",
        "\r\n.\r\r\n",
        "\r\n\n.\r\n",
        "\r\n.\n\r\n",
        "\r\r\n.\r\n",
        "\n\r\n.\r\n",
    ];
    for end in ends {
        for piece in [1, 2, 3, 7, 4096] {
            let (replies, commits) = play(&dialogue(end), piece);
            assert!(
                commits.is_empty(),
                "{end:?} in pieces of {piece}: {commits:?}"
            );
            assert!(
                replies.ends_with("554 5.5.2 a bare CR or LF: lines end with CRLF only\r\n"),
                "{end:?}: {replies}"
            );
        }
    }
}

#[test]
fn variants_with_other_octets_are_content() {
    for end in [
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\n .\r\n",
        "\r\n. \r\n",
        "\r\n..\r\n",
        ".\r\n",
    ] {
        for piece in [1, 2, 3, 7, 4096] {
            let (_, commits) = play(&dialogue(end), piece);
            assert_eq!(commits.len(), 1, "{end:?} in pieces of {piece}");
            let content = String::from_utf8_lossy(&commits[0]);
            assert!(
                content.starts_with("hello") && content.ends_with("smuggled\r\n"),
                "{end:?}: {content:?}"
            );
        }
    }
}

#[test]
fn the_one_end_that_is_one_separates_two_messages() {
    let (_, commits) = play(&dialogue("\r\n.\r\n"), 4096);
    assert_eq!(commits, [b"hello\r\n".to_vec(), b"smuggled\r\n".to_vec()]);
}
