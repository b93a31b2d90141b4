//! Hot reload: from a changed file, a signal or a request to a new plan, on one path, one at a time.
//! When is the configuration read again, and what happens if it is wrong?

mod folders;
pub mod listeners;
mod prepare;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::config::difference::Difference;
use crate::config::{Config, Deliveries, KeyDirs, Listen, Written};
use crate::live::Live;
use crate::live::configuration::{Adopted, By, Outcome, Rejected, Verdict, named};
use crate::live::desk::{Comparison, Desk};
use folders::Folders;
use listeners::Listeners;
use prepare::{Change, Found, Next, Rejection, prepare};
use watch::Watch;

/// Editors write in several steps; what follows within this time is one change.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Steps by which traffic goes before reloads, of 19 (nice(2)).
const NICENESS: i32 = 10;
/// Changes that the log tells one by one.
const LOGGED_MAX: usize = 20;

pub struct Reloader {
    path: PathBuf,
    /// What the process started with, and cannot change.
    started: Started,
    /// Whether files are read again when they change, and not only when somebody asks.
    watches: bool,
    /// What to watch: all that the last reading looked at, whatever came of it.
    files: Vec<PathBuf>,
    /// What the last reading read of tenants' keys.
    key_dirs: KeyDirs,
    /// Why what stands on disk was not adopted the last time.
    told: Vec<String>,
    live: Arc<Live>,
    listeners: Arc<Listeners>,
}

/// Why a reading begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody, or something that changed, asked for it.
    Asked,
    /// It was time to look over what is not watched: silent where nothing has changed.
    Due,
}

/// Asks for a reload because a file has changed.
#[derive(Clone)]
struct Trigger(Weak<Desk>);

impl Trigger {
    fn pull(&self) {
        if let Some(desk) = self.0.upgrade() {
            desk.ask(By::FileChange);
        }
    }
    /// Whether nobody is there any more to reload.
    fn is_dead(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Reloader {
    pub fn new(path: PathBuf, config: Config, live: Arc<Live>, listeners: Arc<Listeners>) -> Self {
        live.desk.attend();
        let started = Started::of(&config);
        let Config { files, key_dirs, server, .. } = config;
        Self { path, started, watches: server.watch, files, key_dirs, told: Vec::new(), live, listeners }
    }

    pub async fn run(mut self) {
        let trigger = Trigger(Arc::downgrade(&self.live.desk));
        let (mut watch, mut folders) = (Watch::new(trigger.clone()), Folders::new(trigger.clone()));
        self.follow(&trigger, &mut watch, &mut folders).await;
        let mut took = Duration::ZERO;
        loop {
            let cause = tokio::select! {
                () = self.live.desk.arrived() => Cause::Asked,
                () = folders.due(took) => Cause::Due,
            };
            // All of them at once: what begins now is after each of them asked.
            let waiting = self.live.desk.take();
            if cause == Cause::Due || !waiting.by.is_empty() {
                let start = Instant::now();
                if cause == Cause::Asked {
                    let _ = sd_notify::notify(&reloading());
                }
                let by = if waiting.by.is_empty() { By::FileChange.to_string() } else { named(&waiting.by) };
                let outcome = self.reload(&by, cause).await;
                for told in waiting.told {
                    let _ = told.send(outcome.clone()); // who asked may have gone
                }
                self.follow(&trigger, &mut watch, &mut folders).await;
                if cause == Cause::Asked {
                    let _ = sd_notify::notify(&[NotifyState::Ready]);
                }
                took = start.elapsed();
            }
            for Comparison { with, told } in waiting.comparisons {
                let _ = told.send(self.compare(with).await);
            }
        }
    }

    /// What changed after it was read and before it was watched has gone unseen: it is read once more.
    async fn follow(&self, trigger: &Trigger, watch: &mut Watch, folders: &mut Folders) {
        let (files, key_dirs) = match self.watches {
            true => (self.files.as_slice(), &self.key_dirs),
            false => (&[][..], &KeyDirs::new()),
        };
        let is_wider = watch.follow(files);
        if folders.follow(key_dirs).await || is_wider {
            trigger.pull();
        }
    }

    /// What is on disk now, or why it cannot be adopted.
    async fn read(&self) -> Result<Next, Box<Rejection>> {
        let (path, before, known) = (self.path.clone(), self.live.in_force(), self.key_dirs.clone());
        let written = Arc::clone(&self.live.configuration.adopted().written);
        let reading = gently(move || prepare(&path, &before, &written, &known));
        reading.await.unwrap_or_else(|_| {
            let problems = Found::general("the configuration could not be read");
            Err(Box::new(Rejection { problems, files: self.files.clone(), key_dirs: KeyDirs::new() }))
        })
    }

    /// Put in force only as a whole and without problems.
    async fn reload(&mut self, by: &str, cause: Cause) -> Outcome {
        let next = match self.read().await {
            Ok(next) => next,
            Err(rejection) => {
                self.files = rejection.files;
                // Where the text is broken not all of them were read, and those in force are needed again.
                self.key_dirs.extend(rejection.key_dirs);
                return self.keep(rejection.problems, by, cause);
            }
        };
        let Next { config, change } = next;
        (self.files, self.key_dirs) = (config.files.clone(), config.key_dirs.clone());
        let restart = self.started.needed_by(&Started::of(&config));
        let Some(change) = change else {
            self.told.clear();
            self.live.unreject();
            drop(gently(|| drop(config)));
            return self.live.configuration.outcome(Verdict::Unchanged);
        };
        let outcome = match self.listeners.prepare(&config) {
            Err(problems) => self.keep(Found::of(&problems, &config.sources), by, cause),
            Ok(listeners) => {
                self.told.clear();
                self.watches = config.server.watch;
                self.adopt(change, listeners, Arc::clone(&config.written), restart, by)
            }
        };
        drop(gently(|| drop(config)));
        outcome
    }

    fn adopt(
        &self,
        change: Change,
        listeners: listeners::Change,
        written: Arc<Written>,
        restart: Vec<String>,
        by: &str,
    ) -> Outcome {
        let Change { in_force, difference, left_out, warnings } = change;
        let number = self.live.configuration.adopted().number + 1;
        let all_warnings: Vec<String> = left_out.iter().chain(&warnings).cloned().collect();
        let adopted = Adopted {
            number,
            at: Timestamp::now(),
            by: by.to_owned(),
            difference: difference.clone(),
            written,
            warnings: all_warnings.clone(),
            restart: restart.clone(),
        };
        self.live.adopt(in_force, adopted);
        self.listeners.commit(listeners);
        left_out.iter().for_each(|problem| error!("{problem}"));
        warnings.iter().for_each(|warning| warn!("{warning}"));
        for key in &restart {
            warn!("{key} changed: it takes effect at the next restart");
        }
        log(&difference);
        info!("configuration reloaded from {}: number {number}, by {by}", self.path.display());
        Outcome { difference, warnings: all_warnings, ..self.live.configuration.outcome(Verdict::Adopted) }
    }

    fn keep(&mut self, problems: Found, by: &str, cause: Cause) -> Outcome {
        if cause == Cause::Asked || problems.lines != self.told {
            self.live.reject(Rejected { at: Timestamp::now(), by: by.to_owned(), problems: problems.lines.clone() });
            for problem in &problems.lines {
                error!("{problem}");
            }
            error!("configuration not adopted: {} problems; the one before stays in force", problems.lines.len());
            self.told.clone_from(&problems.lines);
        }
        self.rejected(problems)
    }

    fn rejected(&self, problems: Found) -> Outcome {
        let Found { json, report, .. } = problems;
        Outcome { problems: json, report, ..self.live.configuration.outcome(Verdict::Rejected) }
    }

    /// Changes nothing.
    async fn compare(&self, with: Option<Written>) -> Outcome {
        let (difference, warnings) = match with {
            Some(with) => {
                let before = Arc::clone(&self.live.configuration.adopted().written);
                let comparing = tokio::task::spawn_blocking(move || Difference::between(&before, &with));
                (comparing.await.unwrap_or_default(), Vec::new())
            }
            None => match self.read().await {
                Err(rejection) => return self.rejected(rejection.problems),
                Ok(Next { change: None, .. }) => return self.live.configuration.outcome(Verdict::Unchanged),
                Ok(Next { change: Some(Change { difference, warnings, left_out, .. }), .. }) => {
                    (difference, left_out.into_iter().chain(warnings).collect())
                }
            },
        };
        let verdict = if difference.is_empty() { Verdict::Unchanged } else { Verdict::Different };
        Outcome { difference, warnings, ..self.live.configuration.outcome(verdict) }
    }
}

/// Does what may take a second on a thread that gives way to those which carry traffic: to read a hundred thousand
/// routes, or to free them.
fn gently<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (told, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
        // Of this thread alone (nice(2), C library/kernel differences).
        let _ = rustix::process::nice(NICENESS);
        let _ = told.send(work());
    });
    if let Err(fault) = thread {
        warn!("no thread to read the configuration on: {fault}");
    }
    outcome
}

