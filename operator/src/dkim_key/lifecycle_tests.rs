//! The table of phases row by row, then the whole life of a domain's keys under chance.

use proptest::prelude::*;
use resource::{DkimMode, ImportedKey};

use super::*;

const DAY: i64 = 24 * 60 * 60;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn key(phase: KeyPhase) -> Key {
    Key {
        algorithm: DkimAlgorithm::RSA2048,
        selector: "pr20260101a".into(),
        imported: false,
        created: at(0),
        rotation: None,
        revoked: false,
        readable: true,
        record: Record::Present,
        absent_since: None,
        ttl: 300,
        acknowledged: true,
        state: State {
            phase,
            ..State::NEW
        },
    }
}

fn wish(dkim: &DkimSpec) -> Wish<'_> {
    Wish {
        dkim: Some(dkim),
        rotate: None,
        divisor: 1,
    }
}

fn phase(next: Next) -> Option<KeyPhase> {
    match next {
        Next::State(state) => Some(state.phase),
        Next::Gone => None,
    }
}

/// Where a key alone is at a time.
fn alone(key: &Key, now: i64) -> Option<KeyPhase> {
    let dkim = DkimSpec::default();
    phase(step(&wish(&dkim), std::slice::from_ref(key), at(now))[0])
}

#[test]
fn a_record_that_was_not_seen_or_not_answered_for_publishes_nothing() {
    for (record, expected) in [
        (Record::Absent, KeyPhase::Pending),
        (Record::Unknown, KeyPhase::Pending),
        (Record::Present, KeyPhase::Published),
    ] {
        let key = Key {
            record,
            ..key(KeyPhase::Pending)
        };
        assert_eq!(alone(&key, 1), Some(expected), "{record:?}");
    }
    let unreadable = Key {
        readable: false,
        ..key(KeyPhase::Pending)
    };
    assert_eq!(alone(&unreadable, 1), Some(KeyPhase::Pending));
}

#[test]
fn a_key_signs_after_the_hold_with_a_green_look_and_all_nodes_having_it() {
    let mut seen = key(KeyPhase::Published);
    seen.state.published = Some(at(0));
    assert_eq!(alone(&seen, 3599), Some(KeyPhase::Published));
    assert_eq!(alone(&seen, 3600), Some(KeyPhase::Active));
    let slow = Key {
        ttl: 7200,
        ..seen.clone()
    };
    assert_eq!(alone(&slow, 14_399), Some(KeyPhase::Published));
    assert_eq!(alone(&slow, 14_400), Some(KeyPhase::Active));
    let unacknowledged = Key {
        acknowledged: false,
        ..seen.clone()
    };
    assert_eq!(alone(&unacknowledged, DAY), Some(KeyPhase::Published));
    let unanswered = Key {
        record: Record::Unknown,
        ..seen.clone()
    };
    assert_eq!(alone(&unanswered, DAY), Some(KeyPhase::Published));
    let gone = Key {
        record: Record::Absent,
        ..seen.clone()
    };
    assert_eq!(alone(&gone, DAY), Some(KeyPhase::Pending));
    let dkim = DkimSpec {
        mode: DkimMode::Imported,
        keys: vec![ImportedKey {
            selector: seen.selector.clone(),
            secret_name: "s".into(),
        }],
        ..DkimSpec::default()
    };
    let imported = Key {
        imported: true,
        ..seen
    };
    assert_eq!(
        phase(step(&wish(&dkim), &[imported], at(1))[0]),
        Some(KeyPhase::Active),
        "a record that was there before us needs no hold"
    );
}

#[test]
fn a_key_whose_record_is_gone_for_an_hour_fails_and_comes_back_with_it() {
    let mut seen = key(KeyPhase::Active);
    seen.state.active = Some(at(0));
    seen.record = Record::Absent;
    seen.absent_since = Some(at(1000));
    assert_eq!(alone(&seen, 1000 + 3599), Some(KeyPhase::Active));
    assert_eq!(alone(&seen, 1000 + 3600), Some(KeyPhase::Failed));
    let unanswered = Key {
        record: Record::Unknown,
        ..seen.clone()
    };
    assert_eq!(
        alone(&unanswered, DAY),
        Some(KeyPhase::Active),
        "no answer is no absence"
    );
    seen.state.phase = KeyPhase::Failed;
    assert_eq!(alone(&seen, DAY), Some(KeyPhase::Failed));
    seen.record = Record::Present;
    assert_eq!(alone(&seen, DAY), Some(KeyPhase::Active));
}

