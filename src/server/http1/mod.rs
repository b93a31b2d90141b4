//! HTTP/1 towards clients: request after request on one connection.
//! What keeps a connection open, and what ends it?

mod answer;
mod body;
mod carry;
mod connect;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod head;
mod line;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Response, Version};
use tokio::time::Instant;

use crate::delivery::tunnel::{Inspection, Tunnel};
use crate::delivery::{self, Arrival, Interim, Outbound};
use crate::live::Live;
use crate::policy::identify::Caller;
use crate::server::drain;
use crate::server::hang_up::unless;
use crate::server::malformed::{Malformed, Unread};
use crate::server::stay::Stay;
use crate::server::stream::Stream;
use answer::Answer;
pub(super) use carry::carry;
use head::Head;
use line::{Line, NoHead};

/// Serves one connection to its end, or up to a tunnel that is to be inspected; `opening` has what was read of it already.
pub(super) async fn serve(
    live: &Arc<Live>,
    stream: Box<dyn Stream>,
    opening: BytesMut,
    caller: &Arc<Caller>,
    stay: Stay,
) -> Option<(Box<dyn Stream>, Box<Inspection>)> {
    let line = Line::new(stream, opening);
    loop {
        let idle = live.in_force().plan.timeouts.idle;
        let head = line.head(idle, stay.over(), stay.evicted_unidentified()).await;
        stay.begin_request();
        // Boxed, so that a connection that waits for its next request holds nothing of them.
        let next = match head {
            Ok(head) if head.method == Method::CONNECT => {
                Box::pin(connect::serve(live, &line, head, caller, idle)).await
            }
            Ok(head) => Box::pin(serve_one(live, &line, head, caller, &stay)).await,
            Err(NoHead::Malformed(why)) => Box::pin(refuse_malformed(live, &line, why, caller, idle)).await,
            Err(NoHead::Closed) => return None,
        };
        match next {
            Next::Another if line.body_has_ended() => {}
            Next::Another => {
                if !Box::pin(finish(live, &line, &stay, true)).await {
                    return None;
                }
            }
            Next::Close => {
                Box::pin(finish(live, &line, &stay, false)).await;
                return None;
            }
            Next::Abandon => return None,
            Next::Carry(tunnel) => {
                Box::pin(carry(live, Box::new(line.take()), tunnel, caller)).await;
                return None;
            }
            Next::Inspect(inspection) => return Some((Box::new(line.take()), inspection)),
        }
    }
}

/// Answers a connection on which no request is read, lets the answer arrive, and closes the connection.
pub(super) async fn refuse(live: &Arc<Live>, stream: Box<dyn Stream>, response: Response<Outbound>, stay: &Stay) {
    let line = Line::new(stream, BytesMut::new());
    stay.begin_request();
    let idle = live.in_force().plan.timeouts.idle;
    if Answer::new(response, &Method::GET, Version::HTTP_11, false).write(&line, idle).await.is_ok() {
        finish(live, &line, stay, false).await;
    }
}

enum Next {
    /// The answer is out; another request may follow the body of this one.
    Another,
    /// The answer is out; let it arrive.
    Close,
    /// The client is gone, or must see that its answer is not whole.
    Abandon,
    /// What comes from now on is the tunnel's.
    Carry(Box<Tunnel>),
    /// What comes from now on is TLS, to be accepted in the target's place.
    Inspect(Box<Inspection>),
}

async fn serve_one(live: &Arc<Live>, line: &Line, head: Head, caller: &Arc<Caller>, stay: &Stay) -> Next {
    let idle = live.in_force().plan.timeouts.idle;
    let Head { method, target, version, fields, keep_alive, .. } = head;
    // HTTP/1.0 knows no interim answers (RFC 9110 §15.2).
    let interim = (version == Version::HTTP_11).then(|| interim(line));
    let arrival = Arrival {
        method: method.clone(),
        version,
        target,
        fields,
        body: Box::pin(line.body()),
        caller: Arc::clone(caller),
        interim,
    };
    let response = {
        let delivering = pin!(delivery::deliver(live, arrival));
        let Some(response) = unless(line.hangs_up(), delivering).await else { return Next::Abandon };
        response
    };
    // The target's answer to half an upload may be all that it wants of this client.
    let is_ours = matches!(response.body(), Outbound::Whole(_));
    let keep_alive = keep_alive && !stay.is_over() && line.can_drain_body(drain::limit(live), is_ours);
    let deadline = response.body().deadline();
    let answer = Answer::new(response, &method, version, keep_alive);
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
            () = line.hangs_up() => return Next::Abandon,
        }
    };
    match written {
        Err(_) => Next::Abandon,
        Ok(()) if closes => Next::Close,
        Ok(()) => Next::Another,
    }
}

fn interim(line: &Line) -> Interim {
    let line = line.aside();
    Box::new(move |status, fields| {
        let mut head = Vec::new();
        answer::write_head(&mut head, status, status.canonical_reason().unwrap_or_default(), fields);
        line.interim(&head);
    })
}

/// Lets the answer arrive at a client that is still writing its request. True if another one may follow. A connection of
/// an unidentified peer may be evicted meanwhile.
async fn finish(live: &Live, line: &Line, stay: &Stay, keeps: bool) -> bool {
    let (most, deadline) = (drain::limit(live), Instant::now() + drain::TOTAL);
    let draining = async {
        let is_whole = line.drain_body(most, deadline).await;
        if keeps && is_whole {
            return true;
        }
        line.linger(most, deadline).await;
        false
    };
    tokio::select! {
        may_follow = draining => may_follow,
        () = stay.evicted_unidentified() => false,
    }
}

/// What cannot be read as a request is answered and recorded like any refusal, and ends the connection: where the next
/// request would begin is anybody's guess.
async fn refuse_malformed(live: &Arc<Live>, line: &Line, unread: Unread, caller: &Caller, idle: Duration) -> Next {
    let Unread { why: Malformed(status, detail), asked } = unread;
    let response = delivery::refuse_unread(live, caller, asked.as_ref(), (status, detail));
    match Answer::new(response, &Method::GET, Version::HTTP_11, false).write(line, idle).await {
        Ok(()) => Next::Close,
        Err(_) => Next::Abandon,
    }
}
