//! The trace of a run: a number that two runs of a seed must share, and lines for whoever reads one.

use mail::Ulid;
use queue::{ItemId, Token};
use spool::node::Message;

use crate::sim::net::{Actor, Ask, Tell};

/// Everything that matters, in order, in one number.
pub struct Trace {
    hash: u64,
    print: bool,
}

impl Trace {
    pub fn new(seed: u64, print: bool) -> Trace {
        Trace { hash: seed, print }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn fold(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    pub fn fold_all(&mut self, words: &[u64]) {
        words.iter().for_each(|word| self.fold(*word));
    }

    pub fn fold_bytes(&mut self, bytes: &[u8]) {
        self.fold(bytes.len() as u64);
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.fold(u64::from_le_bytes(word));
        }
    }

    /// A line, when somebody reads.
    pub fn note(&self, now: u64, text: impl FnOnce() -> String) {
        if self.print {
            println!("{now:6} {}", text());
        }
    }

    pub fn fold_message(&mut self, message: &Message) {
        self.fold_all(&[
            message.from << 40 | message.to << 32 | (message.msg_type as u64) << 24,
            message.term << 32 | message.index,
            message.log_term << 32 | message.commit,
            (message.entries.len() as u64) << 1 | u64::from(message.reject),
        ]);
    }

    pub fn fold_ask(&mut self, from: Actor, ask: &Ask) {
        self.fold_actor(from);
        match ask {
            Ask::Append { id, chunks } => self.fold_id(*id, u64::from(*chunks)),
            Ask::Chunk { id, seq } => self.fold_id(*id, 1 << 32 | u64::from(*seq)),
            Ask::Open {
                incarnation,
                boot,
                sent,
                past_dot,
                handed_back,
            } => {
                self.fold_all(&[2, *incarnation, *boot, *sent, past_dot.len() as u64]);
                let items = past_dot.iter().chain(handed_back);
                items.for_each(|item| self.fold_item(*item, Token(0)));
            }
            Ask::Keepalive {
                session,
                sent,
                holding,
                credit,
            } => {
                self.fold_all(&[3, session.0, *sent, *credit as u64]);
                let held = holding.iter();
                held.for_each(|(item, token)| self.fold_item(*item, *token));
            }
            Ask::Settle {
                item,
                token,
                session,
                verdict,
            } => {
                self.fold_all(&[4, session.0, *verdict as u64]);
                self.fold_item(*item, *token);
            }
        }
    }

    pub fn fold_tell(&mut self, to: Actor, tell: &Tell) {
        self.fold_actor(to);
        let leader_of = |leader: &Option<usize>| leader.map_or(0, |leader| leader as u64 + 1);
        match tell {
            Tell::Appended { id } => self.fold_id(*id, 10),
            Tell::Stored { id, seq } => self.fold_id(*id, 11 << 32 | u64::from(*seq)),
            Tell::Stale { id } => self.fold_id(*id, 12),
            Tell::Again { id, leader } => self.fold_id(*id, 13 << 32 | leader_of(leader)),
            Tell::NotLeader { leader } => self.fold_all(&[14, leader_of(leader)]),
            Tell::Opened { session, kept, .. } => {
                self.fold_all(&[15, session.0, kept.len() as u64]);
                let kept = kept.iter();
                kept.for_each(|kept| self.fold_item(kept.item, kept.token));
            }
            Tell::Kept { session, sent } => self.fold_all(&[16, session.0, *sent]),
            Tell::Gone { session } => self.fold_all(&[17, session.0]),
            Tell::Grant {
                session,
                item,
                token,
            } => {
                self.fold_all(&[18, session.0]);
                self.fold_item(*item, *token);
            }
            Tell::Revoke { session, item } => {
                self.fold_all(&[19, session.0]);
                self.fold_item(*item, Token(0));
            }
            Tell::Settled { item, token } => {
                self.fold(20);
                self.fold_item(*item, *token);
            }
        }
    }

    fn fold_actor(&mut self, actor: Actor) {
        match actor {
            Actor::Edge(e) => self.fold(e as u64),
            Actor::Delivery(d) => self.fold(100 + d as u64),
        }
    }

    fn fold_id(&mut self, id: Ulid, word: u64) {
        self.fold(word);
        self.fold_bytes(&id.to_bytes());
    }

    fn fold_item(&mut self, item: ItemId, token: Token) {
        self.fold_id(item.message, u64::from(item.number) << 48 | token.0);
    }
}