fn log(difference: &Difference) {
    for change in difference.changes.iter().take(LOGGED_MAX) {
        info!("changed: {change}");
    }
    let more = difference.changes.len().saturating_sub(LOGGED_MAX) + difference.more;
    if more > 0 {
        info!("changed: and {more} more");
    }
}

/// What was decided when the process started. Not the whole configuration: its secrets would outlive their files.
struct Started {
    /// Whether systemd passes sockets, for `server.listen` and for `admin.listen`.
    passed: [bool; 2],
    workers: Option<usize>,
    deliveries: Deliveries,
    level: String,
}

impl Started {
    fn of(config: &Config) -> Self {
        let passed = [&config.server.listen, &config.admin.listen]
            .map(|list| list.iter().any(|listen| listen.value == Listen::Systemd));
        let (workers, log) = (config.server.workers, &config.log);
        Self { passed, workers, deliveries: log.deliveries.clone(), level: log.level.clone() }
    }

    /// The keys that differ, and wait for a restart.
    fn needed_by(&self, after: &Self) -> Vec<String> {
        let keys = [
            ("server.listen", self.passed[0] == after.passed[0]),
            ("admin.listen", self.passed[1] == after.passed[1]),
            ("server.workers", self.workers == after.workers),
            ("log.deliveries", self.deliveries == after.deliveries),
            ("log.level", self.level == after.level),
        ];
        keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key.to_owned()).collect()
    }
}

/// RELOADING=1 wants the time it began, for systemd to tell this reload from the last (sd_notify(3)).
fn reloading() -> Vec<NotifyState<'static>> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    vec![NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]
}

/// The configuration that a process starts with.
pub fn first(config: &Config, warnings: Vec<String>) -> Adopted {
    Adopted {
        number: 1,
        at: Timestamp::now(),
        by: By::Start.to_string(),
        written: Arc::clone(&config.written),
        warnings,
        ..Adopted::default()
    }
}
