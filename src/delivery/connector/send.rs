//! The exchange of one request for one response, over a connection to the target.
//! Did the target get the request, and may outgate send it again?

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::UpstreamConnector;
use super::interim::InterimForwarder;
use crate::delivery::errors::{self, map_exchange_error};
use crate::delivery::record::{Record, Step};
use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::webhook::SignedRequest;
use crate::http_message::{Fields, Response};
use crate::net::deadline;
use crate::net::http_client::{self, SendError, TargetBody, Unprocessed};
use crate::state::upstreams::pool::PooledConnection;

const OVERSIZED_REQUEST_HEAD: &str = "request_head_too_large";
/// The details of a refusal: the target closed an HTTP/1.1 connection after a request head that is larger than common
/// servers accept.
pub(in crate::delivery) const LARGE_REQUEST_HEAD: &str = "large_request_head";

impl UpstreamConnector<'_> {
    /// Sends the request. It goes over another connection only if the target has not processed it.
    pub(in crate::delivery) async fn forward(
        &self,
        mut connection: PooledConnection,
        signed: SignedRequest,
        record: &mut Record,
    ) -> Result<(PooledConnection, Response<TargetBody>), Refusal> {
        let head = http_client::head_size(&signed.request);
        if !connection.accepts_head(head).await {
            connection = self.dial_dedicated(record).await?;
        }
        let sent = self.send(&mut connection, signed, head, record).await;
        // A malformed or incomplete response is evidence, too, that the webhook has arrived.
        let sent = sent.map_err(|refusal| if connection.response_has_begun() { refusal.responded() } else { refusal });
        let sent = sent.map_err(|refusal| if connection.take_violation() { refusal.separate_event() } else { refusal });
        sent.map(|response| (connection, response))
    }

    /// `head`: the size of the request head in bytes.
    async fn send(
        &self,
        connection: &mut PooledConnection,
        signed: SignedRequest,
        head: usize,
        record: &mut Record,
    ) -> Result<Response<TargetBody>, Refusal> {
        let (runtime, route) = (self.delivery.runtime, self.delivery.route);
        let SignedRequest { mut request, progress, interim } = signed;
        let mut interims = InterimForwarder::new(interim);
        let mut on_interim = |status, fields: &Fields| interims.forward(status, fields);
        // The response timeout starts at the last byte of the request. While an upload streams, it also bounds each wait
        // for a target that takes no more bytes; a wait for the client does not count. A request that is sent again gets
        // the whole timeout again.
        let response_timeout = |waited| self.remaining_timeout(route.timeouts.response, waited);
        let timed_out = || async {
            match &progress {
                Some(progress) => progress.stalled(response_timeout).await,
                None => deadline::passed(Instant::now() + response_timeout(Duration::ZERO)).await,
            }
        };
        let mut budget = ResendBudget::default();
        loop {
            progress.iter().for_each(|progress| progress.restart());
            record.begin(Step::Response);
            let sent = tokio::select! {
                biased;
                sent = connection.send(request, &mut on_interim) => sent,
                () = timed_out() => {
                    let is_upload_stalled = progress.as_ref().is_some_and(|progress| !progress.has_ended());
                    return Err(match is_upload_stalled {
                        true => upload_stalled(),
                        false => Refusal::target(Code::ResponseTimeout, "sent no response within the response timeout"),
                    });
                }
            };
            if connection.requires_http1() {
                runtime.http1_only.insert(self.delivery.target, std::time::Instant::now());
            }
            let is_oversized = head > connection.request_head_max();
            match sent {
                Ok(response) => {
                    record.responded(response.status);
                    runtime.source_health.responded(connection.hop().from(), std::time::Instant::now());
                    connection.observe_keep_alive(&response.fields);
                    return Ok(response);
                }
                Err(SendError::Invalid) => return Err(Refusal::malformed("the target or Host has no form in HTTP/2")),
                Err(SendError::Malformed(violation)) => {
                    connection.finish_exchange(); // the response ends its own stream only
                    runtime.source_health.responded(connection.hop().from(), std::time::Instant::now());
                    return Err(errors::malformed_response(violation, route.response_head_max));
                }
                Err(SendError::Lost(error)) => {
                    connection.finish_exchange(); // a stream that the target resets ends nothing else
                    let upload_error = progress.as_ref().and_then(|progress| progress.error());
                    let refusal = upload_error.map(Refusal::from).or(connection.alert_error().map(Refusal::from));
                    let lost = || {
                        map_exchange_error(&error, route.response_head_max).with_cause(connection.failure_cause(&error))
                    };
                    let refusal = refusal.unwrap_or_else(lost);
                    let is_unanswered = refusal.code == Code::ConnectionLost && !connection.response_has_begun();
                    return Err(match is_oversized && is_unanswered && !connection.requires_http1() {
                        true if connection.http_version() == "2" => oversized(head, connection),
                        // An HTTP/1.1 target announces no limit, and a target that restarts fails in the same way.
                        true => refusal.with_details(LARGE_REQUEST_HEAD),
                        false => refusal,
                    });
                }
                Err(SendError::Unprocessed { reason, request: returned }) => {
                    if reason == Unprocessed::RequiresHttp1 {
                        // This connection takes no new request.
                        runtime.http1_only.insert(self.delivery.target, std::time::Instant::now());
                    } else {
                        connection.finish_exchange();
                    }
                    request = match returned.filter(|_| budget.may_resend(reason)) {
                        Some(returned) => *returned,
                        None => {
                            let refusal = || match reason {
                                Unprocessed::Refused if is_oversized => returned_oversized(head, connection),
                                _ => unprocessed(reason),
                            };
                            return Err(connection.alert_error().map_or_else(refusal, Into::into));
                        }
                    };
                    *connection = if connection.accepts_head(head).await {
                        self.dial(record).await?
                    } else {
                        self.dial_dedicated(record).await?
                    };
                }
            }
        }
    }
}

