//! The client: sends messages with an id each over several connections, each again until it got 250, as a mail server
//! would, and writes down what came of every attempt.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Before a message is sent again.
const AGAIN: Duration = Duration::from_millis(50);
/// The edge gives up on the queue after 120 s; who waits for less would not hear it.
const REPLY: Duration = Duration::from_secs(150);
/// Messages on one connection.
const MESSAGES: usize = 50;

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 250 after the final dot: from here on it must not be lost.
    Acked,
    /// A reply that says no, with the whole of it.
    Refused(String),
    /// The connection ended before the final dot: nothing can have come of it.
    Broken,
    /// The connection ended after the final dot was sent: nobody knows.
    Unknown,
}

/// One attempt to hand a message over.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When the final dot was sent, or the attempt began when it was not.
    pub begun: Instant,
    /// When it ended.
    pub ended: Instant,
    /// How.
    pub outcome: Outcome,
    /// The id in the 250: this very message of ours must arrive, not only a copy of another attempt.
    pub queued_as: Option<String>,
}

/// All attempts, by message.
#[derive(Default)]
pub struct Ledger {
    attempts: Mutex<BTreeMap<u64, Vec<Attempt>>>,
    acked: AtomicU64,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Attempt>>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, id: u64, begun: Instant, outcome: Outcome, queued_as: Option<String>) {
        let acked = outcome == Outcome::Acked;
        let ended = Instant::now();
        let attempt = Attempt {
            begun,
            ended,
            outcome,
            queued_as,
        };
        self.lock().entry(id).or_default().push(attempt);
        self.acked.fetch_add(u64::from(acked), Ordering::SeqCst);
    }

    /// Messages that got 250.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// All attempts so far.
    pub fn attempts(&self) -> BTreeMap<u64, Vec<Attempt>> {
        self.lock().clone()
    }

    /// Refusals so far, each text with its count.
    pub fn refusals(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for attempt in self.lock().values().flatten() {
            if let Outcome::Refused(text) = &attempt.outcome {
                *all.entry(text.clone()).or_default() += 1;
            }
        }
        all
    }

    /// The longest time within `[from, to]` in which no message at all got 250, up to the last that ever did.
    pub fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let attempts = self.lock();
        let acked = attempts.values().flatten();
        let mut at: Vec<Instant> = acked
            .filter(|a| a.outcome == Outcome::Acked)
            .map(|a| a.ended)
            .collect();
        let last = at.iter().max().copied().unwrap_or(to);
        at.retain(|at| *at >= from && *at <= to);
        at.extend([from, to.min(last).max(from)]);
        at.sort();
        at.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }

    /// The longest that one message waited for its 250, of those answered within `[from, to]`.
    pub fn longest_wait(&self, from: Instant, to: Instant) -> Duration {
        let attempts = self.lock();
        let of = |a: &&Attempt| a.outcome == Outcome::Acked && a.ended >= from && a.ended <= to;
        let all = attempts.values().flatten().filter(of);
        all.map(|a| a.ended - a.begun).max().unwrap_or_default()
    }
}

/// What a client sends.
#[derive(Clone)]
pub struct Load {
    /// The first id.
    pub first: u64,
    /// How many messages.
    pub count: u64,
    /// Over how many connections.
    pub connections: usize,
    /// To which domains, in turn.
    pub domains: Vec<String>,
    /// Octets of the smallest and the largest message.
    pub octets: (usize, usize),
    /// Between two messages of one connection.
    pub pause: Duration,
}

impl Load {
    /// So many messages of up to 10 KiB over ten connections.
    pub fn new(count: u64, domains: &[&str]) -> Load {
        Load {
            first: 0,
            count,
            connections: 10,
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            octets: (300, 10 << 10),
            pause: Duration::ZERO,
        }
    }

    fn domain(&self, id: u64) -> &str {
        &self.domains[id as usize % self.domains.len()]
    }

