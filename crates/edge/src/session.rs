//! The driver: one socket, one `smtp::server::Session`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mail::{Mailbox, Reply, ReversePath};
use smtp::server::{Answer, Commit, Output, Question, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::append::{Client, Incoming, Outcome};
use crate::facts::Room;
use crate::node::Node;
use crate::policy::{self, Admission};
use crate::tls::{self, TlsFacts};

/// Octets that one read takes: a message of common size in one system call.
const READ_BYTES: usize = 32 << 10;

/// How long a client that was told goodbye may take to close.
const LINGER: Duration = Duration::from_secs(2);

/// The connection, in clear or under TLS.
type Wire = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Who calls, and where.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub client: SocketAddr,
    pub listener: Arc<str>,
}

/// One SMTP session.
pub(crate) struct Conversation {
    node: Arc<Node>,
    socket: Wire,
    tls: Option<TlsFacts>,
    who: Who,
    smtp: Session,
    /// Octets of a message.
    message_bytes_max: u64,
    transaction: Transaction,
    input: BytesMut,
    /// Replies of one batch go out in one write (RFC 2920 section 3.2).
    output: Vec<u8>,
    refusals: u32,
    /// The session was told that the node is leaving.
    leaving: bool,
}

/// What was decided for the present transaction.
#[derive(Default)]
struct Transaction {
    return_path: Option<ReversePath>,
    admission: Option<Admission>,
    room: Room,
    incoming: Option<Incoming>,
}

/// How a part of the conversation ended.
enum Pause {
    /// It is over.
    Over,
    /// The TLS handshake comes next.
    StartTls,
}

impl Conversation {
    pub fn new(node: Arc<Node>, socket: TcpStream, who: Who) -> Conversation {
        Conversation::with(node, Either::Left(socket), None, who)
    }

    /// TLS began with the connection.
    pub fn over_tls(
        node: Arc<Node>,
        socket: Box<TlsStream<TcpStream>>,
        tls: TlsFacts,
        who: Who,
    ) -> Conversation {
        Conversation::with(node, Either::Right(socket), Some(tls), who)
    }

    fn with(node: Arc<Node>, socket: Wire, tls: Option<TlsFacts>, who: Who) -> Conversation {
        let config = node.smtp_config();
        let message_bytes_max = config.message_bytes_max;
        let smtp = match tls {
            None => Session::new(config, Instant::now()),
            Some(_) => Session::over_tls(config, Instant::now()),
        };
        Conversation {
            node,
            socket,
            tls,
            who,
            smtp,
            message_bytes_max,
            transaction: Transaction::default(),
            input: BytesMut::new(),
            output: Vec::new(),
            refusals: 0,
            leaving: false,
        }
    }

