//! How long a connection is served.
//! May it ask for more, and when has it to go though nobody asks it to?

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::connections::{Connections, Idle};
use crate::live::Live;

/// Who comes during a drain is told so, but must be quick to ask.
const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Stay {
    live: Arc<Live>,
    is_latecomer: bool,
    /// `None`: as long as it likes.
    until: Option<Instant>,
    /// `None`: it is in a connection that is counted.
    connections: Option<Connections>,
}

impl Stay {
    pub(super) fn new(live: &Arc<Live>, until: Option<Instant>, connections: Option<&Connections>) -> Self {
        Self { live: Arc::clone(live), is_latecomer: live.is_draining(), until, connections: connections.cloned() }
    }

    /// Whether no request is taken after this one.
    pub(super) fn is_over(&self) -> bool {
        self.live.is_draining() || self.until.is_some_and(|until| until <= Instant::now())
    }

    /// A connection that has nothing to do, as long as this is waited for. Resolves when it should end.
    pub(super) async fn over(&self) {
        let idle = self.idle();
        tokio::select! {
            () = self.drained() => {}
            () = told_to_go(idle.as_ref()) => {}
        }
    }

    /// Others may need its room, until this is dropped.
    pub(super) fn idle(&self) -> Option<Idle> {
        self.connections.as_ref().map(Connections::idle)
    }

    /// Resolves when its time is over, or a drain has begun.
    pub(super) async fn drained(&self) {
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

pub(super) async fn told_to_go(idle: Option<&Idle>) {
    match idle {
        Some(idle) => idle.told_to_go().await,
        None => pending().await,
    }
}
