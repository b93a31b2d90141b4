//! Hot reload: from a changed file, a signal or a request to a new plan, on one path, one at a time.
//! When is the configuration read again, and what happens if it is wrong?

mod compare;
mod folders;
pub mod kept;
pub mod listeners;
mod prepare;
mod started;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use crate::config::{Config, Problem, StatFingerprint};
use crate::state::Runtime;
use crate::state::config::reload_queue::{ComparisonRequest, ReloadQueue};
use crate::state::config::status::{
    AdoptedConfig, RejectedConfig, ReloadOutcome, ReloadSource, ReloadVerdict, describe_sources, reload_cause,
};
use crate::state::observability::log;
use crate::state::observability::records::RecordDestination;
use compare::log_difference;
use folders::KeyFolderWatcher;
use kept::HistoryWriter;
use listeners::Listeners;
use prepare::{ConfigChange, ConfigFiles, PreparedConfig, ProblemReport, Rejection, WatchSet, prepare};
use started::StartupSettings;
use watch::FileWatcher;

/// Editors write in several steps; what follows within this time is one change.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The longest wait after the first change, however long they go on.
const DEBOUNCE_MAX: Duration = Duration::from_millis(800);
/// How many looks in a row may find another change before one is taken up.
const LOOKS_MAX: u32 = 3;
/// How often the files are looked at that are not watched, or whose change went unheard.
const LOOK: Duration = Duration::from_secs(2);
/// And no more than this part of the time is spent on it.
const LOOK_SHARE: u32 = 50;

pub struct Reloader {
    path: PathBuf,
    /// What the process started with, and cannot change.
    started: StartupSettings,
    /// Whether files are read again when they change, and not only when somebody asks.
    watches: bool,
    /// By the last reading.
    looked: WatchSet,
    /// Why what stands on disk was not adopted the last time.
    last_problems: Vec<String>,
    /// The digest of a configuration without problems whose listeners could not be opened.
    failed_to_listen: Option<[u8; 32]>,
    /// What the files looked like when they were read the last time; `None`: they might have changed at that moment.
    sight: Option<StatFingerprint>,
    /// What they look like since, if that is something else, and in how many looks they did not look the same.
    changed: Option<(StatFingerprint, u32)>,
    kept: HistoryWriter,
    runtime: Arc<Runtime>,
    listeners: Arc<Listeners>,
}

/// Why a reading begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReloadCause {
    /// Somebody, or something that changed, asked for it.
    Requested,
    /// It was found to have changed, unheard: silent where nothing has.
    DriftDetected,
}

/// On whose behalf.
struct Requester {
    by: String,
    how: &'static str,
}

impl Requester {
    fn by(by: &[ReloadSource]) -> Self {
        let nobody = [ReloadSource::FileChange];
        let by = if by.is_empty() { &nobody[..] } else { by };
        Self { by: describe_sources(by), how: reload_cause(by) }
    }
}

/// Asks for a reload because a file has changed.
#[derive(Clone)]
struct ReloadTrigger(Weak<ReloadQueue>);