#[test]
fn a_key_that_ceases_to_sign_keeps_its_record_until_its_mail_is_through() {
    let mut old = key(KeyPhase::Active);
    old.state.active = Some(at(0));
    let mut new = Key {
        created: at(100),
        selector: "pr20260601a".into(),
        ..key(KeyPhase::Published)
    };
    new.state.published = Some(at(0));
    let dkim = DkimSpec::default();
    let both = step(&wish(&dkim), &[old.clone(), new.clone()], at(DAY));
    assert_eq!(
        phase(both[0]),
        Some(KeyPhase::Active),
        "it signs until the other does"
    );
    assert_eq!(phase(both[1]), Some(KeyPhase::Active));
    new.state.phase = KeyPhase::Active;
    let both = step(&wish(&dkim), &[old.clone(), new], at(DAY));
    assert_eq!(phase(both[0]), Some(KeyPhase::Retiring));

    old.state.phase = KeyPhase::Retiring;
    old.state.retiring = Some(at(0));
    assert_eq!(alone(&old, 14 * DAY - 1), Some(KeyPhase::Retiring));
    assert_eq!(alone(&old, 14 * DAY), Some(KeyPhase::Retired));
    old.state.phase = KeyPhase::Retired;
    assert_eq!(alone(&old, 44 * DAY - 1), Some(KeyPhase::Retired));
    assert_eq!(alone(&old, 44 * DAY), None);
}

#[test]
fn a_revoked_key_signs_no_more_and_one_that_waits_takes_its_place_at_once() {
    let mut bad = key(KeyPhase::Active);
    bad.state.active = Some(at(0));
    bad.revoked = true;
    let mut waiting = Key {
        created: at(100),
        selector: "pr20260601a".into(),
        ..key(KeyPhase::Published)
    };
    waiting.state.published = Some(at(DAY));
    let dkim = DkimSpec::default();
    let both = step(&wish(&dkim), &[bad.clone(), waiting.clone()], at(DAY));
    assert_eq!(phase(both[0]), Some(KeyPhase::Revoked));
    bad.state.phase = KeyPhase::Revoked;
    bad.state.retiring = Some(at(DAY));
    let both = step(&wish(&dkim), &[bad.clone(), waiting], at(DAY + 1));
    assert_eq!(
        phase(both[1]),
        Some(KeyPhase::Active),
        "before its hold is over"
    );
    assert_eq!(alone(&bad, 31 * DAY - 1), Some(KeyPhase::Revoked));
    assert_eq!(alone(&bad, 31 * DAY), None);
    assert_eq!(
        to_make(&wish(&dkim), &[bad.clone()], at(DAY)),
        [DkimAlgorithm::RSA2048, DkimAlgorithm::Ed25519]
    );

    let dkim = DkimSpec {
        mode: DkimMode::Imported,
        keys: vec![ImportedKey {
            selector: bad.selector.clone(),
            secret_name: "s".into(),
        }],
        ..DkimSpec::default()
    };
    bad.imported = true;
    assert_eq!(
        phase(step(&wish(&dkim), &[bad], at(400 * DAY))[0]),
        Some(KeyPhase::Revoked),
        "who is still named would come back as a good one"
    );
}

