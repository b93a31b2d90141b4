//! Loads a configuration: the main file, its includes and the files they reference, with every problem at once.
//! Is this configuration valid, as far as its text shows?

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::files::{FileError, FileTracker};
use super::include::{INCLUDABLE, SourceError, only_file};
use super::pending_rollback::{self, Overlay, UnreadableRollback};
use super::problem::{PROBLEMS_MAX, Problem, Severity, SourceMap};
use super::reader::{Environment, Reader, Table};
use super::redact::redact;
use super::snapshot::SourceSnapshot;
use super::{
    Config, KeyDirs, alerts, audit, captures, credential, fleet, log, named_sections, notices, redaction, schema,
    sections, signer, syntax, traces, trust, warning,
};

/// A configuration whose text has no problems.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// Warnings, and problems that concern single tenants.
    pub warnings: Vec<Problem>,
}

/// Every problem and every warning, in the order of the text.
#[derive(Debug)]
pub struct LoadError {
    pub problems: Vec<Problem>,
    pub sources: SourceMap,
    /// Every path that was read or tried, including missing ones; the file watcher waits for their change.
    pub files: Vec<PathBuf>,
    /// The key directories that were read; the next load reuses their unchanged folders.
    pub key_dirs: KeyDirs,
    /// The valid parts, unless a file has a syntax error. A caller compiles them only to report semantic problems,
    /// too.
    pub partial: Option<Box<Config>>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.iter().filter(|problem| problem.severity == Severity::Problem).count() {
            1 => f.write_str("the configuration has a problem"),
            count => write!(f, "the configuration has {count} problems"),
        }
    }
}

impl std::error::Error for LoadError {}

/// Loads a configuration file and all files that it references.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    load_incremental(path, &KeyDirs::new())
}

/// Loads like [`load`], and reuses the unchanged key folders of a previous load.
pub fn load_incremental(path: &Path, previous: &KeyDirs) -> Result<Loaded, LoadError> {
    load_from(path, &|name| std::env::var_os(name), previous, pending_rollback::read(path))
}

/// Loads like [`load`], with the files of `overlay` in place of those on disk.
pub fn load_with_overlay(path: &Path, previous: &KeyDirs, overlay: Overlay) -> Result<Loaded, LoadError> {
    load_from(path, &|name| std::env::var_os(name), previous, Ok(Some(overlay)))
}

/// Loads like [`load`], with another environment than that of this process.
pub fn load_with_environment(path: &Path, environment: &Environment<'_>) -> Result<Loaded, LoadError> {
    load_from(path, environment, &KeyDirs::new(), pending_rollback::read(path))
}

fn load_from(
    path: &Path,
    environment: &Environment<'_>,
    previous: &KeyDirs,
    overlay: Result<Option<Overlay>, UnreadableRollback>,
) -> Result<Loaded, LoadError> {
    let mut reader = Reader::new(environment, previous);
    match overlay {
        Ok(overlay) => reader.overlay = overlay,
        // Neither the files on disk nor those of the rollback are known to be consistent.
        Err(unreadable) => {
            let problem = Problem::general(format!("cannot read an unfinished rollback: {unreadable}"));
            reader.problems.push(problem.help("run `outgate rollback --finish` as the user who began the rollback"));
            return Err(reader.into_load_error(None));
        }
    }
    match reader.read_source(path) {
        Ok((file, text)) => build(reader, file, &text),
        Err(error) => {
            let help = match error {
                SourceError::File(FileError::PermissionDenied) => {
                    "let this user read the file and enter its folders, or run this as root"
                }
                _ => "write the path of a configuration file: --config PATH",
            };
            reader.problems.push(Problem::general(format!("{} {error}", path.display())).help(help));
            Err(reader.into_load_error(None))
        }
    }
}

/// Parses a configuration. Relative paths in it are relative to the directory of `path`.
pub fn parse(text: &str, path: &Path) -> Result<Loaded, LoadError> {
    let previous = KeyDirs::new();
    let mut reader = Reader::new(&|name| std::env::var_os(name), &previous);
    reader.files.update_digest(text.as_bytes());
    let file = reader.sources.add(path, text);
    build(reader, file, text)
}