impl ReloadTrigger {
    fn request_reload(&self) {
        if let Some(desk) = self.0.upgrade() {
            desk.request(ReloadSource::FileChange);
        }
    }
    /// Whether nobody is there any more to reload.
    fn is_dead(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Reloader {
    pub fn new(
        path: PathBuf,
        config: Config,
        kept: HistoryWriter,
        runtime: Arc<Runtime>,
        listeners: Arc<Listeners>,
    ) -> Self {
        runtime.reload_queue.set_ready();
        runtime.config_status.rolls_back(config.rollback);
        let started = StartupSettings::of(&config);
        let (watches, looked, told) = (config.server.watch, WatchSet::of(&config), Vec::new());
        Self {
            path,
            started,
            watches,
            looked,
            last_problems: told,
            failed_to_listen: None,
            sight: None,
            changed: None,
            kept,
            runtime,
            listeners,
        }
    }

    pub async fn run(mut self) {
        let trigger = ReloadTrigger(Arc::downgrade(&self.runtime.reload_queue));
        let (mut watch, mut folders) = (FileWatcher::new(trigger.clone()), KeyFolderWatcher::new(trigger.clone()));
        self.follow(&trigger, &mut watch, &mut folders).await;
        self.kept.keep_first().await;
        let mut next_look = Instant::now() + LOOK;
        loop {
            tokio::select! {
                () = self.runtime.reload_queue.arrived() => {}
                () = tokio::time::sleep_until(next_look.into()) => {
                    let start = Instant::now();
                    if self.poll().await {
                        self.follow(&trigger, &mut watch, &mut folders).await;
                    }
                    next_look = Instant::now() + LOOK.max(start.elapsed() * LOOK_SHARE);
                    continue;
                }
            }
            // All of them at once: what begins now is after each of them asked.
            let waiting = self.runtime.reload_queue.drain();
            if !waiting.by.is_empty() {
                let _ = sd_notify::notify(&reloading());
                let outcome = self.reload(&Requester::by(&waiting.by), ReloadCause::Requested).await;
                for told in waiting.replies {
                    let _ = told.send(outcome.clone()); // who asked may have gone
                }
                self.follow(&trigger, &mut watch, &mut folders).await;
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            for ComparisonRequest { with, reply: told } in
                waiting.comparisons.into_iter().filter(|asked| !asked.reply.is_closed())
            {
                let _ = told.send(self.compare(with).await);
            }
        }
    }

    /// Whether the files are still what was read. Where they are watched a change went unheard if it is there for a while:
    /// it is taken up. Where they are not, it is told. True if they were read.
    async fn poll(&mut self) -> bool {
        let (main, looked) = (self.path.clone(), self.looked.clone());
        let Ok(sight) = self.runtime.config_worker.run(move || looked.sight(&main, SystemTime::now())).await else {
            return false;
        };
        if self.sight == Some(sight) {
            return false;
        }
        if self.watches {
            // Not in the middle of a change, unless it does not end.
            let looks = self.changed.map_or(1, |(_, looks)| looks + 1);
            let is_over = self.changed.is_some_and(|(before, _)| before == sight) || looks >= LOOKS_MAX;
            self.changed = Some((sight, looks));
            if is_over {
                self.reload(&Requester::by(&[]), ReloadCause::DriftDetected).await;
            }
            return is_over;
        }
        let drift = match self.read(ConfigFiles::OnDisk).await {
            Ok(PreparedConfig { change, looked, sight, config }) => {
                self.saw(looked, Some(sight));
                self.runtime.config_status.rolls_back(config.rollback);
                if self.failed_to_listen != Some(config.digest) {
                    self.forget_rejection();
                }
                self.runtime.config_worker.drop_later(config);
                change.map(|change| {
                    let first = change.difference.changes.into_iter().next();
                    first.unwrap_or_else(|| "comments, white space or order".to_owned())
                })
            }
            Err(rejection) => {
                self.saw(rejection.looked, rejection.sight);
                if rejection.problems.lines != self.last_problems {
                    self.forget_rejection();
                }
                rejection.problems.lines.into_iter().next()
            }
        };
        self.drifts(drift);
        true
    }

    fn saw(&mut self, looked: WatchSet, sight: Option<StatFingerprint>) {
        self.looked = looked;
        self.sight = sight.filter(|sight| sight.is_settled);
        self.changed = None;
    }

    /// What was rejected is not on disk any more.
    fn forget_rejection(&mut self) {
        self.last_problems.clear();
        self.failed_to_listen = None;
        self.runtime.unreject();
    }

    /// Told when it begins and when it ends.
    fn drifts(&self, what: Option<String>) {
        self.runtime.metrics.config_drift.set(i64::from(what.is_some()));
        let line = what.clone();
        if self.runtime.config_status.drifts(what) {
            match line {
                Some(line) => warn!("the configuration on disk differs from the active one: {line}"),
                None => info!("the configuration on disk is the active one again"),
            }
        }
    }

    /// What changed after it was read and before it was watched has gone unseen: it is read once more.
    async fn follow(&self, trigger: &ReloadTrigger, watch: &mut FileWatcher, folders: &mut KeyFolderWatcher) {
        let none = WatchSet::default();
        let looked = if self.watches { &self.looked } else { &none };
        let is_wider = watch.follow(&looked.files, &self.runtime.config_worker).await;
        if folders.follow(&looked.key_dirs).await || is_wider {
            trigger.request_reload();
        }
    }

    /// What these files say, or why they cannot be adopted.
    async fn read(&self, files: ConfigFiles) -> Result<PreparedConfig, Box<Rejection>> {
        let (path, before, known) = (self.path.clone(), self.runtime.active_config(), self.looked.key_dirs.clone());
        let written = Arc::clone(&self.runtime.config_status.adopted().written);
        let reading = self.runtime.config_worker.run(move || prepare(&path, &before, &written, &known, files));
        reading.await.unwrap_or_else(|_| {
            let problems = ProblemReport::general("the configuration could not be read");
            Err(Box::new(Rejection { problems, looked: self.looked.clone(), sight: None }))
        })
    }

    /// Put in force only as a whole and without problems.
    async fn reload(&mut self, asked: &Requester, cause: ReloadCause) -> ReloadOutcome {
        let PreparedConfig { config, looked, change, sight } = match self.read(ConfigFiles::OnDisk).await {
            Ok(next) => next,
            Err(rejection) => {
                self.saw(rejection.looked, rejection.sight);
                self.failed_to_listen = None;
                return self.reject(rejection.problems, asked, cause);
            }
        };
        self.saw(looked, Some(sight));
        self.runtime.config_status.rolls_back(config.rollback);
        let outcome = match change {
            None => {
                self.forget_rejection();
                self.drifts(None);
                self.runtime.config_status.log_unchanged(asked.how, &asked.by);
                self.runtime.config_status.outcome(ReloadVerdict::Unchanged)
            }
            Some(change) => match self.open(&config).await {
                Err(problems) => {
                    self.failed_to_listen = Some(config.digest);
                    self.reject(ProblemReport::of(&problems, &config.sources), asked, cause)
                }
                Ok(opened) => self.adopt(change, opened, &config, asked).await,
            },
        };
        self.runtime.config_worker.drop_later(config);
        outcome
    }

    /// Opens what is new of sockets and files, before anything changes.
    async fn open(
        &self,
        config: &Config,
    ) -> Result<(listeners::ListenerChange, Option<RecordDestination>), Vec<Problem>> {
        let deliveries = &config.log.deliveries;
        let destination = match self.runtime.records.go_to(deliveries) {
            true => None,
            false => Some(RecordDestination::open(deliveries).await.map_err(|fault| {
                let problem = Problem::at(deliveries.span, "cannot open the delivery log").label(fault.to_string());
                vec![problem.help("let the user that outgate runs as write there, or write another path")]
            })?),
        };
        Ok((self.listeners.prepare(config)?, destination))
    }

    async fn adopt(
        &mut self,
        change: ConfigChange,
        (listeners, destination): (listeners::ListenerChange, Option<RecordDestination>),
        config: &Config,
        asked: &Requester,
    ) -> ReloadOutcome {
        let ConfigChange { active, difference, left_out, warnings } = change;
        let restart = self.started.needed_by(&StartupSettings::of(config));
        let adopted = AdoptedConfig {
            number: self.runtime.config_status.adopted().number + 1,
            at: Timestamp::now(),
            by: asked.by.clone(),
            cause: config.rollback.map_or_else(|| asked.how.to_owned(), |number| format!("rollback to {number}")),
            difference: difference.clone(),
            written: Arc::clone(&config.snapshot),
            warnings: left_out.iter().chain(&warnings).cloned().collect(),
            restart: restart.clone(),
        };
        let (how, by) = (adopted.cause.clone(), format!(", by {}", asked.by));
        let by = if how == asked.by { "" } else { &by };
        let new_warnings = self.unlogged(warnings);
        let all_warnings = adopted.warnings.clone();
        self.last_problems.clear();
        self.failed_to_listen = None;
        self.watches = config.server.watch;
        self.runtime.adopt(active, adopted.clone());
        let runtime = Arc::clone(&self.runtime);
        drop(self.runtime.config_worker.run(move || runtime.metrics.prune(&runtime.active_config().plan)));
        self.listeners.commit(listeners);
        if let Some(destination) = destination {
            self.runtime.records.replace(destination);
        }
        log::configure(&config.log);
        self.drifts(None);
        self.kept.write_adopted(adopted, config.server.history).await;
        left_out.iter().for_each(|problem| error!("{problem}"));
        new_warnings.iter().for_each(|warning| warn!("{warning}"));
        for key in &restart {
            warn!("{key} changed: it takes effect at the next restart");
        }
        log_difference(&difference);
        let number = self.runtime.config_status.adopted().number;
        info!("configuration reloaded from {}: number {number}, {how}{by}", self.path.display());
        ReloadOutcome {
            difference,
            warnings: all_warnings,
            ..self.runtime.config_status.outcome(ReloadVerdict::Adopted)
        }
    }

    /// Returns the warnings that the configuration in force does not have: it has logged its own.
    fn unlogged(&self, mut warnings: Vec<String>) -> Vec<String> {
        let adopted = self.runtime.config_status.adopted();
        warnings.retain(|warning| !adopted.warnings.contains(warning));
        warnings
    }

    fn reject(&mut self, problems: ProblemReport, asked: &Requester, cause: ReloadCause) -> ReloadOutcome {
        if cause == ReloadCause::Requested || problems.lines != self.last_problems {
            self.runtime.reject(RejectedConfig {
                at: Timestamp::now(),
                by: asked.by.clone(),
                problems: problems.lines.clone(),
            });
            self.unlogged(problems.warnings.clone()).iter().for_each(|warning| warn!("{warning}"));
            for problem in &problems.lines {
                error!("{problem}");
            }
            error!("configuration not adopted: the active one stays");
            self.last_problems.clone_from(&problems.lines);
        }
        self.runtime.metrics.config_drift.set(1);
        self.runtime.config_status.drifts(problems.lines.first().cloned()); // it is told as what it is
        self.rejected(problems)
    }
}

/// RELOADING=1 wants the time it began, for systemd to tell this reload from the last (sd_notify(3)).
fn reloading() -> Vec<NotifyState<'static>> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    vec![NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]
}
