//! Checks who may write the folders on the path to a file.
//! Which users can choose the file that a path leads to?
//!
//! A rollback often runs as root. A user who may write one of these folders could put a link there, and so choose the
//! file that is written. OpenSSH checks `authorized_keys` in the same way (`StrictModes`).

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Limits the links on one path, as Linux does.
const LINKS_MAX: usize = 40;

/// Fails for a folder that users other than root and the current one may write.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    match is_writable_only_by_us(&fs::metadata(folder)?) {
        true => Ok(()),
        false => Err(open_to_others(folder)),
    }
}

/// Returns the file that `path` leads to, with all links followed. The last parts of it may not exist.
///
/// Fails if another user could redirect the path: each folder on the way is checked. The folders above `home` are not
/// checked, because the operator has chosen them with the main file.
pub(super) fn resolve(home: &Path, path: &Path) -> io::Result<PathBuf> {
    let homes = [home.to_owned(), home.canonicalize()?];
    let is_above = |folder: &Path| homes.iter().any(|home| home != folder && home.starts_with(folder));
    let (mut resolved, mut remaining, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(part) = remaining.pop() {
        match part.to_str() {
            Some("/") => resolved = PathBuf::from("/"),
            Some(".") => {}
            Some("..") => drop(resolved.pop()),
            _ => {
                let entry = resolved.join(part);
                let metadata = if_exists(fs::symlink_metadata(&entry))?;
                if !is_above(&resolved) && !is_protected(&resolved, metadata.as_ref(), remaining.is_empty())? {
                    return Err(open_to_others(&resolved));
                }
                if !metadata.is_some_and(|metadata| metadata.is_symlink()) {
                    resolved = entry;
                    continue;
                }
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                remaining.extend(parts(&fs::read_link(&entry)?));
            }
        }
    }
    Ok(resolved)
}

/// Returns the components of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

/// Returns whether no other user can replace `entry` in its folder, or create it.
fn is_protected(folder: &Path, entry: Option<&Metadata>, is_last: bool) -> io::Result<bool> {
    // outgate creates a folder that does not exist.
    let Some(folder) = if_exists(fs::metadata(folder))? else { return Ok(true) };
    // In a sticky folder, such as /tmp, users can replace only their own entries.
    let is_sticky = folder.mode() & 0o1000 != 0 && is_owner(&folder);
    Ok(is_writable_only_by_us(&folder) || !is_last && is_sticky && entry.is_some_and(is_owner))
}

fn is_writable_only_by_us(folder: &Metadata) -> bool {
    let by_group = folder.mode() & 0o020 != 0 && ![0, rustix::process::getegid().as_raw()].contains(&folder.gid());
    is_owner(folder) && folder.mode() & 0o002 == 0 && !by_group
}

/// Returns whether the owner is root or the current user.
fn is_owner(metadata: &Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid())
}

fn if_exists(metadata: io::Result<Metadata>) -> io::Result<Option<Metadata>> {
    match metadata {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_to_others(folder: &Path) -> io::Error {
    let message = format!(
        "{} is open to others: users other than root and you could choose which file is written",
        folder.display()
    );
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}
