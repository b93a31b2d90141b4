//! The client behind a request, and that its signature is not used twice.
//! Who sends this?

use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Body;
use jiff::Timestamp;

use super::ProxyRequest;
use super::record::Record;
use super::refusal::Refusal;
use crate::policy::Plan;
use crate::policy::authn::{Authenticated, CLIENT_VALIDATION, PresentedCredentials, SignableRequest};
use crate::state::Runtime;

/// Identifies the client. A signature is used up even if the webhook is refused afterwards: the client signs each attempt.
pub(super) fn authenticate<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    arrival: &ProxyRequest,
    now: Timestamp,
    record: &mut Record,
) -> Result<Authenticated<'p>, Refusal> {
    let fields = &arrival.fields;
    let claim = PresentedCredentials {
        caller: &arrival.caller,
        credential: one(fields, &header::PROXY_AUTHORIZATION)?,
        validation: one(fields, &CLIENT_VALIDATION)?,
        sent: SignableRequest {
            method: &arrival.method,
            target: &arrival.target,
            fields,
            has_body: !arrival.body.is_end_stream(),
        },
    };
    let proven = prove(runtime, plan, &claim, now);
    match proven {
        Ok(_) => arrival.caller.set_identified(),
        Err(_) => record.claimed(plan.clients.claimed(&claim)),
    }
    proven
}

fn prove<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    claim: &PresentedCredentials<'_>,
    now: Timestamp,
) -> Result<Authenticated<'p>, Refusal> {
    plan.listener.judge_held(&claim.caller.certificate, claim.caller.listen.as_deref(), now)?;
    let known = plan.clients.authenticate(claim, now)?;
    if let Some(signed) = &known.signed {
        runtime.replay_cache.check_and_record(known.client.name(), &signed.once, now)?;
    }
    Ok(known)
}

/// Of two credentials one would be proved and the other believed.
fn one<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = fields.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) if *name == header::PROXY_AUTHORIZATION => {
            Err(Refusal::malformed("Proxy-Authorization is given more than once"))
        }
        (_, Some(_)) => Err(Refusal::malformed("Twilio-Client-Validation is given more than once")),
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
    }
}
