//! Hot reload: reads and compiles the configuration again, and adopts it. Every reload takes this path, one at a time.
//! When is the configuration read again, and what happens if it has problems?

mod adoption;
pub mod audit_events;
mod compare;
mod file_watcher;
pub mod history_writer;
mod key_folder_watcher;
pub mod listeners;
mod prepare;
mod rollback;
mod rollout;
mod startup_settings;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tracing::{info, warn};

use crate::audit::{CONFIGURATION_DRIFTED, CONFIGURATION_RESTORED, Event};
use crate::config::{Config, StatFingerprint};
use crate::state::Runtime;
use crate::state::config::reload_queue::{ComparisonRequest, ReloadQueue, RollbackRequest};
use crate::state::config::status::{ReloadOutcome, ReloadSource, ReloadVerdict, describe_sources, reload_cause};
use file_watcher::FileWatcher;
use history_writer::HistoryWriter;
use key_folder_watcher::KeyFolderWatcher;
use listeners::Listeners;
use prepare::{ConfigFiles, PreparedConfig, ProblemReport, Rejection, WatchSet, prepare};
use startup_settings::StartupSettings;

/// The quiet time that ends a change. Editors write a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Limits the time from the first step of a change to the reload.
const DEBOUNCE_MAX: Duration = Duration::from_millis(800);
/// The number of consecutive polls that may find the files still changing before the configuration is read anyway.
const UNSETTLED_POLLS_MAX: u32 = 3;
/// The interval of the polls that find changes which file notification has missed or does not cover.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Limits the time spent on polling, to the reciprocal of this number.
const POLL_TIME_SHARE: u32 = 50;
/// The longest interval: on a busy host, a poll takes long without doing much.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Reloads the configuration on request and on changes. It owns what is known of the files on disk.
pub struct Reloader {
    path: PathBuf,
    /// The settings that take effect only at the start of the process.
    startup_settings: StartupSettings,
    /// Whether outgate reloads when a file changes, and not only on request.
    is_watching: bool,
    /// The files of the last read.
    watch_set: WatchSet,
    /// The problems of the configuration on disk, if it was rejected at the last reload.
    last_problems: Vec<String>,
    /// The digest of a valid configuration that was rejected because its listeners could not be opened, or the change
    /// could not be recorded.
    failed_to_listen: Option<[u8; 32]>,
    /// The fingerprint of the files at the last read. `None`: the files may have changed during that read.
    fingerprint: Option<StatFingerprint>,
    /// A different fingerprint found since, and the number of polls in which the fingerprint kept changing.
    unsettled: Option<(StatFingerprint, u32)>,
    history: HistoryWriter,
    runtime: Arc<Runtime>,
    listeners: Arc<Listeners>,
}

/// The reason for a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReloadReason {
    /// A user, a signal or a file change has requested it.
    Requested,
    /// A poll has found a change. Problems that are logged already are not logged again.
    DriftDetected,
}

/// The user, signal or file change that requested a reload.
struct Requester {
    sources: Vec<ReloadSource>,
    /// The sources in words.
    by: String,
    cause: &'static str,
}

impl Requester {
    fn new(by: &[ReloadSource]) -> Self {
        let file_change = [ReloadSource::FileChange];
        let by = if by.is_empty() { &file_change[..] } else { by };
        Self { sources: by.to_vec(), by: describe_sources(by), cause: reload_cause(by) }
    }
}

/// Requests a reload because a file has changed.
#[derive(Clone)]
struct ReloadTrigger(Weak<ReloadQueue>);

