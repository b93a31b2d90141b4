//! Landlock: the process executes no program, sends no signal, and writes below a few folders only.
//! Where may outgate write, now and after a reload?
//!
//! A process can only narrow its own rules. Reading is therefore not restricted: a reload may name a key or a certificate
//! in any folder. Writing is restricted to the folders that the configuration names at the start and to those of the
//! packages. A rule belongs to a folder and not to its name, so each rule is for the parent: outgate may recreate a folder
//! that an operator deletes.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, AccessFs, BitFlags, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
    path_beneath_rules,
};

use crate::capture_store;
use crate::config::{Config, DeliveryLog, Listen, Problem, SourceSpan};
use crate::names::folder_of;

/// The newest version of Landlock that outgate knows. An older kernel enforces what it has.
const NEWEST: ABI = ABI::V6;
/// The folders that the packages and systemd make for outgate.
const PACKAGE_FOLDERS: [&str; 3] = ["/var/lib/outgate", "/var/log/outgate", "/run/outgate"];
/// Devices that keep nothing.
const DEVICES: [&str; 2] = ["/dev/full", "/dev/null"];
/// systemd sets them to lists of the folders that it makes for a unit (systemd.exec(5)).
const FOLDER_VARIABLES: [&str; 3] = ["STATE_DIRECTORY", "LOGS_DIRECTORY", "RUNTIME_DIRECTORY"];

/// The folders below which this process may write. Unset: it may write wherever its user may.
static WRITABLE: OnceLock<BTreeSet<PathBuf>> = OnceLock::new();

/// A place that a configuration lets outgate write to.
struct WrittenPath<'c> {
    span: SourceSpan,
    key: &'static str,
    path: &'c Path,
    /// The path is a folder, and not a file in one.
    is_folder: bool,
}

/// Restricts the calling thread, and returns what the kernel enforces, in words.
pub(super) fn restrict(config: &Config) -> Result<String, RulesetError> {
    let mut writable: BTreeSet<PathBuf> =
        written_folders(config).iter().flat_map(|folder| granted_folders(folder)).collect();
    writable.extend(DEVICES.map(PathBuf::from));
    let access = written_files() | AccessFs::Execute;
    let forbidden_anywhere = AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::MakeFifo | AccessFs::MakeSym;
    let status = Ruleset::default()
        .handle_access(access | forbidden_anywhere)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&writable, written_files()))?
        .restrict_self()?;
    let LandlockStatus::Available { effective_abi, .. } = status.landlock else {
        return Ok("Landlock is not available (an older kernel, or a filter of system calls); outgate may write wherever its user may".to_owned());
    };
    let names: Vec<_> = writable.iter().map(|folder| folder.display().to_string()).collect();
    let _ = WRITABLE.set(writable);
    Ok(format!("outgate executes no program, and writes only below {} (Landlock {effective_abi:?})", names.join(", ")))
}

/// The accesses of outgate to its own files and folders.
fn written_files() -> BitFlags<AccessFs> {
    AccessFs::from_write(NEWEST)
        & (AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSock
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer)
}

/// Returns a problem for each path to which this process can no longer get access. `check` has none: another process
/// starts with another configuration.
pub fn problems_of_unwritable_paths(config: &Config) -> Vec<Problem> {
    let Some(writable) = WRITABLE.get() else { return Vec::new() };
    let is_writable = |path: &Path| {
        let existing = nearest_existing(path).unwrap_or_default();
        writable.iter().any(|root| existing.starts_with(root))
    };
    let unwritable = written_paths(config).into_iter().filter(|written| !is_writable(written.path));
    let names: Vec<_> = writable.iter().map(|folder| folder.display().to_string()).collect();
    let to_problem = |written: WrittenPath<'_>| {
        let message = format!("outgate cannot write to {} before it is restarted", written.path.display());
        let label =
            format!("`{}` is outside of the folders that the process may write to since its start", written.key);
        let help = format!("restart outgate, or write a path below one of {}", names.join(", "));
        Problem::at(written.span, message).label(label).help(help)
    };
    unwritable.map(to_problem).collect()
}