/// Returns the built-in configuration: anonymous clients on loopback may send to every public host, from `addresses`.
pub fn builtin(addresses: &[IpAddr]) -> Result<Loaded, LoadError> {
    let path = Path::new("(built in)");
    if addresses.is_empty() {
        let previous = KeyDirs::new();
        let mut reader = Reader::new(&|_| None, &previous);
        let problem = Problem::general("this host has no global address to send from");
        reader.problems.push(problem.help("write a configuration with a pool of addresses, [egress.default]"));
        return Err(reader.into_load_error(None));
    }
    let ranges: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let ranges = ranges.join(", ");
    parse(&include_str!("builtin.toml").replace("\"ADDRESSES\"", &ranges), path)
}

impl<'e> Reader<'e> {
    fn new(environment: &'e Environment<'e>, previous: &'e KeyDirs) -> Self {
        Self {
            environment,
            sources: SourceMap::default(),
            files: FileTracker::new(),
            previous_key_dirs: previous,
            key_dirs: KeyDirs::new(),
            problems: Vec::new(),
            syntax_errors: Vec::new(),
            overlay: None,
            bundle_dir: None,
            declared_sections: super::DeclaredSections::default(),
        }
    }

    /// Parses a file, and redacts the secrets in the text that problems show.
    fn parse_document<'a>(&mut self, file: u16, text: &'a str) -> DeTable<'a> {
        let (table, problems) = syntax::parse(file, text);
        let broken: Vec<_> =
            problems.iter().filter_map(|problem| problem.span).map(|at| at.start as usize..at.end as usize).collect();
        self.sources.replace(file, redact(text, &table, &broken));
        self.syntax_errors.extend(problems);
        table
    }

    fn into_load_error(self, partial: Option<Box<Config>>) -> LoadError {
        let problems = sort_and_truncate(self.problems, self.syntax_errors, &self.sources);
        let files = self.files.finish().paths;
        LoadError { problems, sources: self.sources, files, key_dirs: self.key_dirs, partial }
    }
}

/// Sorts the problems by position, drops those on lines with a syntax error, and limits their number.
fn sort_and_truncate(mut problems: Vec<Problem>, syntax: Vec<Problem>, sources: &SourceMap) -> Vec<Problem> {
    let count = problems.len() + syntax.len();
    let line = |problem: &Problem| {
        let span = problem.span?;
        let (_, text) = sources.get(span.file)?;
        Some((span.file, syntax::line_of(text, span)))
    };
    problems.sort_by_key(|problem| problem.span);
    problems.truncate(PROBLEMS_MAX);
    if !syntax.is_empty() {
        let broken: BTreeSet<_> = syntax.iter().filter_map(line).collect();
        problems.retain(|problem| line(problem).is_none_or(|line| !broken.contains(&line)));
    }
    problems.extend(syntax);
    problems.sort_by_key(|problem| problem.span);
    problems.truncate(PROBLEMS_MAX);
    if count > PROBLEMS_MAX {
        problems.push(Problem::general(format!("more than {PROBLEMS_MAX} problems; only the first are shown")));
    }
    problems
}

/// Reads the files of a bundle: `path`, and those that it includes. Their sections are not read.
pub fn read_bundle_files(path: &Path) -> Result<Vec<(PathBuf, Arc<str>)>, LoadError> {
    let previous = KeyDirs::new();
    let mut reader = Reader::new(&|_| None, &previous);
    let mut texts = Vec::new();
    match reader.read_source(path) {
        Ok((file, text)) => {
            let root = reader.parse_document(file, &text);
            let table = Table::from_file(&mut reader, file, &root, &schema::FILE);
            let included = reader.read_includes(file, &table);
            texts.extend(std::iter::once((file, Arc::clone(&text))).chain(included));
        }
        Err(error) => reader.problems.push(Problem::general(format!("{} {error}", path.display()))),
    }
    if !reader.problems.is_empty() || !reader.syntax_errors.is_empty() {
        return Err(reader.into_load_error(None));
    }
    let path = |file| reader.sources.get(file).map(|(path, _)| path.to_owned());
    Ok(texts.into_iter().filter_map(|(file, text)| Some((path(file)?, text))).collect())
}

