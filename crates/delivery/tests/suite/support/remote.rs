//! A next hop that does, at each verb, what a script says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What happens at a verb: `CONNECT`, `EHLO`, `STARTTLS`, `TLS` (the handshake), `MAIL`, `RCPT`, `DATA`,
/// `CONTENT` (its beginning; what is said there ends the connection, the rest unread), `DOT`, `QUIT`.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// What a good server does.
    Good,
    /// This line.
    Say(String),
    /// The connection ends.
    Die,
    /// Nothing is said, and nothing more is read.
    Hang,
    /// Octets without end come instead, none of them ends a line, and nothing more is read.
    Flood,
    /// A good reply, after this long.
    Late(std::time::Duration),
}

pub fn say(line: &str) -> Action {
    Action::Say(line.into())
}

/// One message that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    pub from: String,
    pub to: Vec<String>,
    pub body: Vec<u8>,
    /// Which connection brought it, from 0.
    pub connection: usize,
    /// Under TLS.
    pub tls: bool,
}

#[derive(Default)]
pub struct Seen {
    pub taken: Vec<Taken>,
    /// Verbs in the order they came.
    pub verbs: Vec<String>,
    pub connections: usize,
    pub open: usize,
    pub open_max: usize,
}

type Script = dyn Fn(&str, usize) -> Action + Send + Sync;

#[derive(Clone)]
pub struct Remote {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    script: Arc<Script>,
    /// STARTTLS is offered.
    tls: Option<TlsAcceptor>,
}

impl Remote {
    /// The script gets a verb, and how often this host saw it before.
    pub async fn start(
        address: SocketAddr,
        script: impl Fn(&str, usize) -> Action + Send + Sync + 'static,
    ) -> Remote {
        Remote::with(address, None, script).await
    }

    /// With STARTTLS.
    pub async fn with(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&str, usize) -> Action + Send + Sync + 'static,
    ) -> Remote {
        let listener = TcpListener::bind(address).await.unwrap();
        let remote = Remote {
            address,
            seen: Arc::default(),
            script: Arc::new(script),
            tls,
        };
        let accepting = remote.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let remote = accepting.clone();
                tokio::spawn(async move {
                    let number = {
                        let mut seen = remote.seen.lock().unwrap();
                        seen.connections += 1;
                        seen.open += 1;
                        seen.open_max = seen.open_max.max(seen.open);
                        seen.connections - 1
                    };
                    remote.talk(socket, number).await;
                    remote.seen.lock().unwrap().open -= 1;
                });
            }
        });
        remote
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.seen.lock().unwrap().taken.clone()
    }

    pub fn count(&self, verb: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .verbs
            .iter()
            .filter(|seen| *seen == verb)
            .count()
    }

    /// `None`: the connection is to end.
    async fn act<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        verb: &str,
        good: &str,
        socket: &mut BufReader<S>,
    ) -> Option<bool> {
        let nth = {
            let mut seen = self.seen.lock().unwrap();
            let nth = seen.verbs.iter().filter(|seen| *seen == verb).count();
            seen.verbs.push(verb.into());
            nth
        };
        let line = match (self.script)(verb, nth) {
            Action::Good => good.to_string(),
            Action::Say(line) => line,
            Action::Die => return None,
            Action::Hang => std::future::pending().await,
            Action::Flood => {
                let octets = [b'x'; 64 * 1024];
                while socket.get_mut().write_all(&octets).await.is_ok() {}
                return None;
            }
            Action::Late(time) => {
                tokio::time::sleep(time).await;
                good.to_string()
            }
        };
        socket
            .get_mut()
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .ok()?;
        Some(line.starts_with(['2', '3']))
    }

    async fn talk(&self, socket: TcpStream, connection: usize) -> Option<()> {
        let mut socket = BufReader::new(socket);
        if !self.act("CONNECT", "220 remote.test", &mut socket).await? {
            return None;
        }
        let plain = self.converse(socket, connection, false).await?;
        // Ready, but the handshake does not come about.
        if (self.script)("TLS", self.count("STARTTLS") - 1) != Action::Good {
            return None;
        }
        let tls = self.tls.as_ref()?.accept(plain.into_inner()).await.ok()?;
        self.converse(BufReader::new(tls), connection, true).await?;
        None
    }

    /// Until the end, or until a handshake is to follow: gives the connection back.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut socket: BufReader<S>,
        connection: usize,
        tls: bool,
    ) -> Option<BufReader<S>> {
        let offer = match self.tls.is_some() && !tls {
            true => "250-remote.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME",
            false => "250-remote.test\r\n250-PIPELINING\r\n250 8BITMIME",
        };
        let empty = || Taken {
            from: String::new(),
            to: Vec::new(),
            body: Vec::new(),
            connection,
            tls,
        };
        let mut taken = empty();
        loop {
            let mut line = String::new();
            if socket.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            let path =
                |line: &str| line[line.find('<').unwrap() + 1..line.find('>').unwrap()].to_string();
            match line.split(' ').next().unwrap() {
                "EHLO" => drop(self.act("EHLO", offer, &mut socket).await?),
                "STARTTLS" => {
                    if self.act("STARTTLS", "220 go ahead", &mut socket).await? {
                        return Some(socket);
                    }
                }
                "HELO" => drop(self.act("HELO", "250 remote.test", &mut socket).await?),
                "MAIL" => {
                    taken = empty();
                    if self.act("MAIL", "250 2.1.0 ok", &mut socket).await? {
                        taken.from = path(line);
                    }
                }
                "RCPT" if taken.from.is_empty() => {
                    socket
                        .get_mut()
                        .write_all(b"503 5.5.1 no sender\r\n")
                        .await
                        .ok()?;
                }
                "RCPT" => {
                    if self.act("RCPT", "250 2.1.5 ok", &mut socket).await? {
                        taken.to.push(path(line));
                    }
                }
                "DATA" if taken.to.is_empty() => {
                    socket
                        .get_mut()
                        .write_all(b"554 5.5.1 no valid recipients\r\n")
                        .await
                        .ok()?;
                }
                "DATA" => {
                    if self.act("DATA", "354 go on", &mut socket).await? {
                        if (self.script)("CONTENT", self.count("DATA") - 1) != Action::Good {
                            let mut some = [0; 4096];
                            socket.read_exact(&mut some).await.ok()?;
                            self.act("CONTENT", "", &mut socket).await?;
                            return None;
                        }
                        taken.body = content(&mut socket).await?;
                        if self.act("DOT", "250 2.0.0 taken", &mut socket).await? {
                            self.seen.lock().unwrap().taken.push(taken.clone());
                        }
                    }
                }
                "QUIT" => {
                    self.act("QUIT", "221 bye", &mut socket).await?;
                    let _ = socket.get_mut().shutdown().await;
                    return None;
                }
                _ => {
                    socket.get_mut().write_all(b"250 ok\r\n").await.ok()?;
                }
            }
        }
    }
}

/// Content to its final dot, as it was before dot-stuffing.
async fn content<S: AsyncRead + Unpin>(socket: &mut BufReader<S>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        if socket.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if line == b".\r\n" {
            return Some(body);
        }
        body.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}
