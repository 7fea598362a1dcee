//! A `postroad up` in a directory of its own, and the mail server behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A process that is slower than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mail server that takes everything, and hands on each message's content as it came, dots unstuffed.
pub struct Sink {
    pub port: u16,
    messages: mpsc::Receiver<Vec<u8>>,
}

impl Sink {
    pub fn start() -> Sink {
        Sink::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn on(listener: TcpListener) -> Sink {
        let port = listener.local_addr().unwrap().port();
        let (tell, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let tell = tell.clone();
                // A client that goes away ends only its own thread.
                std::thread::spawn(move || converse(socket, &tell));
            }
        });
        Sink { port, messages }
    }

    pub fn next(&self) -> Vec<u8> {
        self.messages
            .recv_timeout(PATIENCE)
            .expect("a message arrives")
    }

    pub fn is_silent_for(&self, time: Duration) -> bool {
        self.messages.recv_timeout(time).is_err()
    }
}

fn converse(socket: TcpStream, tell: &mpsc::Sender<Vec<u8>>) -> Option<()> {
    let mut out = socket.try_clone().ok()?;
    let mut lines = BufReader::new(socket);
    let mut say = |text: &str| out.write_all(text.as_bytes()).ok();
    say("220 sink.example\r\n")?;
    loop {
        match line(&mut lines)?.to_ascii_uppercase().get(..4)? {
            b"DATA" => {
                say("354 go on\r\n")?;
                let mut content = Vec::new();
                loop {
                    let line = line(&mut lines)?;
                    match line.strip_prefix(b".") {
                        Some(b"\r\n") => break,
                        Some(rest) => content.extend_from_slice(rest),
                        None => content.extend_from_slice(&line),
                    }
                }
                tell.send(content).ok()?;
                say("250 taken\r\n")?;
            }
            b"EHLO" => say("250-sink.example\r\n250-8BITMIME\r\n250 PIPELINING\r\n")?,
            b"QUIT" => {
                say("221 bye\r\n")?;
                return None;
            }
            _ => say("250 ok\r\n")?,
        }
    }
}

fn line(lines: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

/// A data directory and resources; the process that uses them comes and goes.
pub struct Place {
    dir: tempfile::TempDir,
    smtp: u16,
    http: u16,
}

impl Place {
    /// Mail to example.com goes to `target_port` on loopback.
    pub fn new(target_port: u16) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let resources = dir.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        let domain = format!(
            "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: d}}\n\
             spec: {{domain: example.com, inbound: {{targets: [{{host: 127.0.0.1, port: {target_port}}}]}}}}\n"
        );
        std::fs::write(resources.join("domain.yaml"), domain).unwrap();
        let (smtp, http) = (free_port(), free_port());
        Place { dir, smtp, http }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts `up` and waits until it says that it accepts mail.
    pub fn up(&self, more: &[&str]) -> Up {
        let mut child = Command::new(env!("CARGO_BIN_EXE_postroad"))
            .args(["up", "--hostname", "relay.example", "-f"])
            .arg(self.dir.path().join("resources"))
            .arg("--data")
            .arg(self.data())
            .args(["--listen", &format!("127.0.0.1:{}", self.smtp)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.http)])
            .args(["--segment-bytes", "4MiB"])
            .args(more)
            // As in its image: a machine without CA certificates.
            .env("SSL_CERT_FILE", "/nowhere")
            .env("SSL_CERT_DIR", "/nowhere")
            .env("POSTROAD_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let stdout = child.stdout.take().unwrap();
        let up = Up(child);
        BufReader::new(stdout).read_line(&mut first).unwrap();
        assert!(first.starts_with("postroad accepts mail"), "{first:?}");
        up
    }

    /// Runs an administration command of this place.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_postroad"))
            .args(arguments)
            .env("POSTROAD_DATA", self.data())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Sends a message, which must be accepted.
    pub fn send(&self, message: &[u8]) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_postroad"))
            .args(["send", "--stdin", "--from", "a@elsewhere.example"])
            .args(["--to", "b@example.com", "--hostname", "client.example"])
            .args(["--server", &format!("127.0.0.1:{}", self.smtp)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(message).unwrap();
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        assert!(said.contains("250 2.0.0"), "{said}");
    }

    /// What `path` is over HTTP, with its head.
    pub fn get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// A running `up`; killed when dropped.
pub struct Up(Child);

impl Up {
    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The content after the trace headers that the relay put before it.
pub fn without_trace(content: &[u8], first_header: &str) -> Vec<u8> {
    let start = content
        .windows(first_header.len())
        .position(|window| window == first_header.as_bytes())
        .expect("the message's own header is there");
    assert!(content.starts_with(b"Received: from client.example"));
    content[start..].to_vec()
}
