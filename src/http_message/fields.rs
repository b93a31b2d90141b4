//! Header fields in the order and the spelling of their sender.
//! Which values does a field have, and how is it written?
//!
//! The lines are in one buffer, in the form in which HTTP/1.1 writes them. Changes append to the buffer. No name is
//! hashed: a message has about a dozen fields, of which a lookup compares the lengths first.

use std::borrow::Borrow;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::field::{FieldName, FieldValue, Sensitivity, ToFieldValue};
use super::spare::{self, HeadBuffer, Spares};

/// The capacity for the fields that outgate adds to a message on its way: their number, and their bytes.
const ADDED_LINES: usize = 8;
const ADDED_BYTES: usize = 512;

/// The largest list of lines that a thread keeps for another message.
const LINES_KEPT: usize = 64;

const SEPARATOR: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";

/// The fields of a message.
#[derive(Clone, Default)]
pub struct Fields {
    /// `name: value\r\n`, for each line and for lines that were replaced or removed.
    buffer: HeadBuffer,
    lines: Vec<Line>,
    /// The union of the [`filter_bit`]s of all names. A name whose bit is missing is not among the fields.
    filter: u64,
}

#[derive(Clone, Copy)]
struct Line {
    /// The start in the buffer.
    start: usize,
    name_len: usize,
    value_len: usize,
    is_sensitive: bool,
}

impl Line {
    fn value_start(&self) -> usize {
        self.start + self.name_len + SEPARATOR.len()
    }

    fn end(&self) -> usize {
        self.value_start() + self.value_len + LINE_END.len()
    }
}

impl Fields {
    /// Makes room for the fields of a message of this size, and for those that outgate adds.
    fn reserve(&mut self, lines: usize, bytes: usize) {
        if self.buffer.capacity() == 0 {
            self.buffer = HeadBuffer::take();
        }
        if self.lines.capacity() == 0 {
            self.lines = spare::take(&LINES).unwrap_or_default();
        }
        self.lines.reserve(lines + ADDED_LINES);
        self.buffer.reserve(bytes + ADDED_BYTES);
    }

    /// Removes all lines, and keeps the memory for those of another message.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.lines.clear();
        self.filter = 0;
    }

    /// Appends the fields that httparse has found, and therefore checked, in a head of this length.
    pub fn append_parsed(&mut self, parsed: &[httparse::Header<'_>], head_length: usize) {
        self.reserve(parsed.len(), head_length);
        for field in parsed {
            self.push(field.name, &FieldValue { bytes: field.value, is_sensitive: false });
        }
    }

    /// Returns the number of lines. A field may have several.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn contains(&self, name: impl AsRef<str>) -> bool {
        self.get(name).is_some()
    }

    /// Returns the value of the first line of a field.
    pub fn get(&self, name: impl AsRef<str>) -> Option<FieldValue<'_>> {
        self.lines.get(self.position(name.as_ref())?).map(|line| self.value(line))
    }

    /// Returns the values of all lines of a field, in order.
    pub fn get_all<'a>(
        &'a self,
        name: &'a (impl AsRef<str> + ?Sized),
    ) -> impl DoubleEndedIterator<Item = FieldValue<'a>> {
        let name = name.as_ref();
        let lines: &[Line] = if self.may_contain(name) { &self.lines } else { &[] };
        lines.iter().filter(move |line| self.name(line) == *name).map(|line| self.value(line))
    }

    /// Returns all lines, in order.
    pub fn iter(&self) -> impl Iterator<Item = (FieldName<'_>, FieldValue<'_>)> {
        self.lines.iter().map(|line| (self.name(line), self.value(line)))
    }

    /// Appends a line, unless the value is not a valid one.
    pub fn append(&mut self, name: impl Borrow<HeaderName>, value: impl ToFieldValue) {
        self.push(name.borrow().as_str(), &value);
    }

    /// Sets a field. It keeps its place and the spelling of its name; a new field becomes the last. A value that is not a
    /// valid one changes nothing.
    pub fn insert(&mut self, name: impl Borrow<HeaderName>, value: impl ToFieldValue) {
        let name = name.borrow().as_str();
        let Some(at) = self.position(name) else { return self.push(name, &value) };
        let Some(line) = self.lines.get(at).copied().and_then(|first| self.rewrite(&first, &value)) else { return };
        let (buffer, mut indexes) = (&self.buffer, 0..);
        self.lines.retain(|line| indexes.next() <= Some(at) || name_in(buffer, line) != *name);
        self.lines.iter_mut().skip(at).take(1).for_each(|first| *first = line);
    }

    /// Sets a field, and makes it the first if it is new. A request begins with `Host` (RFC 9110 §7.2).
    pub fn insert_first(&mut self, name: impl Borrow<HeaderName>, value: impl ToFieldValue) {
        let (is_new, before) = (!self.contains(name.borrow()), self.lines.len());
        self.insert(name, value);
        if is_new && self.lines.len() > before {
            self.lines.rotate_right(1);
        }
    }

    /// Replaces the value of each line of a field; `None` removes the line.
    pub fn replace_lines(&mut self, name: &HeaderName, replace: impl Fn(FieldValue<'_>) -> Option<HeaderValue>) {
        let mut lines = Vec::with_capacity(self.lines.len());
        for line in std::mem::take(&mut self.lines) {
            let new = (self.name(&line) == *name).then(|| replace(self.value(&line)));
            lines.extend(new.map_or(Some(line), |value| self.rewrite(&line, &&value?)));
        }
        self.lines = lines;
    }

    /// Removes all lines of a field.
    pub fn remove(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        if self.may_contain(name) {
            self.retain_names(|own| own != *name);
        }
    }

    /// Removes the lines whose name is not to be kept.
    pub fn retain_names(&mut self, mut keeps: impl FnMut(FieldName<'_>) -> bool) {
        let buffer = &self.buffer;
        self.lines.retain(|line| keeps(name_in(buffer, line)));
    }

    /// Writes the lines as HTTP/1.1 does, without the empty line that ends the head.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut lines = self.lines.iter();
        let Some(first) = lines.next() else { return };
        let mut run = first.start..first.end();
        for line in lines {
            if line.start == run.end {
                run.end = line.end();
            } else {
                let whole = std::mem::replace(&mut run, line.start..line.end());
                out.extend_from_slice(&self.buffer[whole]);
            }
        }
        out.extend_from_slice(&self.buffer[run]);
    }

    fn push(&mut self, name: &str, value: &impl ToFieldValue) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(name.as_bytes());
        if let Some(line) = self.finish_line(start, name.len(), value) {
            self.lines.push(line);
            self.filter |= filter_bit(name);
        }
    }

    /// Writes a line with the name of this one, and returns its place.
    fn rewrite(&mut self, line: &Line, value: &impl ToFieldValue) -> Option<Line> {
        let start = self.buffer.len();
        self.buffer.extend_from_within(line.start..line.start + line.name_len);
        self.finish_line(start, line.name_len, value)
    }

    /// Writes the rest of a line whose name is written.
    fn finish_line(&mut self, start: usize, name_len: usize, value: &impl ToFieldValue) -> Option<Line> {
        self.buffer.extend_from_slice(SEPARATOR);
        let value_start = self.buffer.len();
        let Some(Sensitivity(is_sensitive)) = value.write(&mut self.buffer) else {
            self.buffer.truncate(start);
            return None;
        };
        let value_len = self.buffer.len() - value_start;
        self.buffer.extend_from_slice(LINE_END);
        Some(Line { start, name_len, value_len, is_sensitive })
    }

    fn may_contain(&self, name: &str) -> bool {
        self.filter & filter_bit(name) != 0
    }

    /// Returns the place of the first line of a field.
    fn position(&self, name: &str) -> Option<usize> {
        let lines: &[Line] = if self.may_contain(name) { &self.lines } else { &[] };
        lines.iter().position(|line| self.name(line) == *name)
    }

    fn name(&self, line: &Line) -> FieldName<'_> {
        name_in(&self.buffer, line)
    }

    fn value(&self, line: &Line) -> FieldValue<'_> {
        let start = line.value_start();
        let bytes = self.buffer.get(start..start + line.value_len).unwrap_or_default();
        FieldValue { bytes, is_sensitive: line.is_sensitive }
    }
}