/// The ways in which a request was sent again after the target had returned it unprocessed.
#[derive(Default)]
struct ResendBudget {
    over_new_connection: bool,
    over_http1: bool,
}

impl ResendBudget {
    /// Returns whether to send the request again: once over another connection, and once over HTTP/1.1.
    fn may_resend(&mut self, reason: Unprocessed) -> bool {
        let was_resent = match reason {
            Unprocessed::Unsent | Unprocessed::Refused => &mut self.over_new_connection,
            Unprocessed::RequiresHttp1 => &mut self.over_http1,
        };
        !std::mem::replace(was_resent, true)
    }
}

fn upload_stalled() -> Refusal {
    Refusal::target(Code::ResponseTimeout, "read no more of the request body within the response timeout")
}

fn unprocessed(reason: Unprocessed) -> Refusal {
    let predicate = match reason {
        Unprocessed::Unsent => "closed each connection as soon as it was open",
        Unprocessed::Refused => "returned the request unprocessed (REFUSED_STREAM or GOAWAY)",
        Unprocessed::RequiresHttp1 => "returned the request unprocessed (HTTP_1_1_REQUIRED)",
    };
    Refusal::target(Code::ConnectionLost, format!("{predicate}; it has not received the webhook")).unprocessed()
}

/// Returns the refusal for an exchange that the target ended without a response after an oversized request head.
///
/// The size explains the end, so the client is to blame: a webhook with a smaller head can arrive.
fn oversized(head: usize, connection: &PooledConnection) -> Refusal {
    let accepted = connection.request_head_max();
    let detail = format!(
        "ended the exchange without a response: the request head has {head} bytes, and the target accepts {accepted} \
         (SETTINGS_MAX_HEADER_LIST_SIZE, or 16 KiB by default)"
    );
    Refusal::target(Code::RequestMalformed, detail)
        .status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
        .with_details(OVERSIZED_REQUEST_HEAD)
}

/// Returns the refusal for a request with an oversized head that the target has returned unprocessed each time.
fn returned_oversized(head: usize, connection: &PooledConnection) -> Refusal {
    oversized(head, connection).unprocessed().with_details(OVERSIZED_REQUEST_HEAD)
}
