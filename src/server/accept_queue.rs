//! The connections that a listener accepts, until it closes.
//! Which connections are still accepted once a listener is to close?

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::listener_shutdown::ListenerShutdown;
use crate::net::listen::{ClientStream, Listener, Successor};

/// The time for TCP handshakes that have begun. It is below the second after which a client retransmits an ignored SYN.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);

/// A listener, which takes no more connections once its shutdown has begun and its successor needs them.
pub(super) struct AcceptQueue {
    listener: Listener,
    shutdown: ListenerShutdown,
    /// The end of the handshakes that have begun. It is set once the listener turns new clients away.
    accept_until: Option<Instant>,
}

impl AcceptQueue {
    pub(super) fn new(listener: Listener, shutdown: ListenerShutdown) -> Self {
        Self { listener, shutdown, accept_until: None }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.listener, Listener::Tcp { .. })
    }

    pub(super) fn name(&self) -> String {
        self.listener.name()
    }

    /// Returns the next connection, or `None` when the listener is to be closed. Closing it then refuses no connection
    /// that could go to another process.
    pub(super) async fn next(&mut self) -> Option<io::Result<(ClientStream, Option<SocketAddr>)>> {
        if self.shutdown.successor() == Successor::Concurrent && self.accept_until.is_none() {
            tokio::select! {
                biased;
                () = self.shutdown.closing() => {}
                accepted = self.listener.accept() => return Some(accepted),
            }
            if let Err(error) = self.listener.stop_new_clients() {
                warn!(
                    "cannot leave new clients of {} to the other process: {error}; outgate may reset a connection when it \
                     closes this socket",
                    self.name()
                );
            }
            self.accept_until = Some(Instant::now() + HANDSHAKE_GRACE);
        }
        tokio::select! {
            biased;
            // The shutdown is polled first: connections in the queue belong to the next process.
            () = self.shutdown.closing(), if self.shutdown.successor() == Successor::InheritsSocket => None,
            accepted = self.listener.accept() => Some(accepted),
            // The end is polled last: no other process accepts the connections in this queue.
            () = self.accept_closed() => None,
        }
    }

    async fn accept_closed(&self) {
        match self.shutdown.successor() {
            Successor::InheritsSocket => pending().await,
            Successor::AfterClose => self.shutdown.closing().await,
            Successor::Concurrent => match self.accept_until {
                Some(accept_until) => sleep_until(accept_until).await,
                None => pending().await,
            },
        }
    }
}
