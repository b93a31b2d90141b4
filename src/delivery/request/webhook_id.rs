//! The id of a webhook, in the field `Webhook-Id`.
//! Which id does a webhook have, and is it well-formed?

use std::borrow::Cow;

use http::HeaderName;

use crate::delivery::refusal::Refusal;
use crate::http_message::Fields;
use crate::policy::sign;

/// Begins the ids that outgate generates.
const GENERATED_PREFIX: &str = "msg_";

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

/// Returns the id of a webhook that is signed: the client's own, or one that contains the request's id.
pub(in crate::delivery) fn given_or_generated<'a>(
    fields: &'a Fields,
    request_id: &str,
) -> Result<Cow<'a, str>, Refusal> {
    Ok(given(fields)?.map_or_else(|| generate(request_id).into(), Cow::Borrowed))
}

fn generate(request_id: &str) -> String {
    [GENERATED_PREFIX, request_id].concat()
}

pub(in crate::delivery) fn is_generated(id: &str, request_id: &str) -> bool {
    id.strip_prefix(GENERATED_PREFIX) == Some(request_id)
}

/// Returns the id that the client gave, if it gave one. A malformed id is refused.
pub(in crate::delivery) fn given(fields: &Fields) -> Result<Option<&str>, Refusal> {
    if fields.get_all(&WEBHOOK_ID).nth(1).is_some() {
        return Err(Refusal::malformed("the request has more than one Webhook-Id"));
    }
    let malformed = || Refusal::malformed("Webhook-Id must have 1 to 256 characters: letters, digits and -_~+@");
    match fields.contains(&WEBHOOK_ID) {
        false => Ok(None),
        true => well_formed(fields).map(Some).ok_or_else(malformed),
    }
}

/// Returns the id that the client gave, unless it is malformed.
pub(in crate::delivery) fn well_formed(fields: &Fields) -> Option<&str> {
    let mut ids = fields.get_all(&WEBHOOK_ID);
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    id.to_str().ok().filter(|id| sign::valid_id(id))
}
