//! One transaction: what must hold before it, its commands, its content, its results.

use bytes::Bytes;
use mail::code::report;
use mail::{EnhancedCode, Reply};

use crate::client::types::{
    Failure, Outcome, Output, Question, RecipientOutcome, Stage, Transaction, Verdict,
};
use crate::client::{Session, State, Step};
use crate::command::{Command, MailParameters};
use crate::dot::Encoder;
use crate::limits;

/// A transaction on its way.
#[derive(Debug)]
pub(super) struct Current {
    transaction: Transaction,
    /// `None`: taken by RCPT, or not decided yet.
    results: Vec<Option<RecipientOutcome>>,
    accepted: Vec<usize>,
    encoder: Encoder,
    /// MAIL was taken: the next hop holds a transaction until it ends or is reset.
    pub(super) begun: bool,
    /// The final dot left: the message may be the next hop's.
    past_dot: bool,
}

impl Current {
    fn new(transaction: Transaction) -> Current {
        let results = vec![None; transaction.envelope.recipients.len()];
        Current {
            transaction,
            results,
            accepted: Vec::new(),
            encoder: Encoder::default(),
            begun: false,
            past_dot: false,
        }
    }

    /// Recipients that RCPT took.
    pub(super) fn accepted(&self) -> &[usize] {
        &self.accepted
    }

    pub(super) fn accept(&mut self, recipient: usize) {
        if self.results[recipient].is_none() {
            self.accepted.push(recipient);
        }
    }

    /// One recipient; the first verdict stands.
    pub(super) fn decide(&mut self, recipient: usize, outcome: RecipientOutcome) {
        self.results[recipient].get_or_insert(outcome);
    }

    /// All that are not decided yet.
    pub(super) fn decide_rest(&mut self, outcome: &RecipientOutcome) {
        for result in &mut self.results {
            result.get_or_insert_with(|| outcome.clone());
        }
        self.accepted.clear();
    }

    /// The session ended within the transaction. Lost after the dot without a reply, the message may be delivered.
    pub(super) fn cut_short(mut self, failure: &Failure) -> Outcome {
        self.decide_rest(&failure.outcome(self.past_dot && failure.reply.is_none()));
        self.into_outcome()
    }

    pub(super) fn into_outcome(self) -> Outcome {
        // Whoever has no verdict here was never asked about: that is nobody's failure.
        let undecided = || Failure::of(Reply::try_again(), Stage::Data).outcome(false);
        Outcome {
            recipients: self
                .results
                .into_iter()
                .map(|r| r.unwrap_or_else(undecided))
                .collect(),
        }
    }
}

impl Session {
    /// Begins a transaction, or says at once why the next hop cannot take it.
    pub(super) fn begin(&mut self, transaction: Transaction) {
        let refused = self.refuse_before(&transaction);
        let mut current = Current::new(transaction);
        if let Some(failure) = refused {
            self.pending
                .push_back(Output::Done(current.cut_short(&failure)));
            return self.ready();
        }
        if std::mem::take(&mut self.wants_reset) {
            self.commands.push_back(Step::Reset);
        }
        self.commands.push_back(Step::Mail);
        self.commands
            .extend((0..current.results.len()).map(Step::Rcpt));
        self.commands.push_back(Step::Data);
        current.accepted.reserve(current.results.len());
        self.current = Some(current);
        self.state = State::Talking;
        self.send_commands();
    }

    /// What the next hop said in EHLO that it cannot take. For good: another attempt finds the same.
    fn refuse_before(&self, transaction: &Transaction) -> Option<Failure> {
        let envelope = &transaction.envelope;
        let fail = |enhanced: EnhancedCode, text: &str| {
            let text = text.to_owned();
            Some(Failure {
                stage: Stage::Mail,
                verdict: Verdict::Failed,
                reply: None,
                enhanced,
                text,
            })
        };
        if needs_smtputf8(transaction) && !self.extensions.smtputf8 {
            // RFC 6531 3.2: never sent without it.
            return fail(
                report::SMTPUTF8_NOT_OFFERED,
                "the next hop does not offer SMTPUTF8, which the message needs",
            );
        }
        if envelope.eight_bit && !self.extensions.eight_bit && !self.config.eight_bit_pass_through {
            return fail(
                report::EIGHT_BIT_NOT_OFFERED,
                "the next hop does not offer 8BITMIME, which the message needs",
            );
        }
        match self.extensions.size_max {
            Some(max) if transaction.size > max => {
                let text = format!(
                    "the message has {} octets, the next hop takes {max}",
                    transaction.size
                );
                fail(report::TOO_LARGE, &text)
            }
            _ => None,
        }
    }