    /// Talks until one side ends it.
    pub async fn run(mut self) {
        let ended = loop {
            match self.talk().await {
                Ok(Pause::StartTls) => match self.secure().await {
                    Ok(secured) => self = secured,
                    Err(error) => return tracing::info!(%error, "no TLS with this client"),
                },
                Ok(Pause::Over) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = ended {
            let in_content = self.transaction.incoming.is_some();
            tracing::info!(%error, in_content, refusals = self.refusals, "SMTP session ended with an error");
        } else if self.refusals > 0 {
            tracing::info!(refusals = self.refusals, "SMTP session ended");
        }
    }

    /// The handshake after STARTTLS. Whatever came in clear and was not obeyed yet is gone (RFC 3207 section 4.2).
    async fn secure(mut self) -> io::Result<Conversation> {
        self.flush().await?;
        self.input.clear();
        let (Some(config), Either::Left(socket)) = (self.node.tls.clone(), self.socket) else {
            return Err(io::Error::other("STARTTLS twice, or without a certificate"));
        };
        let (stream, facts) = tls::accept(config, socket, self.node.config.handshake).await?;
        self.socket = Either::Right(stream);
        self.tls = Some(facts);
        self.smtp.answer(Answer::Secured, Instant::now());
        Ok(self)
    }

    async fn talk(&mut self) -> io::Result<Pause> {
        loop {
            match self.smtp.drain() {
                Output::Write(bytes) => self.output.extend_from_slice(&bytes),
                Output::Ask(question) => {
                    let answer = self.decide(question).await?;
                    self.smtp.answer(answer, Instant::now());
                }
                Output::Body(content) => {
                    self.flush().await?;
                    if let Some(incoming) = &mut self.transaction.incoming {
                        incoming.push(&content).await;
                    }
                }
                Output::Forget => self.transaction = Transaction::default(),
                Output::StartTls => return Ok(Pause::StartTls),
                Output::Close => {
                    self.flush().await?;
                    self.close().await?;
                    return Ok(Pause::Over);
                }
                Output::Wait(until) => {
                    self.flush().await?;
                    if !self.wait(until).await? {
                        return Ok(Pause::Over);
                    }
                }
            }
        }
    }

    /// Waits for input, the session's deadline, or the node's end; false: the client is gone.
    async fn wait(&mut self, until: Instant) -> io::Result<bool> {
        let due = self.transaction.incoming.as_ref().and_then(Incoming::due);
        let until = due.map_or(until, |due| due.min(until));
        self.input.reserve(READ_BYTES);
        tokio::select! {
            read = self.socket.read_buf(&mut self.input), if self.smtp.wants_read() => {
                match read {
                    Ok(0) => return Ok(false),
                    Ok(_) => {}
                    // Closed without TLS's farewell, as many do. Nothing in SMTP ends by the end of its connection.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                    Err(error) => return Err(error),
                }
                self.smtp.feed(self.input.split().freeze(), Instant::now());
            }
            () = sleep_until(until.into()) => {
                if let Some(incoming) = &mut self.transaction.incoming {
                    incoming.flush_if_due(Instant::now()).await;
                }
                self.smtp.tick(Instant::now());
            }
            () = self.node.draining.cancelled(), if !self.leaving => {
                self.leaving = true;
                self.smtp.answer(Answer::ShuttingDown, Instant::now());
            }
        }
        Ok(true)
    }

    async fn decide(&mut self, question: Question) -> io::Result<Answer> {
        let answer = match question {
            Question::Connect => {
                self.pause().await?;
                self.connect()
            }
            Question::Mail(facts) => {
                self.transaction = Transaction {
                    return_path: Some(facts.return_path),
                    ..Transaction::default()
                };
                Ok(())
            }
            Question::Rcpt(recipient) => self.recipient(&recipient),
            Question::Data(envelope) => self.data(envelope),
            Question::Commit(commit) => {
                self.flush().await?;
                return Ok(self.commit(commit).await);
            }
        };
        Ok(match answer {
            Ok(()) => Answer::Accept,
            Err(reply) => {
                self.refusals += 1;
                Answer::Refuse(reply)
            }
        })
    }

    /// Lets the client wait for its greeting, as far as that is declared. Programs that send mail without speaking SMTP do
    /// not wait (RFC 5321 section 3.1 says that clients must); what they say goes to the session, which refuses them.
    async fn pause(&mut self) -> io::Result<()> {
        let pause = self.node.settings().greeting_pause;
        if pause.is_zero() {
            return Ok(());
        }
        self.input.reserve(READ_BYTES);
        tokio::select! {
            read = self.socket.read_buf(&mut self.input) => {
                if read? == 0 {
                    return Err(io::Error::other("the client left before the greeting"));
                }
                self.smtp.feed(self.input.split().freeze(), Instant::now());
            }
            () = tokio::time::sleep(pause) => {}
            () = self.node.draining.cancelled() => {}
        }
        Ok(())
    }

    fn connect(&self) -> Result<(), Reply> {
        if self.node.draining.is_cancelled() {
            return Err(Reply::shutting_down());
        }
        match self.node.catalog() {
            Some(_) => Ok(()),
            None => Err(Reply::shutting_down().with_text("no configuration yet, try again")),
        }
    }

    fn recipient(&mut self, recipient: &Mailbox) -> Result<(), Reply> {
        let sender = match &self.transaction.return_path {
            Some(ReversePath::Mailbox(mailbox)) => Some(mailbox.destination()),
            _ => None,
        };
        let postmaster = self.node.postmaster(recipient);
        let taker = postmaster.as_ref().unwrap_or(recipient);
        let question = policy::Question {
            client: (!self.node.config.clients_hidden).then(|| self.who.client.ip()),
            sender: sender.as_ref().map(|domain| domain.as_str()),
            recipient: &taker.destination(),
            postmaster: postmaster.is_some(),
            admitted: self.transaction.admission.as_ref(),
        };
        let admission = policy::decide(self.node.catalog().as_deref(), question);
        let result = admission.and_then(|admission| {
            if !self.transaction.room.take(taker) {
                return Err(Reply::too_many_recipients());
            }
            self.transaction.admission = Some(admission);
            Ok(())
        });
        if let Err(reply) = &result {
            metrics::counter!("postroad_refused_recipients_total", "code" => reply.code.to_string()).increment(1);
            tracing::info!(to = %recipient, from = %self.transaction.return_path.as_ref().map(path).unwrap_or_default(), %reply, "recipient refused");
        }
        result
    }

    fn data(&mut self, envelope: Arc<mail::Envelope>) -> Result<(), Reply> {
        // The session asks only after a recipient was accepted, and that set the admission.
        let Some(admission) = self.transaction.admission.clone() else {
            return Err(Reply::try_again());
        };
        let mut envelope = Arc::unwrap_or_clone(envelope);
        for recipient in &mut envelope.recipients {
            if let Some(postmaster) = self.node.postmaster(recipient) {
                *recipient = postmaster;
            }
        }
        let client = Client {
            address: self.who.client.ip(),
            helo: self.smtp.helo().unwrap_or_default().into(),
            protocol: self.smtp.protocol(),
            listener: self.who.listener.clone(),
            tls: self.tls.clone(),
        };
        let appender = &self.node.appender;
        let incoming = appender.begin(envelope.into(), admission, client, self.message_bytes_max);
        self.transaction.incoming = Some(incoming);
        Ok(())
    }

    /// The final dot. 250 is said here and nowhere else, after the append committed.
    async fn commit(&mut self, commit: Commit) -> Answer {
        let transaction = std::mem::take(&mut self.transaction);
        let Some(incoming) = transaction.incoming else {
            return Answer::Refuse(Reply::try_again());
        };
        let began = Instant::now();
        let outcome = incoming.finish(&commit).await;
        let seconds = began.elapsed().as_secs_f64();
        let (id, word, answer) = match outcome {
            Outcome::Queued(id) => (
                Some(id),
                "queued",
                Answer::Committed(Reply::queued_as(&id.to_string())),
            ),
            Outcome::Refused(id, reply, why) => (id, why, Answer::Refuse(reply)),
            Outcome::Unknown(id) => (Some(id), "unknown", Answer::CloseSilently),
        };
        metrics::counter!("postroad_accepted_messages_total", "outcome" => word).increment(1);
        metrics::histogram!("postroad_append_seconds").record(seconds);
        tracing::info!(
            id = %id.map(|id| id.to_string()).unwrap_or_default(),
            from = %path(&commit.envelope.return_path),
            recipients = commit.envelope.recipients.len(),
            size = commit.size,
            outcome = word,
            seconds,
            "message"
        );
        answer
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        // A client that reads nothing must not hold the session longer than one that sends nothing.
        let written = timeout(smtp::limits::SERVER_TIMEOUT, async {
            self.socket.write_all(&self.output).await?;
            // TLS may still hold a part of it.
            self.socket.flush().await
        })
        .await;
        self.output.clear();
        written.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read our replies",
            )
        })?
    }

    /// Says that nothing more comes, and waits a moment for the client to close: a reset would take our last reply with it.
    async fn close(&mut self) -> io::Result<()> {
        self.socket.shutdown().await?;
        self.input.clear();
        let rest = async {
            while self.socket.read_buf(&mut self.input).await? > 0 {
                self.input.clear();
            }
            io::Result::Ok(())
        };
        timeout(LINGER, rest).await.unwrap_or(Ok(()))
    }
}

fn path(path: &ReversePath) -> String {
    match path {
        ReversePath::Null => "<>".into(),
        ReversePath::Mailbox(mailbox) => mailbox.to_string(),
    }
}
