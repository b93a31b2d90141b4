//! HTTP/2 with clients: the requests of one connection, each in a task of its own.
//! When does a connection stay open after its responses, and when does it close?

mod body;
mod connect;
mod filtered_stream;
mod request;
mod respond;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::client_io::ClientIo;
use super::hangup::run_until_hangup;
use super::inspect::ServeInspected;
use super::lifetime::{ConnectionLifetime, wait_for_eviction};
use super::lingering;
use super::request_error::{HEAD_MAX, RequestError};
use crate::delivery::{self, ProxyRequest, ResponseBody};
use crate::net::field_filter::Violation;
use crate::panics;
use crate::policy::authn::Caller;
use crate::state::Runtime;
use body::Http2Body;
use filtered_stream::FilteredStream;
use respond::Responder;

/// Limits the concurrent requests of one connection (SETTINGS_MAX_CONCURRENT_STREAMS).
const STREAMS_MAX: u32 = 128;
/// Limits the tasks of one connection. A client that resets streams may open others before the tasks of the former have
/// ended. A client with more tasks is attacking (CVE-2023-44487).
const TASKS_MAX: usize = 4 * STREAMS_MAX as usize;
/// Limits the streams that the client resets before they are accepted. More of them end the connection.
const PENDING_ACCEPT_RESETS_MAX: usize = 64;
/// The window of a stream: the bytes of a body that a client may send before they are read.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The window of a connection, in bytes. It covers the windows of all streams: bodies that wait for a limit must not
/// block other requests of the connection.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Limits the bytes of one response that wait to be sent.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// The time for a client to observe GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// The time for a client to observe GOAWAY while another connection waits for capacity.
const EVICTED_GOAWAY_TIMEOUT: Duration = Duration::from_millis(200);

/// Serves a connection until it closes.
pub(super) async fn serve(
    runtime: Arc<Runtime>,
    stream: impl ClientIo,
    caller: Arc<Caller>,
    lifetime: &ConnectionLifetime,
    serve_inspected: ServeInspected,
) {
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESETS_MAX)
        .max_local_error_reset_streams(None) // `filtered_stream` counts them instead
        // The size after decompression (RFC 9113 §10.5.1). The filter lets outgate respond with 431 to a larger one. h2
        // limits CONTINUATION frames by this size, too.
        .max_header_list_size(HEAD_MAX as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .handshake(FilteredStream::new(stream));
    let idle = runtime.active_config().plan.timeouts.idle;
    let handshaken = tokio::select! {
        biased;
        handshaken = timeout(idle, handshake) => handshaken,
        () = lifetime.evicted_unidentified() => return,
    };
    if let Ok(Ok(connection)) = handshaken {
        serve_connection(runtime, connection, caller, lifetime, serve_inspected).await;
    }
}

/// Serves the requests of a connection. Dropping the future cancels them, because their tasks belong to the connection.
async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(
    runtime: Arc<Runtime>,
    mut connection: Connection<S, Bytes>,
    caller: Arc<Caller>,
    lifetime: &ConnectionLifetime,
    serve_inspected: ServeInspected,
) {
    let mut tasks = JoinSet::new();
    let requests = panics::Group::default(); // dropped before the tasks, which must know of a panic
    let pending = Arc::new(watch::Sender::new(0));
    let mut pending_changed = pending.subscribe();
    let mut expired = pin!(lifetime.expired());
    let (mut goaway_sent, mut goaway_timeout) = (false, GOAWAY_TIMEOUT);
    // PING and SETTINGS frames do not reset the idle timeout.
    let mut idle_since = Instant::now();
    loop {
        let idle_timeout = if goaway_sent { goaway_timeout } else { runtime.active_config().plan.timeouts.idle };
        let idle = (tasks.is_empty() && !goaway_sent).then(|| lifetime.mark_idle()).flatten();
        // The rest of a refused request, for example, does not protect the connection of an unidentified peer from
        // eviction.
        let may_evict = *pending_changed.borrow_and_update() == 0 && !goaway_sent;
        let is_expired = tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok(_)) if tasks.len() >= TASKS_MAX => {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    false
                }
                Some(Ok((request, responder))) => {
                    lifetime.begin_request();
                    let (runtime, caller, open_stream) = (Arc::clone(&runtime), Arc::clone(&caller), runtime.open_stream());
                    let pending_response = PendingResponse::start(&pending);
                    tasks.spawn(requests.contain(async move {
                        serve_request(&runtime, request, responder, &caller, serve_inspected, pending_response).await;
                        drop(open_stream);
                    }));
                    false
                }
                _ => return,
            },
            Some(_) = tasks.join_next() => {
                idle_since = Instant::now();
                false
            }
            Ok(()) = pending_changed.changed() => false,
            () = sleep_until(idle_since + idle_timeout), if tasks.is_empty() => true,
            () = &mut expired, if !goaway_sent => true,
            () = lifetime.evicted_unidentified(), if may_evict => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                // One poll writes GOAWAY. The close waits for nothing else: another connection waits for the capacity.
                return poll_fn(|cx| {
                    let _ = connection.poll_accept(cx);
                    Poll::Ready(())
                })
                .await;
            }
            () = wait_for_eviction(idle.as_ref()) => {
                // The client may retry a request that outgate has not accepted: GOAWAY names the last one (RFC 9113
                // §6.8).
                connection.abrupt_shutdown(Reason::NO_ERROR);
                (goaway_sent, goaway_timeout) = (true, EVICTED_GOAWAY_TIMEOUT);
                idle_since = Instant::now();
                false
            }
        };
        if is_expired && goaway_sent {
            return;
        } else if is_expired {
            goaway_sent = true;
            idle_since = Instant::now();
            connection.graceful_shutdown();
        }
    }
}

