//! What each reply changes (RFC 5321 section 4.3.2; with PIPELINING, RFC 2920 section 3.1).

use mail::Reply;
use mail::code::report;

use crate::client::types::{Failure, Output, RecipientOutcome, Stage, Tls, Verdict};
use crate::client::{Session, State, Step};
use crate::extension::Extensions;

impl Session {
    pub(super) fn reply(&mut self, reply: Reply) {
        let stage = self.stage();
        let Some(step) = self.expected.pop_front() else {
            // Nothing was asked. Within content it is a refusal come early, else a farewell; both end the session.
            self.output.clear();
            return self.end(Failure::of(reply, stage));
        };
        // RFC 5321 3.8: 421 may answer anything, and the next hop closes after it.
        if reply.closes() && step != Step::Quit {
            return self.end(Failure::of(reply, stage));
        }
        self.await_reply();
        match step {
            Step::Greeting => self.greeted(reply),
            Step::Ehlo => self.hello(reply),
            Step::StartTls => self.starttls_reply(reply),
            // A server that knows no EHLO knows no STARTTLS.
            Step::Helo if reply.is_success() && self.must_not_go_on() => self.no_tls(),
            Step::Helo if reply.is_success() => self.ready(),
            Step::Helo => self.end(Failure::of(reply, stage)),
            // It is an answer to what was before: the next message comes again, on another connection.
            Step::Reset if !reply.is_success() => self.end(Failure {
                stage,
                verdict: Verdict::Deferred,
                enhanced: report::PROTOCOL,
                text: format!(
                    "RSET was refused: {} {}",
                    reply.code,
                    reply.text.replace('\n', " ")
                ),
                reply: None,
            }),
            Step::Quit => self.close(),
            _ => self.transaction_reply(step, reply, stage),
        }
    }

    fn greeted(&mut self, reply: Reply) {
        if reply.code != 220 {
            return self.end(Failure::of(reply, Stage::Greeting));
        }
        self.commands.push_back(Step::Ehlo);
        self.send_commands();
    }

    fn hello(&mut self, reply: Reply) {
        if reply.is_success() {
            self.extensions = Extensions::parse(&reply);
            if self.extensions.starttls && !self.tls && self.config.tls != Tls::Off {
                self.commands.push_back(Step::StartTls);
                return self.send_commands();
            }
            if self.must_not_go_on() {
                return self.no_tls();
            }
            return self.ready();
        }
        // RFC 5321 3.2: a server that does not know EHLO knows HELO.
        if reply.is_permanent() && !self.config.lmtp {
            self.commands.push_back(Step::Helo);
            return self.send_commands();
        }
        self.end(Failure::of(reply, Stage::Hello));
    }

    fn must_not_go_on(&self) -> bool {
        self.config.tls == Tls::Required && !self.tls
    }

    fn starttls_reply(&mut self, reply: Reply) {
        if reply.code == 220 {
            self.flush();
            self.input.clear();
            self.state = State::Securing;
            return self.pending.push_back(Output::StartTls);
        }
        // RFC 3207 section 4: the client decides whether to go on without.
        match self.must_not_go_on() {
            true => self.end(Failure {
                verdict: Verdict::Deferred,
                enhanced: report::NO_TLS,
                ..Failure::of(reply, Stage::StartTls)
            }),
            false => self.ready(),
        }
    }

    /// TLS must be, and is not offered. The next attempt may find it.
    fn no_tls(&mut self) {
        self.end(Failure {
            stage: Stage::StartTls,
            verdict: Verdict::Deferred,
            reply: None,
            enhanced: report::NO_TLS,
            text: "TLS is required for this next hop, and it does not offer STARTTLS".into(),
        });
    }

    /// The handshake is done: all begins anew (RFC 3207 section 4.2).
    pub(super) fn secured(&mut self) {
        self.tls = true;
        self.extensions = Extensions::default();
        self.state = State::Talking;
        self.commands.push_back(Step::Ehlo);
        self.send_commands();
    }

    fn transaction_reply(&mut self, step: Step, reply: Reply, stage: Stage) {
        let Some(current) = &mut self.current else {
            return;
        };
        match step {
            Step::Mail if !reply.is_success() => {
                current.decide_rest(&Failure::of(reply, stage).outcome(false));
                self.commands.clear();
            }
            Step::Mail => current.begun = true,
            Step::Rcpt(number) if reply.is_success() => current.accept(number),
            Step::Rcpt(number) => current.decide(number, Failure::of(reply, stage).outcome(false)),
            Step::Data => return self.data_reply(reply),
            Step::FinalDot => {
                let outcome = final_outcome(&reply, stage);
                current.decide_rest(&outcome);
            }
            Step::FinalDotFor(number) => current.decide(number, final_outcome(&reply, stage)),
            _ => {}
        }
        self.go_on(step);
    }

    fn data_reply(&mut self, reply: Reply) {
        let Some(current) = &mut self.current else {
            return;
        };
        match (reply.code, current.accepted().is_empty()) {
            (354, false) => return self.ask_content(),
            (354, true) => {
                // RFC 2920 3.1: it waits for content although nobody is to get it; the end of content ends that.
                self.output.extend_from_slice(b".\r\n");
                self.expected.push_back(Step::LoneDot);
                return self.await_reply();
            }
            _ => current.decide_rest(&Failure::of(reply, Stage::Data).outcome(false)),
        }
        self.wants_reset = current.begun;
        self.go_on(Step::Data);
    }

    /// After a reply: the next command, or the end of the transaction.
    fn go_on(&mut self, step: Step) {
        if !self.expected.is_empty() {
            return;
        }
        let nobody = self
            .current
            .as_ref()
            .is_some_and(|current| current.accepted().is_empty());
        if self.commands.front() == Some(&Step::Data) && nobody {
            // Without PIPELINING the next hop is not even asked for content.
            self.commands.clear();
            self.wants_reset = matches!(step, Step::Rcpt(_));
        }
        match self.commands.is_empty() {
            true => self.finish(),
            false => self.send_commands(),
        }
    }
}

/// 3yz after the final dot is nothing that RFC 5321 knows: whether the message was taken is open.
fn final_outcome(reply: &Reply, stage: Stage) -> RecipientOutcome {
    let outcome = RecipientOutcome::of(reply, stage);
    RecipientOutcome {
        ambiguous: reply.is_intermediate(),
        ..outcome
    }
}
