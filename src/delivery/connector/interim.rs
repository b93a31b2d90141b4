//! The interim responses (1xx) that a target sends before the final one.
//! Which of them does the client get, and how many may there be?

use http::StatusCode;

use crate::delivery::request::{InterimSender, fields};
use crate::http_message::Fields;
use crate::net::field_filter::INTERIM_MAX;

/// Forwards the interim responses to one request to its client (RFC 9110 §15.2).
pub(super) struct InterimForwarder {
    /// `None`: the client gets no interim responses.
    client: Option<InterimSender>,
    count: usize,
}

impl InterimForwarder {
    pub(super) fn new(client: Option<InterimSender>) -> Self {
        Self { client, count: 0 }
    }

    /// Forwards an interim response. Returns `false` if the target has sent too many.
    pub(super) fn forward(&mut self, status: StatusCode, fields: &Fields) -> bool {
        self.count += 1;
        if self.count > INTERIM_MAX {
            return false;
        }
        // 100 Continue ends here: outgate has sent the client its own.
        if status != StatusCode::CONTINUE
            && let Some(client) = self.client.as_ref().and_then(InterimSender::upgrade)
        {
            let mut fields = fields.clone();
            fields::strip_interim(&mut fields);
            client.send_interim(status, &fields);
        }
        true
    }
}
