//! What replies mean for a recipient.

use mail::{EnhancedCode, Reply};

use crate::client::types::{Failure, RecipientOutcome, Stage, Verdict};

impl Stage {
    /// For people: when something happened.
    pub fn during(self) -> &'static str {
        match self {
            Stage::Greeting => "before the greeting",
            Stage::Hello => "after EHLO",
            Stage::StartTls => "while TLS was set up",
            Stage::Idle => "while the connection stood idle",
            Stage::Mail => "after MAIL",
            Stage::Rcpt => "after RCPT",
            Stage::Data => "after DATA",
            Stage::Body => "while content was sent",
            Stage::FinalDot => "after the end of content (it may have been delivered)",
            Stage::Quit => "after QUIT",
        }
    }
}

impl Verdict {
    /// By the first digit (RFC 5321 4.2.1). What is neither success nor for good comes again.
    pub(super) fn of(reply: &Reply, stage: Stage) -> Verdict {
        match reply.code / 100 {
            2 => Verdict::Delivered,
            // RFC 5321 4.5.3.1.10: 552 after RCPT means too many recipients and is 452, unless its enhanced code says
            // that it is about the mailbox.
            5 if stage == Stage::Rcpt
                && reply.code == 552
                && reply.enhanced.is_none_or(|e| e.subject == 5) =>
            {
                Verdict::Deferred
            }
            5 => Verdict::Failed,
            _ => Verdict::Deferred,
        }
    }

    /// The code where the next hop gave none (RFC 3463 3.1: undefined).
    fn enhanced(self) -> EnhancedCode {
        match self {
            Verdict::Delivered => EnhancedCode::new(2, 0, 0),
            Verdict::Deferred => EnhancedCode::new(4, 0, 0),
            Verdict::Failed => EnhancedCode::new(5, 0, 0),
        }
    }
}

impl Failure {
    /// The next hop's own words.
    pub(super) fn of(reply: Reply, stage: Stage) -> Failure {
        // A success where none was due is no success of anything.
        let verdict = match Verdict::of(&reply, stage) {
            Verdict::Delivered => Verdict::Deferred,
            verdict => verdict,
        };
        let enhanced = reply
            .enhanced
            .filter(|_| !reply.is_success())
            .unwrap_or(verdict.enhanced());
        Failure {
            stage,
            verdict,
            enhanced,
            text: reply.text.replace('\n', " "),
            reply: Some(reply),
        }
    }

    /// The same for one recipient.
    pub(super) fn outcome(&self, ambiguous: bool) -> RecipientOutcome {
        RecipientOutcome {
            verdict: self.verdict,
            reply: self.reply.clone(),
            enhanced: self.enhanced,
            text: self.text.clone(),
            stage: self.stage,
            ambiguous,
        }
    }
}

impl RecipientOutcome {
    /// What a reply means for one recipient.
    pub(super) fn of(reply: &Reply, stage: Stage) -> RecipientOutcome {
        let verdict = Verdict::of(reply, stage);
        RecipientOutcome {
            verdict,
            enhanced: reply.enhanced.unwrap_or(verdict.enhanced()),
            text: reply.text.replace('\n', " "),
            reply: Some(reply.clone()),
            stage,
            ambiguous: false,
        }
    }
}
