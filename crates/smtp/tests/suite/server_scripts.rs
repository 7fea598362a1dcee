//! Dialogues with the server session.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mail::{EnhancedCode, Host, Reply};
use smtp::server::{Answer, Config, Output, Question, Session, StartTls};

use crate::common::{World, escape, play_all, written};

struct Server {
    session: Session,
    config: Config,
    started: bool,
    /// Questions are answered with yes, and not shown.
    auto: bool,
    show_protocol: bool,
    deadline: Option<Instant>,
    now: Instant,
    closed: bool,
}

fn reply(text: &str) -> Reply {
    let (code, rest) = text.split_once(' ').unwrap();
    let (enhanced, rest) = rest.split_once(' ').unwrap();
    Reply::new(
        code.parse().unwrap(),
        EnhancedCode::parse(enhanced),
        rest.to_owned(),
    )
}

fn show(question: &Question) -> String {
    match question {
        Question::Connect => "connect".into(),
        Question::Mail(facts) => format!(
            "mail <{}> size {:?} eight_bit {} smtputf8 {}",
            facts.return_path, facts.size, facts.eight_bit, facts.smtputf8
        ),
        Question::Rcpt(mailbox) => format!("rcpt <{mailbox}> to {}", mailbox.destination()),
        Question::Data(envelope) => format!("data for {:?}", envelope.recipients),
        Question::Commit(commit) => format!(
            "commit <{}> to {:?}, {} octets, header {}, message-id {:?}",
            commit.envelope.return_path,
            commit.envelope.recipients,
            commit.size,
            commit.header.size,
            commit.header.message_id
        ),
    }
}

impl World for Server {
    fn input(&mut self, keyword: &str, rest: &str, now: Instant) -> Option<()> {
        match keyword.trim_end() {
            "config:" => {
                let (key, value) = rest.split_once('=').unwrap();
                let number: u64 = value.parse().unwrap();
                match key {
                    "message_bytes_max" => self.config.message_bytes_max = number,
                    "recipients_max" => self.config.recipients_max = number as usize,
                    "errors_max" => self.config.errors_max = number as u32,
                    "received_max" => self.config.received_max = number as u32,
                    "text_line_bytes_max" => self.config.text_line_bytes_max = number as usize,
                    "transactions_max" => self.config.transactions_max = number,
                    "refuse_early_talkers" => self.config.refuse_early_talkers = number == 1,
                    "starttls" => {
                        let modes = [StartTls::Off, StartTls::Offered, StartTls::Required];
                        self.config.starttls = modes[number as usize];
                    }
                    _ => panic!("{key}"),
                }
                assert!(!self.started, "configuration comes first");
                self.session = Session::new(Arc::new(self.config.clone()), now);
            }
            "auto" => self.auto = true,
            "start" => self.started = true,
            "start_over_tls" => {
                self.session = Session::over_tls(Arc::new(self.config.clone()), now);
                self.started = true;
            }
            "protocol?" => self.show_protocol = true,
            "answer:" => {
                let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let answer = match verb {
                    "accept" => Answer::Accept,
                    "refuse" => Answer::Refuse(reply(rest)),
                    "committed" => Answer::Committed(Reply::queued_as(rest)),
                    "close" => Answer::CloseSilently,
                    "secured" => Answer::Secured,
                    "shutdown" => Answer::ShuttingDown,
                    _ => panic!("{verb}"),
                };
                self.session.answer(answer, now);
            }
            _ => return None,
        }
        self.now = now;
        Some(())
    }

    fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.now = now;
        self.session.feed(Bytes::copy_from_slice(bytes), now);
    }

    fn peer(&self) -> char {
        'C'
    }

    fn drain(&mut self, events: &mut Vec<String>) {
        if !self.started || self.closed {
            return;
        }
        if std::mem::take(&mut self.show_protocol) {
            events.push(format!("protocol {}", self.session.protocol().as_str()));
        }
        loop {
            match self.session.drain() {
                Output::Write(bytes) => written('S', &bytes, events),
                Output::Ask(Question::Commit(_)) if self.auto => {
                    events.push("commit".into());
                    self.session
                        .answer(Answer::Committed(Reply::queued_as("ID")), self.now);
                }
                Output::Ask(_) if self.auto => self.session.answer(Answer::Accept, self.now),
                Output::Ask(question) => events.push(format!("ask: {}", show(&question))),
                Output::Body(bytes) => events.push(format!("body {}", escape(&bytes))),
                Output::Forget => events.push("forget".into()),
                Output::StartTls => events.push("starttls".into()),
                Output::Wait(until) => return self.deadline = Some(until),
                Output::Close => {
                    self.closed = true;
                    return events.push("close".into());
                }
            }
        }
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.deadline
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        self.session.tick(now);
    }
}

#[test]
fn dialogues_with_the_server_go_as_written() {
    play_all("server", |now| {
        let config = Config::new(Host::parse("mx.example.org").unwrap());
        let session = Session::new(Arc::new(config.clone()), now);
        Box::new(Server {
            session,
            config,
            started: false,
            auto: false,
            show_protocol: false,
            deadline: None,
            now,
            closed: false,
        })
    });
}
