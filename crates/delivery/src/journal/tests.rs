//! What a restart reads of a journal: whole, cut anywhere, damaged, or nothing but zeros.

use super::*;
use proptest::prelude::*;

fn request(number: u32, text: &str) -> v1::SettleRequest {
    let item = ItemId {
        message: Ulid::from_bytes([7; 16]),
        number,
    };
    let result = v1::RecipientResult {
        text: text.into(),
        ..Default::default()
    };
    v1::SettleRequest {
        item: Some(item.to_wire()),
        token: 9,
        results: vec![result],
        ..Default::default()
    }
}

fn item(number: u32) -> ItemId {
    ItemId {
        message: Ulid::from_bytes([7; 16]),
        number,
    }
}

#[test]
fn a_restart_finds_what_was_sent_what_came_back_and_nothing_settled() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(replay, Replay::default());
    for number in 0..3 {
        journal.sent_dot(&request(number, "lost")).expect("written");
    }
    journal.got(&request(1, "250")).expect("written");
    journal.got(&request(2, "250")).expect("written");
    journal.settled(item(2)).expect("noted");
    journal.flush().expect("written");
    let kept = [0, 1, 2].map(|number| journal.kept(item(number)));
    let lost = Some(request(0, "lost"));
    assert_eq!(kept, [lost, Some(request(1, "250")), None]);
    assert!(matches!(Journal::open(dir.path()), Err(Error::Locked(_))));
    drop(journal);
    let (_, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(
        replay,
        Replay {
            got: vec![request(1, "250")],
            past_dot: vec![request(0, "lost")]
        }
    );
}

#[test]
fn another_file_is_not_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("journal"),
        b"someone's notes, and long enough",
    )
    .expect("written");
    assert!(matches!(Journal::open(dir.path()), Err(Error::Foreign(_))));
}

#[test]
fn zeros_that_a_power_loss_left_are_no_reason_to_stay_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("journal");
    std::fs::write(&path, [0u8; 5000]).expect("written");
    let (mut journal, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(replay, Replay::default());
    journal.sent_dot(&request(1, "lost")).expect("written");
    drop(journal);
    let (journal, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(replay.past_dot, [request(1, "lost")]);
    drop(journal);
    // Whose these are nobody knows.
    let mut others = [0u8; 5000];
    others[4999] = 1;
    std::fs::write(&path, others).expect("written");
    assert!(matches!(Journal::open(dir.path()), Err(Error::Foreign(_))));
}

#[test]
fn what_a_rewrite_left_half_done_is_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(dir.path()).expect("opens");
    journal.sent_dot(&request(1, "lost")).expect("written");
    drop(journal);
    std::fs::write(dir.path().join("journal.new"), [7u8; 5000]).expect("written");
    for number in 2..4 {
        let (mut journal, _) = Journal::open(dir.path()).expect("opens");
        journal.sent_dot(&request(number, "lost")).expect("written");
    }
    let (_, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(replay.past_dot.len(), 3);
}

#[test]
fn the_file_does_not_grow_with_what_is_settled() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = Journal::open(dir.path()).expect("opens");
    journal
        .sent_dot(&request(u32::MAX, "stays"))
        .expect("written");
    for number in 0..40_000 {
        journal
            .got(&request(number, &"x".repeat(300)))
            .expect("written");
        journal.settled(item(number)).expect("noted");
    }
    assert!(journal.length < 2 * COMPACT_BYTES_MIN, "{}", journal.length);
    drop(journal);
    let (_, replay) = Journal::open(dir.path()).expect("opens");
    assert_eq!(replay.past_dot, [request(u32::MAX, "stays")]);
}

/// What one step writes.
#[derive(Clone, Debug)]
enum Step {
    Dot(u32),
    Got(u32),
    Settled(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..3u8, 0..5u32).prop_map(|(kind, number)| match kind {
        0 => Step::Dot(number),
        1 => Step::Got(number),
        _ => Step::Settled(number),
    });
    prop::collection::vec(step, 0..30)
}

proptest! {
    /// A process killed in the middle of a write leaves a file that ends anywhere: what is read is the state after
    /// some number of whole steps.
    #[test]
    fn a_file_cut_anywhere_is_a_valid_prefix(steps in steps(), cut in 0.0..=1.0f64) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut journal, _) = Journal::open(dir.path()).expect("opens");
        let mut states = vec![journal.live.clone()];
        for step in &steps {
            match step {
                Step::Dot(n) => journal.sent_dot(&request(*n, "lost")),
                Step::Got(n) => journal.got(&request(*n, "250")),
                Step::Settled(n) => journal.settled(item(*n)),
            }.and_then(|()| journal.flush()).expect("written");
            states.push(journal.live.clone());
        }
        drop(journal);
        let path = dir.path().join("journal");
        let whole = std::fs::read(&path).expect("read");
        let keep = (whole.len() as f64 * cut) as usize;
        std::fs::write(&path, &whole[..keep]).expect("cut");
        let (journal, _) = Journal::open(dir.path()).expect("a cut file opens");
        prop_assert!(states.contains(&journal.live));
        if keep == whole.len() {
            prop_assert_eq!(&journal.live, states.last().expect("at least the first"));
        }
    }

    /// A flipped bit is found by the CRC and ends the reading there.
    #[test]
    fn damage_ends_the_reading(count in 1u32..10, at in 0.0..1.0f64, bit in 0..8u8) {
        let mut bytes = Vec::new();
        for number in 0..count {
            let mut payload = vec![GOT];
            request(number, "250").encode_raw(&mut payload);
            frame(&payload, &mut bytes);
        }
        let at = (bytes.len() as f64 * at) as usize;
        bytes[at] ^= 1 << bit;
        let live = read(&bytes);
        prop_assert!(live.len() < count as usize);
        prop_assert!((0..live.len() as u32).all(|number| live.contains_key(&item(number))));
    }
}
