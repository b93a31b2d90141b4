//! The door that a listener is: open, or closing for good because the configuration does without it.
//! May those who came in here ask for more?

use tokio::sync::watch;

use super::connections::{Connections, Number};

/// Closes the door. Dropped, it leaves it as it is.
pub struct Doorkeeper(watch::Sender<bool>);

/// Those who came in through it hold it.
#[derive(Clone)]
pub struct Door(watch::Receiver<bool>);

/// How a connection came in.
pub(super) struct Way {
    pub(super) connections: Connections,
    pub(super) door: Door,
    pub(super) number: Number,
}

impl Doorkeeper {
    pub fn new() -> (Self, Door) {
        let (keeper, door) = watch::channel(false);
        (Self(keeper), Door(door))
    }

    /// Nobody comes in any more, and those who did leave when they have what they came for.
    pub fn close(&self) {
        self.0.send_replace(true);
    }
}

impl Door {
    pub(super) fn is_closing(&self) -> bool {
        *self.0.borrow()
    }

    pub(super) async fn closing(&self) {
        if self.0.clone().wait_for(|closing| *closing).await.is_err() {
            std::future::pending().await
        }
    }
}
