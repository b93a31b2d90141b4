//! The status of the audit log, for readiness, metrics and the log.
//! Can records be written, and how many were lost?

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::{error, info, warn};

use crate::audit::AuditSettings;
use crate::panics::Mutex;
use crate::state::sinks::SinkStatus;

/// The status of the audit log.
#[derive(Default)]
pub struct AuditStatus {
    is_on: AtomicBool,
    /// The reason why no record can be written.
    error: Mutex<Option<String>>,
    /// The reason why the checkpoint is older than the log, or why a file was not deleted.
    warning: Mutex<Option<String>>,
    written: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    sinks: Mutex<Vec<Arc<SinkStatus>>>,
}

impl AuditStatus {
    pub(super) fn set_on(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Returns the number of records written since the start.
    pub fn written_count(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Returns the number of writes that failed since the start.
    pub fn failed_count(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns the number of events that were not recorded since the start.
    pub fn lost_count(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns the reason why no record can be written.
    pub fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    pub fn sinks(&self) -> Vec<Arc<SinkStatus>> {
        self.sinks.lock().clone()
    }

    pub(super) fn set_sinks(&self, sinks: Vec<Arc<SinkStatus>>) {
        *self.sinks.lock() = sinks;
    }

    /// Returns the reasons why an operator should look at the audit log.
    pub fn degraded_reasons(&self) -> Vec<String> {
        let unwritable = self.error().map(|error| {
            format!("audit_unwritable: {error}; configuration changes are refused until the audit log can be written")
        });
        unwritable.into_iter().chain(self.lateness()).collect()
    }

    /// Returns the reasons why copies of the log, its checkpoint or a deletion are late.
    pub fn lateness(&self) -> Vec<String> {
        let sinks = self.sinks().into_iter().filter_map(|sink| sink.degraded_reason());
        self.warning.lock().clone().into_iter().chain(sinks).collect()
    }

    pub(super) fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a write that succeeded, and logs the end of a failure.
    pub(super) fn succeeded(&self, records: usize) {
        self.written.fetch_add(records as u64, Ordering::Relaxed);
        if self.error.lock().take().is_some() {
            info!("the audit log is written again; configuration changes are possible");
        }
    }

    /// Notes that the log cannot be written, and logs a reason that is new. Returns the reason.
    pub(super) fn fail(&self, settings: &AuditSettings, error: &io::Error) -> String {
        let reason = format!("the audit log {} cannot be written: {error}", settings.path.display());
        self.failed.fetch_add(1, Ordering::Relaxed);
        if self.error.lock().replace(reason.clone()).as_ref() != Some(&reason) {
            let advice = match (error.raw_os_error(), error.kind()) {
                (Some(_), _) | (_, io::ErrorKind::TimedOut) => {
                    "free space on its disk, or correct the path and its permissions"
                }
                _ => "keep its files as evidence and move them away, or set audit.file to another path",
            };
            error!("{reason}; traffic goes on, and configuration changes are refused as audit_unwritable; {advice}");
        }
        reason
    }

    /// Sets or clears a fault that stops no record, and logs one that is new.
    pub(super) fn set_warning(&self, reason: Option<String>) {
        let before = std::mem::replace(&mut *self.warning.lock(), reason.clone());
        if let Some(reason) = reason.filter(|reason| before.as_ref() != Some(reason)) {
            warn!("{reason}");
        }
    }
}
