//! From a path to a configuration: the file, its includes, and what they point to, with all that is wrong at once.
//! Can this be adopted?

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::conceal::redact;
use super::files::{self, FILE_MAX, FileError, FileTracker, INCLUDES_MAX};
use super::journal::{self, Overlay, UnreadableRollback};
use super::problem::{PROBLEMS_MAX, Problem, Severity, SourceMap};
use super::read::{Environment, Reader, Table, Value};
use super::written::SourceSnapshot;
use super::{Config, KeyDirs, credential, keys, log, named, sections, signer, syntax, trust, warning};

/// A configuration without problems, so far as its text tells.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// And what is wrong with single tenants.
    pub warnings: Vec<Problem>,
}

/// Every problem and every warning, in the order of the text.
#[derive(Debug)]
pub struct LoadError {
    pub problems: Vec<Problem>,
    pub sources: SourceMap,
    /// Every file and directory looked at, also those that are not there: to be watched for a better state.
    pub files: Vec<PathBuf>,
    /// What the next reading need not read again.
    pub key_dirs: KeyDirs,
    /// What could be read, unless a file is no TOML: compile it to find the problems of meaning too, and for nothing else.
    pub rest: Option<Box<Config>>,
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

/// Reads a configuration file and all that it names.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    load_after(path, &KeyDirs::new())
}

/// The same, where some of it is known from a reading before: what has not changed since is not read again.
pub fn load_after(path: &Path, known: &KeyDirs) -> Result<Loaded, LoadError> {
    load_with(path, &|name| std::env::var_os(name), known, journal::read(path))
}

/// The same, as it would be with other files in the place of these.
pub fn load_over(path: &Path, known: &KeyDirs, overlay: Overlay) -> Result<Loaded, LoadError> {
    load_with(path, &|name| std::env::var_os(name), known, Ok(Some(overlay)))
}

/// The same, with another environment than that of this process.
pub fn load_in(path: &Path, environment: &Environment<'_>) -> Result<Loaded, LoadError> {
    load_with(path, environment, &KeyDirs::new(), journal::read(path))
}

fn load_with(
    path: &Path,
    environment: &Environment<'_>,
    known: &KeyDirs,
    overlay: Result<Option<Overlay>, UnreadableRollback>,
) -> Result<Loaded, LoadError> {
    let mut reader = Reader::new(environment, known);
    match overlay {
        Ok(overlay) => reader.overlay = overlay,
        // Neither the files in their places nor those of the folder can be trusted to belong together.
        Err(unreadable) => {
            let problem = Problem::general(format!("an unfinished rollback: {unreadable}"));
            reader.problems.push(problem.help("run `outgate rollback --finish`, as who began it"));
            return Err(reader.reject(None));
        }
    }
    match reader.source(path) {
        Ok((file, text)) => compose(reader, file, &text),
        Err(fault) => {
            let problem = Problem::general(format!("{} {fault}", path.display()));
            reader.problems.push(problem.help("write the path of a configuration file: --config PATH"));
            Err(reader.reject(None))
        }
    }
}

/// The configuration that a text is; relative paths in it are relative to where `path` stands.
pub fn parse(text: &str, path: &Path) -> Result<Loaded, LoadError> {
    let known = KeyDirs::new();
    let mut reader = Reader::new(&|name| std::env::var_os(name), &known);
    reader.files.digest(text.as_bytes());
    let file = reader.sources.add(path, text);
    compose(reader, file, text)
}

/// What runs where no file is: strangers on loopback may send to every public host, from these addresses of ours.
pub fn builtin(addresses: &[IpAddr]) -> Result<Loaded, LoadError> {
    let path = Path::new("(built in)");
    if addresses.is_empty() {
        let known = KeyDirs::new();
        let mut reader = Reader::new(&|_| None, &known);
        let problem = Problem::general("this host has no global address to send from");
        reader.problems.push(problem.help("write a configuration with a pool of addresses, [egress.default]"));
        return Err(reader.reject(None));
    }
    let ranges: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let ranges = ranges.join(", ");
    parse(&include_str!("builtin.toml").replace("\"ADDRESSES\"", &ranges), path)
}

