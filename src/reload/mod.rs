//! Hot reload: from a changed file, a signal or a request to a new plan, on one path, one at a time.
//! When is the configuration read again, and what happens if it is wrong?

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

use crate::config::difference::Difference;
use crate::config::{Config, Problem, Sight};
use crate::live::configuration::{Adopted, By, Outcome, Rejected, Verdict, how, named};
use crate::live::desk::{Comparison, Desk, With};
use crate::live::records::Destination;
use crate::live::{Live, log};
use folders::Folders;
use kept::Kept;
use listeners::Listeners;
use prepare::{Change, Files, Found, Looked, Next, Rejection, prepare};
use started::Started;
use watch::Watch;

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
/// Changes that the log tells one by one.
const LOGGED_MAX: usize = 20;

pub struct Reloader {
    path: PathBuf,
    /// What the process started with, and cannot change.
    started: Started,
    /// Whether files are read again when they change, and not only when somebody asks.
    watches: bool,
    /// By the last reading.
    looked: Looked,
    /// Why what stands on disk was not adopted the last time.
    told: Vec<String>,
    /// The digest of a configuration without problems whose listeners could not be opened.
    unheard: Option<[u8; 32]>,
    /// What the files looked like when they were read the last time; `None`: they might have changed at that moment.
    sight: Option<Sight>,
    /// What they look like since, if that is something else, and in how many looks they did not look the same.
    changed: Option<(Sight, u32)>,
    kept: Kept,
    live: Arc<Live>,
    listeners: Arc<Listeners>,
}

/// Why a reading begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody, or something that changed, asked for it.
    Asked,
    /// It was found to have changed, unheard: silent where nothing has.
    Found,
}

/// On whose behalf.
struct Asked {
    by: String,
    how: &'static str,
}

impl Asked {
    fn by(by: &[By]) -> Self {
        let nobody = [By::FileChange];
        let by = if by.is_empty() { &nobody[..] } else { by };
        Self { by: named(by), how: how(by) }
    }
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
    pub fn new(path: PathBuf, config: Config, kept: Kept, live: Arc<Live>, listeners: Arc<Listeners>) -> Self {
        live.desk.attend();
        live.configuration.rolls_back(config.rollback);
        let started = Started::of(&config);
        let (watches, looked, told) = (config.server.watch, Looked::of(&config), Vec::new());
        Self { path, started, watches, looked, told, unheard: None, sight: None, changed: None, kept, live, listeners }
    }

