//! Path segments and words that are secrets.
//! Does this text let its reader call the target, or log in?

use crate::names::Host;

/// The fewest letters and digits that are judged: 16 random characters are a password.
const RANDOM_MIN: usize = 16;
/// So many letters and digits are a key if they have as many capitals as a random text has.
const KEY_MIN: usize = 32;
/// So many hexadecimal digits, letters and figures among them, are a key or a digest.
const HEX_MIN: usize = 24;
/// A random text changes the kind of character at 0.44 (letters of both cases and digits) or 0.47 (hexadecimal digits)
/// of its places, the change from a capital to a small letter not counted. Words and numbers change at fewer than 0.2,
/// also in PascalCase.
const CHANGES_OF_RANDOM: (usize, usize) = (1, 5);
/// Half of the letters of a random text are capitals, and fewer than one in five of those of words in camelCase. Of a
/// million random texts of 43 characters of base64url, none or one stays below all of these bounds.
const CAPITALS_OF_RANDOM: (usize, usize) = (1, 5);
/// Words of Latin script have a vowel after so many consonants at least.
const CONSONANTS_MAX: usize = 6;

/// The places of secrets in the paths of a service.
struct SecretPath {
    /// The host, or a suffix of it that begins with a dot.
    host: &'static str,
    /// The segments before the secrets; `*` stands for any one.
    prefix: &'static [&'static str],
}

/// Services whose webhook URLs are themselves the credential. docs/redaction.md names each, with its source.
const SERVICES: [SecretPath; 15] = [
    SecretPath { host: "hooks.slack.com", prefix: &["services", "*", "*"] },
    SecretPath { host: "hooks.slack.com", prefix: &["workflows", "*", "*"] },
    SecretPath { host: "hooks.slack.com", prefix: &["triggers", "*", "*"] },
    SecretPath { host: "hooks.slack-gov.com", prefix: &["services", "*", "*"] },
    SecretPath { host: ".discord.com", prefix: &["api", "webhooks", "*"] },
    SecretPath { host: ".discordapp.com", prefix: &["api", "webhooks", "*"] },
    SecretPath { host: ".webhook.office.com", prefix: &["webhookb2"] },
    SecretPath { host: ".logic.azure.com", prefix: &["workflows"] },
    SecretPath { host: ".api.powerplatform.com", prefix: &["powerautomate"] },
    SecretPath { host: "hooks.zapier.com", prefix: &["hooks", "catch", "*"] },
    SecretPath { host: "api.telegram.org", prefix: &[] },
    SecretPath { host: "chat.googleapis.com", prefix: &["v1", "spaces"] },
    SecretPath { host: "maker.ifttt.com", prefix: &["trigger", "*", "with", "key"] },
    SecretPath { host: "maker.ifttt.com", prefix: &["trigger", "*", "json", "with", "key"] },
    SecretPath { host: ".webhook.site", prefix: &[] },
];

impl SecretPath {
    fn is_at(&self, host: &str) -> bool {
        match self.host.strip_prefix('.') {
            Some(domain) => host == domain || host.ends_with(self.host),
            None => host == self.host,
        }
    }

    /// Returns how many segments precede the secrets of this path; `None`: it has none. A segment with an escape may be
    /// any word.
    fn secrets_after(&self, path: &str) -> Option<usize> {
        let mut segments = path.split('/').enumerate().filter(|(_, segment)| !matches!(*segment, "" | "."));
        let matches = |segment: &str, pattern: &str| {
            pattern == "*" || segment.contains('%') || segment.eq_ignore_ascii_case(pattern)
        };
        for pattern in self.prefix {
            segments.next().filter(|(_, segment)| matches(segment, pattern))?;
        }
        segments.next().map(|(index, _)| index)
    }
}

/// Returns the index of the first segment of a path that is a secret of the host's service. The piece before the first
/// slash has the index 0.
pub(super) fn first_secret(host: &Host, path: &str) -> Option<usize> {
    let Host::Name(name) = host else { return None };
    SERVICES.iter().filter(|service| service.is_at(name)).filter_map(|service| service.secrets_after(path)).min()
}

/// Returns whether a text looks random: a token, a key, a digest or a UUID. Hyphens and underscores are digits of
/// base64url (RFC 4648 §5), and do not end a run of letters and digits.
pub(super) fn is_random(text: &[u8]) -> bool {
    if text.len() < RANDOM_MIN {
        return false;
    }
    let mut run = Run::default();
    for byte in text {
        match byte {
            b'-' | b'_' => run.consonants = 0,
            byte if byte.is_ascii_alphanumeric() => run.push(*byte),
            _ if run.is_random() => return true,
            _ => run = Run::default(),
        }
    }
    run.is_random() || is_uuid(text)
}

