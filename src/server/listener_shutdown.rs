//! The shutdown of one listener that the configuration no longer contains.
//! May the listener's connections serve further requests?

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::connections::{ConnectionId, Connections};
use crate::net::listen::Successor;

/// The time for the first request of a connection that has sent none when its listener closes, or that is accepted
/// later.
pub(super) const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Closes the listener. Dropping the handle does not close it.
pub struct ShutdownHandle(watch::Sender<bool>);

/// Observes the shutdown. The listener and each of its connections hold a clone.
#[derive(Clone)]
pub struct ListenerShutdown(watch::Receiver<bool>, Successor);

/// The listener of a connection, and its entry among the open connections.
pub(super) struct ConnContext {
    pub(super) connections: Connections,
    pub(super) shutdown: ListenerShutdown,
    pub(super) id: ConnectionId,
}

impl ShutdownHandle {
    pub fn new(successor: Successor) -> (Self, ListenerShutdown) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), ListenerShutdown(receiver, successor))
    }

    /// Closes the listener. Its connections close after their current request.
    pub fn close(&self) {
        self.0.send_replace(true);
    }

    /// Resolves when the listener and all its connections are closed.
    pub async fn all_closed(&self) {
        self.0.closed().await;
    }
}

impl ListenerShutdown {
    pub(super) fn successor(&self) -> Successor {
        self.1
    }

    /// Resolves when connections stop waiting for capacity. Without a concurrent successor that is at once: a waiting
    /// connection would keep the address from its next owner.
    pub(super) async fn admission_closed(&self) {
        self.closing().await;
        if self.successor() != Successor::AfterClose {
            sleep(FIRST_REQUEST_TIMEOUT).await;
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.0.borrow()
    }

    pub(super) async fn closing(&self) {
        if self.0.clone().wait_for(|closing| *closing).await.is_err() {
            std::future::pending().await
        }
    }
}
