//! The connections that a listener accepts, until it closes.
//! Who is still accepted once a listener is to close?

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::listener_shutdown::ListenerShutdown;
use crate::net::listen::{ClientStream, Listener, Successor};

/// For TCP handshakes that have begun to end. Below the second after which a client sends an ignored SYN again.
const HANDSHAKES: Duration = Duration::from_millis(500);

pub(super) struct AcceptQueue {
    listener: Listener,
    shutdown: ListenerShutdown,
    /// When the last handshake has ended; set once new clients are turned away.
    until: Option<Instant>,
}

impl AcceptQueue {
    pub(super) fn new(listener: Listener, door: ListenerShutdown) -> Self {
        Self { listener, shutdown: door, until: None }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.listener, Listener::Tcp(_))
    }

    pub(super) fn name(&self) -> String {
        self.listener.name()
    }

    /// The next connection; `None`: the listener is to be closed, and closing it refuses no connection that could go to
    /// another process.
    pub(super) async fn next(&mut self) -> Option<io::Result<(ClientStream, Option<SocketAddr>)>> {
        if self.shutdown.successor() == Successor::Concurrent && self.until.is_none() {
            tokio::select! {
                biased;
                () = self.shutdown.closing() => {}
                accepted = self.listener.accept() => return Some(accepted),
            }
            self.listener.turn_away();
            self.until = Some(Instant::now() + HANDSHAKES);
        }
        tokio::select! {
            biased;
            // First: connections in the queue are the next process's.
            () = self.shutdown.closing(), if self.shutdown.successor() == Successor::InheritsSocket => None,
            accepted = self.listener.accept() => Some(accepted),
            // At the end: no other process accepts the connections in this queue.
            () = self.ended() => None,
        }
    }

    async fn ended(&self) {
        match self.shutdown.successor() {
            Successor::InheritsSocket => pending().await,
            Successor::AfterClose => self.shutdown.closing().await,
            Successor::Concurrent => match self.until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            },
        }
    }
}
