//! Fences, old tokens and other recipients.

use super::*;
use mail::Ulid;

pub(crate) fn item(number: u32) -> ItemId {
    ItemId {
        message: Ulid::from_bytes([1; 16]),
        number,
    }
}

pub(crate) fn handout(number: u32, token: u64, session: u64, recipients: &[u32]) -> v1::Handout {
    let recipients = recipients.iter().map(|recipient| v1::HandoutRecipient {
        recipient: *recipient,
        address: format!("r{recipient}@d.example"),
    });
    let message = v1::HandoutMessage {
        destination: "d.example".into(),
        size: 10,
        ..Default::default()
    };
    v1::Handout {
        item: Some(item(number).to_wire()),
        token,
        session,
        message: Some(message),
        recipients: recipients.collect(),
        ..Default::default()
    }
}

#[test]
fn without_an_answer_for_twenty_seconds_nothing_starts_and_no_dot_goes_out() {
    let start = Instant::now();
    let mut hand = Hand::new(FENCE);
    hand.open(0, 5, start);
    for number in 1..=3 {
        assert_eq!(
            hand.take(item(number), 0, 1, &handout(number, 7, 5, &[0])),
            Take::New
        );
    }
    assert_eq!(hand.begin(item(1), start), Ok(()));
    assert_eq!(hand.begin(item(2), start), Ok(()));
    assert_eq!(hand.pass_dot(item(1), start + FENCE / 2), Ok((7, 5)));
    let late = start + FENCE;
    assert_eq!(hand.pass_dot(item(2), late), Err(Stop::Fenced));
    assert_eq!(hand.begin(item(3), late), Err(Stop::Fenced));
    // What is past its dot is kept under the next lease session.
    assert_eq!(hand.past_dot(0).len(), 1);
    // An answer counts from when its question was sent, not from when it came.
    hand.prove(0, 5, start + Duration::from_secs(5));
    assert_eq!(hand.begin(item(3), late), Ok(()));
    assert_eq!(
        hand.begin(item(3), late + Duration::from_secs(5)),
        Err(Stop::Fenced)
    );
}

#[test]
fn a_dead_session_stays_dead() {
    let now = Instant::now();
    let mut hand = Hand::new(FENCE);
    hand.open(0, 5, now);
    hand.take(item(1), 0, 1, &handout(1, 7, 5, &[0]));
    hand.end(0);
    hand.prove(0, 5, now);
    assert_eq!(hand.begin(item(1), now), Err(Stop::Fenced));
    hand.open(0, 6, now);
    assert_eq!(
        hand.begin(item(1), now),
        Err(Stop::Fenced),
        "granted under another lease session"
    );
    // The queue grants it to us again: go on under the new token.
    assert_eq!(
        hand.take(item(1), 0, 1, &handout(1, 8, 6, &[0])),
        Take::Known
    );
    assert_eq!(hand.begin(item(1), now), Ok(()));
    assert_eq!(hand.settle(item(1), true), Some((8, 6)));
}

#[test]
fn other_recipients_end_an_old_attempt() {
    let now = Instant::now();
    let mut hand = Hand::new(FENCE);
    hand.open(0, 5, now);
    hand.take(item(1), 0, 1, &handout(1, 7, 5, &[0, 1]));
    hand.begin(item(1), now).expect("live");
    assert_eq!(
        hand.take(item(1), 0, 1, &handout(1, 7, 5, &[0, 1])),
        Take::Known
    );
    assert_eq!(
        hand.take(item(1), 0, 1, &handout(1, 9, 5, &[1])),
        Take::Refused
    );
    assert_eq!(hand.pass_dot(item(1), now), Err(Stop::Revoked));
}
