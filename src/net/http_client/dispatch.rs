//! Hands requests over to hyper's HTTP/2 connection, so that none is forgotten when the connection ends at the same time.
//! Does each request get a response or an error?
//!
//! A delivery sends its request into a channel of tokio, and hyper's connection receives it. When the connection ends, hyper drops
//! the receiver. tokio then drops the requests in the channel, and hyper answers each with an error. But tokio lets a send that has
//! begun before the drop finish after it. That request stays in the channel, hyper never answers it, and its delivery waits until
//! its timeout (hyper issue 4122, tokio issue 7714). So one lock covers both a send and the drop of the receiver.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2;
use parking_lot::Mutex; // it guards no value that a panic could leave wrong

use super::Upload;
use super::driver::Driver;
use super::tap::TappedStream;

type Connection = http2::Connection<TappedStream, Upload, Driver>;

/// Queues requests.
#[derive(Clone)]
pub(super) struct Sender {
    inner: http2::SendRequest<Upload>,
    lock: Arc<Mutex<()>>,
}

/// Takes requests from the queue and sends them. Dropping it fails those that it has not taken.
pub(super) struct Dispatcher {
    /// `None`: dropped.
    connection: Option<Connection>,
    lock: Arc<Mutex<()>>,
}

/// Returns both ends of hyper's queue, with one lock.
pub(super) fn pair(inner: http2::SendRequest<Upload>, connection: Connection) -> (Sender, Dispatcher) {
    let lock = Arc::new(Mutex::new(()));
    (Sender { inner, lock: Arc::clone(&lock) }, Dispatcher { connection: Some(connection), lock })
}

impl Sender {
    /// Queues a request. The future also resolves if the connection ends at the same time.
    pub(super) fn try_send(
        &mut self,
        request: http::Request<Upload>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<Upload>>>> + use<> {
        let _lock = self.lock.lock();
        self.inner.try_send_request(request)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.inner.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
}

impl Dispatcher {
    /// Returns the target's limit of concurrent streams.
    pub(super) fn max_send_streams(&self) -> usize {
        self.connection.as_ref().map_or(0, Connection::current_max_send_streams)
    }
}

impl Future for Dispatcher {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.connection {
            Some(connection) => Pin::new(connection).poll(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        let _lock = self.lock.lock();
        self.connection = None;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Barrier;
    use std::task::Waker;

    use tokio::net::{TcpListener, TcpStream};

    use super::super::driver;
    use super::super::streams::Streams;
    use super::super::tap::ConnObserver;
    use super::*;
    use crate::net::connection::OutboundSocket;

    /// The lock: without it, one or two of the requests have no answer in most runs.
    #[tokio::test]
    async fn request_that_meets_the_end_of_its_connection_gets_an_error() {
        const ROUNDS: usize = 2000;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for round in 0..ROUNDS {
            let (near, _far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            let socket = OutboundSocket::new(near.unwrap());
            let (_handle, driver) = driver::pair(&socket.liveness());
            let io = TappedStream::new(
                socket.into_plaintext(),
                ConnObserver::default(),
                Arc::new(Streams::new()),
                16 * 1024,
            );
            let (sender, connection) = http2::Builder::new(driver).handshake(io).await.unwrap();
            let (mut sender, dispatcher) = pair(sender, connection);
            let request = http::Request::new(Upload::whole("body".into()));
            let start = Barrier::new(2);
            let sent = std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    drop(dispatcher);
                });
                start.wait();
                sender.try_send(request)
            });
            let polled = pin!(sent).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Ready(Err(_))), "round {round}");
        }
    }
}
