//! Finds and reads the files of a configuration besides the main file: those of `include`, and those of a fleet's bundle.
//! Which files belong to the configuration, and which sections may they have?

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{self, FILE_MAX, FileError, INCLUDES_MAX};
use super::problem::{Problem, SourceSpan};
use super::reader::{Reader, Table, Value};
use crate::names::folder_of;

/// The number of the main file in the source map.
const MAIN: u16 = 0;

/// The keys that an included file may have.
pub(super) const INCLUDABLE: [&str; 13] = [
    "egress",
    "clients",
    "routes",
    "trust",
    "signers",
    "credentials",
    "limits",
    "captures",
    "guard",
    "resolver",
    "timeouts",
    "circuit",
    "redact",
];
/// The folder below `server.state` with the files of the bundle that a fleet has adopted.
pub const BUNDLE_DIR: &str = "fleet/current";
/// The files of a bundle.
const BUNDLE_PATTERN: &str = "*.toml";

/// Why the text of a file cannot be read.
pub(super) enum SourceError {
    File(FileError),
    NotUtf8 { line: usize },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::NotUtf8 { line } => write!(f, "is not UTF-8 (line {line})"),
        }
    }
}

impl Reader<'_> {
    pub(super) fn read_source(&mut self, path: &Path) -> Result<(u16, Arc<str>), SourceError> {
        let bytes = match self.overlay.as_ref().and_then(|overlay| overlay.text(path)) {
            Some(bytes) => self.files.read_overlaid(path, bytes),
            None => self.files.read(path, FILE_MAX).map_err(SourceError::File)?.bytes,
        };
        let text: Arc<str> = String::from_utf8(bytes)
            .map_err(|error| {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                SourceError::NotUtf8 { line: 1 + valid.iter().filter(|byte| **byte == b'\n').count() }
            })?
            .into();
        Ok((self.sources.add(path, text.clone()), text))
    }

    /// Resolves a path relative to the file that names it. In a bundle, paths are relative to the main file.
    pub(super) fn resolve_path(&self, span: SourceSpan, path: &str) -> PathBuf {
        let folder = |file| self.sources.get(file).and_then(|(file, _)| file.parent());
        let own = folder(span.file);
        let is_bundle = self.bundle_dir.is_some() && own == self.bundle_dir.as_deref();
        let folder = if is_bundle { folder(MAIN) } else { own };
        folder.unwrap_or(Path::new("")).join(path)
    }

    /// Reads the files that `include` names, each once.
    pub(super) fn read_includes(&mut self, main: u16, table: &Table<'_>) -> Vec<(u16, Arc<str>)> {
        let mut visited: BTreeSet<PathBuf> =
            self.sources.get(main).map(|(path, _)| path.to_owned()).into_iter().collect();
        let mut texts = Vec::new();
        let patterns = table.get("include").and_then(|value| self.list(&value, None)).unwrap_or_default();
        self.bundle_dir = self.find_bundle_dir(main, table);
        for value in patterns {
            for path in self.expand_pattern(&value) {
                if texts.len() == INCLUDES_MAX || !visited.insert(path.clone()) {
                    continue;
                }
                match self.read_source(&path) {
                    Ok(text) => texts.push(text),
                    Err(error) => self.report_include_error(&value, &format!("{} {error}", path.display())),
                }
            }
        }
        let bundle = self.bundle_dir.clone().map(|dir| self.glob(&dir, BUNDLE_PATTERN));
        for path in bundle.and_then(Result::ok).unwrap_or_default() {
            match self.read_source(&path) {
                Ok(text) => texts.push(text),
                Err(error) => self.problems.push(Problem::general(format!("{} {error}", path.display()))),
            }
        }
        texts
    }

    /// Returns the folder of the fleet's bundle, if the main file has operators who sign one.
    fn find_bundle_dir(&self, main: u16, file: &Table<'_>) -> Option<PathBuf> {
        file.get("fleet")?.node.as_table()?.get("operators")?;
        let state = text_of(file, "server", "state")?;
        Some(self.resolve_path(SourceSpan { file: main, start: 0, end: 0 }, state).join(BUNDLE_DIR))
    }

    /// Returns the files of a folder whose names match. A missing folder is like an empty one: a package may create it
    /// later.
    fn glob(&mut self, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, FileError> {
        let found = match self.files.glob(directory, pattern) {
            Err(FileError::Missing) => Vec::new(),
            found => found?,
        };
        Ok(match &self.overlay {
            Some(overlay) => overlay.expand(directory, |name| files::matches_pattern(pattern, name), found),
            None => found,
        })
    }

    /// Returns the files that one pattern of `include` matches.
    fn expand_pattern(&mut self, value: &Value<'_>) -> Vec<PathBuf> {
        let Some(text) = self.text(value) else { return Vec::new() };
        let path = self.resolve_path(value.span, text);
        let Some(pattern) = path.file_name().and_then(OsStr::to_str).filter(|_| !text.ends_with('/')) else {
            self.report_include_error(value, "names a directory, not a file");
            return Vec::new();
        };
        if text.trim_end_matches(pattern).contains('*') {
            self.report_include_error(value, "* may be in the name of a file, but not of a directory");
            return Vec::new();
        }
        if !pattern.contains('*') {
            return vec![path];
        }
        let directory = folder_of(&path);
        self.glob(directory, pattern).unwrap_or_else(|error| {
            self.report_include_error(value, &format!("{} {error}", directory.display()));
            Vec::new()
        })
    }

    fn report_include_error(&mut self, value: &Value<'_>, reason: &str) {
        let problem = Problem::at(value.span, "cannot read an entry of `include`").label(reason);
        self.problems.push(problem.help("write paths of files; the last part may contain *: \"conf.d/*.toml\""));
    }
}

/// Returns the text of a key in one of the tables of a file, before the table is read.
pub(super) fn text_of<'a>(file: &Table<'a>, table: &str, key: &str) -> Option<&'a str> {
    file.get(table)?.node.as_table()?.get(key)?.get_ref().as_str()
}

/// Returns the one file that has a section, else the main file.
pub(super) fn only_file<'t, 'a>(
    reader: &mut Reader<'_>,
    files: &'t [Table<'a>],
    section: &str,
    main: &'t Table<'a>,
) -> &'t Table<'a> {
    let mut with_section = files.iter().filter_map(|file| Some((file, file.get(section)?)));
    let Some((file, first)) = with_section.next() else { return main };
    for (_, again) in with_section {
        let problem = Problem::at(again.span, format!("`{section}` is in two files")).label("again here");
        reader.problems.push(problem.related(first.span, "first here").help("write the section in one file"));
    }
    file
}
