//! Dialogues with the client session.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mail::{Envelope, Host, Mailbox, ReversePath};
use smtp::client::{
    Answer, Config, Outcome, Output, Question, RecipientOutcome, Session, Tls, Transaction,
};

use crate::common::{World, play_all, unescaped, written};

struct Client {
    session: Session,
    lmtp: bool,
    tls: Tls,
    started: bool,
    deadline: Option<Instant>,
    closed: bool,
}

/// `sender a@b,c@d size=10 8bit utf8`
fn transaction(text: &str) -> Transaction {
    let mut words = text.split(' ');
    let sender = words.next().unwrap();
    let sender = if sender == "<>" { "" } else { sender };
    let mut envelope = Envelope::new(ReversePath::parse(sender, true).unwrap());
    envelope.recipients = words
        .next()
        .unwrap()
        .split(',')
        .map(|a| Mailbox::parse(a, true).unwrap())
        .collect();
    let mut size = 10;
    for word in words {
        match word {
            "8bit" => envelope.eight_bit = true,
            "utf8" => envelope.smtputf8 = true,
            _ => size = word.strip_prefix("size=").unwrap().parse().unwrap(),
        }
    }
    Transaction { envelope, size }
}

fn show(outcome: &RecipientOutcome) -> String {
    let code = outcome
        .reply
        .as_ref()
        .map_or("no reply".into(), |reply| reply.code.to_string());
    let ambiguous = if outcome.ambiguous { " ambiguous" } else { "" };
    format!(
        "{:?}{ambiguous} {:?} {code} {} {}",
        outcome.verdict, outcome.stage, outcome.enhanced, outcome.text
    )
}

impl World for Client {
    fn input(&mut self, keyword: &str, rest: &str, now: Instant) -> Option<()> {
        match keyword.trim_end() {
            "lmtp" => self.lmtp = true,
            "tls:" => {
                self.tls = match rest {
                    "opportunistic" => Tls::Opportunistic,
                    "required" => Tls::Required,
                    _ => panic!("{rest}"),
                }
            }
            "start" | "start_over_tls" => {
                self.started = true;
                let mut config = Config::new(Host::parse("relay.example.org").unwrap());
                config.lmtp = self.lmtp;
                config.tls = self.tls;
                self.session = match keyword.trim_end() {
                    "start" => Session::new(Arc::new(config), now),
                    _ => Session::over_tls(Arc::new(config), now),
                };
            }
            "lost:" => self.session.lost(rest, now),
            "answer:" => {
                let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let bytes = Bytes::from(unescaped(rest));
                let answer = match verb {
                    "send" => Answer::Send(Box::new(transaction(rest))),
                    "quit" => Answer::Quit,
                    "body" => Answer::Body { bytes, last: false },
                    "last" => Answer::Body { bytes, last: true },
                    "proceed" => Answer::Proceed,
                    "abort" => Answer::Abort,
                    "secured" => Answer::Secured,
                    _ => panic!("{verb}"),
                };
                self.session.answer(answer, now);
            }
            _ => return None,
        }
        Some(())
    }

    fn feed(&mut self, bytes: &[u8], now: Instant) {
        self.session.feed(Bytes::copy_from_slice(bytes), now);
    }

    fn peer(&self) -> char {
        'S'
    }

    fn drain(&mut self, events: &mut Vec<String>) {
        if !self.started || self.closed {
            return;
        }
        loop {
            match self.session.drain() {
                Output::Write(bytes) => written('C', &bytes, events),
                Output::Ask(Question::Next) => events.push("ask: next".into()),
                Output::Ask(Question::Body) => events.push("ask: body".into()),
                Output::Ask(Question::PastDot) => events.push("ask: past dot".into()),
                Output::Done(Outcome { recipients }) => {
                    events.extend(
                        recipients
                            .iter()
                            .map(|outcome| format!("done: {}", show(outcome))),
                    );
                }
                Output::Broken(failure) => events.push(format!("broken: {failure:?}")),
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
        self.session.tick(now);
    }
}

#[test]
fn dialogues_with_the_client_go_as_written() {
    play_all("client", |now| {
        let config = Arc::new(Config::new(Host::parse("relay.example.org").unwrap()));
        let session = Session::new(config, now);
        Box::new(Client {
            session,
            lmtp: false,
            tls: Tls::Off,
            started: false,
            deadline: None,
            closed: false,
        })
    });
}
