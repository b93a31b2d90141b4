//! Signing keys of many tenants: a directory with one folder a tenant, and in each one file a key.
//! Which keys does each tenant have, and what is wrong with them?

mod name;
mod scan;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::WarningCode;
use super::files::{FileError, FileStat};
use super::problem::{Problem, few};
use super::read::{Reader, Value};
use super::{Located, Secret};
use crate::names::{KeyId, TenantName};
#[cfg(any(test, fuzzing))]
pub use name::key_files;

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
    faults: Vec<KeyDirProblem>,
    /// Files that are called like no key.
    strays: Vec<String>,
    /// Of the folder itself; `None`: it could change again without that being seen.
    seen: Option<FileStat>,
}

/// A key, and from when until when it is in force; its file's name says so.
#[derive(Debug)]
pub struct KeyFile {
    pub id: KeyId,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub secret: Secret,
    name: String,
    seen: FileStat,
}

impl KeyFolder {
    /// Whether what stands there cannot be told from here.
    pub fn is_broken(&self) -> bool {
        !self.faults.is_empty()
    }
}

impl KeyFile {
    /// Of the file, in its tenant's folder.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl KeyDir {
    /// Itself, and every folder of a tenant.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.path.clone()).chain(self.tenants.keys().map(|tenant| self.folder(tenant)))
    }

    /// Every file of a key.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.tenants.iter().flat_map(|(tenant, folder)| {
            let path = self.folder(tenant);
            folder.keys.iter().map(move |key| path.join(&key.name))
        })
    }

    /// Where the keys of a tenant stand, or would.
    pub fn folder(&self, tenant: &TenantName) -> PathBuf {
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
    let path = reader.resolve(value.span, text);
    if let Some(read) = reader.key_dirs.get(&path) {
        return Some(value.at(Arc::clone(read)));
    }
    reader.files.remember(&path);
    let mut nobodys = Vec::new();
    let mut read = KeyDir { path, tenants: BTreeMap::new() };
    let known = reader.known.get(&read.path).map(Arc::as_ref);
    if let Err(fault) = scan::scan(&mut read, known, &mut nobodys) {
        let KeyDirProblem { message, help } = KeyDirProblem::unreadable(&read.path, &fault);
        reader.problems.push(Problem::at(value.span, message).help(help));
    }
    let faults = nobodys.iter().chain(read.tenants.values().flat_map(|folder| &folder.faults));
    let faults = faults.map(|fault| Problem::contained(value.span, &fault.message).help(&fault.help));
    let warnings = read.warnings();
    let warnings = warnings
        .map(|fault| Problem::warning(WarningCode::TenantKeys, Some(value.span), fault.message).help(fault.help));
    reader.problems.extend(few(faults.chain(warnings), &format!("below {}", read.path.display())));
    reader.files.digest(read.path.as_os_str().as_encoded_bytes());
    for (tenant, folder) in &read.tenants {
        reader.files.digest(tenant.as_str().as_bytes());
        reader.files.note(read.folder(tenant), folder.digest);
    }
    let read = Arc::new(read);
    reader.key_dirs.insert(read.path.clone(), Arc::clone(&read));
    Some(value.at(read))
}

impl KeyDir {
    /// Of folders that were not opened this time, too.
    fn warnings(&self) -> impl Iterator<Item = KeyDirProblem> {
        self.tenants.iter().flat_map(|(tenant, folder)| {
            let path = self.folder(tenant);
            let strays = folder.strays.iter().map(|name| KeyDirProblem::stray(&path.join(name))).collect::<Vec<_>>();
            let open = folder.keys.iter().filter(|key| key.seen.is_for_everybody());
            strays.into_iter().chain(open.map(move |key| KeyDirProblem::open(&path.join(&key.name))))
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
    fn new(path: &Path, what: impl Display, help: impl Into<String>) -> Self {
        Self { message: format!("{} {what}", path.display()), help: help.into() }
    }

    fn unreadable(path: &Path, fault: &FileError) -> Self {
        let help = match fault {
            FileError::Missing => "write the path of a directory with one folder a tenant".into(),
            FileError::PermissionDenied => format!("let the user that outgate runs as read {}", path.display()),
            FileError::Symlink => "put there what it leads to: below key_dir no link is followed".into(),
            _ => "leave there a folder for each tenant, and in it a file for each key".to_owned(),
        };
        Self::new(path, fault, help)
    }

    fn stray(path: &Path) -> Self {
        Self::new(path, "is not read: no key is called so", format!("call it {}", name::EXAMPLE))
    }

    fn open(path: &Path) -> Self {
        let help = format!("run `chmod o-rwx {}`", path.display());
        Self { message: format!("every user of this host can open {}", path.display()), help }
    }
}
