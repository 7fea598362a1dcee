//! The driver of one SMTP session: one socket, one `smtp::client::Session`. It knows no mail: questions go to its owner.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use resource::TlsPolicy;
use smtp::client::{Answer, Config, Failure, Outcome, Output, Question, Session, Stage};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::io::poll_read_buf;

use crate::attempt::At;
use crate::route::Hop;
use crate::tls::{NextHopTls, Secured};

/// Replies are short; one read takes a pipeline's worth.
const READ_BYTES: usize = 4 * 1024;
/// Output is gathered up to here, so that a small message and its final dot leave in one write.
const GATHER_BYTES_MAX: usize = 32 * 1024;
/// How long a broken connection is listened to: what was said before the break is in the socket already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the session wants of its owner.
#[derive(Debug)]
pub(crate) enum Event {
    /// Answer this, now or later.
    Ask(Question),
    /// A transaction has its outcome.
    Done(Outcome),
    /// The session ended without a transaction.
    Broken(Failure),
    /// Call [`Connection::secure`].
    StartTls,
    /// The owner's `interrupt` came.
    Interrupted,
    /// It is over: drop it.
    Closed,
}

/// A connection to a next hop.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Session,
    socket: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    read: BytesMut,
    gathered: BytesMut,
    write_timeout: Duration,
    /// The other end.
    pub(crate) hop: Hop,
    /// How long the TCP connection took.
    pub(crate) connect_ms: u32,
    /// Version and cipher, and whether the certificate was checked; empty in clear.
    pub(crate) tls: String,
}

/// Why a connection did not come about, for people.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The host was not reached.
    Unreached(String),
    /// It was, but there is no TLS with it.
    Tls(String),
}

impl Connection {
    /// Connects; where TLS begins with the connection, it is set up.
    ///
    /// # Errors
    /// What the system said, or that the time was up.
    pub(crate) async fn open(
        hop: Hop,
        config: Arc<Config>,
        connect: Duration,
        tls: &NextHopTls,
    ) -> Result<Connection, Unopened> {
        let start = now();
        let socket = match tokio::time::timeout(connect, TcpStream::connect(hop.address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                return Err(Unopened::Unreached(format!(
                    "cannot connect to {} [{}]: {error}",
                    hop.host, hop.address
                )));
            }
            Err(_) => {
                return Err(Unopened::Unreached(format!(
                    "cannot connect to {} [{}]: no answer for {connect:?}",
                    hop.host, hop.address
                )));
            }
        };
        // What is gathered is whole: waiting for more would only add delay. A failure costs speed and nothing else.
        let _ = socket.set_nodelay(true);
        let write_timeout = config.timeouts.block;
        let connect_ms = millis(now() - start);
        let (session, socket, tls) = match hop.tls {
            TlsPolicy::Implicit => {
                let secured = tls.secure(&hop, socket).await;
                let (socket, tls) = secured.map_err(Unopened::Tls)?;
                (Session::over_tls(config, now()), Either::Right(socket), tls)
            }
            _ => {
                let session = Session::new(config, now());
                (session, Either::Left(socket), String::new())
            }
        };
        let (read, gathered) = (BytesMut::new(), BytesMut::new());
        Ok(Connection {
            session,
            socket,
            read,
            gathered,
            write_timeout,
            hop,
            connect_ms,
            tls,
        })
    }

    /// The handshake, after [`Event::StartTls`]. What came in clear and is not read yet is gone (RFC 3207 section 4.2).
    ///
    /// # Errors
    /// Why there is no TLS, for people.
    pub(crate) async fn secure(mut self, tls: &NextHopTls) -> Result<Connection, String> {
        self.flush().await;
        self.read.clear();
        let Either::Left(socket) = self.socket else {
            return Err("TLS within TLS".into());
        };
        let (socket, facts): Secured = tls.secure(&self.hop, socket).await?;
        self.socket = Either::Right(socket);
        self.tls = facts;
        self.session.answer(Answer::Secured, now());
        Ok(self)
    }

    /// Where an attempt over this connection is, which began at `start`.
    pub(crate) fn at(&self, start: Instant) -> At {
        At {
            tls: self.tls.clone(),
            ..At::hop(&self.hop, self.connect_ms, millis(now() - start))
        }
    }

    /// The session ended so soon after the handshake that TLS must be why: hosts say only then that they do not like it.
    pub(crate) fn broke_by_tls(&self, failure: &Failure) -> bool {
        self.session.is_secured() && failure.stage <= Stage::Hello && failure.reply.is_none()
    }

    /// Answers a question.
    pub(crate) fn answer(&mut self, answer: Answer) {
        self.session.answer(answer, now());
    }

