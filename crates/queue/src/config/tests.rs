//! Whose a key is, what a Put does, and that whoever follows has what is there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn document(key: &str, body: &str) -> Document {
    Document {
        key: format!("Kind/a/{key}").as_str().into(),
        generation: 1,
        audience: Audience::All,
        sha256: [0; 32],
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// The digest is made of the content, as the leader makes it.
fn put(writer: &str, expected: u64, upserts: &[(&str, &str)]) -> Put {
    let mut put = Put {
        writer: writer.into(),
        expected,
        upserts: upserts.iter().map(|(k, b)| document(k, b)).collect(),
        deletes: Vec::new(),
        complete: false,
        since: 0,
        digest: [0; 32],
    };
    seal(&mut put);
    put
}

fn seal(put: &mut Put) {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    put.digest = [0; 32];
    format!("{put:?}").hash(&mut hasher);
    put.digest[..8].copy_from_slice(&hasher.finish().to_be_bytes());
}

#[test]
fn another_writer_is_refused_by_name_and_changes_nothing() {
    let mut all = Configuration::default();
    all.apply(5, &put("operator", 0, &[("x", "1")])).unwrap();
    let before = all.clone();
    let refused = all
        .apply(6, &put("me", 0, &[("y", "1"), ("x", "2")]))
        .unwrap_err();
    let owned = PutRefusal::Owned {
        key: "Kind/a/x".into(),
        owner: "operator".into(),
    };
    assert_eq!(refused, owned);
    assert!(refused.to_string().contains("belongs to operator"));
    let mut removal = put("me", 0, &[]);
    removal.deletes = vec!["Kind/a/x".into()];
    assert_eq!(all.apply(7, &removal), Err(owned));
    assert_eq!(all, before);
}

#[test]
fn a_put_that_comes_twice_is_answered_as_before_and_an_old_one_is_a_conflict() {
    let mut all = Configuration::default();
    let first = put("w", 0, &[("x", "1")]);
    assert_eq!(all.apply(5, &first).unwrap().revision, 5);
    let again = Accepted {
        revision: 5,
        keys: Vec::new(),
    };
    assert_eq!(all.apply(6, &first), Ok(again));
    all.apply(7, &put("w", 5, &[("x", "2")])).unwrap();
    assert_eq!(
        all.apply(8, &first),
        Err(PutRefusal::Conflict {
            writer: "w".into(),
            expected: 0,
            revision: 7
        })
    );
}

#[test]
fn the_last_of_several_puts_removes_what_none_of_them_named() {
    let mut all = Configuration::default();
    all.apply(1, &put("w", 0, &[("old", "1"), ("same", "1"), ("x", "1")]))
        .unwrap();
    all.apply(2, &put("other", 0, &[("his", "1")])).unwrap();
    let first = all
        .apply(3, &put("w", 1, &[("same", "1"), ("x", "2")]))
        .unwrap();
    let mut last = put("w", first.revision, &[("new", "1")]);
    (last.complete, last.since) = (true, first.revision);
    all.apply(4, &last).unwrap();
    let revisions: Vec<(&str, u64)> = all
        .documents()
        .iter()
        .map(|(key, held)| (&key[7..], held.revision))
        .collect();
    assert_eq!(revisions, [("his", 2), ("new", 4), ("same", 1), ("x", 3)]);
}

#[test]
fn what_is_too_large_or_no_key_is_refused() {
    let all = Configuration::default();
    let refused = |upserts: &[(&str, &str)]| all.judge(&put("w", 0, upserts)).unwrap_err();
    let large = "x".repeat(BODY_OCTETS_MAX + 1);
    assert!(matches!(refused(&[("a", &large)]), PutRefusal::Invalid(_)));
    assert!(matches!(
        refused(&[("a", ""), ("a", "")]),
        PutRefusal::Invalid(_)
    ));
    assert!(matches!(refused(&[("a\0", "")]), PutRefusal::Invalid(_)));
    assert!(matches!(refused(&[("", "")]), PutRefusal::Invalid(_)));
    let body = "x".repeat(BODY_OCTETS_MAX);
    let names: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), &*body)).collect();
    assert!(matches!(refused(&many), PutRefusal::TooLarge { .. }));
    assert!(matches!(
        all.judge(&put("", 0, &[])),
        Err(PutRefusal::Invalid(_))
    ));
}