    pub async fn run(mut self) {
        let trigger = Trigger(Arc::downgrade(&self.live.desk));
        let (mut watch, mut folders) = (Watch::new(trigger.clone()), Folders::new(trigger.clone()));
        self.follow(&trigger, &mut watch, &mut folders).await;
        self.kept.keep_first().await;
        let mut next_look = Instant::now() + LOOK;
        loop {
            tokio::select! {
                () = self.live.desk.arrived() => {}
                () = tokio::time::sleep_until(next_look.into()) => {
                    let start = Instant::now();
                    if self.look().await {
                        self.follow(&trigger, &mut watch, &mut folders).await;
                    }
                    next_look = Instant::now() + LOOK.max(start.elapsed() * LOOK_SHARE);
                    continue;
                }
            }
            // All of them at once: what begins now is after each of them asked.
            let waiting = self.live.desk.take();
            if !waiting.by.is_empty() {
                let _ = sd_notify::notify(&reloading());
                let outcome = self.reload(&Asked::by(&waiting.by), Cause::Asked).await;
                for told in waiting.told {
                    let _ = told.send(outcome.clone()); // who asked may have gone
                }
                self.follow(&trigger, &mut watch, &mut folders).await;
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            for Comparison { with, told } in waiting.comparisons.into_iter().filter(|asked| !asked.told.is_closed()) {
                let _ = told.send(self.compare(with).await);
            }
        }
    }

    /// Whether the files are still what was read. Where they are watched a change went unheard if it is there for a while:
    /// it is taken up. Where they are not, it is told. True if they were read.
    async fn look(&mut self) -> bool {
        let (main, looked) = (self.path.clone(), self.looked.clone());
        let Ok(sight) = self.live.aside.run(move || looked.sight(&main, SystemTime::now())).await else { return false };
        if self.sight == Some(sight) {
            return false;
        }
        if self.watches {
            // Not in the middle of a change, unless it does not end.
            let looks = self.changed.map_or(1, |(_, looks)| looks + 1);
            let is_over = self.changed.is_some_and(|(before, _)| before == sight) || looks >= LOOKS_MAX;
            self.changed = Some((sight, looks));
            if is_over {
                self.reload(&Asked::by(&[]), Cause::Found).await;
            }
            return is_over;
        }
        let drift = match self.read(Files::OnDisk).await {
            Ok(Next { change, looked, sight, config }) => {
                self.saw(looked, Some(sight));
                self.live.configuration.rolls_back(config.rollback);
                if self.unheard != Some(config.digest) {
                    self.forget_rejection();
                }
                self.live.aside.free(config);
                change.map(|change| {
                    let first = change.difference.changes.into_iter().next();
                    first.unwrap_or_else(|| "comments, white space or order".to_owned())
                })
            }
            Err(rejection) => {
                self.saw(rejection.looked, rejection.sight);
                if rejection.problems.lines != self.told {
                    self.forget_rejection();
                }
                rejection.problems.lines.into_iter().next()
            }
        };
        self.drifts(drift);
        true
    }

    fn saw(&mut self, looked: Looked, sight: Option<Sight>) {
        self.looked = looked;
        self.sight = sight.filter(|sight| sight.is_settled);
        self.changed = None;
    }

    /// What was rejected is not on disk any more.
    fn forget_rejection(&mut self) {
        self.told.clear();
        self.unheard = None;
        self.live.unreject();
    }

    /// Told when it begins and when it ends.
    fn drifts(&self, what: Option<String>) {
        self.live.meters.config_drift.set(i64::from(what.is_some()));
        let line = what.clone();
        if self.live.configuration.drifts(what) {
            match line {
                Some(line) => warn!("what is on disk is not what runs: {line}"),
                None => info!("what is on disk is what runs again"),
            }
        }
    }

    /// What changed after it was read and before it was watched has gone unseen: it is read once more.
    async fn follow(&self, trigger: &Trigger, watch: &mut Watch, folders: &mut Folders) {
        let none = Looked::default();
        let looked = if self.watches { &self.looked } else { &none };
        let is_wider = watch.follow(&looked.files, &self.live.aside).await;
        if folders.follow(&looked.key_dirs).await || is_wider {
            trigger.pull();
        }
    }

    /// What these files say, or why they cannot be adopted.
    async fn read(&self, files: Files) -> Result<Next, Box<Rejection>> {
        let (path, before, known) = (self.path.clone(), self.live.in_force(), self.looked.key_dirs.clone());
        let written = Arc::clone(&self.live.configuration.adopted().written);
        let reading = self.live.aside.run(move || prepare(&path, &before, &written, &known, files));
        reading.await.unwrap_or_else(|_| {
            let problems = Found::general("the configuration could not be read");
            Err(Box::new(Rejection { problems, looked: self.looked.clone(), sight: None }))
        })
    }

    /// Put in force only as a whole and without problems.
    async fn reload(&mut self, asked: &Asked, cause: Cause) -> Outcome {
        let Next { config, looked, change, sight } = match self.read(Files::OnDisk).await {
            Ok(next) => next,
            Err(rejection) => {
                self.saw(rejection.looked, rejection.sight);
                self.unheard = None;
                return self.keep(rejection.problems, asked, cause);
            }
        };
        self.saw(looked, Some(sight));
        self.live.configuration.rolls_back(config.rollback);
        let outcome = match change {
            None => {
                self.forget_rejection();
                self.drifts(None);
                self.live.configuration.log_unchanged(asked.how, &asked.by);
                self.live.configuration.outcome(Verdict::Unchanged)
            }
            Some(change) => match self.open(&config).await {
                Err(problems) => {
                    self.unheard = Some(config.digest);
                    self.keep(Found::of(&problems, &config.sources), asked, cause)
                }
                Ok(opened) => self.adopt(change, opened, &config, asked).await,
            },
        };
        self.live.aside.free(config);
        outcome
    }

    /// Opens what is new of sockets and files, before anything changes.
    async fn open(&self, config: &Config) -> Result<(listeners::Change, Option<Destination>), Vec<Problem>> {
        let deliveries = &config.log.deliveries;
        let destination = match self.live.records.go_to(deliveries) {
            true => None,
            false => Some(Destination::open(deliveries).await.map_err(|fault| {
                let problem = Problem::at(deliveries.place, "cannot open the delivery log").label(fault.to_string());
                vec![problem.help("let the user that outgate runs as write there, or write another path")]
            })?),
        };
        Ok((self.listeners.prepare(config)?, destination))
    }

    async fn adopt(
        &mut self,
        change: Change,
        (listeners, destination): (listeners::Change, Option<Destination>),
        config: &Config,
        asked: &Asked,
    ) -> Outcome {
        let Change { in_force, difference, left_out, warnings } = change;
        let restart = self.started.needed_by(&Started::of(config));
        let adopted = Adopted {
            number: self.live.configuration.adopted().number + 1,
            at: Timestamp::now(),
            by: asked.by.clone(),
            how: config.rollback.map_or_else(|| asked.how.to_owned(), |number| format!("rollback to {number}")),
            difference: difference.clone(),
            written: Arc::clone(&config.written),
            warnings: left_out.iter().chain(&warnings).cloned().collect(),
            restart: restart.clone(),
        };
        let (how, by) = (adopted.how.clone(), format!(", by {}", asked.by));
        let by = if how == asked.by { "" } else { &by };
        let new_warnings = self.unlogged(warnings);
        let all_warnings = adopted.warnings.clone();
        self.told.clear();
        self.unheard = None;
        self.watches = config.server.watch;
        self.live.adopt(in_force, adopted.clone());
        let live = Arc::clone(&self.live);
        drop(self.live.aside.run(move || live.meters.prune(&live.in_force().plan)));
        self.listeners.commit(listeners);
        if let Some(destination) = destination {
            self.live.records.replace(destination);
        }
        log::configure(&config.log);
        self.drifts(None);
        self.kept.keep(adopted, config.server.history).await;
        left_out.iter().for_each(|problem| error!("{problem}"));
        new_warnings.iter().for_each(|warning| warn!("{warning}"));
        for key in &restart {
            warn!("{key} changed: it takes effect at the next restart");
        }
        log_difference(&difference);
        let number = self.live.configuration.adopted().number;
        info!("configuration reloaded from {}: number {number}, {how}{by}", self.path.display());
        Outcome { difference, warnings: all_warnings, ..self.live.configuration.outcome(Verdict::Adopted) }
    }

    /// Returns the warnings that the configuration in force does not have: it has logged its own.
    fn unlogged(&self, mut warnings: Vec<String>) -> Vec<String> {
        let adopted = self.live.configuration.adopted();
        warnings.retain(|warning| !adopted.warnings.contains(warning));
        warnings
    }

    fn keep(&mut self, problems: Found, asked: &Asked, cause: Cause) -> Outcome {
        if cause == Cause::Asked || problems.lines != self.told {
            self.live.reject(Rejected { at: Timestamp::now(), by: asked.by.clone(), problems: problems.lines.clone() });
            self.unlogged(problems.warnings.clone()).iter().for_each(|warning| warn!("{warning}"));
            for problem in &problems.lines {
                error!("{problem}");
            }
            error!("configuration not adopted: the one before stays in force");
            self.told.clone_from(&problems.lines);
        }
        self.live.meters.config_drift.set(1);
        self.live.configuration.drifts(problems.lines.first().cloned()); // it is told as what it is
        self.rejected(problems)
    }

    fn rejected(&self, problems: Found) -> Outcome {
        let Found { json, report, .. } = problems;
        Outcome { problems: json, report, ..self.live.configuration.outcome(Verdict::Rejected) }
    }

    /// Changes nothing.
    async fn compare(&self, with: With) -> Outcome {
        let files = match with {
            With::Disk => Files::OnDisk,
            With::Entry(number) => match self.kept.overlay(&self.path, number).await {
                Ok(overlay) => Files::Over(overlay),
                Err(why) => return self.rejected(Found::general(why)),
            },
            With::Written(with) => {
                let before = Arc::clone(&self.live.configuration.adopted().written);
                let difference =
                    self.live.aside.run(move || Difference::between(&before, &with)).await.unwrap_or_default();
                let verdict = if difference.is_empty() { Verdict::Unchanged } else { Verdict::Different };
                return Outcome { difference, ..self.live.configuration.outcome(verdict) };
            }
        };
        match self.read(files).await {
            Err(rejection) => self.rejected(rejection.problems),
            Ok(Next { change: None, .. }) => self.live.configuration.outcome(Verdict::Unchanged),
            Ok(Next { change: Some(change), .. }) => Outcome {
                warnings: change.left_out.into_iter().chain(change.warnings).collect(),
                difference: change.difference,
                ..self.live.configuration.outcome(Verdict::Different)
            },
        }
    }
}

fn log_difference(difference: &Difference) {
    for change in difference.changes.iter().take(LOGGED_MAX) {
        info!("changed: {change}");
    }
    let more = difference.changes.len().saturating_sub(LOGGED_MAX) + difference.more;
    if more > 0 {
        info!("changed: and {more} more");
    }
}

/// RELOADING=1 wants the time it began, for systemd to tell this reload from the last (sd_notify(3)).
fn reloading() -> Vec<NotifyState<'static>> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    vec![NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]
}
