//! Signatures at delivery (RFC 6376; Ed25519: RFC 8463): both algorithms, relaxed/relaxed, in front of the message, whose
//! octets stay as they are.
//!
//! `d=` is the domain of the header From, and only if it is an outbound domain of the message's tenant. A message is signed
//! once, for all its items in this node's hand ([`Signatures`]); another node, or a later attempt, signs again.
//!
//! ```text
//! keys.rs    SigningKeys: whose mail is signed with what; fed from files (files.rs) or from the control group
//! header.rs  which fields are signed, and the domain of From        (pure)
//! body.rs    the body in its relaxed form, piece by piece           (pure)
//! sign.rs    the DKIM-Signature fields
//! ```
//! mail-auth's own canonicalization of bodies is not used: that of 0.13.3 keeps empty lines at the end whose white space was
//! taken away (RFC 6376 section 3.4.4), and it would read a message once for each key. It has no way either to sign a field's absence
//! where one is present.

mod body;
mod files;
mod header;
mod keys;
mod sign;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use mail::Ulid;
use tokio::sync::{OnceCell, watch};

use crate::attempt::Work;
use crate::body::Body;
use crate::node::Node;
pub use files::watch_keys;
use header::{Header, Scan};
pub use keys::{Algorithm, KeyError, MissingKey, SigningKey, SigningKeys};

/// Messages whose signatures are looked after before those that nobody holds any more are swept out.
const SWEEP_AT: usize = 1024;

/// What became of the wish to sign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Signed {
    /// Whole fields with their CRLF, to go before the message; empty: unsigned.
    pub(crate) fields: Bytes,
    /// Of the keys that signed.
    pub(crate) selectors: Vec<String>,
    /// It should be signed, must not go unsigned, and no key is there.
    pub(crate) must_wait: bool,
}

/// One message's signature, made when first asked for.
#[derive(Debug, Default)]
pub(crate) struct Signature(OnceCell<Signed>);

/// The signatures of the messages in hand.
#[derive(Debug)]
pub(crate) struct Signatures {
    keys: watch::Receiver<Arc<SigningKeys>>,
    held: Mutex<Held>,
}

/// The items keep their message's signature; here it is only found.
#[derive(Debug, Default)]
struct Held {
    messages: HashMap<Ulid, Weak<Signature>>,
    sweep_at: usize,
}

impl Signatures {
    pub(crate) fn new(keys: watch::Receiver<Arc<SigningKeys>>) -> Signatures {
        Signatures {
            keys,
            held: Mutex::default(),
        }
    }

    /// The place for a message's signature: the same for all its items in hand.
    pub(crate) fn of(&self, message: Ulid) -> Arc<Signature> {
        let mut held = self.held();
        if let Some(found) = held.messages.get(&message).and_then(Weak::upgrade) {
            return found;
        }
        if held.messages.len() >= held.sweep_at.max(SWEEP_AT) {
            held.messages.retain(|_, weak| weak.strong_count() > 0);
            held.sweep_at = 2 * held.messages.len();
        }
        let fresh = Arc::new(Signature::default());
        held.messages.insert(message, Arc::downgrade(&fresh));
        fresh
    }

    /// The signature for an item's message.
    ///
    /// # Errors
    /// The body cannot be read now, for people.
    pub(crate) async fn sign(&self, node: &Node, work: &Work) -> Result<Signed, String> {
        let keys = self.keys.borrow().clone();
        if keys.is_empty() {
            return Ok(Signed::default());
        }
        let made = work.signature.0.get_or_try_init(|| make(node, work, &keys));
        made.await.cloned()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Each change is one call that does not panic half way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the message once and signs it.
async fn make(node: &Node, work: &Work, keys: &SigningKeys) -> Result<Signed, String> {
    let of = work.handout.message.as_ref();
    // Anybody may write the tenant's domain into From of a message to one of its inbound domains.
    let Some(tenant) = of.filter(|m| m.has_principal).map(|m| &*m.tenant) else {
        return Ok(Signed::default());
    };
    let mut message = Body::new(work);
    let mut scan = Scan::default();
    let mut last = false;
    let (header, rest) = loop {
        if last {
            return Ok(Signed::default());
        }
        let (bytes, end) = message.next(node, work).await?;
        last = end;
        match scan.push(bytes) {
            None => {}
            Some(Ok(found)) => break found,
            // What is no header block is sent on as it is; nobody could verify a signature over it.
            Some(Err(_)) => return Ok(Signed::default()),
        }
    };
    let Some((domain, keys)) = whose(&header, tenant, keys) else {
        return Ok(Signed::default());
    };
    let Some(signed) = header.signed() else {
        return Ok(Signed::default());
    };
    if keys.signing.is_empty() {
        return Ok(unsigned(work, &domain, keys));
    }
    let mut hash = sign::BodyHash::default();
    hash.update(&rest);
    while !last {
        let (bytes, end) = message.next(node, work).await?;
        hash.update(&bytes);
        last = end;
    }
    // A body that is damaged gets no signature, and is not sent either.
    message.check(work)?;
    let signed = sign::fields(&domain, &keys.signing, signed, hash, unix_seconds());
    Ok(match signed.selectors.is_empty() {
        true => unsigned(work, &domain, keys),
        false => signed,
    })
}

/// No key can sign: the message goes without, or waits.
fn unsigned(work: &Work, domain: &str, keys: &keys::DomainKeys) -> Signed {
    let must_wait = keys.missing == MissingKey::Defer;
    metrics::counter!("postroad_signatures_missing_total").increment(1);
    // Without an operator nobody makes keys, and that mail goes unsigned is what was declared.
    match must_wait {
        true => tracing::warn!(item = %work.item, domain, "the message waits for a DKIM key"),
        false => {
            tracing::debug!(item = %work.item, domain, "no DKIM key: the message goes unsigned")
        }
    }
    Signed {
        must_wait,
        ..Signed::default()
    }
}

/// The domain that answers for the message, and its keys.
fn whose<'k>(
    header: &Header,
    tenant: &str,
    keys: &'k SigningKeys,
) -> Option<(String, &'k keys::DomainKeys)> {
    let domain = header.author_domain()?;
    let found = keys.of(tenant, &domain)?;
    Some((domain, found))
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