impl WrittenPath<'_> {
    /// Returns the folder of the path, and that of the file to which a link leads.
    fn folders(&self) -> Vec<PathBuf> {
        let folder = |path: &Path| if self.is_folder { path.to_owned() } else { folder_of(path).to_owned() };
        [Some(folder(self.path)), self.path.canonicalize().ok().map(|target| folder(&target))]
            .into_iter()
            .flatten()
            .collect()
    }
}

fn written_paths(config: &Config) -> Vec<WrittenPath<'_>> {
    let file = |span, key, path| WrittenPath { span, key, path, is_folder: false };
    let mut paths = Vec::new();
    if let DeliveryLog::File(path) = &config.log.deliveries.value {
        paths.push(file(config.log.deliveries.span, "log.deliveries", path));
    }
    paths.extend(config.audit.file.as_ref().map(|path| file(path.span, "audit.file", path)));
    let stores = config.captures.values().filter_map(|capture| capture.store.as_ref());
    let folders = stores.filter(|store| !capture_store::is_bucket(store));
    paths.extend(folders.map(|store| WrittenPath {
        span: store.span,
        key: "captures.NAME.store",
        path: store,
        is_folder: true,
    }));
    let binds = [
        ("server.listen", &config.server.listen),
        ("admin.listen", &config.admin.listen),
        ("publish.listen", &config.publish.listen),
    ];
    for (key, binds) in binds {
        paths.extend(binds.iter().filter_map(|bind| match &bind.address {
            Listen::Unix(path) => Some(file(bind.span, key, path)),
            Listen::Tcp(_) | Listen::Systemd => None,
        }));
    }
    paths
}

/// Returns the folders that a process with this configuration writes to.
fn written_folders(config: &Config) -> Vec<PathBuf> {
    let mut folders: Vec<_> = written_paths(config).iter().flat_map(WrittenPath::folders).collect();
    folders.extend(config.server.state.clone());
    folders.extend(PACKAGE_FOLDERS.map(PathBuf::from));
    let of_systemd = FOLDER_VARIABLES.iter().filter_map(env::var_os);
    folders.extend(of_systemd.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>()));
    folders
}

/// Returns the folders whose rules allow a folder to be written to and to be recreated: its parent, and that of the folder
/// to which links lead. Each exists: a missing folder has its nearest ancestor instead. The root would allow everything,
/// so a folder that exists in the root stands for itself.
fn granted_folders(folder: &Path) -> Vec<PathBuf> {
    let target = folder.canonicalize().ok();
    let exists = target.is_some();
    let grant = |folder: &Path| {
        let parent = folder.parent().filter(|parent| !(exists && parent.parent().is_none()));
        let from = parent.unwrap_or(folder);
        nearest_existing(from)
    };
    let mut granted: Vec<_> = [Some(folder), target.as_deref()].into_iter().flatten().filter_map(grant).collect();
    granted.dedup();
    granted
}

/// Returns the path, else its nearest ancestor that exists, with all links followed.
fn nearest_existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_grants_the_parent_of_a_folder_but_not_the_root() {
        let base = std::env::temp_dir().canonicalize().unwrap().join(format!("outgate-sandbox-{}", std::process::id()));
        std::fs::create_dir_all(base.join("real/logs")).unwrap();
        std::os::unix::fs::symlink(base.join("real/logs"), base.join("logs")).unwrap();
        assert_eq!(granted_folders(&base.join("real/logs")), [base.join("real")]);
        assert_eq!(granted_folders(&base.join("logs")), [base.clone(), base.join("real")], "a link and its target");
        assert_eq!(granted_folders(&base.join("real/none/deeper")), [base.join("real")], "the nearest that exists");
        assert_eq!(granted_folders(Path::new("/usr")), [Path::new("/usr")], "its parent is the root");
        std::fs::remove_dir_all(base).unwrap();
    }
}