/// Why a text cannot be had.
enum SourceError {
    File(FileError),
    NotUtf8 { line: usize },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(fault) => fault.fmt(f),
            Self::NotUtf8 { line } => write!(f, "is not UTF-8 (line {line})"),
        }
    }
}

impl<'e> Reader<'e> {
    fn new(environment: &'e Environment<'e>, known: &'e KeyDirs) -> Self {
        Self {
            environment,
            sources: SourceMap::default(),
            files: FileTracker::new(),
            known,
            key_dirs: KeyDirs::new(),
            problems: Vec::new(),
            syntax: Vec::new(),
            overlay: None,
            declared: super::DeclaredSections::default(),
        }
    }

    fn source(&mut self, path: &Path) -> Result<(u16, Arc<str>), SourceError> {
        let bytes = match self.overlay.as_ref().and_then(|overlay| overlay.text(path)) {
            Some(bytes) => self.files.read_as(path, bytes),
            None => self.files.read(path, FILE_MAX).map_err(SourceError::File)?.bytes,
        };
        let text: Arc<str> = String::from_utf8(bytes)
            .map_err(|error| {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                SourceError::NotUtf8 { line: 1 + good.iter().filter(|byte| **byte == b'\n').count() }
            })?
            .into();
        Ok((self.sources.add(path, text.clone()), text))
    }

    /// Parses, and hides the secrets of the text that problems will show.
    fn document<'a>(&mut self, file: u16, text: &'a str) -> DeTable<'a> {
        let (table, problems) = syntax::parse(file, text);
        let broken: Vec<_> =
            problems.iter().filter_map(|problem| problem.span).map(|at| at.start as usize..at.end as usize).collect();
        self.sources.replace(file, redact(text, &table, &broken));
        self.syntax.extend(problems);
        table
    }

    /// The texts of the files that `include` names, each once.
    fn included(&mut self, main: u16, table: &Table<'_>) -> Vec<(u16, Arc<str>)> {
        let mut seen: BTreeSet<PathBuf> = self.sources.get(main).map(|(path, _)| path.to_owned()).into_iter().collect();
        let mut texts = Vec::new();
        let patterns = table.get("include").and_then(|value| self.list(&value, None)).unwrap_or_default();
        for value in patterns {
            for path in self.expand(&value) {
                if texts.len() == INCLUDES_MAX || !seen.insert(path.clone()) {
                    continue;
                }
                match self.source(&path) {
                    Ok(text) => texts.push(text),
                    Err(fault) => self.include_fault(&value, &format!("{} {fault}", path.display())),
                }
            }
        }
        texts
    }

    /// The files that one pattern names.
    fn expand(&mut self, value: &Value<'_>) -> Vec<PathBuf> {
        let Some(text) = self.text(value) else { return Vec::new() };
        let path = self.resolve(value.span, text);
        let Some(pattern) = path.file_name().and_then(OsStr::to_str).filter(|_| !text.ends_with('/')) else {
            self.include_fault(value, "names no file");
            return Vec::new();
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        if text.trim_end_matches(pattern).contains('*') {
            self.include_fault(value, "* stands for a part of a file's name, not of a directory's");
            return Vec::new();
        }
        if !pattern.contains('*') {
            return vec![path];
        }
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let found = match self.files.matching(directory, pattern) {
            Ok(paths) => paths,
            // As with a directory that is empty: a package may bring it later.
            Err(FileError::Missing) => Vec::new(),
            Err(fault) => {
                self.include_fault(value, &format!("{} {fault}", directory.display()));
                Vec::new()
            }
        };
        match &self.overlay {
            Some(overlay) => overlay.expand(directory, |name| files::matches(pattern, name), found),
            None => found,
        }
    }

    fn include_fault(&mut self, value: &Value<'_>, why: &str) {
        let problem = Problem::at(value.span, "cannot be included").label(why);
        self.problems.push(problem.help("write paths of files, the last part with * if need be: \"conf.d/*.toml\""));
    }

    fn reject(self, rest: Option<Box<Config>>) -> LoadError {
        let problems = in_order(self.problems, self.syntax, &self.sources);
        let files = self.files.finish().paths;
        LoadError { problems, sources: self.sources, files, key_dirs: self.key_dirs, rest }
    }
}

