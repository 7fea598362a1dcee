//! Where answers to requests on streams go. One that is dropped unanswered says that the outcome is unknown.

use proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Where the answer to one request of an Append stream goes. Dropped without one it says that the outcome is unknown: a
/// node that ends drops what waits in its mailboxes, and nobody shall wait until the stream is cut.
pub struct AppendReply {
    /// The request's id on its stream.
    pub request: u64,
    /// The stream's answers.
    pub to: mpsc::UnboundedSender<v1::AppendAnswer>,
    /// The request's share of the bytes that a node holds at its door; none once it is answered.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Drop for AppendReply {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.answer(v1::AppendOutcome::Unknown, String::new(), String::new());
        }
    }
}

impl AppendReply {
    /// Answers. A stream that has gone away is no concern: its client asks again with the same id.
    pub fn send(self, outcome: v1::AppendOutcome) {
        self.send_with(outcome, String::new(), String::new());
    }

    /// Answers with the leader's address or a text.
    pub fn send_with(mut self, outcome: v1::AppendOutcome, leader_address: String, text: String) {
        self.answer(outcome, leader_address, text);
    }

    fn answer(&mut self, outcome: v1::AppendOutcome, leader_address: String, text: String) {
        self.permit = None;
        let _ = self.to.send(v1::AppendAnswer {
            request: self.request,
            outcome: outcome as i32,
            leader_address,
            text,
        });
    }
}

/// Where the answer to one request of a Settle stream goes; dropped without one as [`AppendReply`].
pub struct SettleReply {
    /// The request's id on its stream.
    pub request: u64,
    /// The stream's answers.
    pub to: mpsc::UnboundedSender<v1::SettleAnswer>,
    /// One of the requests that a node takes at once; none once it is answered.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Drop for SettleReply {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.answer(v1::SettleOutcome::Unknown, String::new());
        }
    }
}

impl SettleReply {
    /// Answers.
    pub fn send(mut self, outcome: v1::SettleOutcome, leader_address: String) {
        self.answer(outcome, leader_address);
    }

    fn answer(&mut self, outcome: v1::SettleOutcome, leader_address: String) {
        self.permit = None;
        let _ = self.to.send(v1::SettleAnswer {
            request: self.request,
            outcome: outcome as i32,
            leader_address,
        });
    }
}
