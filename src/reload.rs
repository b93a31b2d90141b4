//! Hot reload: from a changed file or a signal to a new plan, on one path, one at a time.
//! When is the configuration read again, and what happens if it is wrong?

mod folders;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use notify::RecursiveMode;
use notify_debouncer_full::{DebounceEventResult, DebouncedEvent, Debouncer, RecommendedCache, new_debouncer};
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::config::{self, Config, Deliveries, KeyDirs, Listen, Severity};
use crate::live::{InForce, Live};
use crate::net::resolve::Basis;
use crate::policy;
use folders::Folders;

/// Editors write in several steps; what follows within this time is one change.
const DEBOUNCE: Duration = Duration::from_millis(200);

pub struct Reloader {
    path: PathBuf,
    /// What the process started with, and cannot change.
    started: Started,
    /// What to watch: all that the last reading looked at, whatever came of it.
    files: Vec<PathBuf>,
    /// What the last reading read of tenants' keys.
    key_dirs: KeyDirs,
    /// Why what stands on disk was not adopted the last time.
    told: Vec<String>,
    live: Arc<Live>,
    triggers: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// Why a reading begins.
#[derive(PartialEq, Eq)]
enum Cause {
    /// Somebody, or something that changed, asked for it.
    Asked,
    /// It was time to look over what is not watched: silent where nothing has changed.
    Due,
}

/// Asks for a reload. Asking again before it has begun is the same request.
#[derive(Clone)]
pub struct Trigger(mpsc::Sender<()>);

impl Trigger {
    pub fn pull(&self) {
        let _ = self.0.try_send(()); // full: one is due already
    }
    /// Whether nobody is there any more to reload.
    fn is_dead(&self) -> bool {
        self.0.is_closed()
    }
}

impl Reloader {
    pub fn new(path: PathBuf, config: Config, live: Arc<Live>) -> Self {
        let started = Started::of(&config);
        let Config { files, key_dirs, .. } = config;
        Self { path, started, files, key_dirs, told: Vec::new(), live, triggers: mpsc::channel(1) }
    }

    pub fn trigger(&self) -> Trigger {
        Trigger(self.triggers.0.clone())
    }

    pub async fn run(mut self) {
        let (mut watch, mut folders) = (Watch::new(self.trigger()), Folders::new(self.trigger()));
        self.follow(&mut watch, &mut folders).await;
        let mut took = Duration::ZERO;
        loop {
            let cause = tokio::select! {
                _ = self.triggers.1.recv() => Cause::Asked,
                () = folders.due(took) => Cause::Due,
            };
            let start = Instant::now();
            if cause == Cause::Asked {
                let _ = sd_notify::notify(&reloading());
            }
            self.reload(&cause).await;
            self.follow(&mut watch, &mut folders).await;
            if cause == Cause::Asked {
                let _ = sd_notify::notify(&[NotifyState::Ready]);
            }
            took = start.elapsed();
        }
    }

    /// What changed after it was read and before it was watched has gone unseen: it is read once more.
    async fn follow(&self, watch: &mut Watch, folders: &mut Folders) {
        let is_wider = watch.follow(&self.files);
        if folders.follow(&self.key_dirs).await || is_wider {
            self.trigger().pull();
        }
    }

    /// Read, compiled and prepared away from the threads that carry traffic; put in force only as a whole and without
    /// problems.
    async fn reload(&mut self, cause: &Cause) {
        let (path, before, known) = (self.path.clone(), self.live.in_force(), self.key_dirs.clone());
        let next = tokio::task::spawn_blocking(move || prepare(&path, &before, &known)).await;
        match next {
            Err(_) => self.keep(vec!["the configuration could not be read".to_owned()], cause),
            Ok(Err(rejection)) => {
                self.files = rejection.files;
                // Where the text is broken not all of them were read, and those in force are needed again.
                self.key_dirs.extend(rejection.key_dirs);
                self.keep(rejection.problems, cause);
            }
            Ok(Ok(Next { config, in_force, left_out, warnings })) => {
                let started = Started::of(&config);
                (self.files, self.key_dirs) = (config.files, config.key_dirs);
                self.told.clear();
                let Some(in_force) = in_force else { return self.live.unreject() };
                self.live.adopt(in_force);
                left_out.iter().for_each(|problem| error!("{problem}"));
                warnings.iter().for_each(|warning| warn!("{warning}"));
                needs_restart(&self.started, &started);
                info!("configuration reloaded from {}", self.path.display());
            }
        }
    }

