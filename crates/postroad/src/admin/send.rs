//! `postroad send`: a test message, given to a server over SMTP by the same client session that delivers mail.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::{Envelope, Mailbox, ReversePath};
use smtp::client::{Answer, Config, Outcome, Output, Question, Session, Transaction, Verdict};

use super::now_ms;
use super::table::plain;
use crate::failure::Failure;
use crate::{role, settings};

/// How long to wait for a connection: a person is looking.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One read from the socket.
const READ_BYTES: usize = 4096;

/// Sends it and says what the server said.
///
/// # Errors
/// Code 3 without an SMTP session, 1 when any recipient was refused.
pub async fn run(settings: settings::Send) -> Result<(), Failure> {
    let task = tokio::task::spawn_blocking(move || send(&settings));
    task.await.map_err(Failure::failed)?
}

fn send(settings: &settings::Send) -> Result<(), Failure> {
    let host = role::hostname(settings.hostname.as_deref())?;
    let envelope = envelope(settings)?;
    let content = match settings.stdin {
        true => crlf(&read_stdin()?),
        false => default_message(settings, &host),
    };
    let recipients = envelope.recipients.clone();
    let transaction = Transaction {
        envelope: Envelope {
            eight_bit: !content.is_ascii(),
            ..envelope
        },
        size: content.len() as u64,
    };
    let socket = connect(&settings.server)?;
    let config = Config::new(mail::Host::Domain(host));
    let outcome = converse(config, socket, transaction, content.into())
        .map_err(|why| Failure::Unreachable(format!("{}: {why}", settings.server)))?;
    report(&recipients, &outcome)
}

fn envelope(settings: &settings::Send) -> Result<Envelope, Failure> {
    let from = match settings.from.as_str() {
        "" | "<>" => ReversePath::Null,
        text => ReversePath::Mailbox(mailbox(text)?),
    };
    let mut envelope = Envelope::new(from);
    for to in &settings.to {
        envelope.recipients.push(mailbox(to)?);
    }
    envelope.smtputf8 =
        !(envelope.return_path.is_ascii() && envelope.recipients.iter().all(Mailbox::is_ascii));
    Ok(envelope)
}

fn mailbox(text: &str) -> Result<Mailbox, Failure> {
    let bare = text
        .strip_prefix('<')
        .and_then(|rest| rest.strip_suffix('>'))
        .unwrap_or(text);
    Mailbox::parse(bare, true)
        .map_err(|error| Failure::usage(format!("`{}` is no mail address: {error}", plain(text))))
}

fn default_message(settings: &settings::Send, host: &mail::Domain) -> Vec<u8> {
    let now = now_ms();
    let from = match settings.from.as_str() {
        "" | "<>" => format!("postmaster@{host}"),
        from => from.trim_matches(['<', '>']).to_owned(),
    };
    format!(
        "From: <{from}>\r\nTo: {}\r\nSubject: {}\r\nDate: {}\r\nMessage-ID: <{now}.{:016x}@{host}>\r\n\r\n\
         This is a test message, sent by `postroad send`.\r\n",
        settings.to.join(", "),
        plain(&settings.subject),
        mail::time::date(now),
        rand::random::<u64>(),
    )
    .into_bytes()
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    io::stdin()
        .read_to_end(&mut text)
        .map_err(|error| Failure::Failed(format!("cannot read the message: {error}")))?;
    Ok(text)
}

/// SMTP has CRLF line ends (RFC 5321 section 2.3.8); files here end their lines with LF.
fn crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let end = line.strip_suffix(b"\n").unwrap_or(line);
        out.extend_from_slice(end.strip_suffix(b"\r").unwrap_or(end));
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn connect(server: &str) -> Result<TcpStream, Failure> {
    let addresses = server.to_socket_addrs().map_err(|error| {
        Failure::Unreachable(format!(
            "cannot find {server}: {error}; write it as HOST:PORT"
        ))
    })?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(Failure::Unreachable(format!(
        "cannot connect to {server}: {last}"
    )))
}

