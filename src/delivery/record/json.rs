//! The writer of JSON for the line of a record.
//! How does each value look in a line of the delivery log?
//!
//! A line takes about a third of the instructions that `serde_json` needs for the same text: each key is a constant with its
//! punctuation, and most texts are copied after one check.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::names::KeyId;
use crate::policy::redact::Redacted;
use crate::policy::trace::TraceId;

/// A value of a record.
pub(super) trait WriteJson {
    /// Appends the value as JSON.
    fn write_json(&self, line: &mut Vec<u8>);
}

/// Implements [`WriteJson`] for a structure, as an object of these fields in this order. `FIELD unless METHOD`: the object
/// has the field unless the method of its value returns `true`.
macro_rules! impl_write_json {
    ($type:ty: $first:ident $(, $field:ident $(unless $is_absent:ident)?)* $(,)?) => {
        impl $crate::delivery::record::json::WriteJson for $type {
            fn write_json(&self, line: &mut Vec<u8>) {
                line.extend_from_slice(concat!("{\"", stringify!($first), "\":").as_bytes());
                self.$first.write_json(line);
                $(
                    let is_absent = false $(|| self.$field.$is_absent())?;
                    if !is_absent {
                        line.extend_from_slice(concat!(",\"", stringify!($field), "\":").as_bytes());
                        self.$field.write_json(line);
                    }
                )*
                line.push(b'}');
            }
        }
    };
}
pub(super) use impl_write_json;

impl WriteJson for str {
    fn write_json(&self, line: &mut Vec<u8>) {
        if has_escapes(self) {
            return serde_json::to_writer(line, self).expect("a Vec takes every write");
        }
        line.push(b'"');
        line.extend_from_slice(self.as_bytes());
        line.push(b'"');
    }
}

/// Returns whether a text has a character that JSON escapes (RFC 8259 §7). It compares eight bytes at once.
fn has_escapes(text: &str) -> bool {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH_BITS: u64 = EACH << 7;
    // A high bit is set if and only if a byte is below `bound`, which is at most 128.
    let below = |word: u64, bound: u8| word.wrapping_sub(EACH * u64::from(bound)) & !word & HIGH_BITS;
    let escaped = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        let equal = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
        below(word, b' ') | equal(b'"') | equal(b'\\')
    };
    let (words, rest) = text.as_bytes().as_chunks();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().fold(escaped(last), |found, word| found | escaped(*word)) != 0
}

impl WriteJson for String {
    fn write_json(&self, line: &mut Vec<u8>) {
        self.as_str().write_json(line);
    }
}

impl WriteJson for Redacted<'_> {
    fn write_json(&self, line: &mut Vec<u8>) {
        self.as_str().write_json(line);
    }
}

impl WriteJson for KeyId {
    fn write_json(&self, line: &mut Vec<u8>) {
        self.as_str().write_json(line);
    }
}

impl WriteJson for TraceId {
    fn write_json(&self, line: &mut Vec<u8>) {
        let mut text = [b'"'; 2 * size_of::<TraceId>() + 2];
        HEXLOWER.encode_mut(self, &mut text[1..=2 * size_of::<TraceId>()]);
        line.extend_from_slice(&text);
    }
}

