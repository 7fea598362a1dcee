//! The life of signing keys. Pure: from all keys of a domain as they were seen comes where each is now. One transition a look:
//! what depends on another key sees that key as it was, so an operator that dies between two writes goes on where it was.
//!
//! ```text
//! Pending ──record seen──► Published ──held, acknowledged──► Active ──successor is──► Retiring ──days──► Retired ──30 d──► gone
//!    ▲───────record gone───────┘                               │ ▲
//!                                        record gone for an hour▼ │record back
//!                                                            Failed                    Revoked: from anywhere, for ever
//! ```
//! A person's own key that was withdrawn and is named again goes from Retiring or Retired to Pending. A made key gets a successor
//! instead.
//!
//! The rules that it all serves: a key signs only when its record was seen everywhere and nobody remembers that it was not
//! there; and the record of a key that signed stays until no mail with its signature is under way.

use std::time::Duration;

use jiff::Timestamp;
use resource::{DkimAlgorithm, DkimMode, DkimSpec, KeyPhase};

/// A record that was not there is remembered by resolvers as that for at most so long, as a rule; longer if its time to live
/// says so.
const HOLD_MIN: Duration = Duration::from_secs(60 * 60);
/// Resolvers keep an answer for a day at most, whatever it says, seconds.
const TTL_MAX: u32 = 24 * 60 * 60;
/// A key is made so long before its hold begins: for the person who publishes it.
const HEAD_START: Duration = Duration::from_secs(60 * 60);
/// A record may be missing so long before its key ceases to sign: zones are reloaded.
const GRACE: Duration = Duration::from_secs(60 * 60);
/// Mail waits for five days as a rule, and a week longer in others' queues (`outbound.dkim.retireAfterDays`).
const RETIRE_AFTER_DAYS_MIN: u32 = 12;
/// How long the record of a key says that it is not valid any more.
const REVOKED_RECORD: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The longest pause between two looks at a record that is needed.
const LOOK: Duration = Duration::from_secs(10 * 60);
/// The pause while somebody may be publishing a record just now.
const LOOK_SOON: Duration = Duration::from_secs(15);
/// Below this a test's clock does not go: the API's times have whole seconds.
const SHORTEST: Duration = Duration::from_secs(1);

/// What is declared.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// `outbound.dkim`; `None`: nothing is to be signed.
    pub dkim: Option<&'a DkimSpec>,
    /// Annotation `postroad.dev/rotate`: a new value starts a rotation.
    pub rotate: Option<&'a str>,
    /// Annotation `postroad.dev/test-clock-divisor`: every time of this file is divided by it; 1 outside of tests.
    pub divisor: u32,
}

/// What was seen of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// It is there, at every server that counts.
    Present,
    /// At least one server says that it is not, or has another.
    Absent,
    /// Somebody who counts gave no answer.
    Unknown,
}

/// Where a key is in its life, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where.
    pub phase: KeyPhase,
    /// Its record was seen first, without being gone since.
    pub published: Option<Timestamp>,
    /// It began to sign.
    pub active: Option<Timestamp>,
    /// It ceased to sign for good.
    pub retiring: Option<Timestamp>,
}

impl State {
    /// Of a key that was just made.
    pub const NEW: State = State {
        phase: KeyPhase::Pending,
        published: None,
        active: None,
        retiring: None,
    };
}

/// A key as it was seen.
#[derive(Clone, Debug)]
pub struct Key {
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// Its selector.
    pub selector: String,
    /// It came with `mode: Imported`.
    pub imported: bool,
    /// When it was made known.
    pub created: Timestamp,
    /// The value of `postroad.dev/rotate` that it was made under.
    pub rotation: Option<String>,
    /// `spec.revoked`.
    pub revoked: bool,
    /// Its private key is there.
    pub readable: bool,
    /// Its record.
    pub record: Record,
    /// Since when the record is not there; while somebody gave no answer it stays.
    pub absent_since: Option<Timestamp>,
    /// Time to live of its record, seconds, as last seen.
    pub ttl: u32,
    /// All delivery nodes have it.
    pub acknowledged: bool,
    /// Where it is.
    pub state: State,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is, or stays, there.
    State(State),
    /// Its object goes, and with it its record.
    Gone,
}

