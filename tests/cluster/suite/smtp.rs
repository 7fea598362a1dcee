//! One question to an SMTP server.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

/// Nothing here waits for a queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session that greeted.
pub struct Session {
    read: BufReader<TcpStream>,
}

impl Session {
    /// Connects, and waits for the greeting and the answer to EHLO.
    pub fn open(server: SocketAddr) -> Result<Session> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Session {
            read: BufReader::new(stream),
        };
        let greeting = session.reply()?;
        ensure!(greeting.starts_with("220"), "{greeting}");
        session.say("EHLO client.test")?;
        Ok(session)
    }

    /// Says something and gives the last line of the answer.
    pub fn say(&mut self, line: &str) -> Result<String> {
        let line = format!("{line}\r\n");
        self.read.get_mut().write_all(line.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let octets = self.read.read_line(&mut line)?;
            ensure!(octets > 3, "the connection ended");
            if line.as_bytes()[3] != b'-' {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

/// Hands a message over; gives the answer to its final dot.
pub fn send(server: SocketAddr, sender: &str, recipient: &str, message: &str) -> Result<String> {
    let mut session = Session::open(server)?;
    session.say(&format!("MAIL FROM:<{sender}>"))?;
    session.say(&format!("RCPT TO:<{recipient}>"))?;
    session.say("DATA")?;
    let answer = session.say(&format!("{message}\r\n."))?;
    session.say("QUIT")?;
    Ok(answer)
}

/// What a server answers to a recipient.
pub fn recipient(server: SocketAddr, sender: &str, recipient: &str) -> Result<String> {
    let mut session = Session::open(server)?;
    session.say(&format!("MAIL FROM:<{sender}>"))?;
    let answer = session.say(&format!("RCPT TO:<{recipient}>"))?;
    session.say("QUIT")?;
    Ok(answer)
}
