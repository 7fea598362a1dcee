//! Signatures over messages, without a node.

use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256};

use super::*;

fn key(selector: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> SigningKey {
    let made = KeyPair::generate_for(algorithm).unwrap();
    SigningKey::from_pem(selector, made.serialize_pem().as_bytes()).unwrap()
}

fn none() -> watch::Receiver<Arc<SigningKeys>> {
    watch::channel(Arc::default()).1
}

#[test]
fn all_items_of_a_message_share_one_signature_as_long_as_one_is_held() {
    let signatures = Signatures::new(none());
    let id = |n| Ulid::from_parts(1, n);
    let first = signatures.of(id(0));
    assert!(Arc::ptr_eq(&first, &signatures.of(id(0))));
    assert!(!Arc::ptr_eq(&first, &signatures.of(id(1))));
    let old = Arc::downgrade(&first);
    drop(first);
    assert_eq!(old.strong_count(), 0);
    // What nobody holds takes no room for ever.
    for n in 0..10 * SWEEP_AT as u128 {
        drop(signatures.of(id(n)));
    }
    assert!(signatures.held().messages.len() <= 2 * SWEEP_AT);
}

#[test]
fn a_key_is_known_by_what_it_is_and_a_bad_one_says_what_to_do() {
    assert_eq!(key("a", &PKCS_RSA_SHA256).algorithm(), Algorithm::Rsa);
    assert_eq!(key("b", &PKCS_ED25519).algorithm(), Algorithm::Ed25519);
    let elliptic = KeyPair::generate().unwrap().serialize_pem();
    let error = SigningKey::from_pem("c", elliptic.as_bytes()).unwrap_err();
    assert!(
        error.to_string().starts_with("is neither an RSA key"),
        "{error}"
    );
    let error = SigningKey::from_pem("c", b"no key").unwrap_err();
    assert!(error.to_string().contains("openssl genpkey"), "{error}");
    assert_eq!(format!("{:?}", key("d", &PKCS_ED25519)), "d (ed25519)");
}

#[test]
fn the_fields_name_domain_selector_and_what_they_cover() {
    let message = b"From: a@shop.example\r\nSubject: x\r\n\r\nbody\r\n";
    let mut scan = Scan::default();
    let (header, body) = scan.push(Bytes::from_static(message)).unwrap().unwrap();
    let mut hash = sign::BodyHash::default();
    hash.update(&body);
    let keys = [key("r", &PKCS_RSA_SHA256), key("e", &PKCS_ED25519)];
    let domain = header.author_domain().unwrap();
    let signed = sign::fields(
        &domain,
        &keys,
        header.signed().unwrap(),
        hash,
        1_700_000_000,
    );
    assert_eq!(signed.selectors, ["r", "e"]);

    let text = std::str::from_utf8(&signed.fields).unwrap();
    let fields: Vec<_> = text.split("DKIM-Signature:").collect();
    assert_eq!((fields.len(), fields[0]), (3, ""), "{text}");
    for (value, algorithm) in fields[1..].iter().zip(["rsa-sha256", "ed25519-sha256"]) {
        let parsed = mail_auth::dkim::Signature::parse(value.as_bytes()).unwrap();
        assert_eq!(
            (parsed.d.as_str(), parsed.t),
            ("shop.example", 1_700_000_000)
        );
        let covered = |name: &str| {
            parsed
                .h
                .iter()
                .filter(|h| h.eq_ignore_ascii_case(name))
                .count()
        };
        assert_eq!(
            (covered("From"), covered("To"), covered("Sender")),
            (2, 1, 0)
        );
        assert!(value.contains(&format!("a={algorithm};")), "{value}");
        assert!(value.contains("c=relaxed/relaxed;"), "{value}");
        assert!(value.lines().all(|line| line.len() <= 80), "{value}");
    }
}