    /// Goes on until the session wants something, or `interrupt` is ready while it waits.
    pub(crate) async fn next(&mut self, interrupt: impl Future<Output = ()>) -> Event {
        tokio::pin!(interrupt);
        loop {
            match self.session.drain() {
                Output::Write(bytes) => self.write(&bytes).await,
                Output::Ask(question) => return Event::Ask(question),
                Output::Done(outcome) => return Event::Done(outcome),
                Output::Broken(failure) => return Event::Broken(failure),
                Output::StartTls => return Event::StartTls,
                Output::Close => {
                    self.flush().await;
                    return Event::Closed;
                }
                Output::Wait(until) => {
                    if !self.gathered.is_empty() {
                        self.flush().await;
                        continue;
                    }
                    self.read.reserve(READ_BYTES);
                    tokio::select! {
                        biased;
                        got = self.socket.read_buf(&mut self.read) => self.took(got),
                        () = tokio::time::sleep_until(until.into()) => self.session.tick(now()),
                        () = &mut interrupt => return Event::Interrupted,
                    }
                }
            }
        }
    }

    fn took(&mut self, got: std::io::Result<usize>) {
        match got {
            Ok(0) => self
                .session
                .lost("the next hop closed the connection", now()),
            // Without TLS's farewell, as many do. Nothing in SMTP ends by the end of its connection.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => self
                .session
                .lost("the next hop closed the connection", now()),
            Ok(_) => self.fed(),
            Err(error) => self
                .session
                .lost(&format!("the connection broke: {error}"), now()),
        }
    }

    async fn write(&mut self, bytes: &Bytes) {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHER_BYTES_MAX {
            self.flush().await;
        }
    }

    /// Before a decision that must be fresh when the next octets leave: whatever could take long goes first.
    pub(crate) async fn flush_if_long(&mut self) {
        if self.gathered.len() > GATHER_BYTES_MAX / 2 {
            self.flush().await;
        }
    }

    /// Puts what is gathered on the wire. An error is told to the session.
    pub(crate) async fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let bytes = self.gathered.split();
        tracing::trace!(hop = %self.hop.address, octets = bytes.len(), start = %bytes[..bytes.len().min(200)].escape_ascii(), "sent");
        let until = tokio::time::Instant::now() + self.write_timeout;
        match timeout_at(until, self.write_while_reading(bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.hear_last_words().await;
                self.session
                    .lost(&format!("the connection broke: {error}"), now());
            }
            Err(_) => self
                .session
                .lost("the next hop took no octets for too long", now()),
        }
    }

    /// Writes, and reads what comes meanwhile. A host that will not have the message says so in the middle of it and
    /// closes (RFC 5321 section 4.2.5 knows no such reply, many send it): unread, its refusal would be lost with the
    /// connection. And two that only write wait for each other for ever. One that only sends is heard until the session has
    /// enough of it, and keeps no write waiting that could go on.
    async fn write_while_reading(&mut self, mut bytes: BytesMut) -> std::io::Result<()> {
        let mut reads = true;
        while !bytes.is_empty() {
            self.read.reserve(READ_BYTES);
            let (socket, read) = (&mut self.socket, &mut self.read);
            let step = poll_fn(|cx| {
                let written = Pin::new(&mut *socket).poll_write(cx, &bytes);
                let got = match reads {
                    true => poll_read_buf(Pin::new(&mut *socket), cx, read),
                    false => Poll::Pending,
                };
                match written.is_pending() && got.is_pending() {
                    true => Poll::Pending,
                    false => Poll::Ready((written, got)),
                }
            });
            let (written, got) = step.await;
            match got {
                Poll::Pending => {}
                // That it sends nothing more is no reason not to take the rest; if it does not, the write says so.
                Poll::Ready(Ok(0) | Err(_)) => reads = false,
                Poll::Ready(Ok(_)) => {
                    self.fed();
                    if self.session.is_over() {
                        return Ok(());
                    }
                }
            }
            match written {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(written) => bytes.advance(written?),
            }
        }
        // TLS may still hold a part of it.
        self.socket.flush().await
    }

    /// After a write that failed: what the other end had said before is still there to be read.
    async fn hear_last_words(&mut self) {
        let hear = async {
            loop {
                self.read.reserve(READ_BYTES);
                match self.socket.read_buf(&mut self.read).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => self.fed(),
                }
                if self.session.is_over() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, hear).await;
    }

    /// What was read goes to the session.
    fn fed(&mut self) {
        let bytes = self.read.split().freeze();
        tracing::trace!(hop = %self.hop.address, bytes = %bytes.escape_ascii(), "received");
        self.session.feed(bytes, now());
    }
}

/// The monotonic clock, the one that tests can turn.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Whole milliseconds, for a result.
pub(crate) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