/// Reads the sections of the main file and of those that it includes.
fn build(mut reader: Reader<'_>, main: u16, text: &str) -> Result<Loaded, LoadError> {
    if text.trim().is_empty() {
        // Some editors truncate a file before they write it: outgate must not adopt that state.
        let problem = Problem::general("the configuration file is empty");
        reader.problems.push(problem.help("write at least a [server] section"));
    }
    let root = reader.parse_document(main, text);
    let file = Table::from_file(&mut reader, main, &root, &schema::FILE);
    let texts = reader.read_includes(main, &file);
    let documents: Vec<_> = texts.iter().map(|(file, text)| (*file, reader.parse_document(*file, text))).collect();
    let mut files = vec![file];
    for ((file, nodes), (_, text)) in documents.iter().zip(&texts) {
        if text.is_empty() {
            let (path, _) = reader.sources.get(*file).unwrap_or((Path::new(""), ""));
            let problem = Problem::general(format!("the included file {} is empty", path.display()));
            reader.problems.push(problem.help("remove the file, or write at least a comment into it"));
        }
        let table = Table::from_file(&mut reader, *file, nodes, &schema::FILE);
        let (path, _) = reader.sources.get(*file).unwrap_or((Path::new(""), ""));
        // The files that a file of a bundle included are part of the bundle.
        let is_bundle = reader.bundle_dir.as_deref().is_some_and(|dir| path.parent() == Some(dir));
        let main_only = schema::FILE.keys.iter().filter(|key| !INCLUDABLE.contains(key));
        let main_only = main_only.filter(|key| !(is_bundle && **key == "include"));
        for key in main_only.filter_map(|key| table.get(key)) {
            let problem = Problem::at(
                key.span,
                format!("`{}` is in an included file, and only the main file may have it", key.key),
            );
            reader.problems.push(problem.help("move it to the main file"));
        }
        files.push(table);
    }
    let [file, ..] = files.as_slice() else { return Err(reader.into_load_error(None)) };

    let [guard, resolver, timeouts, circuit, redact] = ["guard", "resolver", "timeouts", "circuit", "redact"]
        .map(|section| only_file(&mut reader, &files, section, file));
    let server = sections::read_server(&mut reader, file);
    let admin = super::admin::read_admin(&mut reader, file);
    let publish = super::publish::read_publish(&mut reader, file);
    super::listener::reject_duplicate_sockets(
        &mut reader,
        [&server.listen, &admin.listen, &admin.agent, &publish.listen],
    );
    let mut config = Config {
        server,
        admin,
        egress: named_sections::read_pools(&mut reader, &files),
        clients: named_sections::read_clients(&mut reader, &files),
        routes: named_sections::read_routes(&mut reader, &files),
        trust: trust::read_all(&mut reader, &files),
        signers: signer::read_all(&mut reader, &files),
        credentials: credential::read_all(&mut reader, &files),
        limits: named_sections::read_limits(&mut reader, &files),
        declared_sections: super::DeclaredSections::default(),
        guard: sections::read_guard(&mut reader, guard),
        resolver: sections::read_resolver(&mut reader, resolver),
        timeouts: sections::read_timeouts(&mut reader, timeouts),
        circuit: sections::read_circuit(&mut reader, circuit),
        log: log::read_log(&mut reader, file),
        redact: redaction::read_redact(&mut reader, redact),
        audit: audit::read_audit(&mut reader, file),
        captures: captures::read_all(&mut reader, &files),
        traces: traces::read_traces(&mut reader, file),
        alerts: alerts::read_alerts(&mut reader, file),
        publish,
        notices: notices::read_notices(&mut reader, file),
        fleet: fleet::read_fleet(&mut reader, file),
        acknowledge: warning::read_acknowledged(&mut reader, file),
        sources: reader.sources.clone(),
        files: Vec::new(),
        key_dirs: reader.key_dirs.clone(),
        snapshot: Arc::default(),
        rollback: reader.overlay.as_ref().map(|overlay| overlay.number),
        digest: [0; 32],
    };
    config.declared_sections = reader.declared_sections.clone();
    let is_valid_toml = reader.syntax_errors.is_empty();
    if !is_valid_toml || reader.problems.iter().any(|problem| problem.severity == Severity::Problem) {
        return Err(reader.into_load_error(is_valid_toml.then(|| Box::new(config))));
    }
    let warnings = sort_and_truncate(reader.problems, Vec::new(), &reader.sources);
    let read_set = reader.files.finish();
    (config.files, config.digest) = (read_set.paths, read_set.digest);
    let texts = std::iter::once((main, text.into())).chain(texts);
    config.snapshot = Arc::new(SourceSnapshot::new(texts, &config.sources, read_set.contents, config.digest));
    Ok(Loaded { config, warnings })
}
