//! HTTP/1 towards clients: request after request on one connection.
//! What keeps a connection open, and what ends it?

mod body;
mod conn;
mod connect;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod head;
mod response;
mod tunnel;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Response, Version};
use tokio::time::Instant;

use crate::delivery::tunnel::{InspectedTunnel, Tunnel};
use crate::delivery::{self, InterimCallback, ProxyRequest, ResponseBody};
use crate::policy::authn::Caller;
use crate::server::client_io::ClientIo;
use crate::server::hangup::unless;
use crate::server::lifetime::ConnectionLifetime;
use crate::server::lingering;
use crate::server::request_error::{InvalidRequest, RequestError};
use crate::state::Runtime;
use conn::{Conn, ReadHeadError};
use head::RequestHead;
use response::ResponseWriter;
pub(super) use tunnel::carry;

/// Serves one connection to its end, or up to a tunnel that is to be inspected; `opening` has what was read of it already.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    opening: BytesMut,
    caller: &Arc<Caller>,
    stay: ConnectionLifetime,
) -> Option<(Box<dyn ClientIo>, Box<InspectedTunnel>)> {
    let line = Conn::new(stream, opening);
    loop {
        let idle = runtime.active_config().plan.timeouts.idle;
        let head = line.head(idle, stay.closed(), stay.evicted_unidentified()).await;
        stay.begin_request();
        // Boxed, so that a connection that waits for its next request holds nothing of them.
        let next = match head {
            Ok(head) if head.method == Method::CONNECT => {
                Box::pin(connect::serve(runtime, &line, head, caller, idle)).await
            }
            Ok(head) => Box::pin(serve_one(runtime, &line, head, caller, &stay)).await,
            Err(ReadHeadError::Invalid(why)) => Box::pin(refuse_malformed(runtime, &line, why, caller, idle)).await,
            Err(ReadHeadError::Closed) => return None,
        };
        match next {
            AfterResponse::KeepAlive if line.body_has_ended() => {}
            AfterResponse::KeepAlive => {
                if !Box::pin(finish(runtime, &line, &stay, true)).await {
                    return None;
                }
            }
            AfterResponse::Close => {
                Box::pin(finish(runtime, &line, &stay, false)).await;
                return None;
            }
            AfterResponse::Abort => return None,
            AfterResponse::Tunnel(tunnel) => {
                Box::pin(carry(runtime, Box::new(line.take_stream()), tunnel, caller)).await;
                return None;
            }
            AfterResponse::Inspect(inspection) => return Some((Box::new(line.take_stream()), inspection)),
        }
    }
}

/// Answers a connection on which no request is read, lets the answer arrive, and closes the connection.
pub(super) async fn refuse(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    response: Response<ResponseBody>,
    stay: &ConnectionLifetime,
) {
    let line = Conn::new(stream, BytesMut::new());
    stay.begin_request();
    let idle = runtime.active_config().plan.timeouts.idle;
    if ResponseWriter::new(response, &Method::GET, Version::HTTP_11, false).write(&line, idle).await.is_ok() {
        finish(runtime, &line, stay, false).await;
    }
}

enum AfterResponse {
    /// The answer is out; another request may follow the body of this one.
    KeepAlive,
    /// The answer is out; let it arrive.
    Close,
    /// The client is gone, or must see that its answer is not whole.
    Abort,
    /// What comes from now on is the tunnel's.
    Tunnel(Box<Tunnel>),
    /// What comes from now on is TLS, to be accepted in the target's place.
    Inspect(Box<InspectedTunnel>),
}

async fn serve_one(
    runtime: &Arc<Runtime>,
    line: &Conn,
    head: RequestHead,
    caller: &Arc<Caller>,
    stay: &ConnectionLifetime,
) -> AfterResponse {
    let idle = runtime.active_config().plan.timeouts.idle;
    let RequestHead { method, target, version, fields, keep_alive, .. } = head;
    // HTTP/1.0 knows no interim answers (RFC 9110 §15.2).
    let interim = (version == Version::HTTP_11).then(|| interim(line));
    let arrival = ProxyRequest {
        method: method.clone(),
        version,
        target,
        fields,
        body: Box::pin(line.body()),
        caller: Arc::clone(caller),
        interim,
    };
    let response = {
        let delivering = pin!(delivery::deliver(runtime, arrival));
        let Some(response) = unless(line.hangs_up(), delivering).await else { return AfterResponse::Abort };
        response
    };
    // The target's answer to half an upload may be all that it wants of this client.
    let is_ours = matches!(response.body(), ResponseBody::Full(_));
    let keep_alive = keep_alive && !stay.should_close() && line.can_drain_body(lingering::limit(runtime), is_ours);
    let deadline = response.body().deadline();
    let answer = ResponseWriter::new(response, &method, version, keep_alive);
    let closes = answer.closes();
    let written = {
        let mut writing = pin!(answer.write(line, idle));
        let writing = async {
            match deadline {
                Some(deadline) => {
                    tokio::time::timeout_at(deadline, &mut writing).await.unwrap_or_else(|late| Err(late.into()))
                }
                None => writing.await,
            }
        };
        tokio::select! {
            biased;
            written = writing => written,
            () = line.hangs_up() => return AfterResponse::Abort,
        }
    };
    match written {
        Err(_) => AfterResponse::Abort,
        Ok(()) if closes => AfterResponse::Close,
        Ok(()) => AfterResponse::KeepAlive,
    }
}

fn interim(line: &Conn) -> InterimCallback {
    let line = line.interim_writer();
    Box::new(move |status, fields| {
        let mut head = Vec::new();
        response::write_head(&mut head, status, status.canonical_reason().unwrap_or_default(), fields);
        line.interim(&head);
    })
}

/// Lets the answer arrive at a client that is still writing its request. True if another one may follow. A connection of
/// an unidentified peer may be evicted meanwhile.
async fn finish(runtime: &Runtime, line: &Conn, stay: &ConnectionLifetime, keeps: bool) -> bool {
    let (most, deadline) = (lingering::limit(runtime), Instant::now() + lingering::TOTAL);
    let draining = async {
        let is_whole = line.drain_body(most, deadline).await;
        if keeps && is_whole {
            return true;
        }
        line.lingering_close(most, deadline).await;
        false
    };
    tokio::select! {
        may_follow = draining => may_follow,
        () = stay.evicted_unidentified() => false,
    }
}

/// What cannot be read as a request is answered and recorded like any refusal, and ends the connection: where the next
/// request would begin is anybody's guess.
async fn refuse_malformed(
    runtime: &Arc<Runtime>,
    line: &Conn,
    unread: InvalidRequest,
    caller: &Caller,
    idle: Duration,
) -> AfterResponse {
    let InvalidRequest { why: RequestError(status, detail), asked } = unread;
    let response = delivery::refuse_unread(runtime, caller, asked.as_ref(), (status, detail));
    match ResponseWriter::new(response, &Method::GET, Version::HTTP_11, false).write(line, idle).await {
        Ok(()) => AfterResponse::Close,
        Err(_) => AfterResponse::Abort,
    }
}
