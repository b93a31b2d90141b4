//! HTTP/1 with clients: the requests of one connection, in sequence.
//! When does a connection stay open after a response, and when does it close?

mod conn;
mod connect;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod head;
mod response;
mod response_head;
mod tunnel;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Version};
use tokio::time::Instant;

use crate::delivery::tunnel::{InspectedTunnel, Tunnel};
use crate::delivery::{self, ProxyRequest, ResponseBody};
use crate::http_message::Response;
use crate::policy::authn::Caller;
use crate::server::client_io::ClientIo;
use crate::server::hangup::run_until_hangup;
use crate::server::lifetime::ConnectionLifetime;
use crate::server::lingering;
use crate::server::request_error::{InvalidRequest, RequestError};
use crate::state::Runtime;
use conn::{Conn, ReadHeadError};
use head::RequestHead;
use response::ResponseWriter;
pub(super) use tunnel::serve_tunnel;

/// The tunnel to which the client has changed the connection.
pub(super) enum Upgrade {
    Tunnel(Box<Tunnel>),
    /// outgate serves the requests inside.
    Inspect(Box<InspectedTunnel>),
}

/// Serves a connection until it closes or becomes a tunnel. The caller serves the tunnel, so that it does not hold the
/// memory of this future. `buffered` holds the bytes that were read already.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    buffered: BytesMut,
    caller: &Arc<Caller>,
    lifetime: &ConnectionLifetime,
) -> Option<(Box<dyn ClientIo>, Upgrade)> {
    let conn = Conn::new(stream, buffered);
    loop {
        let idle = runtime.active_config().plan.timeouts.idle;
        let head = {
            let (mut close, mut evicted) = (pin!(Some(lifetime.closed())), pin!(lifetime.evicted_unidentified()));
            conn.read_head(idle, close.as_mut(), evicted.as_mut()).await
        };
        lifetime.begin_request();
        // Boxed, so that a connection that waits for its next request does not hold the memory of these futures.
        let next = match head {
            Ok(head) if head.method == Method::CONNECT => {
                Box::pin(connect::serve(runtime, &conn, head, caller, idle)).await
            }
            // `Box::pin` would copy the future, which has several KiB, from the stack to the memory that it allocates.
            Ok(head) => {
                Box::into_pin(Box::write(Box::new_uninit(), serve_request(runtime, &conn, head, caller, lifetime)))
                    .await
            }
            Err(ReadHeadError::Invalid(error)) => Box::pin(refuse_invalid(runtime, &conn, error, caller, idle)).await,
            Err(ReadHeadError::Closed) => return None,
        };
        match next {
            AfterResponse::KeepAlive if conn.body_has_ended() => {}
            AfterResponse::KeepAlive => {
                if !Box::pin(discard_rest(runtime, &conn, lifetime, true)).await {
                    return None;
                }
            }
            AfterResponse::Close => {
                Box::pin(discard_rest(runtime, &conn, lifetime, false)).await;
                return None;
            }
            AfterResponse::Abort => return None,
            AfterResponse::Upgrade(upgrade) => return Some((conn.take_stream(), upgrade)),
        }
    }
}

/// Sends a response on a connection without reading a request, lets the response arrive, and closes the connection.
pub(super) async fn refuse(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    response: Response<ResponseBody>,
    lifetime: &ConnectionLifetime,
) {
    let conn = Conn::new(stream, BytesMut::new());
    lifetime.begin_request();
    let idle = runtime.active_config().plan.timeouts.idle;
    if ResponseWriter::new(response, &Method::GET, Version::HTTP_11, false).write(&conn, idle).await.is_ok() {
        discard_rest(runtime, &conn, lifetime, false).await;
    }
}

enum AfterResponse {
    /// The response is sent. The next request may follow the body of this one.
    KeepAlive,
    /// The response is sent. The connection closes once the response has arrived.
    Close,
    /// The client is gone, or must notice that its response is incomplete.
    Abort,
    /// The following bytes belong to the tunnel.
    Upgrade(Upgrade),
}

async fn serve_request(
    runtime: &Arc<Runtime>,
    conn: &Conn,
    head: RequestHead,
    caller: &Arc<Caller>,
    lifetime: &ConnectionLifetime,
) -> AfterResponse {
    let idle = runtime.active_config().plan.timeouts.idle;
    let RequestHead { method, target, version, fields, keep_alive, .. } = head;
    // HTTP/1.0 has no interim responses (RFC 9110 §15.2).
    let interim = (version == Version::HTTP_11).then(|| conn.interim_sender());
    let arrival = ProxyRequest {
        method: method.clone(),
        version,
        target,
        fields,
        body: Box::pin(conn.body()),
        caller: Arc::clone(caller),
        interim,
    };
    let response = {
        let delivering = pin!(delivery::deliver(runtime, arrival));
        let Some(response) = run_until_hangup(conn.hangup(), delivering).await else { return AfterResponse::Abort };
        response
    };
    // If a target responds to half an upload, the client should stop sending: an unlimited rest is discarded only after
    // a response of outgate's own.
    let is_local_reply = matches!(response.body, ResponseBody::Full(_));
    let keep_alive =
        keep_alive && !lifetime.should_close() && conn.can_discard_body(lingering::bytes_max(runtime), is_local_reply);
    let deadline = response.body.deadline();
    let writer = ResponseWriter::new(response, &method, version, keep_alive);
    let closes_connection = writer.closes_connection();
    let written = {
        let mut writing = pin!(writer.write(conn, idle));
        let writing = async {
            match deadline {
                Some(deadline) => {
                    tokio::time::timeout_at(deadline, &mut writing).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
                }
                None => writing.await,
            }
        };
        tokio::select! {
            biased;
            written = writing => written,
            () = conn.hangup() => return AfterResponse::Abort,
        }
    };
    match written {
        Err(_) => AfterResponse::Abort,
        Ok(()) if closes_connection => AfterResponse::Close,
        Ok(()) => AfterResponse::KeepAlive,
    }
}

/// Discards the rest of the request, so that the response arrives at a client that is still sending. Returns whether
/// the next request may follow. A connection of an unidentified peer may be evicted meanwhile.
async fn discard_rest(runtime: &Runtime, conn: &Conn, lifetime: &ConnectionLifetime, keep_alive: bool) -> bool {
    let (mut bytes_left, deadline) = (lingering::bytes_max(runtime), Instant::now() + lingering::LINGERING_TIME);
    let discarding = async {
        let is_complete = conn.discard_body(&mut bytes_left, deadline).await;
        if keep_alive && is_complete {
            return true;
        }
        conn.lingering_close(bytes_left, deadline).await;
        false
    };
    tokio::select! {
        biased;
        may_follow = discarding => may_follow,
        () = lifetime.evicted_unidentified() => false,
    }
}

/// Refuses a request that cannot be parsed, records it like every refusal, and closes the connection: the start of the
/// next request is unknown.
async fn refuse_invalid(
    runtime: &Arc<Runtime>,
    conn: &Conn,
    invalid: InvalidRequest,
    caller: &Caller,
    idle: Duration,
) -> AfterResponse {
    let InvalidRequest { error: RequestError(status, detail), request_line } = invalid;
    let method = request_line.as_ref().map_or(Method::GET, |(method, _)| method.clone());
    let response = delivery::refuse_unread(runtime, caller, request_line.as_ref(), (status, detail));
    match ResponseWriter::new(response, &method, Version::HTTP_11, false).write(conn, idle).await {
        Ok(()) => AfterResponse::Close,
        Err(_) => AfterResponse::Abort,
    }
}
