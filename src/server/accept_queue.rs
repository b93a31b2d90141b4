//! The connections that a listener accepts, until it closes.
//! Who is still accepted once a listener is to close?

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::door::Door;
use crate::net::listen::{Listener, Stream, Successor};

/// For TCP handshakes that have begun to end. Below the second after which a client sends an ignored SYN again.
const HANDSHAKES: Duration = Duration::from_millis(500);

pub(super) struct AcceptQueue {
    listener: Listener,
    door: Door,
    /// When the last handshake has ended; set once new clients are turned away.
    until: Option<Instant>,
}

impl AcceptQueue {
    pub(super) fn new(listener: Listener, door: Door) -> Self {
        Self { listener, door, until: None }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.listener, Listener::Tcp(_))
    }

    pub(super) fn name(&self) -> String {
        self.listener.name()
    }

    /// The next connection; `None`: the listener is to be closed, and closing it refuses no connection that could go to
    /// another process.
    pub(super) async fn next(&mut self) -> Option<io::Result<(Stream, Option<SocketAddr>)>> {
        if self.door.successor() == Successor::Beside && self.until.is_none() {
            tokio::select! {
                biased;
                () = self.door.closing() => {}
                accepted = self.listener.accept() => return Some(accepted),
            }
            self.listener.turn_away();
            self.until = Some(Instant::now() + HANDSHAKES);
        }
        tokio::select! {
            biased;
            // First: connections in the queue are the next process's.
            () = self.door.closing(), if self.door.successor() == Successor::Inherits => None,
            accepted = self.listener.accept() => Some(accepted),
            // At the end: no other process accepts the connections in this queue.
            () = self.ended() => None,
        }
    }

    async fn ended(&self) {
        match self.door.successor() {
            Successor::Inherits => pending().await,
            Successor::Later => self.door.closing().await,
            Successor::Beside => match self.until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            },
        }
    }
}
