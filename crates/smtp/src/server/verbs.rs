//! The verb table (RFC 5321 section 4.1.1, order of commands 4.1.4).

use std::sync::Arc;

use mail::{Envelope, Mailbox, Reply};

use crate::command::{Command, CommandError};
use crate::extension;
use crate::limits;
use crate::server::content::Content;
use crate::server::{Answer, Asked, Hello, MailFacts, Output, Question, Session, StartTls, State};

/// What a server that requires TLS answers in clear (RFC 3207 section 4); what does not parse is told so.
fn before_tls(command: &Result<Command, CommandError>) -> bool {
    matches!(
        command,
        Err(_) | Ok(Command::Ehlo(_) | Command::Noop | Command::StartTls | Command::Quit)
    )
}

impl Session {
    pub(super) fn command(&mut self, line: &[u8]) {
        let smtputf8 = self
            .envelope
            .as_ref()
            .is_some_and(|envelope| envelope.smtputf8);
        let command = Command::parse(line, &self.config.host, smtputf8);
        if let State::Rejected = self.state {
            return match command {
                Ok(Command::Quit) => self.say_and_close(Reply::bye()),
                _ => self.refuse(Reply::bad_sequence()),
            };
        }
        if self.config.starttls == StartTls::Required && !self.tls && !before_tls(&command) {
            return self.refuse(Reply::starttls_required());
        }
        match command {
            Ok(Command::Mail(path, parameters)) => self.mail(MailFacts {
                return_path: path,
                size: parameters.size,
                eight_bit: parameters.eight_bit,
                smtputf8: parameters.smtputf8,
            }),
            Ok(Command::Rcpt(mailbox)) => self.rcpt(mailbox),
            Ok(Command::Data) => self.data(),
            Ok(Command::Ehlo(name)) => self.hello(name, true),
            Ok(Command::Helo(name)) => self.hello(name, false),
            Ok(Command::Rset) => {
                self.forget();
                self.idle(Reply::ok());
            }
            Ok(Command::Noop) => self.idle(Reply::ok()),
            Ok(Command::Vrfy) => self.idle(Reply::cannot_verify()),
            Ok(Command::Help) => self.idle(Reply::help()),
            Ok(Command::Quit) => self.say_and_close(Reply::bye()),
            Ok(Command::StartTls) => self.start_tls(),
            Ok(Command::Expn | Command::Auth | Command::Lhlo(_)) => {
                self.refuse(Reply::not_implemented());
            }
            // Somebody's browser was made to talk to us: what follows is not meant for us.
            Err(error @ CommandError::Foreign) => self.say_and_close(error.reply()),
            Err(error) => self.refuse(error.reply()),
        }
    }

    /// RFC 5321 4.1.4: EHLO in the middle of a session resets as RSET does.
    fn hello(&mut self, name: String, extended: bool) {
        self.forget();
        let reply = match extended {
            true => {
                let starttls = self.config.starttls != StartTls::Off && !self.tls;
                let size = self.config.message_bytes_max;
                extension::offer(&self.config.host, &name, size, starttls)
            }
            false => Reply::new(250, None, format!("{} greets {name}", self.config.host)),
        };
        self.hello = Some(Hello { name, extended });
        self.idle(reply);
    }

    fn start_tls(&mut self) {
        if self.tls {
            return self.refuse(Reply::bad_sequence());
        }
        if self.config.starttls == StartTls::Off {
            return self.refuse(Reply::not_implemented());
        }
        self.forget();
        self.say(&Reply::ready_for_tls());
        self.flush();
        // RFC 3207 section 4: it is the last command of a group. What follows in clear is not the client's, or not SMTP.
        self.input.clear();
        self.state = State::Securing;
        self.pending.push_back(Output::StartTls);
    }

    /// The answer to `Output::StartTls`; the state is Command again. Without a handshake there is nothing to say.
    pub(super) fn secured(&mut self, answer: Answer) {
        if answer != Answer::Secured {
            return self.close();
        }
        self.tls = true;
        self.hello = None;
    }

    /// A command that carries no mail: fine, but not for ever.
    fn idle(&mut self, reply: Reply) {
        self.say(&reply);
        self.counts.idle_commands += 1;
        if self.counts.idle_commands > limits::IDLE_COMMANDS_MAX {
            self.count_error();
        }
    }

    fn mail(&mut self, facts: MailFacts) {
        if self.hello.is_none() || self.envelope.is_some() {
            return self.refuse(Reply::bad_sequence());
        }
        // RFC 1870 6.1: refused before the client sends it all.
        if facts
            .size
            .is_some_and(|size| size > self.config.message_bytes_max)
        {
            return self.refuse(Reply::too_large());
        }
        self.counts.transactions += 1;
        if self.counts.transactions > self.config.transactions_max {
            return self.say_and_close(Reply::too_many_commands());
        }
        self.ask(Asked::Mail(facts.clone()), Question::Mail(facts));
    }

    fn rcpt(&mut self, mailbox: Mailbox) {
        let Some(envelope) = &self.envelope else {
            return self.refuse(Reply::bad_sequence());
        };
        // RFC 5321 4.5.3.1.10: 452, and those that were taken stay taken.
        if envelope.recipients.len() >= self.config.recipients_max {
            return self.refuse(Reply::too_many_recipients());
        }
        self.ask(Asked::Rcpt(mailbox.clone()), Question::Rcpt(mailbox));
    }

    fn data(&mut self) {
        let Some(envelope) = &self.envelope else {
            return self.refuse(Reply::bad_sequence());
        };
        if envelope.recipients.is_empty() {
            return self.refuse(Reply::no_recipients());
        }
        let question = Question::Data(Arc::new(envelope.clone()));
        self.ask(Asked::Data, question);
    }

    fn ask(&mut self, asked: Asked, question: Question) {
        self.state = State::Asking(asked);
        self.pending.push_back(Output::Ask(question));
    }

    /// The answer to a question on a command; the state is Command again.
    pub(super) fn decided(&mut self, asked: Asked, answer: Answer) {
        match (asked, answer) {
            (_, Answer::Refuse(reply)) => self.refuse(reply),
            (Asked::Mail(facts), Answer::Accept) => {
                self.envelope = Some(Envelope {
                    return_path: facts.return_path,
                    recipients: Vec::new(),
                    eight_bit: facts.eight_bit,
                    smtputf8: facts.smtputf8,
                });
                self.say(&Reply::sender_ok());
            }
            (Asked::Rcpt(mailbox), Answer::Accept) => {
                if let Some(envelope) = &mut self.envelope {
                    envelope.recipients.push(mailbox);
                }
                self.say(&Reply::recipient_ok());
            }
            (Asked::Data, Answer::Accept) => {
                self.say(&Reply::start_mail_input());
                self.flush();
                self.state = State::Content(Box::new(Content::new(self.now, &self.config)));
            }
            // An answer that fits no such question: the client loses nothing by coming again.
            (_, _) => self.refuse(Reply::try_again()),
        }
    }
}
