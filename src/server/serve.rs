//! One connection, in whatever version of HTTP the client speaks on it.
//! Is this HTTP/2 or HTTP/1?

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::client_io::{ClientIo, Rewind, poll_read};
use super::connections::Evictable;
use super::entrance::Transport;
use super::inspect::{self, InspectedStream};
use super::lifetime::ConnectionLifetime;
use super::listener_shutdown::ConnContext;
use super::{http1, http2};
use crate::delivery::{self, tunnel::InspectedTunnel};
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// What a client of HTTP/2 sends first (RFC 9113 §3.4), with ALPN or without: no request of HTTP/1 begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a ClientHello (RFC 8446 §5.1), which begins no request.
const TLS_HANDSHAKE: &[u8] = &[0x16];
/// From the first byte to the one that tells.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection to its end. Of `caller` it is known by now what the connection shows. It stays evictable from its
/// arrival to the first request.
pub(super) async fn serve(
    runtime: Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    transport: Transport,
    caller: Arc<Caller>,
    way: (ConnContext, Evictable),
) {
    let stay = ConnectionLifetime::new(&runtime, &caller, None, Some(way));
    if let Some((outside, inspection)) = serve_one(&runtime, stream, transport, &caller, stay).await {
        inside(runtime, outside, inspection, caller).await;
    }
}

/// Answers a client that speaks plain HTTP to a listener with TLS, and closes the connection.
pub(super) async fn refuse_plaintext(
    runtime: Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    caller: Arc<Caller>,
    way: (ConnContext, Evictable),
) {
    let stay = ConnectionLifetime::new(&runtime, &caller, None, Some(way));
    let response = delivery::refuse_plaintext(&runtime, &caller);
    http1::refuse(&runtime, stream, response, &stay).await;
}

/// Serves what is inside of a tunnel that is inspected; an [`InspectedStream`].
fn inside(
    runtime: Arc<Runtime>,
    outside: Box<dyn ClientIo>,
    mut inspection: Box<InspectedTunnel>,
    caller: Arc<Caller>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let accepted = inspect::accept(outside, &mut inspection).await;
        let caller = Caller { inside: Some(inspection.inside.clone()), ..Caller::clone(&caller) };
        // Inside of a tunnel there is no other.
        let caller = Arc::new(caller);
        let stay = ConnectionLifetime::new(&runtime, &caller, Some(inspection.until), None);
        match accepted {
            InspectedStream::Http(stream) => {
                serve_one(&runtime, stream, Transport::Tls, &caller, stay).await;
                inspection.end();
            }
            InspectedStream::UnexpectedPlaintext(stream) => {
                let response = inspection.refuse_plaintext();
                http1::refuse(&runtime, stream, response, &stay).await;
            }
            InspectedStream::Aborted => {}
        }
    })
}

/// Gives a tunnel that is to be inspected, if it comes to that.
async fn serve_one(
    runtime: &Arc<Runtime>,
    mut stream: Box<dyn ClientIo>,
    transport: Transport,
    caller: &Arc<Caller>,
    stay: ConnectionLifetime,
) -> Option<(Box<dyn ClientIo>, Box<InspectedTunnel>)> {
    let mut opening = BytesMut::new();
    if !read_opening(runtime, &stay, &mut stream, &mut opening).await {
        return None;
    }
    if transport == Transport::Plaintext && opening.starts_with(TLS_HANDSHAKE) {
        http1::refuse(runtime, stream, delivery::refuse_tls(runtime, caller), &stay).await;
        return None;
    }
    if opening.starts_with(PREFACE) {
        Box::pin(http2::serve(Arc::clone(runtime), Rewind::new(opening, stream), Arc::clone(caller), stay, inside))
            .await;
        None
    } else {
        http1::serve(runtime, stream, opening, caller, stay).await
    }
}

/// Reads as much as tells the versions apart. False: the client went, or it is time to.
async fn read_opening(
    runtime: &Runtime,
    stay: &ConnectionLifetime,
    stream: &mut Box<dyn ClientIo>,
    opening: &mut BytesMut,
) -> bool {
    let mut over = pin!(Some(stay.closed()));
    let mut evicted = pin!(stay.evicted_unidentified());
    let mut deadline = Instant::now() + runtime.active_config().plan.timeouts.idle;
    loop {
        let read = match over.as_mut().as_pin_mut() {
            Some(over) => tokio::select! {
                biased;
                read = timeout_at(deadline, poll_fn(|cx| poll_read(stream, opening, cx))) => read,
                () = over => return false,
                () = &mut evicted => return false,
            },
            None => tokio::select! {
                biased;
                read = timeout_at(deadline, poll_fn(|cx| poll_read(stream, opening, cx))) => read,
                () = &mut evicted => return false,
            },
        };
        over.set(None); // it is not idle any more
        match read {
            Ok(Ok(length)) if length > 0 => {}
            _ => return false,
        }
        if opening.len() >= PREFACE.len() || !PREFACE.starts_with(opening) {
            return true;
        }
        deadline = deadline.min(Instant::now() + OPENING_TIMEOUT);
    }
}