#[test]
fn the_whole_is_bounded_and_what_is_replaced_makes_room() {
    let mut all = Configuration::default();
    let body = "x".repeat(BODY_OCTETS_MAX);
    let mut revision = 0;
    let full = loop {
        let names: Vec<String> = (0..5).map(|n| format!("{revision}-{n}")).collect();
        let some: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), &*body)).collect();
        match all.apply(revision + 1, &put("w", revision, &some)) {
            Ok(accepted) => revision = accepted.revision,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(full, PutRefusal::Full { .. }), "{full}");
    assert!(all.octets() <= OCTETS_MAX && all.octets() > OCTETS_MAX - 6 * BODY_OCTETS_MAX);
    all.judge(&put("w", revision, &[("0-0", &body)])).unwrap();
    let mut other = put("w", revision, &[("a", "1")]);
    other.complete = true;
    all.apply(revision + 1, &other).unwrap();
    assert_eq!((all.documents().len(), all.octets()), (1, 9));
}

/// Somebody who follows, in pages of one change.
struct Follower {
    has: BTreeMap<String, Bytes>,
    cursor: Cursor,
    revision: u64,
}

impl Follower {
    fn begin(all: &Configuration, from: u64, has: BTreeMap<String, Bytes>) -> Follower {
        let (cursor, whole) = all.begin(from);
        Follower {
            has: if whole { BTreeMap::new() } else { has },
            cursor,
            revision: 0,
        }
    }

    fn step(&mut self, all: &Configuration) {
        if all.lost(&self.cursor) {
            *self = Follower::begin(all, 0, BTreeMap::new());
        }
        let Some((cursor, change)) = all.changes(&self.cursor).next() else {
            self.revision = all.revision();
            return;
        };
        match change {
            Change::Upsert(held) => {
                let document = &held.document;
                self.has
                    .insert(document.key.to_string(), document.body.clone());
            }
            Change::Delete(key) => drop(self.has.remove(&**key)),
        }
        self.cursor = cursor;
    }
}

#[derive(Clone, Debug)]
enum Act {
    Put {
        writer: usize,
        names: Vec<(u8, u8)>,
        deletes: Vec<u8>,
        complete: bool,
        stale: bool,
    },
    Step(usize),
    Away(usize),
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let names = prop::collection::vec((0u8..12, 0u8..3), 0..5);
    let deletes = prop::collection::vec(0u8..12, 0..4);
    let put = (
        0usize..2,
        names,
        deletes,
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(writer, names, deletes, complete, stale)| Act::Put {
            writer,
            names,
            deletes,
            complete,
            stale,
        });
    let act = prop_oneof![
        4 => put,
        6 => (0usize..2).prop_map(Act::Step),
        1 => (0usize..2).prop_map(Act::Away),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..80)
}

