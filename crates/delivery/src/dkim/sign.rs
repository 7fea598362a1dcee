//! The DKIM-Signature fields of a message.

use bytes::Bytes;
use mail_auth::common::crypto::{
    Algorithm as Kind, HashContext, HashImpl, Sha256, SigningKey as _,
};
use mail_auth::common::headers::{Writable, Writer};
use mail_auth::dkim::{Canonicalization, Signature};

use super::Signed;
use super::body::Relaxed;
use super::keys::SigningKey;

/// SHA-256 of a body's relaxed form.
pub(super) struct BodyHash {
    relaxed: Relaxed,
    hash: <Sha256 as HashImpl>::Context,
}

impl Default for BodyHash {
    fn default() -> BodyHash {
        BodyHash {
            relaxed: Relaxed::default(),
            hash: Sha256::hasher(),
        }
    }
}

impl BodyHash {
    pub(super) fn update(&mut self, piece: &[u8]) {
        let hash = &mut self.hash;
        self.relaxed.push(piece, |bytes| hash.write(bytes));
    }

    fn finish(mut self) -> Vec<u8> {
        let hash = &mut self.hash;
        self.relaxed.finish(|bytes| hash.write(bytes));
        self.hash.complete().as_ref().to_vec()
    }
}

/// What is signed: the fields of `h=`, then the signature's own field without a signature (RFC 6376 section 3.7).
struct Message<'a> {
    fields: &'a [u8],
    signature: &'a Signature,
}

impl Writable for Message<'_> {
    fn write(self, writer: &mut impl Writer) {
        writer.write(self.fields);
        self.signature.write(writer, false);
    }
}

/// One field for each key, over the header fields `names` whose relaxed form is `text`. A key that fails is logged; the others
/// sign.
pub(super) fn fields(
    domain: &str,
    keys: &[SigningKey],
    (names, text): (Vec<String>, Vec<u8>),
    body: BodyHash,
    unix_seconds: u64,
) -> Signed {
    let mut signed = Signed::default();
    let mut out = Vec::new();
    let bh = body.finish();
    for key in keys {
        let mut signature = Signature {
            v: 1,
            a: Kind::RsaSha256,
            d: domain.to_owned(),
            s: key.selector.clone(),
            bh: bh.clone(),
            h: names.clone(),
            t: unix_seconds,
            ch: Canonicalization::Relaxed,
            cb: Canonicalization::Relaxed,
            ..Signature::default()
        };
        signature.a = key.key().algorithm();
        let message = Message {
            fields: &text,
            signature: &signature,
        };
        match key.key().sign(message) {
            Ok(octets) => signature.b = octets,
            Err(error) => {
                tracing::error!(domain, selector = key.selector, %error, "a DKIM key cannot sign; the message goes without its signature");
                continue;
            }
        }
        signature.write(&mut out, true);
        metrics::counter!("postroad_signatures_total", "algorithm" => key.algorithm().to_string())
            .increment(1);
        signed.selectors.push(key.selector.clone());
    }
    signed.fields = Bytes::from(out);
    signed
}
