//! House rules that a compiler does not know: who may use whom, what lies where, how long a file is, which RFCs are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package, what of the workspace it may use, and which other crates.
type Rule = (
    &'static str,
    &'static [&'static str],
    Option<&'static [&'static str]>,
);

/// What each package may use of this workspace (ARCHITECTURE.md, code map), and for cores which other crates.
/// `None`: any crate; it is a driver and owns sockets, tasks and clocks.
const GRAPH: &[Rule] = &[
    ("mail", &[], Some(CORE_LIBRARIES)),
    ("smtp", &["mail"], Some(CORE_LIBRARIES)),
    ("queue", &["mail"], Some(CORE_LIBRARIES)),
    ("resource", &["mail"], Some(RESOURCE_LIBRARIES)),
    ("dns", &["mail"], None),
    ("proto", &[], None),
    ("edge", &["mail", "smtp", "resource", "dns", "proto"], None),
    ("spool", &["mail", "queue", "resource", "proto"], None),
    (
        "delivery",
        &["mail", "smtp", "resource", "dns", "proto"],
        None,
    ),
    (
        "postroad",
        &[
            "mail", "smtp", "queue", "resource", "dns", "proto", "edge", "spool", "delivery",
        ],
        None,
    ),
    ("operator", &["resource", "proto", "dns"], None),
];

/// Packages that are in no program: they may use whatever they test.
const TEST_PACKAGES: &[&str] = &["tests", "gen", "image"];

/// Crates of values and bytes: none of them has a task, a socket, a clock or a random source of its own.
const CORE_LIBRARIES: &[&str] = &[
    "bytes",
    "idna",
    "jiff",
    "memchr",
    "thiserror",
    "ulid",
    "xxhash-rust",
    "crc32c",
    "sha2",
];
/// `resource` also reads YAML, seals keys (ciphers are functions of their arguments), and describes its kinds to Kubernetes.
const RESOURCE_LIBRARIES: &[&str] = &[
    "aws-lc-rs",
    "bytes",
    "idna",
    "ipnet",
    "k8s-openapi",
    "kube",
    "memchr",
    "prost",
    "schemars",
    "serde",
    "serde-saphyr",
    "serde_path_to_error",
    "serde_json",
    "thiserror",
];

/// Names at the top of the tree. Names with a dot in front are for tools.
const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "charts",
    "crates",
    "operator",
    "proto",
    "tests",
];

/// Lines of a file at most.
const FILE_LINES_MAX: usize = 500;
/// Files that are longer and are to be split; nothing may be added here.
const TOO_LONG: &[&str] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .into()
}

/// Files that are or would be committed, by their path from the top, with their text. Files that are no text are left out.
fn files() -> Vec<(String, String)> {
    let out = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root())
        .output()
        .expect("git lists the files of the tree");
    assert!(out.status.success(), "{out:?}");
    let names = String::from_utf8(out.stdout).expect("names of files are UTF-8");
    names
        .split_terminator('\0')
        .filter_map(|name| Some((name.into(), fs::read_to_string(root().join(name)).ok()?)))
        .collect()
}

fn is_rust(name: &str) -> bool {
    name.ends_with(".rs") && !name.starts_with("proto/src/gen/")
}

/// Every package of the workspace with what it depends on outside its tests.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{out:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("it is JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = metadata["packages"].as_array().expect("there are packages");
    all.iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().into_iter().flatten();
            let used = dependencies
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]));
            (text(&package["name"]), used.collect())
        })
        .collect()
}

