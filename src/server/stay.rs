//! How long a connection is served.
//! May it ask for more, and when has it to go though nobody asks it to?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::live::Live;

/// Who comes during a drain is told so, but must be quick to ask.
const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Stay {
    live: Arc<Live>,
    is_latecomer: bool,
    /// `None`: as long as it likes.
    until: Option<Instant>,
}

impl Stay {
    pub(super) fn new(live: &Arc<Live>, until: Option<Instant>) -> Self {
        Self { live: Arc::clone(live), is_latecomer: live.is_draining(), until }
    }

    /// Whether no request is taken after this one.
    pub(super) fn is_over(&self) -> bool {
        self.live.is_draining() || self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Resolves when a connection that has nothing to do should end.
    pub(super) async fn over(&self) {
        let drain = async {
            match self.is_latecomer {
                true => sleep(LATECOMER_PATIENCE).await,
                false => drop(self.live.drained().wait_for(|draining| *draining).await),
            }
        };
        match self.until {
            Some(until) => drop(timeout_at(until, drain).await),
            None => drain.await,
        }
    }
}
