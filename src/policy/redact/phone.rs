//! Phone numbers in text.
//! Which digits of this text are the last four of a phone number?

/// Digits that are replaced (Twilio, Message Redaction).
const MASKED: usize = 4;
/// ITU-T E.164 §6: a number has at most 15 digits.
const DIGITS_MAX: usize = 15;
/// The shortest international numbers have seven digits.
const INTERNATIONAL_MIN: usize = 7;
/// Digits of a number without `+`. A time in seconds or milliseconds has 10 or 13 and loses its last four, too.
const NATIONAL_MIN: usize = 10;
/// Digits of a number that is written in groups without `+`.
const GROUPED: [usize; 2] = [10, 11];
/// Digits after which a space ends a number: what follows is another one.
const COMPLETE: usize = 10;
/// Groups of digits in one number.
const GROUPS_MAX: usize = 6;

/// The digits of one phone number in a text.
#[derive(Clone, Default)]
pub(super) struct PhoneNumber {
    /// The places of the digits, `length` of them.
    places: [usize; DIGITS_MAX],
    length: usize,
}

impl PhoneNumber {
    /// Returns the places of the digits that are replaced.
    pub(super) fn masked(&self) -> &[usize] {
        &self.places[self.length.saturating_sub(MASKED)..self.length]
    }

    /// Returns the digits of the number, without `+`, the international prefix 00 and separators.
    pub(super) fn digits(&self, text: &[u8]) -> Vec<u8> {
        self.places[..self.length].iter().map(|place| text[*place]).collect()
    }
}

/// Returns whether a text has a phone number in it.
pub(super) fn is_in(text: &[u8]) -> bool {
    numbers(text).next().is_some()
}

/// Returns the phone numbers of a text.
pub(super) fn numbers(text: &[u8]) -> impl Iterator<Item = PhoneNumber> {
    // Most texts have too few digits for a number.
    let has_enough = text.iter().filter(|byte| byte.is_ascii_digit()).nth(INTERNATIONAL_MIN - 1).is_some();
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
    /// The lengths of the first groups of digits, `group_count` of all of them.
    groups: [usize; GROUPS_MAX],
    group_count: usize,
    /// The separator, if all are the same.
    separator: Option<u8>,
    has_mixed_separators: bool,
    /// The places of the run, and the end of its first group.
    end: usize,
    first_group_end: usize,
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
                    (*place, run.number.length) = (run.end, run.count + 1);
                }
                run.count += 1;
                run.end += 1;
            }
            if let Some(group) = run.groups.get_mut(run.group_count) {
                *group = run.end - group_start;
            }
            run.group_count += 1;
            if run.group_count == 1 {
                run.first_group_end = run.end;
            }
            match separator(text, run.end) {
                Some(length) if run.count <= DIGITS_MAX && (run.count < complete || text[run.end] != b' ') => {
                    let first = text[run.end];
                    run.has_mixed_separators |= length > 1 || run.separator.is_some_and(|other| other != first);
                    run.separator = Some(first);
                    run.end += length;
                }
                _ => return run,
            }
        }
    }

    /// Returns whether digits without `+` are grouped as a national number is: `090-1234-5678`, `(415) 555-0123`,
    /// `01 23 45 67 89`. Dates, versions and addresses are grouped otherwise.
    fn is_grouped(&self, first: u8) -> bool {
        let groups = self.groups.get(..self.group_count).unwrap_or_default();
        let ends_with_four = match groups {
            [_, _, last] => *last == 4,
            [1, _, _, last] => *last == 4,
            _ => false,
        };
        let has_trunk_prefix = first == b'0' && groups.len() > 1 && !self.has_mixed_separators;
        GROUPED.contains(&self.count) && (ends_with_four || has_trunk_prefix)
    }

    /// Returns the first group alone.
    fn first_group(&self) -> PhoneNumber {
        PhoneNumber { length: self.groups[0].min(DIGITS_MAX), ..self.number.clone() }
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
    if prefix > 0 && text.get(at + prefix).is_some_and(u8::is_ascii_digit) {
        let run = DigitRun::read(text, at + prefix, COMPLETE);
        if (INTERNATIONAL_MIN..=DIGITS_MAX).contains(&run.count) {
            return (Some(run.number), run.end);
        }
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
    if run.is_grouped(text[at]) {
        return (Some(run.number), run.end);
    }
    let is_number = (NATIONAL_MIN..=DIGITS_MAX).contains(&run.groups[0]);
    (is_number.then(|| run.first_group()), run.first_group_end)
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