/// In the order of the text, without what is said of lines that are no TOML, and no more than can be read.
fn in_order(mut problems: Vec<Problem>, syntax: Vec<Problem>, sources: &SourceMap) -> Vec<Problem> {
    let count = problems.len() + syntax.len();
    let line = |problem: &Problem| {
        let place = problem.span?;
        let (_, text) = sources.get(place.file)?;
        Some((place.file, syntax::line_of(text, place)))
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
        problems.push(Problem::general(format!("more than {PROBLEMS_MAX} problems: these are the first")));
    }
    problems
}

/// Reads the sections of the main file and of those that it includes.
fn compose(mut reader: Reader<'_>, main: u16, text: &str) -> Result<Loaded, LoadError> {
    if text.trim().is_empty() {
        // Some editors empty a file before they write it: that moment is not a configuration to adopt.
        let problem = Problem::general("the configuration file is empty");
        reader.problems.push(problem.help("write at least a [server] section"));
    }
    let nodes = reader.document(main, text);
    let file = Table::of_file(&mut reader, main, &nodes, &keys::FILE);
    let texts = reader.included(main, &file);
    let documents: Vec<_> = texts.iter().map(|(file, text)| (*file, reader.document(*file, text))).collect();
    let mut files = vec![file];
    for ((file, nodes), (_, text)) in documents.iter().zip(&texts) {
        if text.is_empty() {
            let (path, _) = reader.sources.get(*file).unwrap_or((Path::new(""), ""));
            let problem = Problem::general(format!("the included file {} is empty", path.display()));
            reader.problems.push(problem.help("remove it, or write what belongs there: a comment will do"));
        }
        let table = Table::of_file(&mut reader, *file, nodes, &keys::FILE);
        for key in keys::MAIN_ONLY.iter().filter_map(|key| table.get(key)) {
            let problem = Problem::at(key.span, format!("`{}` stands in an included file", key.key));
            reader.problems.push(problem.help("move it to the main file"));
        }
        files.push(table);
    }
    let [file, ..] = files.as_slice() else { return Err(reader.reject(None)) };

    let server = sections::server(&mut reader, file);
    let admin = sections::admin(&mut reader, file);
    super::listener::no_socket_twice(&mut reader, &server.listen, &admin.listen);
    let mut config = Config {
        server,
        admin,
        egress: named::pools(&mut reader, &files),
        clients: named::clients(&mut reader, &files),
        routes: named::routes(&mut reader, &files),
        trust: trust::trusts(&mut reader, &files),
        signers: signer::all(&mut reader, &files),
        credentials: credential::all(&mut reader, &files),
        limits: named::limits(&mut reader, &files),
        declared: super::DeclaredSections::default(),
        guard: sections::guard(&mut reader, file),
        resolver: sections::resolver(&mut reader, file),
        timeouts: sections::timeouts(&mut reader, file),
        circuit: sections::circuit(&mut reader, file),
        log: log::read(&mut reader, file),
        acknowledge: warning::acknowledged(&mut reader, file),
        sources: reader.sources.clone(),
        files: Vec::new(),
        key_dirs: reader.key_dirs.clone(),
        written: Arc::default(),
        rollback: reader.overlay.as_ref().map(|overlay| overlay.number),
        digest: [0; 32],
    };
    config.declared = reader.declared.clone();
    let whole = reader.syntax.is_empty();
    if !whole || reader.problems.iter().any(|problem| problem.severity == Severity::Problem) {
        return Err(reader.reject(whole.then(|| Box::new(config))));
    }
    let warnings = in_order(reader.problems, Vec::new(), &reader.sources);
    let looked = reader.files.finish();
    (config.files, config.digest) = (looked.paths, looked.digest);
    let texts = std::iter::once((main, text.into())).chain(texts);
    config.written = Arc::new(SourceSnapshot::new(texts, &config.sources, looked.contents, config.digest));
    Ok(Loaded { config, warnings })
}
