//! The table of rights against the code that needs them, and the chart against the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::rbac::*;

/// The sources of this package, file by file, with one space wherever there is any and none inside of a call.
fn sources(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            sources(&path, into);
        } else if !name.starts_with("rbac") {
            let text = fs::read_to_string(&path).expect("text");
            let words: Vec<&str> = text.split_whitespace().collect();
            into.push(words.join(" ").replace(" .", ".").replace("( ", "("));
        }
    }
}

/// What stands behind a text, up to the end of an identifier.
fn named<'a>(text: &'a str, before: &str) -> impl Iterator<Item = &'a str> {
    let pieces = text.split(before).skip(1);
    let word = |piece: &'a str| piece.split(|c: char| !c.is_alphanumeric()).next();
    let pieces: Vec<&str> = pieces.filter_map(word).collect();
    pieces.into_iter().filter(|word| word.len() > 1)
}

/// Names that stand for an `Api` in a text, each with the kind.
fn bound<'a>(text: &'a str, by: &str) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(by) {
        let mut before = text[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_');
        let kind = named(&text[at..], by).next();
        found.extend(before.next().zip(kind));
    }
    found
}

/// What one function does with what a name stands for. A map of the name has a `get` too, as a field of something.
fn verbs(function: &str, name: &str) -> BTreeSet<&'static str> {
    let calls: [(String, &[&'static str]); 10] = [
        (format!("delete_own(&{name}"), &["get", "delete"]),
        (format!(" {name}.get_opt("), &["get"]),
        (format!(" {name}.get("), &["get"]),
        (format!("{name}.list("), &["list"]),
        (format!("{name}.create("), &["create"]),
        (format!("{name}.patch("), &["patch"]),
        (format!("delete(&{name}"), &["delete"]),
        (format!("delete({name}"), &["delete"]),
        (format!(" create(&{name}"), &["create"]),
        (format!("ssa::apply(&{name}"), &["create", "patch"]),
    ];
    let done = calls.iter().filter(|(call, _)| function.contains(call));
    done.flat_map(|(_, verbs)| verbs.iter().copied()).collect()
}

/// Kinds and verbs, as the code's text shows them.
fn used() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut files = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&folder, &mut files);
    let mut used: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for text in &files {
        let mut note = |kind: &str, verbs: &[&'static str]| {
            used.entry(kind.to_owned()).or_default().extend(verbs);
        };
        for watched in ["api::<", ".controller::<"] {
            named(text, watched).for_each(|kind| note(kind, &["list", "watch"]));
        }
        // One function gives the API, others of the file use it under the function's name.
        let given = text.split("fn ").filter_map(|function| {
            let (name, rest) = function.split_once('(')?;
            let (head, _) = rest.split_once('{')?;
            Some((name, named(head, "-> Api<").next()?))
        });
        let given: Vec<(&str, &str)> = given.collect();
        for function in text.split("fn ") {
            let own = [": Api<", ": &Api<"].map(|by| bound(function, by)).concat();
            for (name, kind) in own.iter().chain(&given) {
                let verbs: Vec<&str> = verbs(function, name).into_iter().collect();
                note(kind, &verbs);
            }
            for call in function.split("of_cluster(").skip(1) {
                let closure = call.split('|').nth(1).unwrap_or_default();
                named(closure, ": &").for_each(|kind| note(kind, &["list"]));
            }
        }
    }
    used.retain(|kind, _| kind.len() > 1);
    used
}

#[test]
fn the_table_has_what_the_code_does_and_no_more() {
    let mut used = used();
    let lease = used.remove("Lease");
    assert!(lease.is_some(), "the Lease has a Role of its own");
    let mut table: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for right in RIGHTS.iter().filter(|right| !right.kind.is_empty()) {
        let verbs = right.verbs.iter().copied().collect();
        table.insert(right.kind.to_owned(), verbs);
    }
    assert_eq!(used, table);
}

#[test]
fn the_chart_grants_what_the_table_says() {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/postroad");
    let granted = fs::read_to_string(charts.join("cluster-role.yaml")).expect("generated");
    assert_eq!(granted, rules(), "run `cargo run -p gen`");
    let template = fs::read_to_string(charts.join("templates/rbac.yaml")).expect("there");
    let included = "rules:\n{{ .Files.Get \"cluster-role.yaml\" }}";
    assert_eq!(template.matches(included).count(), 1);
}

#[test]
fn nothing_that_people_write_is_written_and_no_right_is_named_twice() {
    let mut seen = BTreeSet::new();
    for right in RIGHTS {
        assert!(
            seen.insert((right.group, right.resource)),
            "{}",
            right.resource
        );
        assert!(!right.verbs.contains(&"*") && right.resource != "*");
        let declared = right.group == POSTROAD && !right.resource.contains('/');
        let writes = right
            .verbs
            .iter()
            .any(|verb| ["create", "patch", "update", "delete"].contains(verb));
        let finalizer = right.kind == "QueuePool" && !right.verbs.contains(&"create");
        assert!(
            !declared || right.kind == "DkimKey" || finalizer || !writes,
            "{}",
            right.resource
        );
        assert!(!right.verbs.contains(&"update") || right.resource.ends_with("/finalizers"));
    }
}
