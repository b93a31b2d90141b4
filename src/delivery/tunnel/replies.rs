//! The responses that the client of a tunnel gets from outgate.
//! Which fields does the 200 of a CONNECT have, and what follows a plaintext request inside?

use http::StatusCode;

use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::delivery::response::{self, ResponseBody};
use crate::http_message::Response;

/// Returns the 200 of a CONNECT, without Content-Length and Transfer-Encoding: the bytes after it are the tunnel's (RFC
/// 9110 §9.3.6).
pub(super) fn established(record: &Record, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = Response::new(StatusCode::OK, ResponseBody::Full(None));
    response::add_own_fields(&mut response.fields, record, pseudonym);
    response
}

/// Refuses a plaintext HTTP request inside a tunnel for TLS. The response has the request id of the CONNECT, whose
/// record has the refusal.
pub(super) fn refuse_plaintext(record: &mut Record, pseudonym: &str) -> Response<ResponseBody> {
    let detail = "this tunnel requires TLS, and the request inside arrived in plaintext: use an https:// URL";
    let refusal = Refusal::malformed(detail).with_details("plaintext");
    record.tunnel_closed(&refusal);
    response::respond(refusal, record, pseudonym)
}