/// Counts a request whose response is not sent yet, until the value is dropped.
struct PendingResponse(Arc<watch::Sender<usize>>);

impl PendingResponse {
    fn start(count: &Arc<watch::Sender<usize>>) -> Self {
        // Only the connection's task adds, and reads the count next: no notification is needed.
        count.send_if_modified(|count| {
            *count += 1;
            false
        });
        Self(Arc::clone(count))
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.0.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

/// Serves one request from its head to the last byte of its response. A stream reset or the end of the connection
/// cancels the request.
async fn serve_request(
    runtime: &Arc<Runtime>,
    request: Request<RecvStream>,
    send_response: SendResponse<Bytes>,
    caller: &Arc<Caller>,
    serve_inspected: ServeInspected,
    pending_response: PendingResponse,
) {
    let (mut head, incoming) = request.into_parts();
    let responder = Responder::new(send_response);
    let write_timeout = runtime.active_config().plan.timeouts.idle;
    let (method, unencoded) = (head.method.clone(), request::take_unencoded_path(&mut head));
    let (response, remaining_body) = match request::parse_head(&mut head, unencoded.as_ref()) {
        Ok(parsed) if method == Method::CONNECT => {
            let refused =
                connect::serve(runtime, head, parsed.target, incoming, &responder, caller, serve_inspected).await;
            let Some((response, incoming)) = refused else { return };
            (response, Http2Body::new(incoming, None, None).1)
        }
        Ok(parsed) => {
            let pending_continue = parsed.expects_continue.then(|| responder.clone());
            let (body, remaining_body) = Http2Body::new(incoming, parsed.length, pending_continue);
            let arrival = ProxyRequest {
                fields: request::fields(&head),
                method: head.method,
                version: Version::HTTP_2,
                target: parsed.target,
                body: Box::pin(body),
                caller: Arc::clone(caller),
                interim: Some(responder.interim_sender()),
            };
            let delivering = pin!(delivery::deliver(runtime, arrival));
            let Some(response) = run_until_hangup(responder.reset_by_client(), delivering).await else { return };
            (response, remaining_body)
        }
        Err(RequestError(status, detail)) => {
            let (_, remaining_body) = Http2Body::new(incoming, None, None);
            // The record omits a URI that is not the request's own: with Outgate-Target it names outgate, and the
            // filter replaces a head that is too large by another one.
            let is_own_uri = !head.headers.contains_key("outgate-target") && Violation::of(&head.headers).is_none();
            let request_line = is_own_uri.then(|| (method.clone(), request::sent_uri(&head, unencoded.as_ref())));
            (delivery::refuse_unread(runtime, caller, request_line.as_ref(), (status, detail)), remaining_body)
        }
    };
    let deadline = response.body.deadline().unwrap_or_else(|| Instant::now() + write_timeout);
    let is_local_reply = matches!(response.body, ResponseBody::Full(_));
    let mut sending = pin!(timeout_at(deadline, responder.send(response, &method)));
    let mut pending_response = Some(pending_response);
    let sent = poll_fn(|cx| {
        let polled = sending.as_mut().poll(cx);
        // A refusal counts as sent once the client's windows are used up: outgate does not wait for more capacity.
        pending_response.take_if(|_| is_local_reply || polled.is_ready());
        polled
    })
    .await;
    // A stream that is still open when this function returns is reset: the client must not take a part for the whole.
    if let Ok(Ok(())) = sent {
        remaining_body.discard(lingering::bytes_max(runtime)).await;
    }
}
