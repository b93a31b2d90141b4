//! HTTP/2 towards clients: the requests of one connection, each a task of its own.
//! What keeps a connection open, and what ends it?

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
use crate::policy::authn::Caller;
use crate::state::Runtime;
use body::Http2Body;
use filtered_stream::FilteredStream;
use respond::Responder;

/// Requests at a time on one connection (SETTINGS_MAX_CONCURRENT_STREAMS).
const STREAMS_MAX: u32 = 128;
/// Tasks of a connection. A client that resets its streams may open others before their tasks have ended, but only so
/// many: beyond, it wants to see us busy (CVE-2023-44487).
const TASKS_MAX: usize = 4 * STREAMS_MAX as usize;
/// Streams that the client resets before they are accepted: more end the connection.
const RESETS_UNSEEN_MAX: usize = 64;
/// Bytes of a body that a client may send before they are read.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes of all bodies of a connection. It covers the windows of all streams: bodies that wait for a limit must not keep
/// other requests of the connection from being sent.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// What may wait to be sent, for one answer.
const SEND_BUFFER: usize = 64 * 1024;
/// For a client to take note of GOAWAY.
const GOODBYE: Duration = Duration::from_secs(1);
/// The same where another connection waits for the room.
const EVICTED_GOODBYE: Duration = Duration::from_millis(200);

/// Serves one connection to its end.
pub(super) async fn serve(
    runtime: Arc<Runtime>,
    stream: impl ClientIo,
    caller: Arc<Caller>,
    stay: ConnectionLifetime,
    inside: ServeInspected,
) {
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
        .max_local_error_reset_streams(None) // see `filtered`
        // Decompressed (RFC 9113 §10.5.1): more is answered 431, by the filter's help. h2 limits CONTINUATION frames by it, too.
        .max_header_list_size(HEAD_MAX as u32)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(FilteredStream::new(stream));
    let idle = runtime.active_config().plan.timeouts.idle;
    let handshaken = tokio::select! {
        biased;
        handshaken = timeout(idle, handshake) => handshaken,
        () = stay.evicted_unidentified() => return,
    };
    if let Ok(Ok(connection)) = handshaken {
        accept(runtime, connection, caller, stay, inside).await;
    }
}

/// Dropped, it ends its requests: their tasks are the connection's.
async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    runtime: Arc<Runtime>,
    mut connection: Connection<S, Bytes>,
    caller: Arc<Caller>,
    stay: ConnectionLifetime,
    inside: ServeInspected,
) {
    let mut tasks = JoinSet::new();
    let unanswered = Arc::new(watch::Sender::new(0));
    let mut all_answered = unanswered.subscribe();
    let mut over = pin!(stay.expired());
    let (mut is_leaving, mut goodbye) = (false, GOODBYE);
    // Pings and settings are no reason to stay.
    let mut quiet_since = Instant::now();
    loop {
        let patience = if is_leaving { goodbye } else { runtime.active_config().plan.timeouts.idle };
        let idle = (tasks.is_empty() && !is_leaving).then(|| stay.mark_idle()).flatten();
        // What comes after a response, such as the rest of a refused request, keeps no unidentified peer's connection.
        let waits = *all_answered.borrow_and_update() == 0 && !is_leaving;
        let is_over = tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok(_)) if tasks.len() >= TASKS_MAX => {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    false
                }
                Some(Ok((request, reply))) => {
                    stay.begin_request();
                    let (runtime, caller, open) = (Arc::clone(&runtime), Arc::clone(&caller), runtime.open_stream());
                    let unanswered = PendingResponse::begin(&unanswered);
                    tasks.spawn(async move {
                        answer(&runtime, request, reply, &caller, inside, unanswered).await;
                        drop(open);
                    });
                    false
                }
                _ => return,
            },
            Some(_) = tasks.join_next() => {
                quiet_since = Instant::now();
                false
            }
            Ok(()) = all_answered.changed() => false,
            () = sleep_until(quiet_since + patience), if tasks.is_empty() => true,
            () = &mut over, if !is_leaving => true,
            () = stay.evicted_unidentified(), if waits => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                // One poll writes GOAWAY; another connection waits for the room.
                return poll_fn(|cx| {
                    let _ = connection.poll_accept(cx);
                    Poll::Ready(())
                })
                .await;
            }
            () = wait_for_eviction(idle.as_ref()) => {
                // What the client has asked for just now it may ask for elsewhere: it was not seen (RFC 9113 §6.8).
                connection.abrupt_shutdown(Reason::NO_ERROR);
                (is_leaving, goodbye) = (true, EVICTED_GOODBYE);
                quiet_since = Instant::now();
                false
            }
        };
        if is_over && is_leaving {
            return;
        } else if is_over {
            is_leaving = true;
            quiet_since = Instant::now();
            connection.graceful_shutdown();
        }
    }
}