#[test]
fn successors_are_made_in_time_once_and_when_a_person_asks() {
    let dkim = DkimSpec {
        algorithms: vec![DkimAlgorithm::RSA2048],
        ..DkimSpec::default()
    };
    let mut wish = wish(&dkim);
    assert_eq!(to_make(&wish, &[], at(0)), [DkimAlgorithm::RSA2048]);
    let mut first = key(KeyPhase::Active);
    first.state.active = Some(at(0));
    let due = 180 * DAY - 2 * 3600;
    assert_eq!(super::due(&wish, &first), Some(at(due)));
    assert_eq!(to_make(&wish, &[first.clone()], at(due - 1)), []);
    assert_eq!(
        to_make(&wish, &[first.clone()], at(due)),
        [DkimAlgorithm::RSA2048]
    );
    let second = Key {
        created: at(due),
        selector: "pr20260601a".into(),
        ..key(KeyPhase::Pending)
    };
    assert_eq!(
        to_make(&wish, &[first.clone(), second.clone()], at(due)),
        []
    );

    wish.rotate = Some("now");
    assert_eq!(
        to_make(&wish, &[first.clone()], at(1)),
        [DkimAlgorithm::RSA2048]
    );
    let second = Key {
        rotation: Some("now".into()),
        ..second
    };
    assert_eq!(to_make(&wish, &[first.clone(), second], at(1)), []);
    wish.rotate = None;
    wish.divisor = 86_400;
    assert_eq!(to_make(&wish, &[first], at(180)), [DkimAlgorithm::RSA2048]);
}

#[test]
fn who_changes_the_mode_goes_on_signing_until_the_other_keys_do() {
    let mut made = key(KeyPhase::Active);
    made.state.active = Some(at(0));
    let dkim = DkimSpec {
        mode: DkimMode::Imported,
        keys: vec![ImportedKey {
            selector: "own".into(),
            secret_name: "s".into(),
        }],
        ..DkimSpec::default()
    };
    let mut own = Key {
        imported: true,
        selector: "own".into(),
        ..key(KeyPhase::Pending)
    };
    let both = step(&wish(&dkim), &[made.clone(), own.clone()], at(1));
    assert_eq!(
        (phase(both[0]), phase(both[1])),
        (Some(KeyPhase::Active), Some(KeyPhase::Published))
    );
    own.state.phase = KeyPhase::Active;
    let both = step(&wish(&dkim), &[made.clone(), own], at(1));
    assert_eq!(phase(both[0]), Some(KeyPhase::Retiring));
    let off = DkimSpec {
        mode: DkimMode::Off,
        ..DkimSpec::default()
    };
    assert_eq!(
        phase(step(&wish(&off), &[made], at(1))[0]),
        Some(KeyPhase::Retiring)
    );
}

/// It was withdrawn for a day, or for a year, and nothing led back: mail stayed unsigned while its key was named.
#[test]
fn a_key_of_ones_own_that_was_withdrawn_signs_again_when_it_is_named_again() {
    let dkim = DkimSpec {
        mode: DkimMode::Imported,
        keys: vec![ImportedKey {
            selector: "own".into(),
            secret_name: "s".into(),
        }],
        ..DkimSpec::default()
    };
    let managed = DkimSpec::default();
    let mut own = Key {
        imported: true,
        selector: "own".into(),
        ..key(KeyPhase::Active)
    };
    own.state.active = Some(at(0));
    let once = |dkim: &DkimSpec, key: &Key, now: i64| match step(
        &wish(dkim),
        std::slice::from_ref(key),
        at(now),
    )[0]
    {
        Next::State(state) => state,
        Next::Gone => panic!("its object stays"),
    };
    own.state = once(
        &DkimSpec {
            mode: DkimMode::Off,
            ..managed.clone()
        },
        &own,
        DAY,
    );
    assert_eq!(own.state.phase, KeyPhase::Retiring);
    for (phase, now) in [(KeyPhase::Retiring, 2 * DAY), (KeyPhase::Retired, 20 * DAY)] {
        let mut own = own.clone();
        own.state = once(&managed, &own, now);
        assert_eq!(own.state.phase, phase, "not while it is not named");
        let lost = Key {
            readable: false,
            ..own.clone()
        };
        assert_eq!(once(&dkim, &lost, now).phase, phase);
        let revoked = Key {
            revoked: true,
            ..own.clone()
        };
        assert_eq!(once(&dkim, &revoked, now).phase, KeyPhase::Revoked);
        let made = Key {
            imported: false,
            ..own.clone()
        };
        assert_eq!(once(&managed, &made, now).phase, phase);
        own.state = once(&dkim, &own, now);
        assert_eq!(own.state, State::NEW);
        for next in [KeyPhase::Published, KeyPhase::Active] {
            own.state = once(&dkim, &own, now);
            assert_eq!(own.state.phase, next);
        }
    }
}

