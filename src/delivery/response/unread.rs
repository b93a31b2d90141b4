//! Refusals of connections that bring no readable request.
//! What does a client get that sends something other than a request, or TLS where it is plaintext?

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{ResponseBody, refuse};
use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::delivery::request::target;
use crate::http_message::Response;
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// Refuses a request that a server could not read. `request_line`: the method and the target, if the server has read
/// them.
pub fn refuse_unread(
    runtime: &Arc<Runtime>,
    caller: &Caller,
    request_line: Option<&(Method, String)>,
    (status, detail): (StatusCode, &'static str),
) -> Response<ResponseBody> {
    let plan = &runtime.active_config().plan;
    let mut record = Box::new(Record::open(runtime, plan, request_line.map(|(method, _)| method), caller));
    if let Some((target, path)) = request_line.and_then(|(method, target)| target::readable(method, target)) {
        record.target(target, path);
    }
    refuse(Refusal::malformed(detail).status(status), record, &plan.pseudonym)
}

/// Refuses TLS on a listener that speaks plaintext HTTP.
pub fn refuse_tls(runtime: &Arc<Runtime>, caller: &Caller) -> Response<ResponseBody> {
    let plan = &runtime.active_config().plan;
    let record = Box::new(Record::open(runtime, plan, None, caller));
    let detail = "this listener accepts plaintext, and the client began with TLS: use http:// in the proxy URL";
    refuse(Refusal::malformed(detail).with_details("tls"), record, &plan.pseudonym)
}

/// Refuses a plaintext HTTP request on a listener that speaks TLS.
pub fn refuse_plaintext(runtime: &Arc<Runtime>, caller: &Caller) -> Response<ResponseBody> {
    let plan = &runtime.active_config().plan;
    let record = Box::new(Record::open(runtime, plan, None, caller));
    let detail = "this listener requires TLS, and the request arrived in plaintext: use https:// in the proxy URL";
    refuse(Refusal::malformed(detail).with_details("plaintext"), record, &plan.pseudonym)
}