/// Drives a session to the outcome; the error says why there is none. The session bounds how long each reply is waited for
/// (RFC 5321 section 4.5.3.2); each write has the time of a block of content (4.5.3.2.5, "each TCP SEND call"), or a server
/// that reads no more would hold this for ever.
fn converse(
    config: Config,
    mut socket: TcpStream,
    transaction: Transaction,
    content: Bytes,
) -> Result<Outcome, String> {
    let block = config.timeouts.block;
    let set = socket.set_write_timeout(Some(block));
    set.map_err(|error| error.to_string())?;
    let mut session = Session::new(Arc::new(config), Instant::now());
    let mut transaction = Some(Box::new(transaction));
    let mut outcome = None;
    let mut buffer = [0; READ_BYTES];
    loop {
        match session.drain() {
            Output::Write(bytes) => {
                if let Err(error) = socket.write_all(&bytes) {
                    let why = match is_timeout(&error) {
                        true => format!("the server took no octets for {block:?}"),
                        false => error.to_string(),
                    };
                    session.lost(&why, Instant::now());
                }
            }
            Output::Ask(question) => {
                let answer = match question {
                    Question::Next => transaction.take().map_or(Answer::Quit, Answer::Send),
                    Question::Body => Answer::Body {
                        bytes: content.clone(),
                        last: true,
                    },
                    Question::PastDot => Answer::Proceed,
                };
                session.answer(answer, Instant::now());
            }
            Output::Done(done) => outcome = Some(done),
            Output::Broken(failure) if outcome.is_none() => return Err(plain(&failure.text)),
            Output::Broken(_) => {}
            Output::StartTls => session.lost("TLS was not asked for", Instant::now()),
            Output::Close => return outcome.ok_or_else(|| "closed the connection".into()),
            Output::Wait(until) => {
                // Zero would mean to wait for ever.
                let left = until
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_millis(1));
                let _ = socket.set_read_timeout(Some(left));
                match socket.read(&mut buffer) {
                    Ok(0) => session.lost("the server closed the connection", Instant::now()),
                    Ok(read) => {
                        session.feed(Bytes::copy_from_slice(&buffer[..read]), Instant::now());
                    }
                    Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {
                        session.tick(Instant::now());
                    }
                    Err(error) => session.lost(&error.to_string(), Instant::now()),
                }
            }
        }
    }
}

/// The time that the socket was given is over.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn report(recipients: &[Mailbox], outcome: &Outcome) -> Result<(), Failure> {
    let mut refused = 0;
    for (recipient, result) in recipients.iter().zip(&outcome.recipients) {
        let said = match &result.reply {
            Some(reply) => plain(&reply.to_string()),
            None => plain(&result.text),
        };
        let verdict = match result.verdict {
            Verdict::Delivered => "accepted",
            Verdict::Deferred => "not now",
            Verdict::Failed => "refused",
        };
        println!("{recipient}: {verdict}: {said}");
        refused += usize::from(result.verdict != Verdict::Delivered);
    }
    match refused {
        0 => Ok(()),
        some => Err(Failure::Failed(format!(
            "{some} of {} recipients were not accepted",
            recipients.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// It was written to without a bound.
    #[test]
    fn a_server_that_reads_no_more_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
            socket.write_all(b"220 mx.example\r\n").unwrap();
            for reply in ["250 mx.example", "250 ok", "250 ok", "354 go on"] {
                lines.next().unwrap().unwrap();
                socket.write_all(format!("{reply}\r\n").as_bytes()).unwrap();
            }
            // Open, and not read any more, until the test has ended.
            (socket, lines)
        });
        let mut config = Config::new(mail::Host::parse("relay.example").unwrap());
        config.timeouts.block = Duration::from_millis(200);
        let mut envelope = Envelope::new(ReversePath::Null);
        envelope.recipients.push(mailbox("b@mx.example").unwrap());
        // More than two sockets hold between them.
        let content = b"The quick brown fox jumps over the lazy dog.\r\n".repeat(1 << 20);
        let size = content.len() as u64;
        let transaction = Transaction { envelope, size };
        let began = Instant::now();
        let outcome = converse(config, socket, transaction, content.into()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(60));
        let result = &outcome.recipients[0];
        assert_eq!(result.verdict, Verdict::Deferred);
        let said = "while content was sent: the server took no octets for 200ms";
        assert!(result.text.ends_with(said), "{}", result.text);
        drop(server.join().unwrap());
    }

    #[test]
    fn lines_end_with_crlf_whatever_they_ended_with() {
        assert_eq!(crlf(b"a\nb\r\nc"), b"a\r\nb\r\nc\r\n");
        assert_eq!(crlf(b""), b"");
        assert_eq!(crlf(b"\n.\n"), b"\r\n.\r\n");
    }
}