proptest! {
    #[test]
    fn it_does_what_a_plain_map_does_and_followers_have_it(acts in acts()) {
        let mut all = Configuration::default();
        // Key to (writer, body).
        let mut model: BTreeMap<String, (usize, Bytes)> = BTreeMap::new();
        let mut revisions = [0_u64; 2];
        let mut followers: Vec<Follower> = (0..2).map(|_| Follower::begin(&all, 0, BTreeMap::new())).collect();
        for (index, act) in acts.into_iter().enumerate() {
            let index = index as u64 + 1;
            match act {
                Act::Put { writer, names, deletes, complete, stale } => {
                    let upserts: BTreeMap<String, String> =
                        names.iter().map(|(n, b)| (n.to_string(), b.to_string())).collect();
                    let some: Vec<(&str, &str)> = upserts.iter().map(|(k, b)| (k.as_str(), b.as_str())).collect();
                    let expected = revisions[writer] + u64::from(stale);
                    let mut one = put(["a", "b"][writer], expected, &some);
                    let deletes: BTreeSet<String> = deletes.iter().map(u8::to_string)
                        .filter(|key| !upserts.contains_key(key)).collect();
                    one.deletes = deletes.iter().map(|key| format!("Kind/a/{key}").as_str().into()).collect();
                    one.complete = complete;
                    seal(&mut one);
                    let mut named = upserts.keys().chain(&deletes).map(|key| format!("Kind/a/{key}"));
                    let foreign = named.any(|key| model.get(&key).is_some_and(|(of, _)| *of != writer));
                    let done = all.apply(index, &one);
                    prop_assert_eq!(done.is_ok(), !stale && !foreign, "{:?}", done);
                    let Ok(done) = done else { continue };
                    revisions[writer] = done.revision;
                    if complete {
                        model.retain(|_, (of, _)| *of != writer);
                    }
                    for key in &deletes {
                        model.remove(&format!("Kind/a/{key}"));
                    }
                    for (key, body) in upserts {
                        model.insert(format!("Kind/a/{key}"), (writer, Bytes::from(body)));
                    }
                }
                Act::Step(who) => followers[who].step(&all),
                Act::Away(who) => {
                    let (revision, has) = (followers[who].revision, followers[who].has.clone());
                    // He knows only what he had whole.
                    let whole = all.changes(&followers[who].cursor).next().is_none();
                    followers[who] = Follower::begin(&all, if whole { revision } else { 0 }, has);
                }
                Act::Restart => {
                    all = Configuration::recovered(
                        all.documents().values().cloned(),
                        all.writers().iter().map(|(name, row)| (name.clone(), *row)),
                    );
                    for follower in &mut followers {
                        let whole = follower.revision == all.revision();
                        let has = follower.has.clone();
                        *follower = Follower::begin(&all, if whole { follower.revision } else { 0 }, has);
                    }
                }
            }
            let has: BTreeMap<String, Bytes> =
                all.documents().iter().map(|(key, held)| (key.to_string(), held.document.body.clone())).collect();
            let wanted: BTreeMap<String, Bytes> = model.iter().map(|(key, (_, body))| (key.clone(), body.clone())).collect();
            prop_assert_eq!(&has, &wanted);
            let octets: usize = wanted.iter().map(|(key, body)| key.len() + body.len()).sum();
            prop_assert_eq!(all.octets(), octets);
            for follower in &mut followers {
                if follower.revision == all.revision() && follower.revision > 0 {
                    prop_assert_eq!(&follower.has, &wanted);
                }
            }
        }
        for follower in &mut followers {
            for _ in 0..100 {
                follower.step(&all);
            }
            prop_assert_eq!(follower.revision, all.revision());
            prop_assert_eq!(follower.has.len(), model.len());
        }
    }
}

#[test]
fn what_went_is_forgotten_and_who_was_away_then_gets_all() {
    let mut all = Configuration::default();
    all.apply(1, &put("w", 0, &[("stays", "1"), ("early", "1")]))
        .unwrap();
    let away = Follower::begin(
        &all,
        1,
        BTreeMap::from([("Kind/a/early".into(), Bytes::new())]),
    );
    let mut slow = Follower::begin(&all, 0, BTreeMap::new());
    slow.step(&all);
    assert!(slow.has.contains_key("Kind/a/early"));
    let mut removal = put("w", 1, &[]);
    removal.deletes = vec!["Kind/a/early".into()];
    all.apply(2, &removal).unwrap();
    let mut revision = 2;
    while all.changes.gone.contains_key("Kind/a/early") {
        let names: Vec<String> = (0..500).map(|n| format!("{revision}-{n}")).collect();
        let some: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "")).collect();
        revision = all
            .apply(revision + 1, &put("w", revision, &some))
            .unwrap()
            .revision;
        let mut removal = put("w", revision, &[]);
        removal.deletes = names
            .iter()
            .map(|n| format!("Kind/a/{n}").as_str().into())
            .collect();
        revision = all.apply(revision + 1, &removal).unwrap().revision;
    }
    assert!(all.changes.gone.len() <= GONE_MAX);
    assert!(all.lost(&away.cursor) && all.lost(&slow.cursor));
    assert!(all.begin(1).1, "revision 1 gets all");
    assert!(!all.begin(revision).1);
    for _ in 0..GONE_MAX + 10 {
        slow.step(&all);
    }
    assert_eq!(slow.has.keys().collect::<Vec<_>>(), ["Kind/a/stays"]);
}
