//! The interim responses (1xx) that a target sends before the final one.
//! Which of them does the client get, and how many may there be?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Request, StatusCode};
use tokio::sync::Notify;

use crate::delivery::request::{InterimCallback, fields};
use crate::net::http_client::{self, Upload};

/// Interim responses that one request may get.
const INTERIM_MAX: usize = 16;

/// The interim responses that one request has got.
#[derive(Default)]
pub(super) struct InterimCounter {
    /// The size of their heads over HTTP/1.1, in bytes.
    bytes: AtomicUsize,
    flooded: Notify,
}

impl InterimCounter {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Resolves when the target has sent more than [`INTERIM_MAX`] interim responses.
    pub(super) async fn flooded(&self) {
        self.flooded.notified().await;
    }
}

/// Forwards the interim responses to this request to the client (RFC 9110 §15.2), and counts them.
pub(super) fn forward(request: &mut Request<Upload>, callback: Option<InterimCallback>) -> Arc<InterimCounter> {
    let counter = Arc::new(InterimCounter::default());
    let (count, shared) = (AtomicUsize::new(0), Arc::clone(&counter));
    http_client::on_interim(request, move |status, headers| {
        shared.bytes.fetch_add(interim_size(headers), Ordering::Relaxed);
        if count.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
            shared.flooded.notify_one();
        } else if status != StatusCode::CONTINUE
            && let Some(callback) = &callback
        {
            // 100 Continue ends here: outgate has sent the client its own.
            let mut headers = headers.clone();
            fields::strip_interim(&mut headers);
            callback(status, &headers);
        }
    });
    counter
}

/// Returns the size of an interim head over HTTP/1.1 in bytes, without optional white space and the reason phrase.
fn interim_size(headers: &HeaderMap) -> usize {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ":\r\n".len());
    "HTTP/1.1 103 \r\n\r\n".len() + fields.sum::<usize>()
}