/// Where each key is now, in their order.
pub fn step(wish: &Wish<'_>, keys: &[Key], now: Timestamp) -> Vec<Next> {
    keys.iter().map(|key| one(wish, keys, key, now)).collect()
}

fn one(wish: &Wish<'_>, keys: &[Key], key: &Key, now: Timestamp) -> Next {
    use KeyPhase::{Active, Failed, Pending, Published, Retired, Retiring, Revoked};
    let since = |time: Option<Timestamp>| time.map_or(Duration::ZERO, |time| age(time, now));
    let state = key.state;
    let to = |phase| Next::State(State { phase, ..state });
    let wanted = wanted(wish, keys, key);
    let listed = wish
        .dkim
        .is_some_and(|dkim| dkim.keys.iter().any(|one| one.selector == key.selector));
    if key.revoked {
        let over = since(state.retiring) >= shorten(REVOKED_RECORD, wish);
        return match state.phase {
            // Whoever still names it would bring it back as a good one.
            Revoked if over && !(key.imported && listed) => Next::Gone,
            Revoked => to(Revoked),
            _ => Next::State(State {
                phase: Revoked,
                retiring: Some(now),
                ..state
            }),
        };
    }
    match state.phase {
        // Nobody ever saw a signature of it.
        Pending if !wanted || followed(keys, key, &[Pending, Published, Active]) => Next::Gone,
        Published if !wanted || followed(keys, key, &[Active]) => Next::Gone,
        Active | Failed if !wanted || followed(keys, key, &[Active]) => Next::State(State {
            phase: Retiring,
            retiring: Some(now),
            ..state
        }),
        Pending if key.readable && key.record == Record::Present => Next::State(State {
            phase: Published,
            published: Some(now),
            ..state
        }),
        Pending => to(Pending),
        Published if !key.readable || key.record == Record::Absent => Next::State(State {
            phase: Pending,
            published: None,
            ..state
        }),
        Published => {
            let held = since(state.published) >= hold(key, wish);
            let needed = needed_at_once(keys, key.algorithm);
            let go = key.record == Record::Present && key.acknowledged && (held || needed);
            match go {
                true => Next::State(State {
                    phase: Active,
                    active: Some(now),
                    ..state
                }),
                false => to(Published),
            }
        }
        Active => {
            let gone =
                key.record == Record::Absent && since(key.absent_since) >= shorten(GRACE, wish);
            to(if gone || !key.readable {
                Failed
            } else {
                Active
            })
        }
        Failed => to(match key.readable && key.record == Record::Present {
            true => Active,
            false => Failed,
        }),
        // Its record may have been changed or taken away since.
        Retiring | Retired if key.imported && wanted && key.readable => Next::State(State::NEW),
        Retiring => {
            let over = since(state.retiring) >= shorten(retire_after(wish), wish);
            to(if over { Retired } else { Retiring })
        }
        Retired => {
            let over = since(state.retiring) >= shorten(retire_after(wish) + REVOKED_RECORD, wish);
            match over && !(key.imported && listed) {
                true => Next::Gone,
                false => to(Retired),
            }
        }
        // `revoked` was taken back, which the API server refuses.
        Revoked => to(Revoked),
    }
}

/// The domain still asks for keys like this one.
fn wanted(wish: &Wish<'_>, keys: &[Key], key: &Key) -> bool {
    let Some(dkim) = wish.dkim else {
        return false;
    };
    // Who changes from one mode to the other goes on signing with what there is until the new keys do.
    let other_mode_signs = || {
        keys.iter()
            .any(|one| one.imported != key.imported && one.state.phase == KeyPhase::Active)
    };
    match (dkim.mode, key.imported) {
        (DkimMode::Off, _) => false,
        (DkimMode::Managed, false) => dkim.algorithms.contains(&key.algorithm),
        (DkimMode::Imported, true) => dkim.keys.iter().any(|one| one.selector == key.selector),
        (DkimMode::Managed, true) | (DkimMode::Imported, false) => {
            key.state.phase == KeyPhase::Active && !other_mode_signs()
        }
    }
}

fn newer(key: &Key, than: &Key) -> bool {
    (key.created, &key.selector) > (than.created, &than.selector)
}