    pub(super) fn command(&self, step: Step) -> Command {
        let envelope = self
            .current
            .as_ref()
            .map(|current| &current.transaction.envelope);
        match (step, envelope) {
            (Step::Ehlo, _) if self.config.lmtp => Command::Lhlo(self.config.host.to_string()),
            (Step::Ehlo, _) => Command::Ehlo(self.config.host.to_string()),
            (Step::Helo, _) => Command::Helo(self.config.host.to_string()),
            (Step::StartTls, _) => Command::StartTls,
            (Step::Reset, _) => Command::Rset,
            (Step::Mail, Some(envelope)) => {
                Command::Mail(envelope.return_path.clone(), self.mail_parameters())
            }
            (Step::Rcpt(number), Some(envelope)) => {
                Command::Rcpt(envelope.recipients[number].clone())
            }
            (Step::Data, _) => Command::Data,
            (Step::Quit, _) => Command::Quit,
            // Not commands: only what replies answer.
            (Step::Greeting | Step::FinalDot | Step::FinalDotFor(_) | Step::LoneDot, _) => {
                Command::Noop
            }
            (Step::Mail | Step::Rcpt(_), None) => Command::Rset,
        }
    }

    fn mail_parameters(&self) -> MailParameters {
        let Some(Current { transaction, .. }) = &self.current else {
            return MailParameters::default();
        };
        MailParameters {
            size: self.extensions.size.then_some(transaction.size),
            eight_bit: self.extensions.eight_bit && transaction.envelope.eight_bit,
            smtputf8: needs_smtputf8(transaction),
        }
    }

    /// 354: content is next.
    pub(super) fn ask_content(&mut self) {
        self.state = State::Content;
        self.deadline = self.now + self.config.timeouts.block;
        self.pending.push_back(Output::Ask(Question::Body));
    }

    /// A piece of content, see `Answer::Body`.
    pub(super) fn content(&mut self, bytes: Bytes, last: bool) {
        let Some(current) = &mut self.current else {
            return;
        };
        self.deadline = self.now + self.config.timeouts.block;
        if bytes.len() > limits::GATHERED_CONTENT_BYTES_MAX && current.encoder.is_plain(&bytes) {
            current.encoder.pass(&bytes);
            if !self.output.is_empty() {
                self.pending
                    .push_back(Output::Write(Bytes::from(std::mem::take(&mut self.output))));
            }
            self.pending.push_back(Output::Write(bytes));
        } else {
            current.encoder.write(&bytes, &mut self.output);
        }
        if last {
            current.encoder.finish_line(&mut self.output);
            self.state = State::AtDot;
            return self.pending.push_back(Output::Ask(Question::PastDot));
        }
        if self.output.len() > limits::GATHERED_CONTENT_BYTES_MAX {
            self.flush();
        }
        self.pending.push_back(Output::Ask(Question::Body));
    }

    /// `Answer::Proceed`: from here on the message may be the next hop's.
    pub(super) fn final_dot(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        current.past_dot = true;
        match self.config.lmtp {
            true => self.expected.extend(
                current
                    .accepted
                    .iter()
                    .map(|number| Step::FinalDotFor(*number)),
            ),
            false => self.expected.push_back(Step::FinalDot),
        }
        self.output.extend_from_slice(b".\r\n");
        self.state = State::Talking;
        self.await_reply();
    }

    /// All replies of the transaction are in.
    pub(super) fn finish(&mut self) {
        if let Some(current) = self.current.take() {
            self.pending.push_back(Output::Done(current.into_outcome()));
        }
        self.ready();
    }

    pub(super) fn ready(&mut self) {
        self.flush();
        self.state = State::Idle;
        self.pending.push_back(Output::Ask(Question::Next));
    }
}

fn needs_smtputf8(transaction: &Transaction) -> bool {
    let envelope = &transaction.envelope;
    envelope.smtputf8
        || !envelope.return_path.is_ascii()
        || envelope.recipients.iter().any(|r| !r.is_ascii())
}
