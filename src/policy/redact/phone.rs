//! Phone numbers in text.
//! Which digits of this text are the last four of a phone number?

/// Digits that are replaced (Twilio, Message Redaction).
const MASKED: usize = 4;
/// ITU-T E.164 §6: a number has at most 15 digits.
const DIGITS_MAX: usize = 15;
/// The shortest international numbers have seven digits.
pub(super) const DIGITS_MIN: usize = 7;
/// Digits of a number without `+`. A time in seconds or milliseconds has 10 or 13 and loses its last four, too.
const NATIONAL_MIN: usize = 10;
/// Digits of a number that is written in groups without `+`.
const GROUPED: [usize; 2] = [10, 11];
/// Digits after which a number may be whole. A space then ends it; other separators may precede an extension.
const COMPLETE: usize = 10;

/// The digits of one phone number in a text.
#[derive(Clone, Default)]
pub(super) struct PhoneNumber {
    /// The places of the digits, `length` of them, and whether each is replaced.
    places: [usize; DIGITS_MAX],
    is_masked: [bool; DIGITS_MAX],
    length: usize,
}

impl PhoneNumber {
    /// Returns the places of the digits that are replaced.
    pub(super) fn masked(&self) -> impl Iterator<Item = usize> {
        (0..self.length).filter(|digit| self.is_masked[*digit]).map(|digit| self.places[digit])
    }

    /// Returns the digits of the number, without `+`, the international prefix 00 and separators.
    pub(super) fn digits(&self, text: &[u8]) -> Vec<u8> {
        self.places[..self.length].iter().map(|place| text[*place]).collect()
    }

    /// Ends the number after this many digits, and replaces the last of them. Returns it with its end.
    fn ended(mut self, length: usize) -> (Self, usize) {
        self.length = length;
        self.is_masked[length.saturating_sub(MASKED)..length].fill(true);
        let end = self.places[length - 1] + 1;
        (self, end)
    }
}

/// Returns whether a text has a phone number in it.
pub(super) fn is_in(text: &[u8]) -> bool {
    numbers(text).next().is_some()
}

/// Returns the phone numbers of a text.
pub(super) fn numbers(text: &[u8]) -> impl Iterator<Item = PhoneNumber> {
    // Most texts have too few digits for a number.
    let has_enough = text.iter().filter(|byte| byte.is_ascii_digit()).nth(DIGITS_MIN - 1).is_some();
    let mut at = if has_enough { 0 } else { text.len() };
    std::iter::from_fn(move || {
        while at < text.len() {
            let (number, end) = read(text, at);
            at = end;
            if number.is_some() {
                return number;
            }
        }
        None
    })
}

/// Digits with separators between them.
#[derive(Default)]
struct DigitRun {
    number: PhoneNumber,
    /// All digits, those that `number` has no room for included.
    count: usize,
    /// The length of each group of digits, and the separator after it; 0 for two characters. A group beyond them has
    /// digits that `number` has no room for.
    groups: [(usize, u8); DIGITS_MAX],
    group_count: usize,
    end: usize,
}

impl DigitRun {
    /// Reads a run that begins with a digit. A space ends it after `complete` digits, and any separator after more digits
    /// than a number has: each group begins a run, so that reading on would take quadratic time.
    fn read(text: &[u8], start: usize, complete: usize) -> Self {
        let mut run = Self { end: start, ..Self::default() };
        loop {
            let group_start = run.end;
            while let Some(b'0'..=b'9') = text.get(run.end) {
                if let Some(place) = run.number.places.get_mut(run.count) {
                    *place = run.end;
                }
                run.count += 1;
                run.end += 1;
            }
            let length = run.end - group_start;
            let after = separator(text, run.end)
                .filter(|_| run.count <= DIGITS_MAX && (run.count < complete || text[run.end] != b' '));
            if let Some(group) = run.groups.get_mut(run.group_count) {
                *group = (length, if after == Some(1) { text[run.end] } else { 0 });
                run.group_count += 1;
            }
            match after {
                Some(length) => run.end += length,
                None => return run,
            }
        }
    }

