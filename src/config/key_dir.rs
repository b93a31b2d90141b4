//! Signing keys of many tenants: a directory with one folder a tenant, and in each one file a key.
//! Which keys does each tenant have, and what is wrong with them?

mod file_name;
mod scan;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::Secret;
use super::files::{FileError, FileStat};
use crate::names::{KeyId, TenantName};
#[cfg(any(test, fuzzing))]
pub use file_name::key_files;
pub(super) use scan::scan;

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
    pub(super) problems: Vec<KeyDirProblem>,
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

impl KeyDir {
    /// Of folders that were not opened this time, too.
    pub(super) fn warnings(&self) -> impl Iterator<Item = KeyDirProblem> {
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
pub(super) struct KeyDirProblem {
    pub(super) message: String,
    pub(super) help: String,
}

impl KeyDirProblem {
    fn new(path: &Path, problem: impl Display, help: impl Into<String>) -> Self {
        Self { message: format!("{} {problem}", path.display()), help: help.into() }
    }

    pub(super) fn unreadable(path: &Path, error: &FileError) -> Self {
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
