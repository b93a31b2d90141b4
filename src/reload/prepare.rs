//! The files read, compiled and made ready, away from the threads that carry traffic.
//! Would what is on disk now be adopted, and what would it change?

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
use crate::state::config::ActiveConfig;

/// A configuration without problems.
pub(super) struct PreparedConfig {
    pub(super) config: Config,
    pub(super) looked: WatchSet,
    /// `None`: it is the one that is in force.
    pub(super) change: Option<ConfigChange>,
    /// Of the files as they were read.
    pub(super) sight: StatFingerprint,
}

pub(super) struct ConfigChange {
    pub(super) active: ActiveConfig,
    pub(super) difference: Difference,
    /// What is wrong with single tenants' keys.
    pub(super) left_out: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Why a configuration is not adopted, and what might mend it.
pub(super) struct Rejection {
    pub(super) problems: ProblemReport,
    pub(super) looked: WatchSet,
    pub(super) sight: Option<StatFingerprint>,
}

/// All that a reading looked at, whatever came of it.
#[derive(Clone, Default)]
pub(super) struct WatchSet {
    /// What is watched.
    pub(super) files: Vec<PathBuf>,
    /// What was read of tenants' keys.
    pub(super) key_dirs: KeyDirs,
    /// What this host says of names: in a folder where too much goes on to be watched.
    system: &'static [&'static str],
}

impl WatchSet {
    pub(super) fn of(config: &Config) -> Self {
        let (files, key_dirs) = (config.files.clone(), config.key_dirs.clone());
        Self { files, key_dirs, system: ResolverConfig::files(&config.resolver) }
    }

    /// Where the text is broken not all of it was read, and what was `known` is needed again.
    fn at(rejected: &LoadError, known: &KeyDirs) -> Self {
        let mut key_dirs = known.clone();
        key_dirs.extend(rejected.key_dirs.clone());
        let system = rejected.partial.as_ref().map_or(&[][..], |config| ResolverConfig::files(&config.resolver));
        Self { files: rejected.files.clone(), key_dirs, system }
    }

    /// All of it, from outside; `then`: it was read, or is looked at.
    pub(super) fn sight(&self, main: &Path, then: SystemTime) -> StatFingerprint {
        let rollback = pending_rollback::path(main);
        let folders = self.key_dirs.values();
        let keys: Vec<PathBuf> =
            folders.flat_map(|key_dir| key_dir.folder_paths().chain(key_dir.key_paths())).collect();
        let paths = self.files.iter().chain(&keys).chain([&rollback]).map(PathBuf::as_path);
        StatFingerprint::compute(paths.chain(self.system.iter().map(Path::new)), then)
    }
}

/// Which files are meant.
pub(super) enum ConfigFiles {
    OnDisk,
    /// With these in the place of those on disk.
    Overlaid(Overlay),
}

/// Problems as a log has them, as a script and as a person reads them.
pub(super) struct ProblemReport {
    /// What keeps it from being adopted, one a line.
    pub(super) lines: Vec<String>,
    /// One a line.
    pub(super) warnings: Vec<String>,
    pub(super) json: Value,
    pub(super) report: String,
}

impl ProblemReport {
    pub(super) fn of(problems: &[Problem], sources: &SourceMap) -> Self {
        let summary = config::summarize(problems);
        let report = config::render(&summary, sources, false);
        let (warnings, faults): (Vec<_>, Vec<_>) =
            summary.into_iter().partition(|problem| problem.severity == Severity::Warning);
        let [lines, warnings] = [faults, warnings].map(|some| config::to_log_lines(&some, sources));
        Self { lines, warnings, json: config::to_json(problems, sources), report }
    }

    /// About no place in a file.
    pub(super) fn general(why: impl Into<String>) -> Self {
        Self::of(&[Problem::general(why)], &SourceMap::default())
    }
}

pub(super) fn prepare(
    path: &Path,
    before: &ActiveConfig,
    written: &SourceSnapshot,
    known: &KeyDirs,
    files: ConfigFiles,
) -> Result<PreparedConfig, Box<Rejection>> {
    let (now, then) = (Timestamp::now(), SystemTime::now());
    let loaded = match files {
        ConfigFiles::OnDisk => config::load_incremental(path, known),
        ConfigFiles::Overlaid(overlay) => config::load_with_overlay(path, known, overlay),
    };
    let loaded = loaded.map_err(|rejected| {
        let looked = WatchSet::at(&rejected, known);
        let sight = Some(looked.sight(path, then));
        let (problems, sources) = policy::every_problem(rejected, now);
        Box::new(Rejection { problems: ProblemReport::of(&problems, &sources), looked, sight })
    })?;
    let config::Loaded { config, mut warnings } = loaded;
    let looked = WatchSet::of(&config);
    let sight = looked.sight(path, then);
    let rejection = |problems| Box::new(Rejection { problems, looked: WatchSet::of(&config), sight: Some(sight) });
    let (plan, more) = policy::compile_after(&config, Some(&before.plan), now)
        .map_err(|problems| rejection(ProblemReport::of(&problems, &config.sources)))?;
    let basis = ResolverConfig::read(&config.resolver);
    let resolves_the_same = basis.is_ok_and(|basis| basis == *before.resolver.basis());
    if config.digest == before.plan.digest && resolves_the_same {
        return Ok(PreparedConfig { config, looked, change: None, sight });
    }
    warnings.extend(more);
    warnings.extend(fd_limit::warning(&config));
    warnings.extend(resolve::warnings(&config.resolver));
    let (warnings, _) = config::apply_acknowledgements(warnings, &config.acknowledge);
    let (left_out, warnings): (Vec<_>, Vec<_>) =
        warnings.into_iter().partition(|problem| problem.severity == Severity::Contained);
    let [left_out, warnings] =
        [left_out, warnings].map(|told| config::to_log_lines(&config::summarize(&told), &config.sources));
    let active = ActiveConfig::new(plan, &config.resolver, Some(before))
        .map_err(|fault| rejection(ProblemReport::general(format!("cannot resolve names: {fault}"))))?;
    let mut difference = Difference::between(written, &config.snapshot);
    if !resolves_the_same && difference.is_empty() {
        difference.changes.push("resolver: what the system says of it changed".to_owned());
    }
    Ok(PreparedConfig { config, looked, change: Some(ConfigChange { active, difference, left_out, warnings }), sight })
}