/// A run of letters and digits.
#[derive(Default)]
struct Run {
    previous: Option<Kind>,
    figures: usize,
    capitals: usize,
    small_letters: usize,
    changes: usize,
    /// Consonants since the last other character.
    consonants: usize,
    has_many_consonants: bool,
    /// Hexadecimal digits since the last other character: all, and letters.
    hex: (usize, usize),
    is_hex: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Figure,
    Capital,
    Small,
}

impl Run {
    fn push(&mut self, byte: u8) {
        let (kind, count) = match byte {
            b'0'..=b'9' => (Kind::Figure, &mut self.figures),
            b'A'..=b'Z' => (Kind::Capital, &mut self.capitals),
            _ => (Kind::Small, &mut self.small_letters),
        };
        *count += 1;
        let previous = self.previous.replace(kind).unwrap_or(kind);
        self.changes += usize::from(previous != kind && (previous, kind) != (Kind::Capital, Kind::Small));
        let is_consonant = kind != Kind::Figure && !b"aeiouyAEIOUY".contains(&byte);
        self.consonants = if is_consonant { self.consonants + 1 } else { 0 };
        self.has_many_consonants |= self.consonants > CONSONANTS_MAX;
        self.hex = match byte.is_ascii_hexdigit() {
            true => (self.hex.0 + 1, self.hex.1 + usize::from(kind != Kind::Figure)),
            false => (0, 0),
        };
        self.is_hex |= self.hex.0 >= HEX_MIN && (1..self.hex.0).contains(&self.hex.1);
    }

    fn is_random(&self) -> bool {
        let length = self.figures + self.capitals + self.small_letters;
        if length < RANDOM_MIN {
            return false;
        }
        let is_at_least = |count: usize, whole: usize, (part, of): (usize, usize)| count * of >= whole * part;
        let letters = self.capitals + self.small_letters;
        let fewer = self.capitals.min(self.small_letters);
        let is_key = length >= KEY_MIN && fewer > 0 && is_at_least(fewer, letters, CAPITALS_OF_RANDOM);
        is_key || self.is_hex || self.has_many_consonants || is_at_least(self.changes, length - 1, CHANGES_OF_RANDOM)
    }
}

/// Returns whether a text is a UUID (RFC 9562 §4).
fn is_uuid(text: &[u8]) -> bool {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let groups = text.split(|byte| *byte == b'-').map(|group| (group.len(), group.iter().all(u8::is_ascii_hexdigit)));
    groups.eq(GROUPS.map(|length| (length, true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_random(expected: bool, texts: &[&str]) {
        for text in texts {
            assert_eq!(is_random(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn random_text_changes_its_kind_of_character_at_a_fifth_of_its_places() {
        assert_random(true, &["oioioi12oioioi12", "--oioioi12oioioi12", "a/oioioi12oioioi12/a"]);
        // Two changes; 15 letters and digits; the change from a capital to a small letter.
        assert_random(false, &["oioioi12oioioioi", "oioioi12oioioi1", "oioioi12oioioi1-", "OioioiOioioiOioi"]);
    }

    #[test]
    fn random_text_has_many_hexadecimal_digits_with_letters_and_figures() {
        assert_random(true, &["aaaaaaaaaaaa111111111111", "oaaaaaaaaaaaa111111111111o"]);
        assert_random(
            false,
            &[
                "aaaaaaaaaaa111111111111",
                "aaaaaaaaaaaao111111111111",
                "111111111111111111111111",
                "eaeaeaeaeaeaeaeaeaeaeaea",
            ],
        );
    }

    #[test]
    fn random_text_has_more_consonants_in_a_row_than_words_have() {
        assert_random(true, &["aeiouaeiobcdfghj", "AEIOUAEIOBCDFGHJ", "bcdfghjaeiouaeio"]);
        assert_random(false, &["aeiouaeioabcdfgh", "aeiouaeiobcdf-ghj", "aeiouaeiouaeioua"]);
    }

    #[test]
    fn random_text_of_the_length_of_a_key_has_as_many_capitals_as_small_letters_of_a_random_text() {
        let (capitals, small) = ("OIOIOIOIOIOI", "aeiou".repeat(6));
        let text = |capital: usize, letters: usize| format!("{}{}", &capitals[..capital], &small[..letters]);
        assert_random(true, &[&text(7, 25), &text(7, 28)]);
        assert_random(false, &[&text(6, 26), &text(7, 29), &text(7, 24), &"1".repeat(40)]);
    }

    #[test]
    fn uuid_of_figures_alone_is_random() {
        assert_random(true, &["11111111-1111-1111-1111-111111111111"]);
        assert_random(
            false,
            &[
                "11111111-1111-1111-1111-1111111111111",
                "11111111-1111-1111-1111111111111111",
                "1111111g-1111-1111-1111-111111111111",
                "1111111111111111-1111-1111-111111111111",
            ],
        );
    }
}
