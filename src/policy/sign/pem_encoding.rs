//! The encoder of PEM (RFC 7468).
//! How is a key written as text?

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// The characters of a line (RFC 7468 §2).
const LINE: usize = 64;

/// Encodes DER as PEM (RFC 7468 §3), without a line break at the end.
pub(super) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(BASE64_STANDARD.encode(der));
    let mut out = String::with_capacity(text.len() + text.len() / LINE + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for (at, character) in text.char_indices() {
        out.push(character);
        if at % LINE == LINE - 1 {
            out.push('\n');
        }
    }
    if !text.len().is_multiple_of(LINE) {
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----"));
    Zeroizing::new(out)
}
