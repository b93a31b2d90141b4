//! A listener on the wire, above all for the alert by which a target refuses us when the handshake seems over.
//! Has the target sent us away, and in which words?
//!
//! With TLS 1.3 a target judges our certificate, or misses it, after we have finished and begun to speak HTTP (RFC 8446
//! §4.4.2.4). What becomes of the error on its way through HTTP's layers differs; here it comes by in any case.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustls::{AlertDescription, Error};

use super::super::connection::Wire;
use super::super::tls::TlsFault;
use super::streams::Streams;

/// What one connection has heard.
#[derive(Clone, Default)]
pub(super) struct Farewell(Arc<Heard>);

#[derive(Default)]
struct Heard {
    alert: OnceLock<AlertDescription>,
    answered: AtomicBool,
}

impl Farewell {
    /// From now on an alert ends a connection that was good, and refuses nobody.
    pub(super) fn answered(&self) {
        self.0.answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn fault(&self) -> Option<TlsFault> {
        let alert = self.0.alert.get().filter(|_| !self.0.answered.load(Ordering::Relaxed))?;
        Some(Error::AlertReceived(*alert).into())
    }

    fn hear(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(Error::AlertReceived(alert)) = inner {
            let _ = self.0.alert.set(*alert); // the first is the last
        }
    }
}

/// The wire, listened to.
pub(super) struct Attended {
    pub(super) wire: Wire,
    pub(super) farewell: Farewell,
    /// Of HTTP/2.
    pub(super) streams: Option<Arc<Streams>>,
}

impl Read for Attended {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.wire).poll_read(cx, buf);
        match (&read, &this.streams) {
            (Poll::Ready(Err(error)), _) => this.farewell.hear(error),
            // Who waits for more has acted on all that came before.
            (Poll::Pending, Some(streams)) => streams.look(),
            _ => {}
        }
        read
    }
}

impl Write for Attended {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write_vectored(cx, slices)
    }
}
