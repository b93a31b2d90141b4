//! The authentication of a request's client, and the check that its signature is not replayed.
//! Which client sent this request?

use http::{HeaderName, header};
use http_body::Body;
use jiff::Timestamp;

use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::delivery::request::ProxyRequest;
use crate::http_message::{FieldValue, Fields};
use crate::policy::Plan;
use crate::policy::authn::{Authenticated, PresentedCredentials, SignableRequest, TWILIO_CLIENT_VALIDATION};
use crate::state::Runtime;

/// Authenticates the client. A refused webhook uses its signature up as well: a client signs each attempt.
pub(super) fn authenticate<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    request: &ProxyRequest,
    now: Timestamp,
    record: &mut Record,
) -> Result<Authenticated<'p>, Refusal> {
    let fields = &request.fields;
    let credentials = PresentedCredentials {
        caller: &request.caller,
        proxy_authorization: single_credential(fields, &header::PROXY_AUTHORIZATION)?,
        client_validation: single_credential(fields, &TWILIO_CLIENT_VALIDATION)?,
        request: SignableRequest {
            method: &request.method,
            target: &request.target,
            fields,
            has_body: !request.body.is_end_stream(),
        },
    };
    let result = verify_credentials(runtime, plan, &credentials, now);
    match result {
        Ok(_) => request.caller.set_authenticated(),
        Err(_) => record.claimed(plan.clients.claimed_client(&credentials)),
    }
    result
}

fn verify_credentials<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    credentials: &PresentedCredentials<'_>,
    now: Timestamp,
) -> Result<Authenticated<'p>, Refusal> {
    plan.listener.recheck_certificate(credentials.caller.peer_certificate(), credentials.caller.listen(), now)?;
    let authenticated = plan.clients.authenticate(credentials, now)?;
    if let Some(replay_token) = authenticated.replay_token() {
        runtime.replay_cache.check_and_record(authenticated.client().name(), replay_token, now)?;
    }
    Ok(authenticated)
}

/// Returns the value of a field that carries a credential. Of two credentials, outgate would verify one and record
/// another, so a request with two is refused.
fn single_credential<'a>(fields: &'a Fields, name: &'a HeaderName) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = fields.get_all(name);
    match (values.next(), values.next()) {
        (_, Some(_)) if *name == header::PROXY_AUTHORIZATION => {
            Err(Refusal::malformed("the request has more than one Proxy-Authorization"))
        }
        (_, Some(_)) => Err(Refusal::malformed("the request has more than one Twilio-Client-Validation")),
        (value, None) => Ok(value.map(FieldValue::as_bytes)),
    }
}
