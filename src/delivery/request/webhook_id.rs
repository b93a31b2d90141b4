//! The id of a webhook, in the field `Webhook-Id`.
//! Which id does a webhook have, and is it well-formed?

use http::HeaderName;
use smallvec::SmallVec;

use crate::delivery::refusal::Refusal;
use crate::http_message::{FieldValue, Fields};
use crate::policy::redact::{Redacted, Redactor};
use crate::policy::sign;

/// Begins the ids that outgate generates.
const GENERATED_PREFIX: &str = "msg_";

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

/// The id of a webhook.
pub(in crate::delivery) enum WebhookId {
    /// The client's own.
    Given(String),
    /// outgate's own. It contains the request's id.
    Generated,
}

impl WebhookId {
    /// Returns the id as a record has it. `generated`: the id that outgate would generate for the request.
    pub(in crate::delivery) fn redact<'a>(&'a self, redactor: &Redactor, generated: &'a GeneratedId) -> Redacted<'a> {
        match self {
            Self::Given(id) => redactor.webhook_id(id, false),
            Self::Generated => redactor.webhook_id(generated.as_str(), true),
        }
    }
}

/// The text of an id that outgate has generated, without a buffer of its own.
pub(in crate::delivery) struct GeneratedId(SmallVec<[u8; 36]>);

impl GeneratedId {
    pub(in crate::delivery) fn of(request_id: &str) -> Self {
        let mut text = SmallVec::from_slice(GENERATED_PREFIX.as_bytes());
        text.extend_from_slice(request_id.as_bytes());
        Self(text)
    }

    pub(in crate::delivery) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Returns the id of a webhook that is signed: the client's own, or one that contains the request's id.
pub(in crate::delivery) fn given_or_generated(fields: &Fields) -> Result<WebhookId, Refusal> {
    Ok(given(fields)?.map_or(WebhookId::Generated, |id| WebhookId::Given(id.to_owned())))
}

/// Returns the id that the client gave, if it gave one. A malformed id is refused.
pub(in crate::delivery) fn given(fields: &Fields) -> Result<Option<&str>, Refusal> {
    let mut ids = fields.get_all(&WEBHOOK_ID);
    let malformed = || Refusal::malformed("Webhook-Id must have 1 to 256 characters: letters, digits and -_~+@");
    match (ids.next(), ids.next()) {
        (None, _) => Ok(None),
        (Some(id), None) => valid(id).map(Some).ok_or_else(malformed),
        (Some(_), Some(_)) => Err(Refusal::malformed("the request has more than one Webhook-Id")),
    }
}

/// Returns the id that the client gave, unless it is malformed.
pub(in crate::delivery) fn well_formed(fields: &Fields) -> Option<&str> {
    let mut ids = fields.get_all(&WEBHOOK_ID);
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    valid(id)
}

fn valid(id: FieldValue<'_>) -> Option<&str> {
    id.to_str().ok().filter(|id| sign::valid_id(id))
}
