//! Scans a directory of key folders, and opens only what has changed since the previous scan.
//! Which keys does the directory hold now?
//!
//! The scan resolves paths below a descriptor of the directory and follows no symbolic link.
//! A tenant's folder thus never yields the key of another tenant or a file from elsewhere.
//! The directory itself may be a symbolic link, so that an operator can replace it atomically.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use super::{KeyDir, KeyDirProblem, KeyFile, KeyFolder, file_name};
use crate::config::Secret;
use crate::config::files::{FileError, FileStat, SECRET_MAX, read_open_file};
use crate::digest::Fingerprint;
use crate::names::{KeyId, TENANT_NAME_MAX, TenantName};

/// The most folders; outgate watches each and holds it in memory.
const TENANT_FOLDERS_MAX: usize = 250_000;
/// The most files in a tenant's folder; a rotation needs two or three.
const KEY_FILES_MAX: usize = 1_000;
/// The most scans of a directory that changes during each scan. The watcher then causes another load.
const SCANS_MAX: usize = 5;

/// Reads every tenant's folder; the next scan reads a folder with a problem again. `unattributed` receives the
/// problems of entries that belong to no tenant.
///
/// The scan starts over if the directory changed meanwhile. If two folders were swapped between their reads, both
/// tenants would get the same key.
pub(in crate::config) fn scan(
    key_dir: &mut KeyDir,
    previous: Option<&KeyDir>,
    unattributed: &mut Vec<KeyDirProblem>,
) -> Result<(), FileError> {
    let root = open(CWD, &key_dir.path, OFlags::DIRECTORY)?;
    let stat = || fstat(&root).map(|stat| FileStat::from_stat(&stat)).map_err(from_errno);
    for _ in 0..SCANS_MAX {
        let start = stat()?;
        key_dir.tenants.clear();
        unattributed.clear();
        scan_once(&root, key_dir, previous, unattributed)?;
        if stat()? == start {
            break;
        }
    }
    Ok(())
}

fn scan_once(
    root: &OwnedFd,
    key_dir: &mut KeyDir,
    previous: Option<&KeyDir>,
    unattributed: &mut Vec<KeyDirProblem>,
) -> Result<(), FileError> {
    let now = SystemTime::now();
    let KeyDir { path, tenants } = key_dir;
    for entry in read_entries(root, TENANT_FOLDERS_MAX)? {
        if !entry.may_be_folder(root) {
            continue;
        }
        let Some(tenant) = parse_tenant(path, &entry.name, unattributed) else { continue };
        let previous_folder = previous.and_then(|previous| previous.tenants.get(&tenant));
        if let Some(previous_folder) =
            previous_folder.filter(|previous_folder| previous_folder.is_unchanged(root, &tenant))
        {
            tenants.insert(tenant, Arc::clone(previous_folder));
            continue;
        }
        let path = path.join(tenant.as_str());
        let folder = match read_folder(root, &path, &tenant, now) {
            Ok(folder) => folder,
            // The folder was removed during the scan.
            Err(FileError::Missing) => continue,
            Err(error) => KeyFolder::broken(vec![KeyDirProblem::unreadable(&path, &error)]),
        };
        tenants.insert(tenant, Arc::new(folder));
    }
    Ok(())
}

/// An entry of a directory.
struct DirEntry {
    name: String,
    is_folder: bool,
}

/// Returns the entries sorted by name. Names with a leading dot are skipped: scratch files, and files not yet renamed
/// into place.
fn read_entries(folder: &OwnedFd, max: usize) -> Result<Vec<DirEntry>, FileError> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder).map_err(from_errno)? {
        let entry = entry.map_err(from_errno)?;
        let name = entry.file_name().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        if entries.len() == max {
            return Err(FileError::TooMany { max });
        }
        entries.push(DirEntry { name: name.into_owned(), is_folder: entry.file_type() == FileType::Directory });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

impl DirEntry {
    /// Returns whether the entry is a folder or a symbolic link to one. A link is reported and not followed, so that
    /// its tenant does not count as one without a folder.
    fn may_be_folder(&self, root: &OwnedFd) -> bool {
        let is_folder = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // Some file systems do not report the type of an entry in the listing.
        self.is_folder || statat(root, &self.name, AtFlags::empty()).is_ok_and(is_folder)
    }
}

/// Parses the name of a folder as the name of a tenant.
fn parse_tenant(path: &Path, name: &str, unattributed: &mut Vec<KeyDirProblem>) -> Option<TenantName> {
    if name.len() > TENANT_NAME_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let help =
            format!("rename the folder to 1 to {TENANT_NAME_MAX} visible ASCII characters, as in Outgate-Tenant");
        unattributed.push(KeyDirProblem::new(&path.join(name), "is not named like a tenant", help));
        return None;
    }
    Some(TenantName::new(name))
}

impl KeyFolder {
    fn broken(problems: Vec<KeyDirProblem>) -> Self {
        let digest = Fingerprint::of_parts(problems.iter().map(|error| error.message.as_bytes()));
        Self { digest, keys: Vec::new(), problems, unrecognized: Vec::new(), stat: None }
    }

    /// Compares stats, without opening a file.
    fn is_unchanged(&self, root: &OwnedFd, tenant: &TenantName) -> bool {
        let stat_of = |path: &str| Some(FileStat::from_stat(&statat(root, path, AtFlags::SYMLINK_NOFOLLOW).ok()?));
        self.stat.is_some_and(|before| stat_of(tenant.as_str()) == Some(before))
            && self.keys.iter().all(|key| stat_of(&format!("{tenant}/{}", key.file_name)) == Some(key.stat))
    }
}

