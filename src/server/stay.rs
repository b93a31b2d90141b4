//! How long a connection is served.
//! May it ask for more, and when has it to go though nobody asks it to?

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::connections::Idle;
use super::door::{Door, Way};
use crate::live::Live;

/// Who comes during a drain is told so, but must be quick to ask. And where a door closes whoever has a request on its way
/// gets an answer, which says that it is the last.
const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Stay {
    live: Arc<Live>,
    is_latecomer: bool,
    /// `None`: as long as it likes.
    until: Option<Instant>,
    /// `None`: it is in a tunnel, in a connection that is counted and ends when its door closes.
    way: Option<Way>,
}

impl Stay {
    pub(super) fn new(live: &Arc<Live>, until: Option<Instant>, way: Option<Way>) -> Self {
        Self { live: Arc::clone(live), is_latecomer: live.is_draining(), until, way }
    }

    /// Whether no request is taken after this one.
    pub(super) fn is_over(&self) -> bool {
        let is_closing = self.way.as_ref().is_some_and(|way| way.door.is_closing());
        is_closing || self.live.is_draining() || self.until.is_some_and(|until| until <= Instant::now())
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
        self.way.as_ref().map(|way| way.connections.idle())
    }

    /// Resolves when its time is over, a drain has begun, or its door is closing.
    pub(super) async fn drained(&self) {
        let drain = async {
            match self.is_latecomer {
                true => sleep(LATECOMER_PATIENCE).await,
                false => drop(self.live.drained().wait_for(|draining| *draining).await),
            }
        };
        let over = async {
            match &self.way {
                Some(way) => tokio::select! { () = drain => {}, () = closed(&way.door) => {} },
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

pub(super) async fn told_to_go(idle: Option<&Idle>) {
    match idle {
        Some(idle) => idle.told_to_go().await,
        None => pending().await,
    }
}