    /// Returns the number of digits up to the end of each group.
    fn ends(&self) -> impl Iterator<Item = usize> {
        self.groups[..self.group_count].iter().scan(0, |count, (length, _)| {
            *count += length;
            Some(*count)
        })
    }

    /// Reads the digits behind `+` or 00. The number may end with each group that makes it whole: the others are an
    /// extension.
    fn international(self) -> Option<(PhoneNumber, usize)> {
        let ends: Vec<_> = self.ends().filter(|end| (DIGITS_MIN..=DIGITS_MAX).contains(end)).collect();
        let last = *ends.last()?;
        let number = ends.iter().filter(|end| **end >= COMPLETE).fold(self.number, |number, end| number.ended(*end).0);
        Some(number.ended(last))
    }

    /// Reads digits without `+` that are grouped as a national number is, perhaps with an extension: `090-1234-5678`,
    /// `(415) 555-0123`, `01 23 45 67 89`. Dates, versions and addresses are grouped otherwise.
    fn grouped(&self, first: u8) -> Option<(PhoneNumber, usize)> {
        let ends: Vec<_> = self.ends().collect();
        let is_number = |count: usize, groups: &[(usize, u8)]| {
            let ends_with_four = match groups {
                [_, _, (last, _)] => *last == 4,
                [(1, _), _, _, (last, _)] => *last == 4,
                _ => false,
            };
            let (separator, between) = (groups[0].1, &groups[..groups.len() - 1]);
            let is_uniform = separator != 0 && between.iter().all(|(_, other)| *other == separator);
            GROUPED.contains(&count) && (ends_with_four || first == b'0' && is_uniform)
        };
        let longest = (1..=ends.len()).rev().find(|groups| is_number(ends[groups - 1], &self.groups[..*groups]))?;
        Some(self.number.clone().ended(ends[longest - 1]))
    }
}

/// Reads at a place. Returns the number that begins there, if one does, and the place to go on at.
fn read(text: &[u8], at: usize) -> (Option<PhoneNumber>, usize) {
    let prefix = match &text[at..] {
        [b'+', ..] => 1,
        [b'0', b'0', ..] => 2,
        [b'0'..=b'9', ..] => 0,
        _ => return (None, at + 1),
    };
    if prefix > 0
        && text.get(at + prefix).is_some_and(u8::is_ascii_digit)
        && let Some((number, end)) = DigitRun::read(text, at + prefix, COMPLETE).international()
    {
        return (Some(number), end);
    }
    if text[at] == b'+' {
        return (None, at + 1);
    }
    // A group that no separator follows is the common case, and mostly too short.
    let length = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length < NATIONAL_MIN && separator(text, at + length).is_none() {
        return (None, at + length);
    }
    let run = DigitRun::read(text, at, DIGITS_MAX);
    if let Some((number, end)) = run.grouped(text[at]) {
        return (Some(number), end);
    }
    let is_number = (NATIONAL_MIN..=DIGITS_MAX).contains(&length);
    (is_number.then(|| run.number.ended(length).0), at + length)
}

/// Returns the length of the separator at a place: one character, or a parenthesis with a space or hyphen, before a digit.
fn separator(text: &[u8], at: usize) -> Option<usize> {
    let is_separator = |byte: &u8| matches!(byte, b' ' | b'-' | b'.' | b'(' | b')');
    let is_digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    match &text[at..] {
        [first, ..] if is_separator(first) && is_digit(at + 1) => Some(1),
        [first @ (b')' | b' '), second, ..] if is_separator(second) && first != second && is_digit(at + 2) => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phone_run_ends_after_more_digits_than_a_number_has() {
        for text in ["1-".repeat(8192), "001-".repeat(4096)] {
            let run = DigitRun::read(text.as_bytes(), 0, DIGITS_MAX);
            assert!(run.count > DIGITS_MAX && run.end <= 2 * (DIGITS_MAX + 3), "{} digits to {}", run.count, run.end);
        }
    }
}
