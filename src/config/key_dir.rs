//! Signing keys per tenant: a directory with one folder per tenant and one file per key.
//! Which keys does each tenant have, and which problems do they have?

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

/// The content of a `key_dir`.
#[derive(Debug)]
pub struct KeyDir {
    pub path: PathBuf,
    /// Every folder with the name of a tenant. A tenant with an empty or broken folder differs from a tenant without
    /// a folder.
    pub tenants: BTreeMap<TenantName, Arc<KeyFolder>>,
}

/// The key directories that were read, by path; the next load reuses their unchanged folders.
pub type KeyDirs = BTreeMap<PathBuf, Arc<KeyDir>>;

/// The keys in the folder of one tenant.
#[derive(Debug)]
pub struct KeyFolder {
    /// SHA-256 over the names and contents of the keys, or over the problems: equal means that nothing changed.
    pub digest: [u8; 32],
    /// The keys; empty if any of them has a problem, so that a tenant never signs with fewer keys than its folder
    /// has.
    pub keys: Vec<KeyFile>,
    pub(super) problems: Vec<KeyDirProblem>,
    /// The names of files that are not those of keys.
    unrecognized: Vec<String>,
    /// The stat of the folder; `None`: another change might not change the stat.
    stat: Option<FileStat>,
}

/// A signing key and its validity period, which the name of its file states.
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
    /// Returns whether any key of the folder has a problem.
    pub fn is_broken(&self) -> bool {
        !self.problems.is_empty()
    }
}

impl KeyFile {
    /// Returns the name of the file in its tenant's folder.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }
}

impl KeyDir {
    /// Returns the paths of the directory and of every tenant's folder.
    pub fn folder_paths(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.path.clone()).chain(self.tenants.keys().map(|tenant| self.folder_path(tenant)))
    }

    /// Returns the paths of all key files.
    pub fn key_paths(&self) -> impl Iterator<Item = PathBuf> {
        self.tenants.iter().flat_map(|(tenant, folder)| {
            let path = self.folder_path(tenant);
            folder.keys.iter().map(move |key| path.join(&key.file_name))
        })
    }

    /// Returns the path of a tenant's folder, which need not exist.
    pub fn folder_path(&self, tenant: &TenantName) -> PathBuf {
        self.path.join(tenant.as_str())
    }
}

impl KeyDir {
    /// Returns the warnings of all folders, including those that were not opened this time.
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

/// A problem below a `key_dir`.
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
            FileError::Missing => "write the path of a directory with one folder per tenant".into(),
            FileError::PermissionDenied => format!("let the user that outgate runs as read {}", path.display()),
            FileError::Symlink => {
                "replace the link by its target: outgate follows no symbolic links below key_dir".into()
            }
            _ => "keep one folder per tenant there, with one file per key".to_owned(),
        };
        Self::new(path, error, help)
    }

    fn unrecognized(path: &Path) -> Self {
        Self::new(
            path,
            "is ignored: its name is not that of a key file",
            format!("rename it to {}", file_name::EXAMPLE),
        )
    }

    fn world_accessible(path: &Path) -> Self {
        let help = format!("run `chmod o-rwx {}`", path.display());
        Self { message: format!("every user of this host can open {}", path.display()), help }
    }
}
