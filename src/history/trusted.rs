//! The folders that lead to a file, each with the question of who may write there.
//! Who could choose which file a path means?
//!
//! A rollback often runs as root. A user who may write one of these folders could put a link there, and so choose the
//! file that is written. OpenSSH asks the same of `authorized_keys` (`StrictModes`).

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Links that one path may lead through, as on Linux.
const LINKS_MAX: usize = 40;

/// Fails for a folder that users other than root and the current one may write.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    match is_ours(&fs::metadata(folder)?) {
        true => Ok(()),
        false => Err(open_to_others(folder)),
    }
}

/// Returns the file that `path` leads to, with all links followed. The last parts of it may not exist.
///
/// Fails where another user could lead the path elsewhere: each folder on the way is checked. The folders above `home`
/// are not: the operator has chosen them with the main file.
pub(super) fn resolve(home: &Path, path: &Path) -> io::Result<PathBuf> {
    let homes = [home.to_owned(), home.canonicalize()?];
    let is_above = |folder: &Path| homes.iter().any(|home| home != folder && home.starts_with(folder));
    let (mut place, mut waiting, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(part) = waiting.pop() {
        match part.to_str() {
            Some("/") => place = PathBuf::from("/"),
            Some(".") => {}
            Some("..") => drop(place.pop()),
            _ => {
                let entry = place.join(part);
                let found = if_there(fs::symlink_metadata(&entry))?;
                if !is_above(&place) && !keeps(&place, found.as_ref(), waiting.is_empty())? {
                    return Err(open_to_others(&place));
                }
                if !found.is_some_and(|found| found.is_symlink()) {
                    place = entry;
                    continue;
                }
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                waiting.extend(parts(&fs::read_link(&entry)?));
            }
        }
    }
    Ok(place)
}

/// The last one first.
fn parts(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

/// Returns whether no other user can replace `entry` in its folder, or create it.
fn keeps(folder: &Path, entry: Option<&Metadata>, is_last: bool) -> io::Result<bool> {
    // A folder that does not exist is created by us.
    let Some(folder) = if_there(fs::metadata(folder))? else { return Ok(true) };
    // In a sticky folder, such as /tmp, users replace their own entries only.
    let is_sticky = folder.mode() & 0o1000 != 0 && is_owner(&folder);
    Ok(is_ours(&folder) || !is_last && is_sticky && entry.is_some_and(is_owner))
}

fn is_ours(folder: &Metadata) -> bool {
    let by_group = folder.mode() & 0o020 != 0 && ![0, rustix::process::getegid().as_raw()].contains(&folder.gid());
    is_owner(folder) && folder.mode() & 0o002 == 0 && !by_group
}

/// Root, or the current user.
fn is_owner(found: &Metadata) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&found.uid())
}

fn if_there(found: io::Result<Metadata>) -> io::Result<Option<Metadata>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn open_to_others(folder: &Path) -> io::Error {
    let why = format!("{} is open to others than root and you: they would choose what is written", folder.display());
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}