impl ReloadTrigger {
    fn request_reload(&self) {
        if let Some(queue) = self.0.upgrade() {
            queue.request(ReloadSource::FileChange);
        }
    }
    /// Returns whether the reloader is gone.
    fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Reloader {
    pub fn new(
        path: PathBuf,
        config: Config,
        history: HistoryWriter,
        runtime: Arc<Runtime>,
        listeners: Arc<Listeners>,
    ) -> Self {
        runtime.reload_queue.set_ready();
        runtime.config_status.set_pending_rollback(config.rollback);
        let startup_settings = StartupSettings::from_config(&config);
        let (is_watching, watch_set, last_problems) = (config.server.watch, WatchSet::from_config(&config), Vec::new());
        Self {
            path,
            startup_settings,
            is_watching,
            watch_set,
            last_problems,
            failed_to_listen: None,
            fingerprint: None,
            unsettled: None,
            history,
            runtime,
            listeners,
        }
    }

    pub async fn run(mut self) {
        let trigger = ReloadTrigger(Arc::downgrade(&self.runtime.reload_queue));
        let (mut watch, mut folders) = (FileWatcher::new(trigger.clone()), KeyFolderWatcher::new(trigger.clone()));
        self.update_watches(&trigger, &mut watch, &mut folders).await;
        self.history.write_startup_config().await;
        let mut next_poll = Instant::now() + POLL_INTERVAL;
        loop {
            tokio::select! {
                () = self.runtime.reload_queue.wait_for_request() => {}
                () = tokio::time::sleep_until(next_poll.into()) => {
                    let start = Instant::now();
                    self.history.store_announcements().await;
                    if self.poll().await {
                        self.update_watches(&trigger, &mut watch, &mut folders).await;
                    }
                    next_poll = Instant::now() + (start.elapsed() * POLL_TIME_SHARE).clamp(POLL_INTERVAL, POLL_INTERVAL_MAX);
                    continue;
                }
            }
            // One reload serves all pending requests, because it begins after each of them.
            let pending = self.runtime.reload_queue.drain();
            if !pending.sources.is_empty() {
                let _ = sd_notify::notify(&reloading_state());
                let outcome = self.reload(&Requester::new(&pending.sources), ReloadReason::Requested).await;
                for reply in pending.replies {
                    let _ = reply.send(outcome.clone()); // the client may be gone
                }
                self.update_watches(&trigger, &mut watch, &mut folders).await;
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            for RollbackRequest { number, source, reply } in pending.rollbacks {
                if !reply.is_closed() {
                    let _ = reply.send(self.roll_back(number, &Requester::new(&[source])).await);
                }
            }
            for request in pending.bundles.into_iter().filter(|request| !request.is_abandoned()) {
                self.answer_about_bundle(request).await;
            }
            for ComparisonRequest { target, reply } in
                pending.comparisons.into_iter().filter(|comparison| !comparison.reply.is_closed())
            {
                let _ = reply.send(self.compare(target).await);
            }
        }
    }

    /// Compares the files on disk with the last read. A change that was not notified and persists is reloaded where
    /// files are watched, and otherwise reported as drift. Returns whether the files were read.
    async fn poll(&mut self) -> bool {
        let (main, watch_set) = (self.path.clone(), self.watch_set.clone());
        let Ok(fingerprint) =
            self.runtime.config_worker.run(move || watch_set.fingerprint(&main, SystemTime::now())).await
        else {
            return false;
        };
        if self.fingerprint == Some(fingerprint) {
            return false;
        }
        if self.is_watching {
            // The reload waits until two polls find the same files, at most for `UNSETTLED_POLLS_MAX` polls.
            let polls = self.unsettled.map_or(1, |(_, polls)| polls + 1);
            let is_settled =
                self.unsettled.is_some_and(|(last, _)| last == fingerprint) || polls >= UNSETTLED_POLLS_MAX;
            self.unsettled = Some((fingerprint, polls));
            if is_settled {
                self.reload(&Requester::new(&[]), ReloadReason::DriftDetected).await;
            }
            return is_settled;
        }
        let drift = match self.read(ConfigFiles::OnDisk).await {
            Ok(PreparedConfig { change, watch_set, fingerprint, config }) => {
                self.record_read(watch_set, Some(fingerprint));
                self.runtime.config_status.set_pending_rollback(config.rollback);
                if self.failed_to_listen != Some(config.digest) {
                    self.clear_rejection();
                }
                self.runtime.config_worker.drop_later(config);
                change.map(|change| {
                    let first = change.difference.changes.into_iter().next();
                    first.unwrap_or_else(|| "comments, white space or order".to_owned())
                })
            }
            Err(rejection) => {
                self.record_read(rejection.watch_set, rejection.fingerprint);
                if rejection.problems.lines != self.last_problems {
                    self.clear_rejection();
                }
                rejection.problems.lines.into_iter().next()
            }
        };
        self.set_drift(drift);
        true
    }

    fn record_read(&mut self, watch_set: WatchSet, fingerprint: Option<StatFingerprint>) {
        self.watch_set = watch_set;
        self.fingerprint = fingerprint.filter(|fingerprint| fingerprint.is_settled);
        self.unsettled = None;
    }

    /// Forgets a rejection, because the rejected configuration is no longer on disk.
    fn clear_rejection(&mut self) {
        self.last_problems.clear();
        self.failed_to_listen = None;
        self.runtime.clear_rejection();
    }

    /// Sets or clears the drift. Its begin and its end are logged.
    fn set_drift(&self, drift: Option<String>) {
        let is_drift = drift.is_some();
        match self.record_drift(drift) {
            Some(what) if is_drift => warn!("{what}"),
            Some(what) => info!("{what}"),
            None => {}
        }
    }

    /// Sets or clears the drift. Its begin and its end are recorded in the audit log. Returns the sentence about it.
    fn record_drift(&self, drift: Option<String>) -> Option<String> {
        let now = Timestamp::now();
        self.runtime.metrics.config_drift.set(i64::from(drift.is_some()));
        let (event_type, what) = match &drift {
            Some(drift) => {
                (CONFIGURATION_DRIFTED, format!("the configuration on disk differs from the active one: {drift}"))
            }
            None => (CONFIGURATION_RESTORED, "the configuration on disk is the active one again".to_owned()),
        };
        let has_changed = self.runtime.config_status.set_drift(drift, now);
        has_changed.then(|| {
            self.runtime.audit.record(Event::new(event_type, self.path.display().to_string(), now, what.as_str()));
            what
        })
    }

    /// Watches the files of the last read. A new watch triggers another reload, because changes between the read and
    /// the watch were missed.
    async fn update_watches(&self, trigger: &ReloadTrigger, watch: &mut FileWatcher, folders: &mut KeyFolderWatcher) {
        let nothing = WatchSet::default();
        let watch_set = if self.is_watching { &self.watch_set } else { &nothing };
        let is_extended = watch.update(&watch_set.files, &self.runtime.config_worker).await;
        if folders.update(&watch_set.key_dirs).await || is_extended {
            trigger.request_reload();
        }
    }

    /// Reads and compiles the files. Returns a rejection if the configuration has problems.
    async fn read(&self, files: ConfigFiles) -> Result<PreparedConfig, Box<Rejection>> {
        let (path, active, previous) =
            (self.path.clone(), self.runtime.active_config(), self.watch_set.key_dirs.clone());
        let snapshot = Arc::clone(&self.runtime.config_status.adopted().snapshot);
        let announcements = self.runtime.config_status.announcements();
        let reading = self
            .runtime
            .config_worker
            .run(move || prepare(&path, &active, &snapshot, &previous, &announcements, files));
        reading.await.unwrap_or_else(|_| {
            let problems = ProblemReport::general("the configuration could not be read");
            Err(Box::new(Rejection { problems, watch_set: self.watch_set.clone(), fingerprint: None }))
        })
    }

    /// Reads the configuration and adopts it as a whole, if it has no problems.
    async fn reload(&mut self, requester: &Requester, reason: ReloadReason) -> ReloadOutcome {
        let PreparedConfig { config, watch_set, change, fingerprint } = match self.read(ConfigFiles::OnDisk).await {
            Ok(next) => next,
            Err(rejection) => {
                self.record_read(rejection.watch_set, rejection.fingerprint);
                self.failed_to_listen = None;
                return self.reject(rejection.problems, requester, reason);
            }
        };
        self.record_read(watch_set, Some(fingerprint));
        self.runtime.config_status.set_pending_rollback(config.rollback);
        let outcome = match change {
            None => {
                self.clear_rejection();
                self.set_drift(None);
                self.runtime.config_status.log_unchanged(requester.cause, &requester.by);
                self.runtime.config_status.current_outcome(ReloadVerdict::Unchanged)
            }
            Some(change) => match self.adopt(change, &config, requester).await {
                Ok(outcome) => outcome,
                Err(problems) => {
                    self.failed_to_listen = Some(config.digest);
                    self.reject(problems, requester, reason)
                }
            },
        };
        self.runtime.config_worker.drop_later(config);
        outcome
    }
}

/// Returns the RELOADING=1 message. systemd requires its time to tell this reload from the last (sd_notify(3)).
fn reloading_state() -> Vec<NotifyState<'static>> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    vec![NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]
}
