//! The name and the value of a header field.
//! Are two names equal, and which bytes may a value have?

use std::fmt;
use std::io::Write as _;

use http::{HeaderName, HeaderValue};

/// A value that a line gets.
pub trait ToFieldValue {
    /// Appends the value. `None`: it is not a valid one (RFC 9110 §5.5); what was appended is removed again.
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity>;
}

/// Whether a value is a secret of outgate or its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sensitivity(pub(super) bool);

/// A value of outgate's own, such as a number. It is written without a buffer of its own.
pub struct Text<T>(pub T);

/// A valid value of outgate's own, such as a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldText(String);

/// A name as its sender wrote it. Names are equal without regard to case (RFC 9110 §5.1).
#[derive(Clone, Copy)]
pub struct FieldName<'a>(pub(super) &'a [u8]);

/// A valid field value (RFC 9110 §5.5): it has no control character but the tab.
#[derive(Clone, Copy)]
pub struct FieldValue<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_sensitive: bool,
}

/// A value has a character other than visible ASCII, space and tab.
#[derive(Debug)]
pub struct NotText;

impl<'a> FieldName<'a> {
    /// Returns the name as its sender wrote it. It must not be compared: see [`FieldName::starts_with`], and `==`.
    pub fn as_written(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default() // a name is ASCII
    }

    /// Returns the length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no name is empty")]
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Returns whether the name begins with this text, without regard to case.
    pub fn starts_with(self, prefix: &str) -> bool {
        self.0.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    }

    pub fn to_lowercase(self) -> String {
        self.as_written().to_ascii_lowercase()
    }
}

impl<'a> From<&'a str> for FieldName<'a> {
    fn from(name: &'a str) -> Self {
        Self(name.as_bytes())
    }
}

impl PartialEq<str> for FieldName<'_> {
    fn eq(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name.as_bytes())
    }
}

impl PartialEq<HeaderName> for FieldName<'_> {
    fn eq(&self, name: &HeaderName) -> bool {
        *self == *name.as_str()
    }
}

impl<'a> FieldValue<'a> {
    /// Returns a value, unless the bytes are not one (RFC 9110 §5.5).
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let is_valid = bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
        is_valid.then_some(Self { bytes, is_sensitive: false })
    }

    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    pub fn to_str(self) -> Result<&'a str, NotText> {
        std::str::from_utf8(self.bytes).ok().filter(|text| text.is_ascii()).ok_or(NotText)
    }

    /// Returns whether the value is a secret of outgate or its operator.
    pub fn is_sensitive(self) -> bool {
        self.is_sensitive
    }
}

impl FieldText {
    /// Returns a value, unless the text is not one (RFC 9110 §5.5).
    pub fn new(text: String) -> Option<Self> {
        FieldValue::new(text.as_bytes()).is_some().then_some(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ToFieldValue for &FieldText {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        out.extend_from_slice(self.0.as_bytes());
        Some(Sensitivity(false))
    }
}

impl ToFieldValue for FieldValue<'_> {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        out.extend_from_slice(self.bytes);
        Some(Sensitivity(self.is_sensitive))
    }
}

impl ToFieldValue for &HeaderValue {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        FieldValue::from(*self).write(out)
    }
}

impl ToFieldValue for u64 {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        out.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
        Some(Sensitivity(false))
    }
}

/// The parts of a value, without anything between them.
impl<const PARTS: usize> ToFieldValue for [&str; PARTS] {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        let start = out.len();
        self.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        FieldValue::new(out.get(start..)?).map(|_| Sensitivity(false))
    }
}

impl<T: fmt::Display> ToFieldValue for Text<T> {
    fn write(&self, out: &mut Vec<u8>) -> Option<Sensitivity> {
        let start = out.len();
        write!(out, "{}", self.0).ok()?;
        FieldValue::new(out.get(start..)?).map(|_| Sensitivity(false))
    }
}

impl<'a> From<&'a HeaderValue> for FieldValue<'a> {
    fn from(value: &'a HeaderValue) -> Self {
        Self { bytes: value.as_bytes(), is_sensitive: value.is_sensitive() }
    }
}

impl PartialEq<str> for FieldValue<'_> {
    fn eq(&self, text: &str) -> bool {
        self.bytes == text.as_bytes()
    }
}

impl PartialEq<&str> for FieldValue<'_> {
    fn eq(&self, text: &&str) -> bool {
        *self == **text
    }
}

impl fmt::Debug for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_sensitive {
            true => f.write_str("Sensitive"),
            false => fmt::Debug::fmt(&String::from_utf8_lossy(self.bytes), f),
        }
    }
}
