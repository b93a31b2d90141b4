//! Signing keys of many tenants: a directory with one folder a tenant, and in each one file a key.
//! Which keys does each tenant have, and what is wrong with them?

mod file_name;
mod scan;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::WarningCode;
use super::files::{FileError, FileStat};
use super::problem::{Problem, truncate_similar};
use super::reader::{Reader, Value};
use super::{Located, Secret};
use crate::names::{KeyId, TenantName};
#[cfg(any(test, fuzzing))]
pub use file_name::key_files;

/// A `key_dir` as it was found.
#[derive(Debug)]
pub struct KeyDir {
    pub path: PathBuf,
    /// Every folder that a tenant can be called by, also what is empty or broken: its tenant is not without keys, as one
    /// is that has no folder.
    pub tenants: BTreeMap<TenantName, Arc<KeyFolder>>,
}

/// Those that were read, by path: what the next reading need not open again.
pub type KeyDirs = BTreeMap<PathBuf, Arc<KeyDir>>;

/// What stands in the folder of one tenant.
#[derive(Debug)]
pub struct KeyFolder {
    /// SHA-256 over the names and the contents of its keys, or what is wrong: equal means that nothing changed.
    pub digest: [u8; 32],
    /// None, if anything is wrong with any of them: the tenant would have fewer keys than it thinks.
    pub keys: Vec<KeyFile>,
    problems: Vec<KeyDirProblem>,
    /// Files that are called like no key.
    unrecognized: Vec<String>,
    /// Of the folder itself; `None`: it could change again without that being seen.
    stat: Option<FileStat>,
}

/// A key, and from when until when it is in force; its file's name says so.
#[derive(Debug)]
pub struct KeyFile {
    pub id: KeyId,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub secret: Secret,
    file_name: String,
    stat: FileStat,
}

impl KeyFolder {
    /// Whether what stands there cannot be told from here.
    pub fn is_broken(&self) -> bool {
        !self.problems.is_empty()
    }
}

impl KeyFile {
    /// Of the file, in its tenant's folder.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }
}

impl KeyDir {
    /// Itself, and every folder of a tenant.
    pub fn folder_paths(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.path.clone()).chain(self.tenants.keys().map(|tenant| self.folder_path(tenant)))
    }

    /// Every file of a key.
    pub fn key_paths(&self) -> impl Iterator<Item = PathBuf> {
        self.tenants.iter().flat_map(|(tenant, folder)| {
            let path = self.folder_path(tenant);
            folder.keys.iter().map(move |key| path.join(&key.file_name))
        })
    }

    /// Where the keys of a tenant stand, or would.
    pub fn folder_path(&self, tenant: &TenantName) -> PathBuf {
        self.path.join(tenant.as_str())
    }
}

/// Reads the directory, or what has changed of it since the reading before. What is wrong with a folder is its tenant's
/// alone: one of thousands must neither keep the others from starting nor from new keys.
pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Arc<KeyDir>>> {
    let text = reader.text(value)?;
    if text.is_empty() {
        let problem = Problem::at(value.span, format!("`{}` is empty", value.key));
        reader.problems.push(problem.help("write the path of a directory with one folder a tenant"));
        return None;
    }
    let path = reader.resolve_path(value.span, text);
    if let Some(cached) = reader.key_dirs.get(&path) {
        return Some(value.located(Arc::clone(cached)));
    }
    reader.files.track(&path);
    let mut unattributed = Vec::new();
    let mut key_dir = KeyDir { path, tenants: BTreeMap::new() };
    let previous = reader.previous_key_dirs.get(&key_dir.path).map(Arc::as_ref);
    if let Err(error) = scan::scan(&mut key_dir, previous, &mut unattributed) {
        let KeyDirProblem { message, help } = KeyDirProblem::unreadable(&key_dir.path, &error);
        reader.problems.push(Problem::at(value.span, message).help(help));
    }
    let problems = unattributed.iter().chain(key_dir.tenants.values().flat_map(|folder| &folder.problems));
    let problems = problems.map(|error| Problem::contained(value.span, &error.message).help(&error.help));
    let warnings = key_dir.warnings();
    let warnings = warnings
        .map(|error| Problem::warning(WarningCode::TenantKeys, Some(value.span), error.message).help(error.help));
    reader.problems.extend(truncate_similar(problems.chain(warnings), &format!("below {}", key_dir.path.display())));
    reader.files.update_digest(key_dir.path.as_os_str().as_encoded_bytes());
    for (tenant, folder) in &key_dir.tenants {
        reader.files.update_digest(tenant.as_str().as_bytes());
        reader.files.record_digest(key_dir.folder_path(tenant), folder.digest);
    }
    let key_dir = Arc::new(key_dir);
    reader.key_dirs.insert(key_dir.path.clone(), Arc::clone(&key_dir));
    Some(value.located(key_dir))
}

impl KeyDir {
    /// Of folders that were not opened this time, too.
    fn warnings(&self) -> impl Iterator<Item = KeyDirProblem> {
        self.tenants.iter().flat_map(|(tenant, folder)| {
            let path = self.folder_path(tenant);
            let unrecognized = folder
                .unrecognized
                .iter()
                .map(|name| KeyDirProblem::unrecognized(&path.join(name)))
                .collect::<Vec<_>>();
            let world_accessible = folder.keys.iter().filter(|key| key.stat.is_world_accessible());
            unrecognized
                .into_iter()
                .chain(world_accessible.map(move |key| KeyDirProblem::world_accessible(&path.join(&key.file_name))))
        })
    }
}

/// What is wrong below a `key_dir`.
#[derive(Debug)]
struct KeyDirProblem {
    message: String,
    help: String,
}

impl KeyDirProblem {
    fn new(path: &Path, problem: impl Display, help: impl Into<String>) -> Self {
        Self { message: format!("{} {problem}", path.display()), help: help.into() }
    }

    fn unreadable(path: &Path, error: &FileError) -> Self {
        let help = match error {
            FileError::Missing => "write the path of a directory with one folder a tenant".into(),
            FileError::PermissionDenied => format!("let the user that outgate runs as read {}", path.display()),
            FileError::Symlink => "put there what it leads to: below key_dir no link is followed".into(),
            _ => "leave there a folder for each tenant, and in it a file for each key".to_owned(),
        };
        Self::new(path, error, help)
    }

    fn unrecognized(path: &Path) -> Self {
        Self::new(path, "is not read: no key is called so", format!("call it {}", file_name::EXAMPLE))
    }

    fn world_accessible(path: &Path) -> Self {
        let help = format!("run `chmod o-rwx {}`", path.display());
        Self { message: format!("every user of this host can open {}", path.display()), help }
    }
}
