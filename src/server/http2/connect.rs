//! CONNECT over HTTP/2: one stream of the connection becomes a tunnel (RFC 9113 §8.5).
//! How do frames become bytes, and who gets them?

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Response, Version};
use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::respond::Responder;
use crate::delivery::tunnel::{self, ConnectOutcome};
use crate::delivery::{ProxyRequest, ResponseBody};
use crate::policy::authn::Caller;
use crate::server::client_io::ClientIo;
use crate::server::hangup::run_until_hangup;
use crate::server::http1;
use crate::server::inspect::ServeInspected;
use crate::state::Runtime;

/// Gives the answer to a CONNECT that is refused; a tunnel is served to its end.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    head: Parts,
    target: String,
    incoming: RecvStream,
    reply: &Responder,
    caller: &Arc<Caller>,
    inside: ServeInspected,
) -> Option<(Response<ResponseBody>, RecvStream)> {
    let arrival = ProxyRequest {
        method: head.method,
        version: Version::HTTP_2,
        target,
        fields: head.headers,
        // What comes is the tunnel's.
        body: Box::pin(Empty::new().map_err(|never| match never {})),
        caller: Arc::clone(caller),
        interim: None,
    };
    let connected = {
        let connecting = pin!(tunnel::connect(runtime, arrival));
        run_until_hangup(reply.is_reset(), connecting).await?
    };
    match connected {
        ConnectOutcome::Refused(response) => return Some((response, incoming)),
        ConnectOutcome::Tunnel(tunnel) => {
            if let Ok(outgoing) = reply.open(tunnel.answer(runtime)) {
                http1::serve_tunnel(runtime, Box::new(UpgradedStream::new(incoming, outgoing)), tunnel, caller).await;
            }
        }
        ConnectOutcome::Inspected(inspection) => {
            if let Ok(outgoing) = reply.open(inspection.answer()) {
                let outside = Box::new(UpgradedStream::new(incoming, outgoing));
                inside(Arc::clone(runtime), outside, inspection, Arc::clone(caller)).await;
            }
        }
    }
    None
}

/// Both directions of a stream, as bytes. Dropped before it was shut down, it is reset: RFC 9113 §8.5 takes any end but
/// an orderly one for an error.
struct UpgradedStream {
    incoming: RecvStream,
    /// Came, and was not read yet.
    ahead: Bytes,
    outgoing: SendStream<Bytes>,
    has_ended: bool,
}

impl UpgradedStream {
    fn new(incoming: RecvStream, outgoing: SendStream<Bytes>) -> Self {
        Self { incoming, ahead: Bytes::new(), outgoing, has_ended: false }
    }
}

impl Drop for UpgradedStream {
    fn drop(&mut self) {
        if !self.has_ended {
            self.outgoing.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

impl ClientIo for UpgradedStream {
    /// It always does.
    fn resets_when_dropped(&mut self, _: bool) {}

    /// An orderly end is seen by `poll_read` alone, behind what came before it.
    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.outgoing.poll_reset(cx).map(drop)
    }
}

impl AsyncRead for UpgradedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
                Some(Ok(data)) => self.ahead = data,
                Some(Err(fault)) => return Poll::Ready(Err(broken(fault))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        // The window opens again by what was taken: a client cannot send faster than the target takes it.
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
        // What is left of an earlier grant is not announced again.
        while self.outgoing.capacity() == 0 {
            match ready!(self.outgoing.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(fault)) => return Poll::Ready(Err(broken(fault))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = self.outgoing.capacity().min(bytes.len());
        let sent = self.outgoing.send_data(Bytes::copy_from_slice(&bytes[..length]), false);
        Poll::Ready(sent.map(|()| length).map_err(broken))
    }

    /// h2 writes as it can: there is nothing to push.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            self.outgoing.send_data(Bytes::new(), true).map_err(broken)?;
            self.has_ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(fault: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, fault)
}
