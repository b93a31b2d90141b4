//! The field lines of an HTTP/1 head, of a request and of a response.
//! Which fields does a head have, and where does the head end?

use crate::http_message::Fields;

/// Returns the fields that httparse has found in a head of `length` bytes.
pub(crate) fn read(parsed: &[httparse::Header<'_>], length: usize) -> Fields {
    let mut fields = Fields::with_capacity(parsed.len(), length);
    parsed.iter().for_each(|field| fields.append_parsed(field));
    fields
}

/// Returns whether `buffer` holds the end of a head that its first `scanned` bytes do not hold.
pub(crate) fn have_end(buffer: &[u8], scanned: usize) -> bool {
    let fresh = &buffer[scanned.saturating_sub(3)..];
    memchr::memmem::find(fresh, b"\n\r\n").is_some() || memchr::memmem::find(fresh, b"\n\n").is_some()
}