/// A newer made key of its algorithm is in one of these phases. Keys of a person's own do not follow one another: all that
/// are named sign.
fn followed(keys: &[Key], key: &Key, phases: &[KeyPhase]) -> bool {
    let follows = |one: &&Key| {
        !one.imported && one.algorithm == key.algorithm && newer(one, key) && !one.revoked
    };
    let mut followers = keys.iter().filter(follows);
    !key.imported && followers.any(|one| phases.contains(&one.state.phase))
}

/// A key of the algorithm cannot sign any more, and none else does.
fn needed_at_once(keys: &[Key], algorithm: DkimAlgorithm) -> bool {
    let mut of_kind = keys.iter().filter(|key| key.algorithm == algorithm);
    let fallen = |key: &Key| matches!(key.state.phase, KeyPhase::Failed | KeyPhase::Revoked);
    let signs = |key: &Key| key.state.phase == KeyPhase::Active && !key.revoked;
    of_kind.clone().any(fallen) && !of_kind.any(signs)
}

/// How long the record of a key that signed must stay, as declared or as short as may be declared.
fn retire_after(wish: &Wish<'_>) -> Duration {
    let days = wish.dkim.map_or(0, |dkim| dkim.retire_after_days);
    days_long(days.max(RETIRE_AFTER_DAYS_MIN))
}

/// From the first sight of a record to the first signature.
fn hold(key: &Key, wish: &Wish<'_>) -> Duration {
    match key.imported {
        // Its record was there before us, or nobody would have such a key.
        true => Duration::ZERO,
        false => shorten(hold_of(key.ttl), wish),
    }
}

fn hold_of(ttl: u32) -> Duration {
    HOLD_MIN.max(Duration::from_secs(2 * u64::from(ttl.min(TTL_MAX))))
}

/// Algorithms of which a key is to be made now.
pub fn to_make(wish: &Wish<'_>, keys: &[Key], now: Timestamp) -> Vec<DkimAlgorithm> {
    let managed = wish.dkim.filter(|dkim| dkim.mode == DkimMode::Managed);
    let wanted = managed.into_iter().flat_map(|dkim| &dkim.algorithms);
    let mut missing: Vec<DkimAlgorithm> = wanted
        .copied()
        .filter(|algorithm| {
            let made = keys
                .iter()
                .filter(|key| !key.imported && key.algorithm == *algorithm);
            let newest = made
                .filter(|key| is_live(key))
                .reduce(|a, b| if newer(a, b) { a } else { b });
            newest.is_none_or(|key| {
                let asked = wish.rotate.is_some() && key.rotation.as_deref() != wish.rotate;
                let due = due(wish, key).is_some_and(|due| due <= now);
                asked || key.state.phase == KeyPhase::Active && due
            })
        })
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// When a successor of the key is made; `None`: never by itself.
pub fn due(wish: &Wish<'_>, key: &Key) -> Option<Timestamp> {
    let dkim = wish.dkim.filter(|dkim| dkim.rotate_after_days > 0)?;
    let active = key.state.active.filter(|_| !key.imported)?;
    let before = hold_of(key.ttl) + HEAD_START;
    let life = days_long(dkim.rotate_after_days).saturating_sub(before);
    active.checked_add(shorten(life, wish)).ok()
}

/// It signs, or will. One that failed may come back, but whoever took its record away may have meant it: it gets a successor,
/// which waits for its record and holds up nobody.
fn is_live(key: &Key) -> bool {
    use KeyPhase::{Active, Pending, Published};
    !key.revoked && matches!(key.state.phase, Pending | Published | Active)
}

/// How old a look at the key's record may be.
pub fn look_every(wish: &Wish<'_>, key: &Key, now: Timestamp) -> Duration {
    let pause = match key.state.phase {
        KeyPhase::Pending if age(key.created, now) < HOLD_MIN => LOOK_SOON,
        KeyPhase::Published => LOOK_SOON * 4,
        KeyPhase::Active | KeyPhase::Failed if key.absent_since.is_some() => LOOK_SOON * 4,
        _ => LOOK,
    };
    shorten(pause, wish)
}

/// A time of this file as the wish's clock has it.
fn shorten(time: Duration, wish: &Wish<'_>) -> Duration {
    (time / wish.divisor.max(1)).max(SHORTEST)
}

fn days_long(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 60 * 60)
}

fn age(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(time)).unwrap_or_default()
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
