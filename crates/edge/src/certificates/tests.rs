//! Directories of certificates as people and the kubelet write them.

use std::os::unix::fs::symlink;

use super::*;

/// A self-signed certificate for `names`, and its key, in PEM.
fn made(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn write(dir: &Path, (certificate, key): &(String, String)) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("tls.crt"), certificate).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
}

/// As the kubelet writes a Secret: the files are links through `..data`, and one rename changes all of them.
fn mount(dir: &Path, version: &str, pair: &(String, String)) {
    let hidden = dir.join(format!("..{version}"));
    write(&hidden, pair);
    for name in ["tls.crt", "tls.key"] {
        let _ = symlink(Path::new("..data").join(name), dir.join(name));
    }
    let turned = dir.join("..data_tmp");
    symlink(format!("..{version}"), &turned).unwrap();
    std::fs::rename(turned, dir.join("..data")).unwrap();
}

fn chosen(certificates: &Certificates, name: Option<&str>) -> String {
    let set = certificates.set();
    set.choose(name).expect("a certificate").names.join(",")
}

#[test]
fn exact_names_come_before_wildcards_and_the_default_takes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    for (name, names) in [
        ("a", &["mx.example.org"][..]),
        ("b", &["*.example.org", "example.org"]),
        ("c", &["MX.Example.NET"]),
    ] {
        write(&dir.path().join(name), &made(names));
    }
    let certificates = Certificates::load(dir.path(), Some("c")).unwrap();
    for (asked, expected) in [
        (Some("mx.example.org"), "mx.example.org"),
        (Some("other.example.org"), "*.example.org,example.org"),
        (Some("example.org"), "*.example.org,example.org"),
        (Some("a.b.example.org"), "mx.example.net"),
        (Some("MX.example.net"), "mx.example.net"),
        (Some("unknown.test"), "mx.example.net"),
        (None, "mx.example.net"),
    ] {
        assert_eq!(chosen(&certificates, asked), expected, "{asked:?}");
    }
    let without = Certificates::load(dir.path(), None).unwrap();
    assert_eq!(
        chosen(&without, None),
        "mx.example.org",
        "the first by name"
    );
    write(dir.path(), &made(&["itself.test"]));
    let itself = Certificates::load(dir.path(), None).unwrap();
    assert_eq!(chosen(&itself, None), "itself.test");
}

#[test]
fn a_turned_link_of_the_kubelet_is_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    mount(&secret, "1", &made(&["one.test"]));
    let certificates = Certificates::load(dir.path(), None).unwrap();
    let (seen, again) = certificates.look(Some(certificates.loaded.clone()), false);
    assert_eq!(seen.as_ref(), Some(&certificates.loaded));
    assert!(!again);

    mount(&secret, "2", &made(&["two.test"]));
    certificates.look(seen, false);
    assert_eq!(chosen(&certificates, None), "two.test");
}

#[test]
fn a_bad_pair_keeps_its_former_and_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a, &made(&["a.test"]));
    write(&b, &made(&["b.test"]));
    let certificates = Certificates::load(dir.path(), None).unwrap();

    let (newer, other) = (made(&["new.a.test"]), made(&["other.test"]));
    let bad = [
        (newer.0.clone(), other.1.clone()),
        (newer.0.clone(), String::new()),
        ("no PEM".into(), newer.1.clone()),
    ];
    for (n, pair) in bad.iter().enumerate() {
        write(&a, pair);
        let name = format!("{n}.b.test");
        write(&b, &made(&[&name]));
        let (seen, again) = certificates.look(None, false);
        assert!(again, "looked at again before anybody is told");
        let (_, again) = certificates.look(seen, again);
        assert!(!again, "told once");
        assert_eq!(chosen(&certificates, Some("a.test")), "a.test");
        assert_eq!(chosen(&certificates, Some(&name)), name);
    }
    let (_, faults) = certificates.read(&stamps(dir.path()).unwrap(), &certificates.set());
    let fault = &faults["a"];
    assert!(
        fault.contains("a/tls.crt: holds no certificate in PEM"),
        "{fault}"
    );

    write(&a, &newer);
    certificates.look(None, false);
    assert_eq!(chosen(&certificates, Some("new.a.test")), "new.a.test");
}

#[test]
fn a_removed_pair_goes_but_never_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a, &made(&["a.test"]));
    write(&b, &made(&["b.test"]));
    let certificates = Certificates::load(dir.path(), None).unwrap();
    std::fs::remove_dir_all(a).unwrap();
    certificates.look(None, false);
    assert_eq!(chosen(&certificates, Some("a.test")), "b.test");
    std::fs::remove_dir_all(b).unwrap();
    certificates.look(None, false);
    assert_eq!(chosen(&certificates, Some("a.test")), "b.test");
}

#[test]
fn a_directory_without_a_usable_pair_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let said = |dir: &Path| Certificates::load(dir, None).unwrap_err().to_string();
    assert!(said(&dir.path().join("absent")).contains("--tls names a directory"));
    assert!(said(dir.path()).contains("it holds no tls.crt with a tls.key"));
    write(dir.path(), &(made(&["a.test"]).0, made(&["b.test"]).1));
    let text = said(dir.path());
    assert!(text.contains("does not fit tls.crt"), "{text}");
}
