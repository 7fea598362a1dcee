//! One entry, applied: which transition a command is, and what all transitions share.

use mail::Ulid;

use crate::{Command, Effect, Facts, LeaseSessionId, Rows, ShardState, Timestamp};

/// Applies the entry at `index`.
///
/// Total and deterministic: whatever the command says (unknown items, commands that were applied before, lease
/// sessions of others), the rows stay consistent and the effects are the same on every replica.
pub fn apply(rows: &mut impl Rows, index: u64, facts: &Facts) -> Vec<Effect> {
    let mut state = rows.shard();
    // Cluster time never runs back, whatever a leader wrote.
    state.time = state.time.max(facts.time);
    let mut shard = Shard {
        rows,
        index,
        now: state.time,
        state,
        effects: Vec::with_capacity(4),
    };
    shard.run(&facts.command);
    shard.sweep();
    let (state, effects) = (shard.state, shard.effects);
    rows.set_shard(state);
    effects
}

/// One entry's view of the shard. The transitions are its methods, one file a verb.
pub(crate) struct Shard<'a> {
    pub(crate) rows: &'a mut dyn Rows,
    /// Of the entry.
    pub(crate) index: u64,
    /// Cluster time of the entry.
    pub(crate) now: Timestamp,
    /// Written back at the end.
    pub(crate) state: ShardState,
    pub(crate) effects: Vec<Effect>,
}

impl Shard<'_> {
    fn run(&mut self, command: &Command) {
        match command {
            Command::Append(append) => self.append(append),
            Command::BodyChunk { message, seq, size } => self.body_chunk(*message, *seq, *size),
            Command::ExpireUpload { messages } => self.expire_uploads(messages),
            Command::OpenSession(open) => self.open_session(open),
            Command::Window(window) => self.window(window),
            Command::ExpireSession { session, retry } => self.expire_session(*session, *retry),
            Command::Settle(items) => self.settle(items),
            Command::ItemTimer(timer) => self.item_timer(timer),
            Command::Admin(admin) => self.administer(admin),
            // It stands in the log; the rows do not change.
            Command::Note { .. } => {}
            Command::SetVersion { version } => self.set_version(*version),
            Command::VerifyDigest { from, rows } => self.emit(Effect::DigestWanted {
                from: from.clone(),
                rows: *rows,
            }),
        }
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn session_lives(&mut self, session: LeaseSessionId) -> bool {
        self.rows.sessions().get(&session).is_some()
    }
}

/// The id right after `id`; the last one is its own successor.
pub(crate) fn after(id: Ulid) -> Ulid {
    Ulid::from_bytes(
        u128::from_be_bytes(id.to_bytes())
            .saturating_add(1)
            .to_be_bytes(),
    )
}

impl Timestamp {
    /// This instant and `ms` milliseconds.
    pub fn plus(self, ms: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(ms))
    }
}
