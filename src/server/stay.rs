//! How long a connection is served.
//! May it ask for more, and when has it to go though nobody asks it to?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::door::Door;
use crate::live::Live;

/// Who comes during a drain is told so, but must be quick to ask. And where a door closes whoever has a request on its way
/// gets an answer, which says that it is the last.
const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Stay {
    live: Arc<Live>,
    is_latecomer: bool,
    /// `None`: as long as it likes.
    until: Option<Instant>,
    /// `None`: it is in a tunnel, which ends when it does.
    door: Option<Door>,
}

impl Stay {
    pub(super) fn new(live: &Arc<Live>, until: Option<Instant>, door: Option<Door>) -> Self {
        Self { live: Arc::clone(live), is_latecomer: live.is_draining(), until, door }
    }

    /// Whether no request is taken after this one.
    pub(super) fn is_over(&self) -> bool {
        let is_closing = self.door.as_ref().is_some_and(Door::is_closing);
        is_closing || self.live.is_draining() || self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Resolves when a connection that has nothing to do should end.
    pub(super) async fn over(&self) {
        let drain = async {
            match self.is_latecomer {
                true => sleep(LATECOMER_PATIENCE).await,
                false => drop(self.live.drained().wait_for(|draining| *draining).await),
            }
        };
        let over = async {
            match &self.door {
                Some(door) => tokio::select! { () = drain => {}, () = closed(door) => {} },
                None => drain.await,
            }
        };
        match self.until {
            Some(until) => drop(timeout_at(until, over).await),
            None => over.await,
        }
    }
}

async fn closed(door: &Door) {
    door.closing().await;
    sleep(LATECOMER_PATIENCE).await;
}
