//! Files that a command makes, such as keys.
//! Which users can read a file that a command has made?

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use super::CONFIG_DIR;

/// For the service's group: the service runs as another user than the one who makes its keys.
const SERVICE_MODE: u32 = 0o640;
/// For the owner alone.
const OWNER_MODE: u32 = 0o600;

/// Writes a new file that its owner alone can read; below `/etc/outgate` also the folder's group. A file that is there stays
/// as it is: signatures and certificates of what it holds would fail from that moment.
pub(super) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, None)
}

/// Writes a new file that holds no secret.
pub(super) fn write_public(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, Some(0o644))
}

fn write(path: &Path, text: &str, mode: Option<u32>) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(OWNER_MODE).open(path).map_err(describe_error)?;
    let group = service_group(path);
    let write_contents = || {
        // The mode is set before the text is written: no other user can read it in between.
        if let Some(group) = group? {
            fchown(&file, None, Some(group)).map_err(|error| {
                let message = format!("cannot give it to the folder's group {group}, run this as root: {error}");
                io::Error::new(error.kind(), message)
            })?;
            file.set_permissions(Permissions::from_mode(mode.unwrap_or(SERVICE_MODE)))?;
        } else if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.write_all(text.as_bytes())
    };
    write_contents().inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// The group of the folder, below `/etc/outgate`.
fn service_group(path: &Path) -> io::Result<Option<u32>> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize()?;
    match folder.starts_with(CONFIG_DIR) {
        true => Ok(Some(fs::metadata(folder)?.gid())),
        false => Ok(None),
    }
}

fn describe_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(error.kind(), "a file is there already, and is left as it is"),
        _ => error,
    }
}
