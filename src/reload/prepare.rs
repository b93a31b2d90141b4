//! Reads and compiles the configuration, away from the threads that carry traffic.
//! Would the configuration on disk be adopted, and what would it change?

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;

use crate::config::difference::Difference;
use crate::config::pending_rollback::{self, Overlay};
use crate::config::{self, Config, KeyDirs, LoadError, Problem, Severity, SourceMap, SourceSnapshot, StatFingerprint};
use crate::net::fd_limit;
use crate::net::resolve::{self, ResolverConfig};
use crate::policy;
use crate::policy::egress::actions::customer_actions;
use crate::policy::egress::notice::Announcements;
use crate::sandbox;
use crate::state::config::ActiveConfig;

/// A configuration without problems, compiled.
pub(super) struct PreparedConfig {
    pub(super) config: Config,
    pub(super) watch_set: WatchSet,
    /// `None`: the configuration equals the active one.
    pub(super) change: Option<ConfigChange>,
    /// The fingerprint of the files at the time of the read.
    pub(super) fingerprint: StatFingerprint,
}

/// The changes that an adoption would make.
pub(super) struct ConfigChange {
    pub(super) active: ActiveConfig,
    pub(super) difference: Difference,
    /// Problems in the keys of single tenants, which do not reject the configuration.
    pub(super) contained: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// The actions of customers that the ranges require.
    pub(super) customer_actions: Vec<String>,
}

/// A configuration with problems, and the files whose change might fix it.
pub(super) struct Rejection {
    pub(super) problems: ProblemReport,
    pub(super) watch_set: WatchSet,
    pub(super) fingerprint: Option<StatFingerprint>,
}

/// All files that a read accessed, whether it succeeded or not.
#[derive(Clone, Default)]
pub(super) struct WatchSet {
    /// The files to watch.
    pub(super) files: Vec<PathBuf>,
    /// The folders of tenants' keys.
    pub(super) key_dirs: KeyDirs,
    /// The host's resolver files. Their folder has too many changes to be watched, so they are only polled.
    resolver_files: &'static [&'static str],
}

impl WatchSet {
    pub(super) fn from_config(config: &Config) -> Self {
        let (files, key_dirs) = (config.files.clone(), config.key_dirs.clone());
        Self { files, key_dirs, resolver_files: ResolverConfig::files(&config.resolver) }
    }

    /// Returns the files that are known after an error. Not all folders of keys were read then, so the previous ones
    /// stay.
    fn from_error(error: &LoadError, previous: &KeyDirs) -> Self {
        let mut key_dirs = previous.clone();
        key_dirs.extend(error.key_dirs.clone());
        let resolver_files = error.partial.as_ref().map_or(&[][..], |config| ResolverConfig::files(&config.resolver));
        Self { files: error.files.clone(), key_dirs, resolver_files }
    }

    /// Computes the fingerprint of all files. `read_at` is the time of the read or of the poll.
    pub(super) fn fingerprint(&self, main: &Path, read_at: SystemTime) -> StatFingerprint {
        let rollback = pending_rollback::path(main);
        let folders = self.key_dirs.values();
        let keys: Vec<PathBuf> =
            folders.flat_map(|key_dir| key_dir.folder_paths().chain(key_dir.key_paths())).collect();
        let paths = self.files.iter().chain(&keys).chain([&rollback]).map(PathBuf::as_path);
        StatFingerprint::compute(paths.chain(self.resolver_files.iter().map(Path::new)), read_at)
    }
}

/// The files to read.
pub(super) enum ConfigFiles {
    OnDisk,
    /// The files on disk, with some replaced by those of the overlay.
    Overlaid(Overlay),
}

/// Problems in the forms for the log, for scripts and for people.
pub(super) struct ProblemReport {
    /// The problems that reject the configuration, one a line.
    pub(super) lines: Vec<String>,
    /// The warnings, one a line.
    pub(super) warnings: Vec<String>,
    pub(super) json: Value,
    pub(super) report: String,
}

