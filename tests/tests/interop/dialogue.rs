//! An SMTP client that says exactly what it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};

/// No server of these tests thinks for longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection, after its greeting.
pub struct Dialogue {
    stream: BufReader<TcpStream>,
}

impl Dialogue {
    /// Connects and waits for the greeting.
    pub fn open(address: &str) -> Result<Dialogue> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut dialogue = Dialogue {
            stream: BufReader::new(stream),
        };
        let greeting = dialogue.reply()?;
        ensure!(greeting.starts_with("220 "), "greeted with {greeting}");
        Ok(dialogue)
    }

    /// Sends a command and gives the whole reply.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a command that must be answered with this code.
    pub fn expect(&mut self, command: &str, code: u16) -> Result<()> {
        let reply = self.ask(command)?;
        ensure!(
            reply.starts_with(&code.to_string()),
            "{command} was answered with {reply}"
        );
        Ok(())
    }

    /// Sends DATA and the content, whose lines end with LF.
    pub fn content(&mut self, content: &[u8]) -> Result<()> {
        self.expect("DATA", 354)?;
        let mut wire = Vec::with_capacity(content.len() * 2);
        for line in content.split_inclusive(|octet| *octet == b'\n') {
            if line.starts_with(b".") {
                wire.push(b'.');
            }
            wire.extend(line.strip_suffix(b"\n").unwrap_or(line));
            wire.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&wire)?;
        self.expect(".", 250)
    }

    fn reply(&mut self) -> Result<String> {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "the connection was closed after {reply:?}"
            );
            let last = line.as_bytes().get(3) != Some(&b'-');
            reply.push_str(&line);
            if last {
                return Ok(reply);
            }
        }
    }
}
