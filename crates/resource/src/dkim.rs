//! DKIM records: what a domain must publish for a key, and whether what was found there is that (RFC 6376 section 3.6.1,
//! RFC 8463).

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use crate::kind::DkimAlgorithm;
use crate::pem;

/// Octets of one character string of a TXT record (RFC 1035 section 3.3.14).
const STRING_OCTETS_MAX: usize = 255;
/// The label under which the keys of a domain are.
const LABEL: &str = "_domainkey";
/// RFC 8301 section 3.2: signers use at least so many bits.
const RSA_BITS_MIN: usize = 2048;

/// The public half of a key, as its record says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// `p=`: the SubjectPublicKeyInfo of RSA, the 32 octets of Ed25519.
    pub octets: Vec<u8>,
}

/// How what was found compares with what should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the key's record.
    Same,
    /// It is a record of another key, or of none.
    Other,
    /// It says that the key is not valid any more (RFC 6376 section 3.6.1: an empty `p=`).
    Revoked,
}

impl PublicKey {
    /// Of a private key in PKCS#8 PEM, as a Secret holds it.
    ///
    /// # Errors
    /// What is wrong with it, without any of it.
    pub fn of_private(text: &str) -> Result<PublicKey, String> {
        let der = pem::private_key(text).ok_or("it holds no `PRIVATE KEY` (PKCS#8 PEM)")?;
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            return Ok(PublicKey {
                algorithm: DkimAlgorithm::Ed25519,
                octets: pair.public_key().as_ref().to_vec(),
            });
        }
        let pair = rsa::KeyPair::from_pkcs8(&der)
            .map_err(|_| "its key is neither RSA of 2048 to 8192 bits nor Ed25519")?;
        if pair.public_modulus_len() * 8 < RSA_BITS_MIN {
            return Err(format!(
                "its RSA key has {} bits; DKIM wants at least {RSA_BITS_MIN}",
                pair.public_modulus_len() * 8
            ));
        }
        let info: PublicKeyX509Der<'_> = pair
            .public_key()
            .as_der()
            .map_err(|_| "its public key cannot be written")?;
        Ok(PublicKey {
            algorithm: DkimAlgorithm::RSA2048,
            octets: info.as_ref().to_vec(),
        })
    }

    /// Of a record's text; `None`: it is no record of a key that is valid.
    pub fn of_record(text: &str) -> Option<PublicKey> {
        let tags = tags(text)?;
        let algorithm = match tags.get("k").map_or("rsa", String::as_str) {
            "rsa" => DkimAlgorithm::RSA2048,
            "ed25519" => DkimAlgorithm::Ed25519,
            _ => return None,
        };
        let octets = pem::base64(tags.get("p")?)?;
        (!octets.is_empty()).then_some(PublicKey { algorithm, octets })
    }

    /// The record's text.
    pub fn record(&self) -> String {
        let kind = match self.algorithm {
            DkimAlgorithm::RSA2048 => "rsa",
            DkimAlgorithm::Ed25519 => "ed25519",
        };
        format!("v=DKIM1; k={kind}; p={}", pem::to_base64(&self.octets))
    }

    /// Compares with a record that was found.
    pub fn compare(&self, found: &str) -> Comparison {
        let Some(tags) = tags(found) else {
            return Comparison::Other;
        };
        // RFC 6376 section 3.6.1: `v` may be absent.
        let version = tags.get("v").map_or("DKIM1", String::as_str);
        match tags.get("p") {
            Some(octets) if octets.is_empty() && version == "DKIM1" => Comparison::Revoked,
            Some(_) if version == "DKIM1" && PublicKey::of_record(found).as_ref() == Some(self) => {
                Comparison::Same
            }
            _ => Comparison::Other,
        }
    }
}

/// The record of a key that is not valid any more.
pub const REVOKED_RECORD: &str = "v=DKIM1; p=";

/// Name of a key's record.
pub fn record_name(selector: &str, domain: &str) -> String {
    format!("{selector}.{LABEL}.{domain}")
}

/// The tags of a record (RFC 6376 section 3.2), without white space in values; `None`: it is no such list, or names one twice.
fn tags(record: &str) -> Option<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for part in record.split(';') {
        if part.trim().is_empty() {
            continue;
        }
        let (name, value) = part.split_once('=')?;
        let value = value.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        if tags.insert(name.trim().to_owned(), value).is_some() {
            return None;
        }
    }
    Some(tags)
}