impl ProblemReport {
    pub(super) fn new(problems: &[Problem], sources: &SourceMap) -> Self {
        let summary = config::summarize(problems);
        let report = config::render(&summary, sources, false);
        let (warnings, errors): (Vec<_>, Vec<_>) =
            summary.into_iter().partition(|problem| problem.severity == Severity::Warning);
        let [lines, warnings] = [errors, warnings].map(|some| config::to_log_lines(&some, sources));
        Self { lines, warnings, json: config::to_json(problems, sources), report }
    }

    /// Reports a problem that has no position in a file.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self::new(&[Problem::general(message)], &SourceMap::default())
    }
}

/// Reads, compiles and compares a configuration.
pub(super) fn prepare(
    path: &Path,
    active: &ActiveConfig,
    snapshot: &SourceSnapshot,
    previous: &KeyDirs,
    announcements: &Announcements,
    files: ConfigFiles,
) -> Result<PreparedConfig, Box<Rejection>> {
    let (now, read_at) = (Timestamp::now(), SystemTime::now());
    let loaded = match files {
        ConfigFiles::OnDisk => config::load_incremental(path, previous),
        ConfigFiles::Overlaid(overlay) => config::load_with_overlay(path, previous, overlay),
    };
    let loaded = loaded.map_err(|error| {
        let watch_set = WatchSet::from_error(&error, previous);
        let fingerprint = Some(watch_set.fingerprint(path, read_at));
        let problems = policy::all_problems(&error, now);
        Box::new(Rejection { problems: ProblemReport::new(&problems, &error.sources), watch_set, fingerprint })
    })?;
    let config::Loaded { config, mut warnings } = loaded;
    let watch_set = WatchSet::from_config(&config);
    let fingerprint = watch_set.fingerprint(path, read_at);
    let rejection = |problems| {
        Box::new(Rejection { problems, watch_set: WatchSet::from_config(&config), fingerprint: Some(fingerprint) })
    };
    let (plan, more) = policy::recompile(&config, Some(&active.plan), now)
        .map_err(|problems| rejection(ProblemReport::new(&problems, &config.sources)))?;
    let mut refused = announcements.problems(&config, now);
    refused.extend(sandbox::problems_of_unwritable_paths(&config));
    if !refused.is_empty() {
        return Err(rejection(ProblemReport::new(&refused, &config.sources)));
    }
    let basis = ResolverConfig::read(&config.resolver);
    let is_same_resolver = basis.is_ok_and(|basis| basis == *active.resolver.config());
    if config.digest == active.plan.digest && is_same_resolver {
        return Ok(PreparedConfig { config, watch_set, change: None, fingerprint });
    }
    warnings.extend(more);
    warnings.extend(fd_limit::warning(&config));
    warnings.extend(resolve::warnings(&config.resolver));
    let (warnings, _) = config::apply_acknowledgements(warnings, &config.acknowledge);
    let (contained, warnings): (Vec<_>, Vec<_>) =
        warnings.into_iter().partition(|problem| problem.severity == Severity::Contained);
    let [contained, warnings] =
        [contained, warnings].map(|problems| config::to_log_lines(&config::summarize(&problems), &config.sources));
    let customer_actions = customer_actions(&active.plan.pools, &plan.pools, config.fleet.is_some(), now);
    let next = ActiveConfig::new(plan, &config.resolver, Some(active))
        .map_err(|error| rejection(ProblemReport::general(format!("cannot resolve names: {error}"))))?;
    let mut difference = Difference::between(snapshot, &config.snapshot);
    if !is_same_resolver && difference.is_empty() {
        difference.changes.push("resolver: the resolver files of the system changed".to_owned());
    }
    Ok(PreparedConfig {
        config,
        watch_set,
        change: Some(ConfigChange { active: next, difference, contained, warnings, customer_actions }),
        fingerprint,
    })
}
