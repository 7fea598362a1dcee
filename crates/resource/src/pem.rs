//! Private keys in PEM (RFC 7468), as Secrets hold them.

/// Octets of a PEM text that is looked at: an RSA key of 4096 bits has 3,300.
const PEM_OCTETS_MAX: usize = 16 << 10;

/// The DER of the first `PRIVATE KEY` (PKCS#8) of a text; `None`: there is none.
pub fn private_key(text: &str) -> Option<Vec<u8>> {
    if text.len() > PEM_OCTETS_MAX {
        return None;
    }
    let rest = text.split_once("-----BEGIN PRIVATE KEY-----")?.1;
    let (body, _) = rest.split_once("-----END PRIVATE KEY-----")?;
    base64(body)
}

/// RFC 4648 section 4, with white space anywhere.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count, mut padded) = (0u32, 0, false);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padded = true;
                continue;
            }
            _ => return None,
        };
        if padded {
            return None;
        }
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

/// RFC 4648 section 4, on one line.
pub(crate) fn to_base64(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(octets.len().div_ceil(3) * 4);
    for three in octets.chunks(3) {
        let mut bits = 0u32;
        for place in 0..3 {
            bits = bits << 8 | u32::from(three.get(place).copied().unwrap_or_default());
        }
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            out.push(match place <= three.len() {
                true => char::from(ALPHABET[index]),
                false => '=',
            });
        }
    }
    out
}

/// A private key's DER (PKCS#8) as PEM.
pub fn private_pem(der: &[u8]) -> String {
    /// Characters a line (RFC 7468 section 2).
    const LINE: usize = 64;
    let text = to_base64(der);
    let mut out = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(LINE) {
        out.extend(line.iter().copied().map(char::from));
        out.push('\n');
    }
    out + "-----END PRIVATE KEY-----\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(octets: Vec<u8>) {
            prop_assert_eq!(base64(&to_base64(&octets)), Some(octets.clone()));
            prop_assert_eq!(private_key(&private_pem(&octets)), Some(octets));
        }
    }

    #[test]
    fn base64_is_written_as_the_rfc_has_it() {
        // RFC 4648 section 10.
        for (octets, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(to_base64(octets.as_bytes()), text);
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for (text, octets) in [
            ("Zm9vYg==", "foob"),
            ("Zm9v\nYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
            ("", ""),
        ] {
            assert_eq!(base64(text).as_deref(), Some(octets.as_bytes()));
        }
        assert_eq!(base64("Zm9v*"), None);
        assert_eq!(base64("Zg==Zg"), None);
    }

    #[test]
    fn the_first_private_key_is_taken() {
        let text = "x\n-----BEGIN PRIVATE KEY-----\nZm9v\n-----END PRIVATE KEY-----\n";
        assert_eq!(private_key(text).as_deref(), Some(&b"foo"[..]));
        assert_eq!(private_key("-----BEGIN PRIVATE KEY-----\nZm9v"), None);
    }
}
