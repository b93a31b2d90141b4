//! The drain: readiness ends first, then new deliveries are refused, and deliveries in flight finish.
//! Which deliveries does this process still accept?

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::info;

use super::Runtime;
use crate::config::Listen;
use crate::panics::Mutex;

/// The drain of the process.
#[derive(Default)]
pub(super) struct Drain {
    is_refusing: watch::Sender<bool>,
    /// The listeners that another process has taken over. Set: the process stops.
    handed_over: OnceLock<Vec<Listen>>,
    requested: Mutex<Option<DrainRequest>>,
}

/// The drain that an operator requested.
struct DrainRequest {
    by: String,
    refuses_from: Option<Timestamp>,
    /// Ends the grace time.
    timer: AbortHandle,
}

/// The stage of the drain, and the operator who requested it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrainStatus {
    pub stage: DrainStage,
    /// `None`: no operator requested a drain.
    pub by: Option<String>,
    pub refuses_from: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainStage {
    Serving,
    /// outgate is not ready, and still accepts new deliveries.
    Announced,
    /// outgate refuses new deliveries.
    Refusing,
    /// The process ends when its deliveries have finished.
    Stopping,
}

/// The refusal of a new delivery while the process drains.
#[derive(Debug, PartialEq, Eq)]
pub struct Draining;

/// The process stops already: a drain can neither begin nor end.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopping;

impl Runtime {
    /// Begins the drain at the end of the process: new deliveries are refused. Deliveries of clients that connected to a
    /// listener of `handed_over` are still accepted, since only this process can serve their connections.
    pub fn drain(&self, handed_over: &[Listen]) {
        self.drain.handed_over.get_or_init(|| handed_over.to_vec());
        self.drain.is_refusing.send_replace(true);
        self.announce_change();
    }

    /// Begins a drain that [`Runtime::undrain`] can end: outgate is not ready from now on, and refuses new deliveries after
    /// the grace time. A drain that refuses already stays as it is.
    pub fn request_drain(self: &Arc<Self>, by: String, grace: Duration, now: Timestamp) -> Result<(), Stopping> {
        let mut requested = self.drain.requested.lock();
        match self.drain_stage_if(requested.is_some()) {
            DrainStage::Stopping => return Err(Stopping),
            DrainStage::Refusing => {}
            DrainStage::Serving | DrainStage::Announced => {
                let refuses_from = now.saturating_add(grace).ok();
                info!("drain requested by {by}: outgate is not ready, and refuses new deliveries in {grace:?}");
                let runtime = Arc::clone(self);
                let timer = tokio::spawn(async move {
                    tokio::time::sleep(grace).await;
                    let requested = runtime.drain.requested.lock();
                    // Another request may have replaced this one while the lock was taken.
                    if requested.as_ref().is_some_and(|request| request.refuses_from == refuses_from) {
                        runtime.drain.is_refusing.send_replace(true);
                        info!("outgate refuses new deliveries as draining; `outgate undrain` ends this");
                    }
                });
                let request = DrainRequest { by, refuses_from, timer: timer.abort_handle() };
                if let Some(former) = requested.replace(request) {
                    former.timer.abort();
                }
                self.announce_change();
            }
        }
        Ok(())
    }

    /// Ends a drain that an operator requested, at any stage. Returns whether there was one.
    pub fn undrain(&self, by: &str) -> Result<bool, Stopping> {
        let mut requested = self.drain.requested.lock();
        if self.drain.handed_over.get().is_some() {
            return Err(Stopping);
        }
        let Some(request) = requested.take() else { return Ok(false) };
        request.timer.abort();
        self.drain.is_refusing.send_replace(false);
        self.announce_change();
        info!("drain ended by {by}: outgate accepts new deliveries");
        Ok(true)
    }

    pub fn drain_status(&self) -> DrainStatus {
        let requested = self.drain.requested.lock();
        let (by, refuses_from) = requested.as_ref().map(|request| (request.by.clone(), request.refuses_from)).unzip();
        DrainStatus { stage: self.drain_stage_if(requested.is_some()), by, refuses_from: refuses_from.flatten() }
    }

    pub fn drain_stage(&self) -> DrainStage {
        self.drain_stage_if(self.drain.requested.lock().is_some())
    }

    fn drain_stage_if(&self, is_requested: bool) -> DrainStage {
        match (self.drain.handed_over.get(), self.is_draining(), is_requested) {
            (Some(_), ..) => DrainStage::Stopping,
            (None, true, _) => DrainStage::Refusing,
            (None, false, true) => DrainStage::Announced,
            (None, false, false) => DrainStage::Serving,
        }
    }

    /// Returns whether new deliveries are refused.
    pub fn is_draining(&self) -> bool {
        *self.drain.is_refusing.borrow()
    }

    /// Returns a receiver that changes to `true` when new deliveries are refused.
    pub fn drain_signal(&self) -> watch::Receiver<bool> {
        self.drain.is_refusing.subscribe()
    }

    /// Checks whether a request of a client that connected to `listen` is refused by the drain.
    pub fn check_draining(&self, listen: Option<&Listen>) -> Result<(), Draining> {
        let is_handed_over = || {
            let handed_over = self.drain.handed_over.get();
            handed_over.zip(listen).is_some_and(|(handed_over, listen)| handed_over.contains(listen))
        };
        if self.is_draining() && !is_handed_over() { Err(Draining) } else { Ok(()) }
    }
}
