//! Serves one connection in the version of HTTP that the client speaks.
//! Does the client speak HTTP/1 or HTTP/2?

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::client_io::{ClientIo, Rewind, poll_read};
use super::connections::Connections;
use super::entrance::{Established, Transport};
use super::http1::{Upgrade, serve_tunnel};
use super::inspect::{self, InspectedStream};
use super::lifetime::ConnectionLifetime;
use super::listener_shutdown::{ConnContext, ListenerShutdown};
use super::{http1, http2};
use crate::delivery::{self, tunnel::InspectedTunnel};
use crate::net::frame::PREFACE;
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// The first byte of a ClientHello (RFC 8446 §5.1). No request begins with it.
const TLS_HANDSHAKE_BYTE: &[u8] = &[0x16];
/// The time from the first byte to the byte that determines the version.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection until it closes. The connection is evictable from its arrival to the first request.
pub(super) async fn serve(
    runtime: Arc<Runtime>,
    established: Box<Established>,
    connections: Connections,
    shutdown: ListenerShutdown,
) {
    let (conn, stream, caller, evictable, transport) = established.into_parts();
    let upgraded = {
        let context = ConnContext { connections, shutdown, id: conn.id() };
        let lifetime = ConnectionLifetime::new(&runtime, &caller, None, Some((context, evictable)));
        // Boxed, so that a tunnel does not hold the memory of this future.
        Box::pin(serve_stream(&runtime, stream, transport, &caller, &lifetime)).await
    };
    match upgraded {
        Some((stream, Upgrade::Tunnel(tunnel))) => Box::pin(serve_tunnel(&runtime, stream, tunnel, &caller)).await,
        Some((stream, Upgrade::Inspect(inspection))) => serve_inspected(runtime, stream, inspection, caller).await,
        None => {}
    }
    drop(conn);
}

/// Serves HTTP inside an inspected tunnel; a [`ServeInspected`](inspect::ServeInspected).
fn serve_inspected(
    runtime: Arc<Runtime>,
    outer: Box<dyn ClientIo>,
    mut inspection: Box<InspectedTunnel>,
    caller: Arc<Caller>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let accepted = inspect::accept(outer, &mut inspection).await;
        let caller = Arc::new(caller.in_tunnel(inspection.inside.clone()));
        let lifetime = ConnectionLifetime::new(&runtime, &caller, Some(inspection.until), None);
        match accepted {
            InspectedStream::Http(stream) => {
                // A tunnel contains no further tunnel: the returned value is always `None`.
                serve_stream(&runtime, stream, Transport::Tls, &caller, &lifetime).await;
                inspection.end();
            }
            InspectedStream::UnexpectedPlaintext(stream) => {
                let response = inspection.refuse_plaintext();
                http1::refuse(&runtime, stream, response, &lifetime).await;
            }
            InspectedStream::Aborted => {}
        }
    })
}

/// Serves HTTP on one stream. Returns the stream and the tunnel if the client opens one over HTTP/1.
async fn serve_stream(
    runtime: &Arc<Runtime>,
    mut stream: Box<dyn ClientIo>,
    transport: Transport,
    caller: &Arc<Caller>,
    lifetime: &ConnectionLifetime,
) -> Option<(Box<dyn ClientIo>, Upgrade)> {
    if transport == Transport::UnexpectedPlaintext {
        Box::pin(http1::refuse(runtime, stream, delivery::refuse_plaintext(runtime, caller), lifetime)).await;
        return None;
    }
    let mut preface = BytesMut::new();
    if !read_preface(runtime, lifetime, &mut stream, &mut preface).await {
        return None;
    }
    if transport == Transport::Plaintext && preface.starts_with(TLS_HANDSHAKE_BYTE) {
        Box::pin(http1::refuse(runtime, stream, delivery::refuse_tls(runtime, caller), lifetime)).await;
        return None;
    }
    if preface.starts_with(PREFACE) {
        Box::pin(http2::serve(
            Arc::clone(runtime),
            Rewind::new(preface, stream),
            Arc::clone(caller),
            lifetime,
            serve_inspected,
        ))
        .await;
        None
    } else {
        http1::serve(runtime, stream, preface, caller, lifetime).await
    }
}

/// Reads enough bytes to determine the version. Returns false if the client is gone or the connection should close.
async fn read_preface(
    runtime: &Runtime,
    lifetime: &ConnectionLifetime,
    stream: &mut Box<dyn ClientIo>,
    preface: &mut BytesMut,
) -> bool {
    let mut closed = pin!(Some(lifetime.closed()));
    let mut evicted = pin!(lifetime.evicted_unidentified());
    let mut deadline = Instant::now() + runtime.active_config().plan.timeouts.idle;
    loop {
        let read = match closed.as_mut().as_pin_mut() {
            Some(closed) => tokio::select! {
                biased;
                read = timeout_at(deadline, poll_fn(|cx| poll_read(stream, preface, cx))) => read,
                () = closed => return false,
                () = &mut evicted => return false,
            },
            None => tokio::select! {
                biased;
                read = timeout_at(deadline, poll_fn(|cx| poll_read(stream, preface, cx))) => read,
                () = &mut evicted => return false,
            },
        };
        closed.set(None); // the connection is no longer idle
        match read {
            Ok(Ok(length)) if length > 0 => {}
            _ => return false,
        }
        if preface.len() >= PREFACE.len() || !PREFACE.starts_with(preface) {
            return true;
        }
        deadline = deadline.min(Instant::now() + PREFACE_TIMEOUT);
    }
}
