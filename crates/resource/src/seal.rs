//! Sealing: private DKIM keys travel so that only who has the sealing key can read them.
//!
//! AES-256-GCM. The nonce is made from key and content, so that the same key seals to the same octets, whoever compiles:
//! what did not change is not sent again. Equal nonces mean equal contents, so nothing is given away by that; two different
//! contents have the same nonce with a chance of 2^-96 each, far below what a cluster's keys come to. A key for the cipher
//! and one for the nonce are derived from the sealing key by HKDF (RFC 5869). Cluster, domain and selector are bound to it:
//! a sealed key that is put elsewhere does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;
use bytes::Bytes;

/// Octets of a sealing key.
pub const SEALING_KEY_OCTETS: usize = 32;
/// Octets of a nonce of AES-GCM.
const NONCE_OCTETS: usize = 12;

/// What a sealed key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<'a> {
    /// The cluster's UUID.
    pub cluster_id: &'a [u8; 16],
    /// The key's domain.
    pub domain: &'a str,
    /// The key's selector.
    pub selector: &'a str,
}

impl Bound<'_> {
    /// Its octets: each part behind its length, so that no two bindings have the same.
    fn octets(&self) -> Vec<u8> {
        let mut out = self.cluster_id.to_vec();
        for part in [self.domain, self.selector] {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

/// A sealed secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which sealing key opens it.
    pub key_id: String,
    /// 12 octets.
    pub nonce: Bytes,
    /// The secret and its tag.
    pub sealed: Bytes,
}

/// Why a sealed secret does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was sealed with a key that is not here.
    #[error(
        "it is sealed with key `{0}`, which this node does not have; give the node the cluster's sealing keys (--seal)"
    )]
    OtherKey(String),
    /// The key is another one of that name, or the octets were changed or belong elsewhere.
    #[error(
        "it does not open with sealing key `{0}`: that key is another cluster's, or the document was changed or put elsewhere"
    )]
    Refused(String),
}

/// A sealing key with its name.
#[derive(Clone)]
pub struct SealingKey {
    id: String,
    cipher: [u8; 32],
    nonce: hmac::Key,
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

/// 32 octets out of HKDF.
struct Octets32;

impl KeyType for Octets32 {
    fn len(&self) -> usize {
        32
    }
}

fn derive(secret: &[u8; SEALING_KEY_OCTETS], purpose: &[u8]) -> [u8; 32] {
    let pseudorandom = Salt::new(HKDF_SHA256, b"postroad seal v1").extract(secret);
    let mut out = [0; 32];
    pseudorandom
        .expand(&[purpose], Octets32)
        .and_then(|okm| okm.fill(&mut out))
        .expect("HKDF gives 32 octets of any key");
    out
}

impl SealingKey {
    /// Of its name and 32 random octets.
    pub fn new(id: impl Into<String>, secret: &[u8; SEALING_KEY_OCTETS]) -> SealingKey {
        SealingKey {
            id: id.into(),
            cipher: derive(secret, b"cipher"),
            nonce: hmac::Key::new(hmac::HMAC_SHA256, &derive(secret, b"nonce")),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn aead(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.cipher).expect("the key has 32 octets");
        LessSafeKey::new(key)
    }

    /// Seals a secret.
    pub fn seal(&self, bound: Bound<'_>, secret: &[u8]) -> Sealed {
        let aad = bound.octets();
        let mut mac = hmac::Context::with_key(&self.nonce);
        mac.update(&aad);
        mac.update(secret);
        let tag = mac.sign();
        let mut nonce = [0; NONCE_OCTETS];
        nonce.copy_from_slice(&tag.as_ref()[..NONCE_OCTETS]);
        let mut octets = secret.to_vec();
        self.aead()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut octets,
            )
            .expect("a secret is shorter than 64 GiB");
        Sealed {
            key_id: self.id.clone(),
            nonce: Bytes::copy_from_slice(&nonce),
            sealed: octets.into(),
        }
    }

    fn open(&self, bound: Bound<'_>, sealed: &Sealed) -> Option<Vec<u8>> {
        let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce).ok()?;
        let mut octets = sealed.sealed.to_vec();
        let plain = self
            .aead()
            .open_in_place(nonce, Aad::from(bound.octets()), &mut octets)
            .ok()?;
        Some(plain.to_vec())
    }
}