fn name_in<'a>(buffer: &'a [u8], line: &Line) -> FieldName<'a> {
    FieldName(buffer.get(line.start..line.start + line.name_len).unwrap_or_default())
}

/// Returns a bit that is the same for a name in any case. Names of messages rarely share one.
fn filter_bit(name: &str) -> u64 {
    let lower = |byte: Option<&u8>| u32::from(byte.copied().unwrap_or_default() | 0x20);
    let bytes = name.as_bytes();
    let length = bytes.len() as u32 & 0xff;
    1 << ((lower(bytes.first()) ^ lower(bytes.last()).rotate_left(3) ^ length.rotate_left(1)) % 64)
}

thread_local! {
    static LINES: Spares<Vec<Line>> = const { Spares::new() };
}

/// Keeps the memory of the lines for another message. The buffer keeps its own.
impl Drop for Fields {
    fn drop(&mut self) {
        if (ADDED_LINES..=LINES_KEPT).contains(&self.lines.capacity()) {
            self.lines.clear();
            spare::keep(&LINES, std::mem::take(&mut self.lines));
        }
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name.as_written(), value))).finish()
    }
}

impl<N: Borrow<HeaderName>> FromIterator<(N, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, HeaderValue)>>(fields: I) -> Self {
        let mut all = Self::default();
        fields.into_iter().for_each(|(name, value)| all.append(name, &value));
        all
    }
}

impl From<&HeaderMap> for Fields {
    /// Takes the fields of a message in HTTP/2, for which the library h2 keeps no order among different names.
    fn from(map: &HeaderMap) -> Self {
        let line_len = |(name, value): (&HeaderName, &HeaderValue)| {
            name.as_str().len() + SEPARATOR.len() + value.len() + LINE_END.len()
        };
        let mut fields = Self::default();
        fields.reserve(map.len(), map.iter().map(line_len).sum());
        map.iter().for_each(|(name, value)| fields.append(name, value));
        fields
    }
}

impl From<&Fields> for HeaderMap {
    fn from(fields: &Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for (name, value) in fields.iter() {
            // Both are valid: httparse or these types have checked them.
            let (Ok(name), Ok(mut sent)) = (HeaderName::from_bytes(name.0), HeaderValue::from_bytes(value.bytes))
            else {
                continue;
            };
            sent.set_sensitive(value.is_sensitive);
            map.append(name, sent);
        }
        map
    }
}

#[cfg(test)]
mod tests;
