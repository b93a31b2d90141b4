//! The interim responses (1xx) that a target sends before the final one.
//! Which of them does the client get, and how many may there be?

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, StatusCode};

use crate::delivery::request::{InterimCallback, fields};

/// Interim responses that one request may get.
const INTERIM_MAX: usize = 16;

/// Forwards the interim responses to one request to its client (RFC 9110 §15.2).
pub(super) struct InterimForwarder {
    client: Option<InterimCallback>,
    count: AtomicUsize,
}

impl InterimForwarder {
    /// `client`: gets the responses; `None`: nobody does.
    pub(super) fn new(client: Option<InterimCallback>) -> Self {
        Self { client, count: AtomicUsize::new(0) }
    }

    /// Forwards an interim response. Returns `false` if the target has sent too many.
    pub(super) fn forward(&self, status: StatusCode, fields: &HeaderMap) -> bool {
        if self.count.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
            return false;
        }
        // 100 Continue ends here: outgate has sent the client its own.
        if status != StatusCode::CONTINUE
            && let Some(client) = &self.client
        {
            let mut fields = fields.clone();
            fields::strip_interim(&mut fields);
            client(status, &fields);
        }
        true
    }
}