/// The sealing keys of a node.
#[derive(Clone, Debug, Default)]
pub struct SealingKeys {
    /// By name; the last one seals.
    keys: Vec<SealingKey>,
}

impl SealingKeys {
    /// Of any number of them; the one whose name sorts last is the newest.
    pub fn new(mut keys: Vec<SealingKey>) -> SealingKeys {
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        SealingKeys { keys }
    }

    /// The one that seals; `None`: there is none.
    pub fn newest(&self) -> Option<&SealingKey> {
        self.keys.last()
    }

    /// Opens what was sealed.
    ///
    /// # Errors
    /// [`OpenError`]: the key is not here, or it is not the one, or the binding is another.
    pub fn open(&self, bound: Bound<'_>, sealed: &Sealed) -> Result<Vec<u8>, OpenError> {
        let key = self.keys.iter().find(|key| key.id == sealed.key_id);
        let key = key.ok_or_else(|| OpenError::OtherKey(sealed.key_id.clone()))?;
        key.open(bound, sealed)
            .ok_or_else(|| OpenError::Refused(sealed.key_id.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: [u8; 16] = [7; 16];

    fn bound<'a>(domain: &'a str, selector: &'a str) -> Bound<'a> {
        Bound {
            cluster_id: &CLUSTER,
            domain,
            selector,
        }
    }

    #[test]
    fn parts_cannot_be_shifted_into_one_another() {
        let key = SealingKey::new("1", &[1; 32]);
        let sealed = key.seal(bound("ab", "c"), b"secret");
        assert!(key.open(bound("a", "bc"), &sealed).is_none());
        assert!(key.open(bound("ab", "c"), &sealed).is_some());
    }

    #[test]
    fn the_format_is_fixed() {
        // The nonce was computed by another program too. A change would make every node fetch every key again, and an older node lose them.
        let sealed = SealingKey::new("1", &[1; 32]).seal(bound("a.example", "s"), b"secret");
        let hex = |octets: &[u8]| {
            octets
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        assert_eq!(
            (hex(&sealed.nonce).as_str(), hex(&sealed.sealed).as_str()),
            (
                "69b0a35742a6b0cb47fd153e",
                "69c6f1afc91a013e465627ecbb1f81dcc013633766e0"
            )
        );
    }

    proptest! {
        #[test]
        fn the_same_key_seals_to_the_same_octets_and_opens_nowhere_else(
            secret: [u8; 32], other: [u8; 32], content: Vec<u8>, domain in "[a-z]{1,9}", selector in "[a-z]{1,9}",
            wrong in "[A-Z]{1,9}", bit in 0usize..128,
        ) {
            let key = SealingKey::new("1", &secret);
            let sealed = key.seal(bound(&domain, &selector), &content);
            prop_assert_eq!(&sealed, &SealingKey::new("1", &secret).seal(bound(&domain, &selector), &content));
            let keys = SealingKeys::new(vec![SealingKey::new("0", &other), key.clone()]);
            prop_assert_eq!(keys.open(bound(&domain, &selector), &sealed), Ok(content.clone()));
            prop_assert_eq!(keys.newest().map(SealingKey::id), Some("1"));

            let refused = Err(OpenError::Refused("1".into()));
            prop_assert_eq!(&keys.open(bound(&wrong, &selector), &sealed), &refused);
            prop_assert_eq!(&keys.open(bound(&domain, &wrong), &sealed), &refused);
            let elsewhere = Bound { cluster_id: &[8; 16], ..bound(&domain, &selector) };
            prop_assert_eq!(&keys.open(elsewhere, &sealed), &refused);
            let mut changed = sealed.sealed.to_vec();
            changed[bit / 8 % sealed.sealed.len()] ^= 1 << (bit % 8);
            let changed = Sealed { sealed: changed.into(), ..sealed.clone() };
            prop_assert_eq!(&keys.open(bound(&domain, &selector), &changed), &refused);
            if other != secret {
                let strangers = SealingKeys::new(vec![SealingKey::new("1", &other)]);
                prop_assert_eq!(&strangers.open(bound(&domain, &selector), &sealed), &refused);
            }
            let nobody = SealingKeys::default();
            prop_assert_eq!(nobody.open(bound(&domain, &selector), &sealed), Err(OpenError::OtherKey("1".into())));

            let mut more = content.clone();
            more.push(0);
            prop_assert_ne!(key.seal(bound(&domain, &selector), &more).nonce, sealed.nonce.clone());
        }
    }
}