fn read_folder(root: &OwnedFd, path: &Path, tenant: &TenantName, now: SystemTime) -> Result<KeyFolder, FileError> {
    let folder = open(root, Path::new(tenant.as_str()), OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    // The stat precedes the reads, so that a later change has another ctime.
    let stat = FileStat::from_stat(&fstat(&folder).map_err(from_errno)?);
    let (mut keys, mut unrecognized, mut problems) = (Vec::<KeyFile>::new(), Vec::new(), Vec::new());
    for entry in read_entries(&folder, KEY_FILES_MAX)? {
        match read_key(&folder, path, &entry.name) {
            Some(Ok(key)) => match keys.iter().find(|other| other.id == key.id) {
                Some(other) => {
                    let problem = format!("and {} have the same id, {}", other.file_name, key.id);
                    let help = "give each key of a tenant its own id: records name keys by their id";
                    problems.push(KeyDirProblem::new(&path.join(&entry.name), problem, help));
                }
                None => keys.push(key),
            },
            Some(Err(None)) => {}
            Some(Err(Some(error))) => problems.push(error),
            None if entry.is_folder => {}
            None => unrecognized.push(entry.name),
        }
    }
    if !problems.is_empty() {
        return Ok(KeyFolder::broken(problems));
    }
    let is_settled = stat.is_settled(now) && keys.iter().all(|key| key.stat.is_settled(now));
    keys.shrink_to_fit();
    let digest = Fingerprint::of_parts(keys.iter().flat_map(|key| [key.file_name.as_bytes(), key.secret.expose()]));
    Ok(KeyFolder { digest, keys, problems, unrecognized, stat: is_settled.then_some(stat) })
}

/// Reads a key file. `None`: the name is not that of a key. `Err(None)`: the file was removed during the scan.
fn read_key(folder: &OwnedFd, path: &Path, file: &str) -> Option<Result<KeyFile, Option<KeyDirProblem>>> {
    let path = path.join(file);
    let parsed = match file_name::parse(file)? {
        Ok(parsed) => parsed,
        Err(error) => {
            let problem = format!("is not named like a key: not {}, {}", error.expected, error.reason);
            return Some(Err(Some(KeyDirProblem::new(&path, problem, error.help))));
        }
    };
    let opened = open(folder, Path::new(file), OFlags::NOFOLLOW);
    let content = opened.and_then(|opened| read_open_file(File::from(opened), SECRET_MAX));
    let content = match content {
        Ok(content) => content,
        Err(FileError::Missing) => return Some(Err(None)),
        Err(error) => return Some(Err(Some(KeyDirProblem::unreadable(&path, &error)))),
    };
    let bytes = zeroize::Zeroizing::new(content.bytes);
    let secret = bytes.trim_ascii();
    if secret.is_empty() {
        let help = "write the secret to a temporary file with a leading dot, and rename that to the final name";
        return Some(Err(Some(KeyDirProblem::new(&path, "is empty", help))));
    }
    Some(Ok(KeyFile {
        id: KeyId::new(parsed.id),
        from: parsed.from,
        until: parsed.until,
        secret: Secret::new(secret.to_vec()),
        file_name: file.to_owned(),
        stat: content.stat,
    }))
}

/// Opens a path with O_NONBLOCK, because opening a FIFO would wait for a writer. With O_NOFOLLOW a symbolic link
/// gives ELOOP, or ENOTDIR with O_DIRECTORY.
fn open(at: impl AsFd, path: &Path, extra_flags: OFlags) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | extra_flags;
    openat(at, path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP | Errno::NOTDIR if extra_flags.contains(OFlags::NOFOLLOW) => FileError::Symlink,
        errno => from_errno(errno),
    })
}

fn from_errno(errno: Errno) -> FileError {
    std::io::Error::from(errno).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Barrier;
    use std::time::Duration;

    use rustix::fs::{RenameFlags, renameat_with};

    use super::*;

    /// Swaps two folders atomically while the scan reads the folders between them.
    #[test]
    fn key_dir_scan_never_mixes_the_keys_of_swapped_folders() {
        const BETWEEN: usize = 300;
        let path = std::env::temp_dir().join(format!("outgate-scan-{}", std::process::id()));
        let names = (0..BETWEEN).map(|number| format!("m{number}")).chain(["acme".into(), "zeta".into()]);
        for name in names {
            fs::create_dir_all(path.join(&name)).unwrap();
            fs::write(path.join(&name).join("k1.key"), &name).unwrap();
        }
        let keys: Vec<[Vec<u8>; 2]> = (0..30)
            .map(|round| {
                // File-system clocks are coarse: the pause gives the change of each round its own timestamp.
                std::thread::sleep(Duration::from_millis(20));
                let mut key_dir = KeyDir { path: path.clone(), tenants: BTreeMap::new() };
                let start = Barrier::new(2);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        start.wait();
                        std::thread::sleep(Duration::from_micros(300 * round));
                        let [one, other] = ["acme", "zeta"].map(|name| path.join(name));
                        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
                    });
                    start.wait();
                    scan(&mut key_dir, None, &mut Vec::new()).unwrap();
                });
                ["acme", "zeta"].map(|name| key_dir.tenants[&TenantName::new(name)].keys[0].secret.expose().to_vec())
            })
            .collect();
        fs::remove_dir_all(&path).unwrap();
        assert!(keys.iter().all(|[one, other]| one != other), "{keys:?}");
    }
}
