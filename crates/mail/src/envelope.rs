//! The envelope (RFC 5321 section 2.3.1).

use crate::address::{Mailbox, ReversePath};

/// Who sends to whom, and what the message needs of a next hop. DSN parameters (RFC 3461) will stand here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Where reports go.
    pub return_path: ReversePath,
    /// At most [`crate::limits::RECIPIENTS_MAX`], in the order of their RCPT.
    pub recipients: Vec<Mailbox>,
    /// At the edge: BODY=8BITMIME was declared (RFC 6152). To a next hop: the content has octets above 127.
    pub eight_bit: bool,
    /// At the edge: SMTPUTF8 was declared (RFC 6531). To a next hop: the header block needs it; addresses speak for themselves.
    pub smtputf8: bool,
}

impl Envelope {
    /// Without recipients yet.
    pub fn new(return_path: ReversePath) -> Envelope {
        Envelope {
            return_path,
            recipients: Vec::new(),
            eight_bit: false,
            smtputf8: false,
        }
    }
}
