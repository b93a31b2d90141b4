//! Writes the head of a response in HTTP/1.1, final or interim.
//! What stands before the body?

use http::StatusCode;

use crate::http_message::Fields;

pub(super) fn write_head(out: &mut Vec<u8>, status: StatusCode, reason: &str, fields: &Fields) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    fields.write(out);
    out.extend_from_slice(b"\r\n");
}