    fn keep(&mut self, problems: Vec<String>, cause: &Cause) {
        if *cause == Cause::Due && problems == self.told {
            return;
        }
        for problem in &problems {
            error!("{problem}");
        }
        error!("configuration not adopted: {} problems; the one before stays in force", problems.len());
        self.live.reject(problems.first().cloned().unwrap_or_default());
        self.told = problems;
    }
}

/// A configuration without problems; `in_force` is `None` where it is the one that already is.
struct Next {
    config: Config,
    in_force: Option<InForce>,
    /// What is wrong with single tenants' keys.
    left_out: Vec<String>,
    warnings: Vec<String>,
}

/// Problems and warnings come as one line each.
fn prepare(path: &Path, before: &InForce, known: &KeyDirs) -> Result<Next, Rejection> {
    let loaded = config::load_after(path, known).map_err(|rejected| Rejection {
        problems: config::one_line_each(&rejected.problems, &rejected.sources),
        files: rejected.files,
        key_dirs: rejected.key_dirs,
    })?;
    let config::Loaded { config, mut warnings } = loaded;
    let rejection = |problems| Rejection { problems, files: config.files.clone(), key_dirs: config.key_dirs.clone() };
    let (plan, more) = policy::compile_after(&config, Some(&before.plan), Timestamp::now())
        .map_err(|problems| rejection(config::one_line_each(&problems, &config.sources)))?;
    warnings.extend(more);
    let (left_out, warnings): (Vec<_>, Vec<_>) =
        warnings.into_iter().partition(|problem| problem.severity == Severity::Contained);
    let [left_out, warnings] = [left_out, warnings].map(|told| config::one_line_each(&told, &config.sources));
    let is_same = config.digest == before.plan.digest
        && Basis::read(&config.resolver).is_ok_and(|basis| basis == *before.resolver.basis());
    let in_force = match is_same {
        true => None,
        false => Some(
            InForce::new(plan, &config.resolver, Some(before))
                .map_err(|fault| rejection(vec![format!("cannot resolve names: {fault}")]))?,
        ),
    };
    Ok(Next { config, in_force, left_out, warnings })
}

/// Why a configuration is not adopted, and the files whose change might mend it.
struct Rejection {
    problems: Vec<String>,
    files: Vec<PathBuf>,
    key_dirs: KeyDirs,
}

/// What was decided when the process started. Not the whole configuration: its secrets would outlive their files.
struct Started {
    listen: Vec<Listen>,
    admin: Vec<Listen>,
    workers: Option<usize>,
    deliveries: Deliveries,
}

impl Started {
    fn of(config: &Config) -> Self {
        let values = |list: &[config::At<Listen>]| list.iter().map(|listen| listen.value.clone()).collect();
        let (listen, admin) = (values(&config.server.listen), values(&config.admin.listen));
        Self { listen, admin, workers: config.server.workers, deliveries: config.log.deliveries.clone() }
    }
}

fn needs_restart(before: &Started, after: &Started) {
    for (key, is_same) in [
        ("server.listen", before.listen == after.listen),
        ("admin.listen", before.admin == after.admin),
        ("server.workers", before.workers == after.workers),
        ("log.deliveries", before.deliveries == after.deliveries),
    ] {
        if !is_same {
            warn!("{key} changed: it takes effect at the next restart");
        }
    }
}

/// RELOADING=1 wants the time it began, for systemd to tell this reload from the last (sd_notify(3)).
fn reloading() -> Vec<NotifyState<'static>> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    vec![NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]
}

/// Watches the folders of files, not the files: an editor that renames, or a symlink that is swapped, puts another file
/// in the same place.
struct Watch {
    debouncer: Option<Debouncer<notify::RecommendedWatcher, RecommendedCache>>,
    folders: BTreeSet<PathBuf>,
    /// What a change must be about: other files of a watched folder, such as a log, are none of our business.
    followed: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Watch {
    fn new(trigger: Trigger) -> Self {
        let followed: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let theirs = Arc::clone(&followed);
        let on_change = move |events: DebounceEventResult| {
            let followed = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            let is_ours = |path: &PathBuf| {
                let is_in_followed_folder = path.parent().is_some_and(|folder| followed.contains(folder));
                // A symlink or a folder may be on the way to one of ours.
                followed.contains(path) || is_in_followed_folder || !path.is_file() || path.is_symlink()
            };
            let is_change = |event: &DebouncedEvent| !event.kind.is_access() && event.paths.iter().any(is_ours);
            if events.map_or(true, |events| events.iter().any(is_change)) {
                trigger.pull();
            }
        };
        let debouncer = new_debouncer(DEBOUNCE, None, on_change);
        if let Err(fault) = &debouncer {
            warn!("cannot watch for changes: {fault}; reload with SIGHUP");
        }
        Self { debouncer: debouncer.ok(), folders: BTreeSet::new(), followed }
    }

    /// True if there is a folder among theirs that was not watched before.
    fn follow(&mut self, files: &[PathBuf]) -> bool {
        let Some(debouncer) = &mut self.debouncer else { return false };
        let absolute = files.iter().flat_map(|file| [std::path::absolute(file).ok(), file.canonicalize().ok()]);
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = absolute.flatten().collect();
        let wanted: BTreeSet<PathBuf> = files.iter().flat_map(|file| folders(file)).collect();
        for gone in self.folders.difference(&wanted) {
            let _ = debouncer.unwatch(gone);
        }
        for new in wanted.difference(&self.folders) {
            if let Err(fault) = debouncer.watch(new, RecursiveMode::NonRecursive) {
                warn!("cannot watch {}: {fault}; reload with SIGHUP", new.display());
            }
        }
        let is_wider = !wanted.is_subset(&self.folders);
        self.folders = wanted;
        is_wider
    }
}

/// The folder where a file's name stands, and the one where a symlink leads.
fn folders(file: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let file = &std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut folders = vec![parent(file)];
    if let Ok(real) = file.canonicalize() {
        folders.push(parent(&real));
    }
    folders
}
