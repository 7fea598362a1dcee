//! The next hop: an SMTP server that keeps what it accepts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use mail::Digest;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Of each message so many octets are kept: its header and a little more.
const BEGIN_OCTETS_MAX: usize = 2048;

/// One message that was accepted; not all of it, for a test may let more pass than there is memory.
#[derive(Clone, Debug)]
pub struct Copy {
    /// When; just before the 250.
    pub at: Instant,
    /// Who brought it (EHLO).
    pub by: String,
    /// To whom.
    pub to: Vec<String>,
    /// Its first octets, dots taken away.
    pub begin: Vec<u8>,
    /// Octets of its first header field.
    pub first_field: usize,
    /// How many octets come after that field, and their digest.
    pub rest: (usize, Digest),
}

/// What to answer to a final dot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// 250.
    Accept,
    /// 451.
    Defer,
}

type Judge = Box<dyn Fn(u64) -> Verdict + Send + Sync>;

#[derive(Default)]
struct Kept {
    copies: HashMap<u64, Vec<Copy>>,
    deferred: HashMap<u64, Vec<Instant>>,
    strange: Vec<String>,
    stalled: usize,
}

struct Shared {
    kept: Mutex<Kept>,
    judge: Judge,
    pause: Duration,
    stall: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A sink that listens until it is dropped.
pub struct Sink {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    /// Its port.
    pub port: u16,
}

impl Sink {
    /// Accepts everything.
    pub async fn start() -> Result<Sink> {
        Sink::with(Box::new(|_| Verdict::Accept), Duration::ZERO).await
    }

    /// Answers each message's final dot as `judge` says of its id, after `pause`.
    pub async fn with(judge: Judge, pause: Duration) -> Result<Sink> {
        Sink::listen(LOOPBACK, judge, pause, None).await
    }

    /// Accepts everything at another of this machine's addresses.
    pub async fn at(address: IpAddr) -> Result<Sink> {
        Sink::listen(address, Box::new(|_| Verdict::Accept), Duration::ZERO, None).await
    }

    /// Accepts everything but from who calls himself `host` in EHLO: he waits for the reply to his DATA for ever.
    pub async fn stalling(host: &str) -> Result<Sink> {
        let accept = Box::new(|_| Verdict::Accept);
        Sink::listen(LOOPBACK, accept, Duration::ZERO, Some(host.to_owned())).await
    }

    async fn listen(
        address: IpAddr,
        judge: Judge,
        pause: Duration,
        stall: Option<String>,
    ) -> Result<Sink> {
        let listener = match address.is_loopback() {
            true => super::net::listen().await?,
            false => TcpListener::bind((address, 0)).await?,
        };
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            kept: Mutex::default(),
            judge,
            pause,
            stall,
        });
        let of = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = of.clone();
                // A connection that breaks is the other side's business: the message stays there.
                tokio::spawn(async move { converse(stream, &shared).await.ok() });
            }
        });
        Ok(Sink { shared, task, port })
    }

    /// What was accepted, by id.
    pub fn copies(&self) -> HashMap<u64, Vec<Copy>> {
        self.shared.lock().copies.clone()
    }

    /// When a message was first accepted.
    pub fn first(&self, id: u64) -> Option<Instant> {
        let kept = self.shared.lock();
        kept.copies.get(&id).and_then(|c| c.first()).map(|c| c.at)
    }

    /// When a message was told to come again.
    pub fn deferred(&self, id: u64) -> Vec<Instant> {
        let kept = self.shared.lock();
        kept.deferred.get(&id).cloned().unwrap_or_default()
    }

    /// How many different messages were accepted.
    pub fn count(&self) -> usize {
        self.shared.lock().copies.len()
    }

    /// Transactions that wait for the reply to DATA for ever.
    pub fn stalled(&self) -> usize {
        self.shared.lock().stalled
    }

    /// What came and had no id: nobody sent it.
    pub fn strange(&self) -> Vec<String> {
        self.shared.lock().strange.clone()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::with_capacity(64 << 10, read);
    write.write_all(b"220 sink.test ESMTP\r\n").await?;
    let (mut by, mut to, mut line) = (String::new(), Vec::new(), Vec::new());
    loop {
        line.clear();
        if read.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = text.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => {
                by = text.get(5..).unwrap_or_default().to_owned();
                "250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 104857600\r\n"
            }
            "MAIL" | "RSET" => {
                to.clear();
                "250 2.1.0 ok\r\n"
            }
            "RCPT" => {
                to.push(text);
                "250 2.1.5 ok\r\n"
            }
            "DATA" if shared.stall.as_ref() == Some(&by) => {
                shared.lock().stalled += 1;
                // Until the other side is gone.
                while read.read_until(b'\n', &mut line).await? > 0 {}
                return Ok(());
            }
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let octets = content(&mut read).await?;
                take(shared, &by, std::mem::take(&mut to), octets).await
            }
            "QUIT" => {
                write.write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => "500 5.5.1 what\r\n",
        };
        write.write_all(reply.as_bytes()).await?;
    }
}

async fn content(read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let begin = all.len();
        anyhow::ensure!(
            read.read_until(b'\n', &mut all).await? > 0,
            "it ends in the middle of a message"
        );
        if all.get(begin) == Some(&b'.') {
            if all.get(begin..) == Some(b".\r\n") {
                all.truncate(begin);
                return Ok(all);
            }
            all.remove(begin);
        }
    }
}

async fn take(shared: &Shared, by: &str, to: Vec<String>, octets: Vec<u8>) -> &'static str {
    let Some(id) = id_of(&octets) else {
        let text = String::from_utf8_lossy(octets.get(..2000).unwrap_or(&octets)).into_owned();
        shared.lock().strange.push(text);
        return "250 2.0.0 strange\r\n";
    };
    let first_field = first_field(&octets);
    let rest = octets.get(first_field..).unwrap_or_default();
    let rest = (rest.len(), Digest::of(rest));
    let verdict = (shared.judge)(id);
    tokio::time::sleep(shared.pause).await;
    let mut kept = shared.lock();
    let at = Instant::now();
    if verdict == Verdict::Defer {
        kept.deferred.entry(id).or_default().push(at);
        return "451 4.7.1 come again\r\n";
    }
    let copy = Copy {
        at,
        by: by.to_owned(),
        to,
        begin: octets[..octets.len().min(BEGIN_OCTETS_MAX)].to_vec(),
        first_field,
        rest,
    };
    kept.copies.entry(id).or_default().push(copy);
    "250 2.0.0 taken\r\n"
}

/// Octets of the first header field, with the lines that it is folded into.
fn first_field(octets: &[u8]) -> usize {
    let mut lines = octets.split_inclusive(|octet| *octet == b'\n');
    let first = lines.next().map_or(0, <[u8]>::len);
    let folded = lines.take_while(|line| line.starts_with(b" ") || line.starts_with(b"\t"));
    first + folded.map(<[u8]>::len).sum::<usize>()
}

/// The number in the X-Id field.
fn id_of(octets: &[u8]) -> Option<u64> {
    const FIELD: &[u8] = b"\nX-Id: ";
    let header = octets.get(..octets.len().min(4096))?;
    let at = header.windows(FIELD.len()).position(|w| w == FIELD)?;
    let rest = header.get(at + FIELD.len()..)?;
    let end = rest.iter().position(|b| *b == b'\r')?;
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}