impl WriteJson for bool {
    fn write_json(&self, line: &mut Vec<u8>) {
        line.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

impl WriteJson for u64 {
    fn write_json(&self, line: &mut Vec<u8>) {
        line.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
    }
}

impl WriteJson for u16 {
    fn write_json(&self, line: &mut Vec<u8>) {
        u64::from(*self).write_json(line);
    }
}

impl WriteJson for usize {
    fn write_json(&self, line: &mut Vec<u8>) {
        (*self as u64).write_json(line);
    }
}

/// Writes the rate of a sample, which is from 0.0001 to 1: Rust and JSON write these numbers alike.
impl WriteJson for f64 {
    fn write_json(&self, line: &mut Vec<u8>) {
        write!(line, "{self:?}").expect("a Vec takes every write");
    }
}

impl WriteJson for IpAddr {
    fn write_json(&self, line: &mut Vec<u8>) {
        let IpAddr::V4(address) = self else {
            return write!(line, "\"{self}\"").expect("a Vec takes every write");
        };
        for (octet, before) in address.octets().into_iter().zip(*b"\"...") {
            let digits = [before, b'0' + octet / 100, b'0' + octet / 10 % 10, b'0' + octet % 10];
            match octet {
                0..10 => line.extend_from_slice(&[before, digits[3]]),
                10..100 => line.extend_from_slice(&[before, digits[2], digits[3]]),
                100.. => line.extend_from_slice(&digits),
            }
        }
        line.push(b'"');
    }
}

/// Appends thousandths without zeros at the end, such as `1.5` for 1500, but always with one digit after the point.
pub(super) fn write_thousandths(count: u64, line: &mut Vec<u8>) {
    (count / 1000).write_json(line);
    let digits = [count / 100, count / 10, count].map(|rest| b'0' + (rest % 10) as u8);
    match digits {
        [tenths, b'0', b'0'] => line.extend_from_slice(&[b'.', tenths]),
        [tenths, hundredths, b'0'] => line.extend_from_slice(&[b'.', tenths, hundredths]),
        [tenths, hundredths, thousandths] => line.extend_from_slice(&[b'.', tenths, hundredths, thousandths]),
    }
}

/// The length of a date and a time of day.
const SECOND_LENGTH: usize = "2026-11-27T02:19:37".len();
/// The seconds whose text is kept: the present one, and those in which certificates expire.
const SECONDS_KEPT: usize = 16;

thread_local! {
    /// Seconds of Unix time and their texts. The place of a second is its remainder.
    static SECONDS: RefCell<[(usize, [u8; SECOND_LENGTH]); SECONDS_KEPT]> =
        const { RefCell::new([(usize::MAX, [0; SECOND_LENGTH]); SECONDS_KEPT]) };
}

/// Formats a date and a time of day once a second, and the fraction of each timestamp.
impl WriteJson for Timestamp {
    fn write_json(&self, line: &mut Vec<u8>) {
        let (second, nanosecond) = (usize::try_from(self.as_second()), u64::try_from(self.subsec_nanosecond()));
        let (Ok(second), Ok(nanosecond)) = (second, nanosecond) else {
            // The year of a time before 1970 may have more than four digits.
            return write!(line, "\"{self}\"").expect("a Vec takes every write");
        };
        SECONDS.with_borrow_mut(|seconds| {
            let (kept, text) = &mut seconds[second % SECONDS_KEPT];
            if *kept != second {
                text.copy_from_slice(&format!("{self:.0}").as_bytes()[..SECOND_LENGTH]);
                *kept = second;
            }
            line.push(b'"');
            line.extend_from_slice(text);
        });
        if nanosecond > 0 {
            let mut buffer = itoa::Buffer::new();
            let digits = buffer.format(1_000_000_000 + nanosecond).trim_end_matches('0');
            line.push(b'.');
            line.extend_from_slice(&digits.as_bytes()[1..]);
        }
        line.extend_from_slice(b"Z\"");
    }
}

impl<T: WriteJson + ?Sized> WriteJson for &T {
    fn write_json(&self, line: &mut Vec<u8>) {
        (**self).write_json(line);
    }
}

impl<T: WriteJson> WriteJson for Option<T> {
    fn write_json(&self, line: &mut Vec<u8>) {
        match self {
            Some(value) => value.write_json(line),
            None => line.extend_from_slice(b"null"),
        }
    }
}

impl<T: WriteJson> WriteJson for [T] {
    fn write_json(&self, line: &mut Vec<u8>) {
        line.push(b'[');
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            value.write_json(line);
        }
        line.push(b']');
    }
}

impl<T: WriteJson> WriteJson for Vec<T> {
    fn write_json(&self, line: &mut Vec<u8>) {
        self.as_slice().write_json(line);
    }
}

impl<T: WriteJson> WriteJson for BTreeMap<&'static str, T> {
    fn write_json(&self, line: &mut Vec<u8>) {
        line.push(b'{');
        for (index, (key, value)) in self.iter().enumerate() {
            if index > 0 {
                line.push(b',');
            }
            key.write_json(line);
            line.push(b':');
            value.write_json(line);
        }
        line.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    #[track_caller]
    fn assert_like_serde_json(value: &(impl WriteJson + Serialize)) {
        let mut line = b"kept ".to_vec();
        value.write_json(&mut line);
        assert_eq!(String::from_utf8(line).unwrap(), format!("kept {}", serde_json::to_string(value).unwrap()));
    }

    /// A structure of each kind of field.
    #[derive(Serialize)]
    struct Example {
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        optional: Option<u16>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        values: Vec<Option<IpAddr>>,
        map: BTreeMap<&'static str, Option<String>>,
        is_set: bool,
    }
    impl_write_json!(Example: name, optional unless is_none, values unless is_empty, map, is_set);

    fn timestamps() -> impl Strategy<Value = Timestamp> {
        let now = 1_795_000_000_000_000_000_i128;
        let nanoseconds = prop_oneof![
            Timestamp::MIN.as_nanosecond()..=Timestamp::MAX.as_nanosecond(),
            now..now + 40_000_000_000,
            (0..40_i128).prop_map(move |second| now + second * 1_000_000_000),
        ];
        let rounded = (nanoseconds, 0..=9_u32).prop_map(|(time, digits)| time - time % 10_i128.pow(digits));
        rounded.prop_map(|time| Timestamp::from_nanosecond(time).expect("in the range"))
    }

    proptest! {
        #[test]
        fn json_of_texts_is_like_serde_json(text in any::<String>(), ascii in "[ -~\\x00-\\x1f\\x7f]{0,70}") {
            assert_like_serde_json(&text);
            assert_like_serde_json(&ascii);
        }

        #[test]
        fn json_of_numbers_is_like_serde_json(integer: u64, small: u16, rate in 0..=10_000_u32) {
            assert_like_serde_json(&integer);
            assert_like_serde_json(&small);
            assert_like_serde_json(&(f64::from(rate) / 10_000.0));
        }

        #[test]
        fn json_of_thousandths_is_like_serde_json(count in prop_oneof![0..2_000_000_u64, 0..1_000_000_000_000_000_u64]) {
            let mut line = Vec::new();
            write_thousandths(count, &mut line);
            prop_assert_eq!(String::from_utf8(line).unwrap(), serde_json::to_string(&(count as f64 / 1e3)).unwrap());
        }

        #[test]
        fn json_of_addresses_is_like_serde_json(address: IpAddr) {
            assert_like_serde_json(&address);
        }

        #[test]
        fn json_of_timestamps_is_like_serde_json(times in proptest::collection::vec(timestamps(), 1..20)) {
            times.iter().for_each(|time| assert_like_serde_json(time));
        }

        #[test]
        fn json_of_structures_is_like_serde_json(
            name: String,
            optional: Option<u16>,
            values: Vec<Option<IpAddr>>,
            mapped: Option<String>,
            is_set: bool,
        ) {
            let map = [("first", mapped.clone()), ("second", mapped)].into_iter().take(values.len()).collect();
            assert_like_serde_json(&Example { name, optional, values, map, is_set });
        }
    }
}
