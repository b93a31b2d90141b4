//! CONNECT over HTTP/2: one stream of the connection becomes a tunnel (RFC 9113 §8.5).
//! How does a stream of frames become a stream of bytes?

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::Version;
use http::request::Parts;
use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::request;
use super::respond::Responder;
use crate::delivery::tunnel::{self, ConnectOutcome};
use crate::delivery::{ProxyRequest, ResponseBody};
use crate::http_message::Response;
use crate::net::splice::MaybeSocket;
use crate::policy::authn::Caller;
use crate::server::client_io::ClientIo;
use crate::server::hangup::run_until_hangup;
use crate::server::http1;
use crate::server::inspect::ServeInspected;
use crate::state::Runtime;

/// Serves a tunnel until it closes. Returns the response to a CONNECT that is refused.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    head: Parts,
    target: String,
    incoming: RecvStream,
    responder: &Responder,
    caller: &Arc<Caller>,
    serve_inspected: ServeInspected,
) -> Option<(Response<ResponseBody>, RecvStream)> {
    let arrival = ProxyRequest {
        fields: request::fields(&head),
        method: head.method,
        version: Version::HTTP_2,
        target,
        // The DATA frames belong to the tunnel.
        body: Box::pin(Empty::new().map_err(|never| match never {})),
        caller: Arc::clone(caller),
        interim: None,
    };
    let connected = {
        let connecting = pin!(tunnel::connect(runtime, arrival));
        run_until_hangup(responder.reset_by_client(), connecting).await?
    };
    match connected {
        ConnectOutcome::Refused(response) => return Some((response, incoming)),
        ConnectOutcome::Tunnel(tunnel) => {
            if let Ok(outgoing) = responder.send_head(tunnel.answer()) {
                http1::serve_tunnel(runtime, Box::new(UpgradedStream::new(incoming, outgoing)), tunnel, caller).await;
            }
        }
        ConnectOutcome::Inspected(inspection) => {
            if let Ok(outgoing) = responder.send_head(inspection.answer()) {
                let stream = Box::new(UpgradedStream::new(incoming, outgoing));
                serve_inspected(Arc::clone(runtime), stream, inspection, Arc::clone(caller)).await;
            }
        }
    }
    None
}

/// Both directions of an HTTP/2 stream, as bytes. A stream that is dropped before its shutdown is reset: RFC 9113 §8.5
/// treats every end but an orderly one as an error.
struct UpgradedStream {
    incoming: RecvStream,
    /// Received bytes that were not read yet.
    read_buffer: Bytes,
    outgoing: SendStream<Bytes>,
    has_ended: bool,
}

impl UpgradedStream {
    fn new(incoming: RecvStream, outgoing: SendStream<Bytes>) -> Self {
        Self { incoming, read_buffer: Bytes::new(), outgoing, has_ended: false }
    }
}

impl Drop for UpgradedStream {
    fn drop(&mut self) {
        if !self.has_ended {
            self.outgoing.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

impl MaybeSocket for UpgradedStream {}

impl ClientIo for UpgradedStream {
    /// Does nothing: the stream is always reset on drop.
    fn set_abort_on_drop(&mut self, _: bool) {}

    /// Resolves on a reset. Only `poll_read` returns an orderly end, after the bytes that precede it.
    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.outgoing.poll_reset(cx).map(drop)
    }
}

impl AsyncRead for UpgradedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read_buffer.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
                Some(Ok(data)) => self.read_buffer = data,
                Some(Err(error)) => return Poll::Ready(Err(to_io_error(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.read_buffer.len().min(buf.remaining());
        buf.put_slice(&self.read_buffer[..length]);
        self.read_buffer.advance(length);
        // The window grows by the bytes taken: a client cannot send faster than the target accepts them.
        let _ = self.incoming.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpgradedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.outgoing.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        self.outgoing.reserve_capacity(bytes.len());
        // `poll_capacity` does not report the rest of an earlier grant again.
        while self.outgoing.capacity() == 0 {
            match ready!(self.outgoing.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = self.outgoing.capacity().min(bytes.len());
        let sent = self.outgoing.send_data(Bytes::copy_from_slice(&bytes[..length]), false);
        Poll::Ready(sent.map(|()| length).map_err(to_io_error))
    }

    /// Does nothing: h2 writes as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            self.outgoing.send_data(Bytes::new(), true).map_err(to_io_error)?;
            self.has_ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn to_io_error(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
