//! The end of an HTTP/1 head, of a request and of a response.
//! Has the whole head arrived?

/// Returns whether `buffer` holds the end of a head that its first `scanned` bytes do not hold.
pub(crate) fn has_arrived(buffer: &[u8], scanned: usize) -> bool {
    let fresh = &buffer[scanned.saturating_sub(3)..];
    memchr::memmem::find(fresh, b"\n\r\n").is_some() || memchr::memmem::find(fresh, b"\n\n").is_some()
}
