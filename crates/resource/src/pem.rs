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
fn base64(text: &str) -> Option<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
