//! The table of rights against the code that needs them, and the chart against the table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::rbac::*;

/// The sources of this package.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, into),
            false
                if path
                    .file_name()
                    .is_some_and(|name| name == "rbac.rs" || name == "rbac_tests.rs") => {}
            false => *into += &fs::read_to_string(&path).expect("text"),
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

#[test]
fn every_kind_that_the_code_names_is_in_the_table_and_no_other() {
    let mut text = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut text,
    );
    let mut used: BTreeSet<&str> = ["Api<", "api::<", ".controller::<"]
        .into_iter()
        .flat_map(|before| named(&text, before))
        .collect();
    assert!(used.remove("Lease"), "the Lease has a Role of its own");
    let table: BTreeSet<&str> = RIGHTS
        .iter()
        .map(|right| right.kind)
        .filter(|kind| !kind.is_empty())
        .collect();
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