    /// The octets of a message, always the same for an id.
    pub fn message(&self, id: u64) -> Vec<u8> {
        let (least, most) = self.octets;
        let chance = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let length = least + (chance >> 33) as usize % (most - least + 1);
        let mut all = format!(
            "Subject: message {id}\r\nX-Id: {id}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        )
        .into_bytes();
        // Dots where SMTP doubles them, octets above 127, empty and long lines.
        let lines = [
            "..\r\n".to_owned(),
            format!(".{chance:x} begins with a dot\r\n"),
            "\r\n".to_owned(),
            "Grüße aus der Schlange, 順番\r\n".to_owned(),
            format!("{chance:0>900}\r\n"),
            "The quick brown fox jumps over the lazy dog, again and again and again.\r\n"
                .to_owned(),
        ];
        let mut turn = chance as usize;
        while all.len() < length {
            turn = turn.wrapping_mul(31).wrapping_add(7);
            all.extend_from_slice(lines[turn / 8 % lines.len()].as_bytes());
        }
        all
    }
}

/// A client at work.
pub struct Client {
    /// What it wrote down.
    pub ledger: Arc<Ledger>,
    /// What it sends.
    pub load: Load,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Client {
    /// Sends to these ports on loopback.
    pub fn start(edges: &[u16], load: Load) -> Client {
        let here = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        Client::start_at(edges.iter().map(here).collect(), load)
    }

    /// Sends to these addresses.
    pub fn start_at(edges: Vec<SocketAddr>, load: Load) -> Client {
        let ledger = Arc::new(Ledger::default());
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for n in 0..load.connections {
            let worker = Worker {
                edges: edges.clone(),
                at: n,
                load: load.clone(),
                ledger: ledger.clone(),
                stop: stop.clone(),
                next: next.clone(),
            };
            tasks.spawn(worker.run());
        }
        Client {
            ledger,
            load,
            stop,
            tasks,
        }
    }

    /// Waits until so many messages got 250.
    pub async fn acked(&self, count: u64, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while self.ledger.acked() < count {
            if Instant::now() > until {
                bail!(
                    "{} of {count} messages got 250 in {within:?}; refusals: {:#?}",
                    self.ledger.acked(),
                    self.ledger.refusals()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until every message got 250.
    pub async fn done(&mut self, within: Duration) -> Result<()> {
        self.acked(self.load.count, within).await?;
        self.stop().await;
        Ok(())
    }

    /// Ends after what is under way.
    pub async fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Worker {
    edges: Vec<SocketAddr>,
    at: usize,
    load: Load,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
}

impl Worker {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn run(mut self) {
        let mut connection: Option<Connection> = None;
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            if number >= self.load.count {
                break;
            }
            let id = self.load.first + number;
            let message = self.load.message(id);
            while !self.stopped() {
                if let Some(open) = self.attempt(connection.take(), id, &message).await {
                    connection = open;
                    break;
                }
                // The next edge, as the next MX.
                self.at += 1;
                tokio::time::sleep(AGAIN).await;
            }
            if self.stopped() {
                break;
            }
            if !self.load.pause.is_zero() {
                tokio::time::sleep(self.load.pause).await;
            }
        }
        if let Some(mut open) = connection {
            let _ = open.write.write_all(b"QUIT\r\n").await;
        }
    }

    /// `Some` when it was acknowledged, with the connection when it may be used again.
    async fn attempt(
        &self,
        open: Option<Connection>,
        id: u64,
        message: &[u8],
    ) -> Option<Option<Connection>> {
        let mut begun = Instant::now();
        let mut dot_sent = false;
        let attempt = async {
            let mut connection = match open {
                Some(connection) => connection,
                None => match Connection::open(self.edges[self.at % self.edges.len()]).await? {
                    Ok(connection) => connection,
                    Err(refused) => return Ok((None, Err(refused))),
                },
            };
            let to = format!("r{id}@{}", self.load.domain(id));
            let answer = connection
                .send(&to, message, || {
                    dot_sent = true;
                    begun = Instant::now();
                })
                .await?;
            anyhow::Ok((Some(connection), answer))
        };
        let result = tokio::time::timeout(REPLY, attempt).await;
        let (outcome, queued_as, connection) = match result {
            Ok(Ok((connection, Ok(ulid)))) => (Outcome::Acked, Some(ulid), connection),
            Ok(Ok((_, Err(refused)))) => (Outcome::Refused(refused), None, None),
            _ if dot_sent => (Outcome::Unknown, None, None),
            _ => (Outcome::Broken, None, None),
        };
        let acked = outcome == Outcome::Acked;
        self.ledger.note(id, begun, outcome, queued_as);
        acked.then(|| connection.filter(|c| c.sent < MESSAGES))
    }
}

struct Connection {
    read: BufReader<tokio::net::tcp::OwnedReadHalf>,
    write: tokio::net::tcp::OwnedWriteHalf,
    sent: usize,
}

impl Connection {
    /// The inner error is what the other side said instead of taking the session.
    async fn open(edge: SocketAddr) -> Result<Result<Connection, String>> {
        let stream = TcpStream::connect(edge).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut connection = Connection {
            read: BufReader::new(read),
            write,
            sent: 0,
        };
        let greeting = connection.reply().await?;
        if !greeting.starts_with("220") {
            return Ok(Err(greeting));
        }
        connection.write.write_all(b"EHLO client.test\r\n").await?;
        let hello = connection.reply().await?;
        if !hello.starts_with("250") {
            return Ok(Err(hello));
        }
        Ok(Ok(connection))
    }

    /// The id in the 250, or the reply that refuses. `dot` is called just before the first octet of the content's last piece
    /// can leave.
    async fn send(
        &mut self,
        to: &str,
        message: &[u8],
        dot: impl FnOnce(),
    ) -> Result<Result<String, String>> {
        let begin = format!(
            "MAIL FROM:<sender@origin.test> BODY=8BITMIME SIZE={}\r\nRCPT TO:<{to}>\r\nDATA\r\n",
            message.len()
        );
        self.write.write_all(begin.as_bytes()).await?;
        let mut refused = None;
        for wanted in ["250", "250", "354"] {
            let reply = self.reply().await?;
            if !reply.starts_with(wanted) {
                refused.get_or_insert(reply);
            }
        }
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let wire = stuffed(message);
        let (content, last) = wire.split_at(wire.len() - 3);
        self.write.write_all(content).await?;
        dot();
        self.write.write_all(last).await?;
        let reply = self.reply().await?;
        self.sent += 1;
        if !reply.starts_with("250") {
            return Ok(Err(reply));
        }
        let ulid = reply
            .rsplit_once("queued as ")
            .map(|(_, ulid)| ulid.to_owned());
        Ok(Ok(ulid.with_context(|| {
            format!("a 250 without an id: {reply}")
        })?))
    }

    /// The last line of a reply.
    async fn reply(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let read = self.read.read_line(&mut line).await?;
            anyhow::ensure!(read > 0, "the connection ended");
            if line.as_bytes().get(3).context("a short reply")? != &b'-' {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

/// As it goes over the wire (RFC 5321 section 4.5.2), with the end.
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + 100);
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.first() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
    wire
}