/// A request whose response is not out, counted until this is dropped.
struct PendingResponse(Arc<watch::Sender<usize>>);

impl PendingResponse {
    fn begin(count: &Arc<watch::Sender<usize>>) -> Self {
        // Only the connection adds, and it reads the count next.
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

/// One request, from its head to the last byte of its answer. A client that resets the stream, or goes, ends it where
/// it is.
async fn answer(
    runtime: &Arc<Runtime>,
    request: Request<RecvStream>,
    reply: SendResponse<Bytes>,
    caller: &Arc<Caller>,
    inside: ServeInspected,
    unanswered: PendingResponse,
) {
    let (mut head, incoming) = request.into_parts();
    let reply = Responder::new(reply);
    let patience = runtime.active_config().plan.timeouts.idle;
    let method = head.method.clone();
    let (response, unread) = match request::read(&mut head) {
        Ok(asked) if method == Method::CONNECT => {
            let refused = connect::serve(runtime, head, asked.target, incoming, &reply, caller, inside).await;
            let Some((response, incoming)) = refused else { return };
            (response, Http2Body::new(incoming, None, None).1)
        }
        Ok(asked) => {
            let continues = asked.expects_continue.then(|| reply.clone());
            let (body, unread) = Http2Body::new(incoming, asked.length, continues);
            let arrival = ProxyRequest {
                method: head.method,
                version: Version::HTTP_2,
                target: asked.target,
                fields: head.headers,
                body: Box::pin(body),
                caller: Arc::clone(caller),
                interim: Some(reply.interim()),
            };
            let delivering = pin!(delivery::deliver(runtime, arrival));
            let Some(response) = run_until_hangup(reply.is_reset(), delivering).await else { return };
            (response, unread)
        }
        Err(RequestError(status, detail)) => {
            let (_, unread) = Http2Body::new(incoming, None, None);
            // With Outgate-Target the URI is not where the request is for. In the place of a head that was too large stands
            // another one.
            let is_own = !head.headers.contains_key("outgate-target") && Violation::of(&head.headers).is_none();
            let asked = is_own.then(|| (method.clone(), head.uri.to_string()));
            (delivery::refuse_unread(runtime, caller, asked.as_ref(), (status, detail)), unread)
        }
    };
    let deadline = response.body().deadline().unwrap_or_else(|| Instant::now() + patience);
    let is_ours = matches!(response.body(), ResponseBody::Full(_));
    let mut sending = pin!(timeout_at(deadline, reply.send(response, &method)));
    let mut unanswered = Some(unanswered);
    let sent = poll_fn(|cx| {
        let polled = sending.as_mut().poll(cx);
        // A refusal is out as far as the client has opened its windows: we do not wait for it to open them further.
        unanswered.take_if(|_| is_ours || polled.is_ready());
        polled
    })
    .await;
    // Whatever is left open when this ends is reset, so that no client takes the half for the whole.
    if let Ok(Ok(())) = sent {
        unread.drain(lingering::bytes_max(runtime)).await;
    }
}