#[test]
fn crates_use_only_what_the_code_map_allows() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, used) in &packages {
        if TEST_PACKAGES.contains(&name.as_str()) {
            continue;
        }
        let Some((_, workspace, libraries)) = GRAPH.iter().find(|(known, ..)| known == name) else {
            wrong.push(format!("{name} is not in the code map"));
            continue;
        };
        for dependency in used {
            let ours = packages.contains_key(dependency);
            let allowed = match libraries {
                _ if ours => workspace.contains(&dependency.as_str()),
                None => true,
                Some(libraries) => libraries.contains(&dependency.as_str()),
            };
            if !allowed {
                wrong.push(format!("{name} may not use {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn cores_turn_away_clocks_and_sockets() {
    for (core, ..) in GRAPH.iter().filter(|(_, _, libraries)| libraries.is_some()) {
        let path = root().join("crates").join(core).join(".clippy.toml");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for name in ["std::time::Instant::now", "std::time::SystemTime::now"] {
            assert!(text.contains(name), "{} misses {name}", path.display());
        }
    }
}

#[test]
fn the_top_level_is_what_it_is() {
    let found: BTreeSet<String> = files()
        .into_iter()
        .map(|(name, _)| name.split('/').next().unwrap_or_default().to_owned())
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    assert!(found.is_empty(), "not at the top level: {found:?}");
}

#[test]
fn every_metric_has_a_help_text() {
    let files = files();
    let mut wrong = Vec::new();
    for (name, text) in files.iter().filter(|(name, _)| is_rust(name)) {
        let Some((package, _)) = name.split_once("/src/") else {
            continue;
        };
        let described = format!("{package}/src/describe.rs");
        let help = files.iter().find(|(name, _)| *name == described);
        for macro_name in ["counter!(", "gauge!(", "histogram!("] {
            for used in text.split(macro_name).skip(1) {
                let Some(metric) = used.trim_start().strip_prefix('"') else {
                    continue;
                };
                let metric = metric.split('"').next().unwrap_or_default();
                let row = format!("\"{metric}\",");
                if !help.is_some_and(|(_, help)| help.contains(&row)) {
                    wrong.push(format!("{name}: {metric} has no text in {described}"));
                }
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long: Vec<String> = files()
        .into_iter()
        .filter(|(name, text)| is_rust(name) && text.lines().count() > FILE_LINES_MAX)
        .map(|(name, _)| name)
        .collect();
    let new: Vec<&String> = long
        .iter()
        .filter(|name| !TOO_LONG.contains(&name.as_str()))
        .collect();
    assert!(
        new.is_empty(),
        "split what has above {FILE_LINES_MAX} lines: {new:?}"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = files()
        .into_iter()
        .filter(|(name, text)| is_rust(name) && !text.starts_with("//!"))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "these open without `//!`: {silent:?}");
}

#[test]
fn nothing_is_left_to_be_done() {
    // Put together, so that this file does not find itself.
    let macros = [["todo", "!("].concat(), ["unimplemented", "!("].concat()];
    let left: Vec<String> = files()
        .into_iter()
        .filter(|(name, text)| is_rust(name) && macros.iter().any(|word| text.contains(word)))
        .map(|(name, _)| name)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let places = ["home", "root", "work"].map(|place| format!("/{place}/"));
    let mut found = Vec::new();
    for (name, text) in files() {
        for (number, line) in text.lines().enumerate() {
            // What comes before the slash may be a relative path or an address.
            let absolute = places.iter().any(|place| {
                line.match_indices(place.as_str()).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == '}')
                })
            });
            if absolute {
                found.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_rfc_that_is_cited_is_in_the_table() {
    let table = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let listed = rfcs(
        table
            .split("## RFC table")
            .nth(1)
            .expect("it has an RFC table"),
    );
    let mut unknown: BTreeMap<u32, String> = BTreeMap::new();
    for (name, text) in files() {
        if !(is_rust(&name) || name.ends_with(".proto")) || name.ends_with("tidy.rs") {
            continue;
        }
        for rfc in rfcs(&text) {
            if !listed.contains(&rfc) {
                unknown.entry(rfc).or_insert_with(|| name.clone());
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "not in ARCHITECTURE.md's RFC table: {unknown:?}"
    );
}

/// Numbers that follow `RFC `.
fn rfcs(text: &str) -> BTreeSet<u32> {
    text.match_indices("RFC ")
        .filter_map(|(at, word)| {
            let rest = &text[at + word.len()..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            rest[..digits].parse().ok()
        })
        .collect()
}
