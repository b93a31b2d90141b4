//! The files read, compiled and made ready, away from the threads that carry traffic.
//! Would what is on disk now be adopted, and what would it change?

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::config::difference::Difference;
use crate::config::{self, Config, KeyDirs, Problem, Severity, Sources, Written};
use crate::live::InForce;
use crate::net::resolve::Basis;
use crate::policy;

/// A configuration without problems.
pub(super) struct Next {
    pub(super) config: Config,
    /// `None`: it is the one that is in force.
    pub(super) change: Option<Change>,
}

pub(super) struct Change {
    pub(super) in_force: InForce,
    pub(super) difference: Difference,
    /// What is wrong with single tenants' keys.
    pub(super) left_out: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Why a configuration is not adopted, and the files whose change might mend it.
pub(super) struct Rejection {
    pub(super) problems: Found,
    pub(super) files: Vec<PathBuf>,
    pub(super) key_dirs: KeyDirs,
}

/// Problems as a log has them, as a script and as a person reads them.
pub(super) struct Found {
    pub(super) lines: Vec<String>,
    pub(super) json: Value,
    pub(super) report: String,
}

impl Found {
    pub(super) fn of(problems: &[Problem], sources: &Sources) -> Self {
        Self {
            lines: config::one_line_each(problems, sources),
            json: config::to_json(problems, sources),
            report: config::render(problems, sources, false),
        }
    }

    /// About no place in a file.
    pub(super) fn general(why: impl Into<String>) -> Self {
        Self::of(&[Problem::general(why)], &Sources::default())
    }
}

pub(super) fn prepare(
    path: &Path,
    before: &InForce,
    written: &Written,
    known: &KeyDirs,
) -> Result<Next, Box<Rejection>> {
    let now = Timestamp::now();
    let loaded = config::load_after(path, known).map_err(|rejected| {
        let (files, key_dirs) = (rejected.files.clone(), rejected.key_dirs.clone());
        let (problems, sources) = policy::every_problem(rejected, now);
        Box::new(Rejection { problems: Found::of(&problems, &sources), files, key_dirs })
    })?;
    let config::Loaded { config, mut warnings } = loaded;
    let rejection =
        |problems| Box::new(Rejection { problems, files: config.files.clone(), key_dirs: config.key_dirs.clone() });
    let (plan, more) = policy::compile_after(&config, Some(&before.plan), now)
        .map_err(|problems| rejection(Found::of(&problems, &config.sources)))?;
    let basis = Basis::read(&config.resolver);
    let resolves_the_same = basis.is_ok_and(|basis| basis == *before.resolver.basis());
    if config.digest == before.plan.digest && resolves_the_same {
        return Ok(Next { config, change: None });
    }
    warnings.extend(more);
    let (left_out, warnings): (Vec<_>, Vec<_>) =
        warnings.into_iter().partition(|problem| problem.severity == Severity::Contained);
    let [left_out, warnings] = [left_out, warnings].map(|told| config::one_line_each(&told, &config.sources));
    let in_force = InForce::new(plan, &config.resolver, Some(before))
        .map_err(|fault| rejection(Found::general(format!("cannot resolve names: {fault}"))))?;
    let mut difference = Difference::between(written, &config.written);
    if !resolves_the_same && difference.is_empty() {
        difference.changes.push("resolver: what the system says of it changed".to_owned());
    }
    Ok(Next { config, change: Some(Change { in_force, difference, left_out, warnings }) })
}