/// A day in the life of a domain whose owner publishes what is shown, late or early.
#[derive(Clone, Debug)]
struct Chance {
    /// Seconds between two looks.
    pause: i64,
    /// Records are published so many seconds after a key was made.
    delay: i64,
    /// Per cent of looks that get no answer.
    silent: u32,
    /// Per cent of looks at which not all nodes have acknowledged.
    slow: u32,
}

proptest! {
    #[test]
    fn a_domain_signs_without_a_gap_for_years_and_no_record_goes_too_soon(
        pause in 600_i64..20_000, delay in 0_i64..(3 * DAY), silent in 0_u32..60, slow in 0_u32..60, seed: u64,
    ) {
        let chance = Chance { pause, delay, silent, slow };
        let mut random = seed | 1;
        let mut roll = |percent: u32| {
            random ^= random << 13; random ^= random >> 7; random ^= random << 17;
            random % 100 < u64::from(percent)
        };
        let dkim = DkimSpec { rotate_after_days: 30, ..DkimSpec::default() };
        let wish = wish(&dkim);
        let mut keys: Vec<Key> = Vec::new();
        let mut signed = false;
        let mut last_signature: Vec<(String, Timestamp)> = Vec::new();
        let mut retired = 0;
        let mut now = 0;
        while now < 250 * DAY {
            let time = at(now);
            for algorithm in to_make(&wish, &keys, time) {
                let selector = resource::dkim::selector("pr", &(now / DAY).to_string(), algorithm, |name| keys.iter().any(|key| key.selector == name));
                keys.push(Key { algorithm, selector, created: time, ..key(KeyPhase::Pending) });
            }
            for key in &mut keys {
                let published = now >= key.created.as_second() + chance.delay;
                key.record = match published {
                    _ if roll(chance.silent) => Record::Unknown,
                    true => Record::Present,
                    false => Record::Absent,
                };
                key.acknowledged = !roll(chance.slow);
            }
            let before = keys.clone();
            let next = step(&wish, &keys, time);
            let mut after = Vec::new();
            for (key, next) in keys.into_iter().zip(next) {
                match next {
                    Next::State(state) => {
                        if state.phase == KeyPhase::Active && key.state.phase != KeyPhase::Active {
                            prop_assert_eq!(key.record, Record::Present);
                            prop_assert!(key.acknowledged);
                            prop_assert!(age(key.state.published.expect("it was"), time) >= HOLD_MIN);
                        }
                        after.push(Key { state, ..key });
                    }
                    Next::Gone => {
                        let last = last_signature.iter().find(|(selector, _)| *selector == key.selector);
                        let quiet = last.map(|(_, last)| age(*last, time));
                        prop_assert!(quiet.is_none_or(|quiet| quiet >= days_long(14 + 30)), "{} went after {quiet:?}", key.selector);
                        retired += 1;
                    }
                }
            }
            keys = after;
            for key in keys.iter().filter(|key| key.state.phase == KeyPhase::Active) {
                last_signature.retain(|(selector, _)| *selector != key.selector);
                last_signature.push((key.selector.clone(), time));
            }
            for algorithm in [DkimAlgorithm::RSA2048, DkimAlgorithm::Ed25519] {
                let of_kind = |keys: &[Key]| keys.iter().filter(|key| key.algorithm == algorithm && key.state.phase == KeyPhase::Active).count();
                let signing = of_kind(&keys);
                prop_assert!(of_kind(&before) == 0 || signing > 0, "nobody signs any more at {now}");
                prop_assert!(signing <= 2, "{signing} sign at once");
                signed |= signing > 0;
            }
            now += chance.pause;
        }
        prop_assert!(signed && retired >= 2, "{retired} keys came to their end");
    }
}