/// A TXT record's text as zone files want it: quoted strings of at most 255 octets.
pub fn split(text: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        // Records of keys are ASCII; anything else is cut before a character.
        let mut end = rest.len().min(STRING_OCTETS_MAX);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, after) = rest.split_at(end);
        let escaped = part.replace('\\', "\\\\").replace('"', "\\\"");
        parts.push(format!("\"{escaped}\""));
        rest = after;
    }
    match parts.is_empty() {
        true => "\"\"".into(),
        false => parts.join(" "),
    }
}

/// The selector of a key that is made on a day (`yyyymmdd`): `<prefix><day><a|e>`, with `-2` and so on behind it while it is
/// taken. A selector is never used again.
pub fn selector(
    prefix: &str,
    day: &str,
    algorithm: DkimAlgorithm,
    taken: impl Fn(&str) -> bool,
) -> String {
    let letter = match algorithm {
        DkimAlgorithm::RSA2048 => 'a',
        DkimAlgorithm::Ed25519 => 'e',
    };
    let first = format!("{prefix}{day}{letter}");
    let others = (2u32..).map(|number| format!("{first}-{number}"));
    std::iter::once(first.clone())
        .chain(others)
        .find(|selector| !taken(selector))
        .unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(algorithm: DkimAlgorithm, octets: &[u8]) -> PublicKey {
        PublicKey {
            algorithm,
            octets: octets.to_vec(),
        }
    }

    #[test]
    fn the_examples_of_rfc_8463_are_read() {
        // Appendix A.1 and A.2: the seed in PKCS#8, and the records of both keys.
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        let made = PublicKey::of_private(private).expect("a key");
        let record = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
        assert_eq!(made.record(), record);
        assert_eq!(made.compare(record), Comparison::Same);
        assert_eq!(
            made.compare(
                "k=ed25519;\n p=11qYAYKxCrfVS/7TyWQHOg7h\n cvPapiMlrwIaaPcHURo= ; v=DKIM1;"
            ),
            Comparison::Same
        );
    }

    #[test]
    fn what_is_not_the_keys_record_is_told_apart() {
        let rsa = key(DkimAlgorithm::RSA2048, b"abc");
        assert_eq!(rsa.compare("p=YWJj"), Comparison::Same);
        for other in [
            "v=DKIM1; k=ed25519; p=YWJj",
            "v=DKIM2; k=rsa; p=YWJj",
            "k=rsa; p=YWJk",
            "k=rsa; p=YWJj; p=YWJj",
            "k=rsa",
            "v=spf1 -all",
            "",
        ] {
            assert_eq!(rsa.compare(other), Comparison::Other, "{other}");
        }
        assert_eq!(rsa.compare(REVOKED_RECORD), Comparison::Revoked);
        assert_eq!(rsa.compare("v=DKIM1; k=rsa; p= "), Comparison::Revoked);
    }

    #[test]
    fn a_taken_selector_gets_a_number() {
        let taken = ["pr20260101a", "pr20260101a-2"];
        let made = selector("pr", "20260101", DkimAlgorithm::RSA2048, |name| {
            taken.contains(&name)
        });
        assert_eq!(made, "pr20260101a-3");
        let made = selector("pr", "20260101", DkimAlgorithm::Ed25519, |name| {
            taken.contains(&name)
        });
        assert_eq!(made, "pr20260101e");
    }

    proptest! {
        #[test]
        fn a_key_is_found_in_its_own_record_and_in_no_others(a: Vec<u8>, b: Vec<u8>) {
            prop_assume!(!a.is_empty() && !b.is_empty());
            for algorithm in [DkimAlgorithm::RSA2048, DkimAlgorithm::Ed25519] {
                let (a, b) = (key(algorithm, &a), key(algorithm, &b));
                prop_assert_eq!(a.compare(&a.record()), Comparison::Same);
                prop_assert_eq!(PublicKey::of_record(&a.record()), Some(a.clone()));
                prop_assert_eq!(a.compare(&b.record()) == Comparison::Same, a == b);
            }
        }

        #[test]
        fn a_split_text_has_short_strings_and_loses_nothing(text in "[ -~é]{0,700}") {
            let parts = split(&text);
            prop_assert!(parts.starts_with('"') && parts.ends_with('"'));
            let mut strings = vec![Vec::new()];
            let (mut inside, mut escaped) = (false, false);
            for byte in parts.bytes() {
                match byte {
                    _ if escaped => { escaped = false; strings.last_mut().expect("one").push(byte); }
                    b'\\' => escaped = true,
                    b'"' => { if inside { strings.push(Vec::new()); } inside = !inside; }
                    _ if inside => strings.last_mut().expect("one").push(byte),
                    _ => prop_assert_eq!(byte, b' '),
                }
            }
            prop_assert!(strings.iter().all(|string| string.len() <= STRING_OCTETS_MAX));
            prop_assert_eq!(strings.concat(), text.into_bytes());
        }
    }
}
