//! The shutdown of one listener, which the configuration has no longer.
//! May those who came in here ask for more?

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::connections::{ConnectionId, Connections};
use crate::net::listen::Successor;

/// For the request of a connection that has sent none when its door closes, or that was accepted later.
pub(super) const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

/// Closes the door. Dropped, it leaves it as it is.
pub struct ShutdownHandle(watch::Sender<bool>);

/// Those who came in through it hold it.
#[derive(Clone)]
pub struct ListenerShutdown(watch::Receiver<bool>, Successor);

/// How a connection came in.
pub(super) struct ConnContext {
    pub(super) connections: Connections,
    pub(super) door: ListenerShutdown,
    pub(super) number: ConnectionId,
}

impl ShutdownHandle {
    pub fn new(successor: Successor) -> (Self, ListenerShutdown) {
        let (keeper, door) = watch::channel(false);
        (Self(keeper), ListenerShutdown(door, successor))
    }

    /// Nobody comes in any more, and those who did leave when they have what they came for.
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

    /// Resolves when a connection that waits for room is to wait no longer. One that no other process can serve goes at
    /// once: to wait would keep the address from its next owner.
    pub(super) async fn waits_no_longer(&self) {
        self.closing().await;
        if self.successor() != Successor::AfterClose {
            sleep(LATECOMER_PATIENCE).await;
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
