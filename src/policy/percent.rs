//! Percent-encoding, as servers decode it.
//! Which bytes does an encoded text stand for?

/// Returns the bytes that a text stands for, each with its place in the text. `decodes` gets the byte of each escape; an
/// escape that it refuses, and a `%` without digits, stand for themselves.
pub(super) fn unescape(text: &[u8], decodes: impl Fn(Escape) -> bool) -> impl Iterator<Item = (usize, u8)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (place, (first, after)) = (at, text.get(at..)?.split_first()?);
        let escape = if *first == b'%' { escape(after) } else { None };
        let (byte, length) =
            escape.filter(|found| decodes(*found)).map_or((*first, 1), |found| (found.byte, found.length));
        at += length;
        Some((place, byte))
    })
}

#[derive(Clone, Copy)]
pub(super) struct Escape {
    pub(super) byte: u8,
    /// Its length with the `%`: 3 as in RFC 3986 §2.1, or 6 for `%uXXXX`, which IIS decodes.
    pub(super) length: usize,
}

/// Returns the escape that begins with a `%` before this text.
fn escape(after: &[u8]) -> Option<Escape> {
    let hex = |digits: &[u8]| digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?));
    let (code, length) = match after {
        [b'u' | b'U', digits @ ..] => (hex(digits.get(..4)?).filter(|code| *code < 0x80)?, 6),
        digits => (hex(digits.get(..2)?)?, 3),
    };
    Some(Escape { byte: u8::try_from(code).ok()?, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IIS decodes `%uXXXX`. Only ASCII is one byte.
    #[test]
    fn percent_encoding_has_two_digits_or_u_and_four() {
        let bytes = |text: &str| unescape(text.as_bytes(), |_| true).map(|(_, byte)| byte).collect::<Vec<_>>();
        for (text, expected) in [
            ("a%2fb", &b"a/b"[..]),
            ("%2F%ff", b"/\xff"),
            ("%u002f", b"/"),
            ("%U007f", b"\x7f"),
            ("%u0080", b"%u0080"),
            ("%u002", b"%u002"),
            ("%2", b"%2"),
            ("%g0", b"%g0"),
            ("%", b"%"),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        let places: Vec<_> = unescape(b"%41x%u0042y", |_| true).collect();
        assert_eq!(places, [(0, b'A'), (3, b'x'), (4, b'B'), (10, b'y')]);
        let kept: Vec<_> = unescape(b"%41%42", |escape| escape.byte == b'B').map(|(_, byte)| byte).collect();
        assert_eq!(kept, b"%41B");
    }
}
