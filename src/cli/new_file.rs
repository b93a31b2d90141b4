//! Creates files with the right permissions, such as keys.
//! Which users can read a file that a command has created?

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use super::CONFIG_DIR;
use crate::names::folder_of;

/// The mode for the group of the service, which runs as another user than the one who generates keys.
const SERVICE_MODE: u32 = 0o640;
/// The mode for the owner only.
const OWNER_MODE: u32 = 0o600;

/// Writes a new file that only its owner can read; below `/etc/outgate`, the directory's group can, too. It never
/// overwrites a file: that would invalidate the signatures or certificates of an existing key.
pub(super) fn write_secret(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    write(path, content.as_ref(), None)
}

/// Writes a new file that holds no secret.
pub(super) fn write_public(path: &Path, text: &str) -> io::Result<()> {
    write(path, text.as_bytes(), Some(0o644))
}

fn write(path: &Path, content: &[u8], mode: Option<u32>) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(OWNER_MODE).open(path).map_err(describe_error)?;
    let group = service_group(path);
    let write_contents = || {
        // The mode is set before the text is written: no other user can read it in between.
        if let Some(group) = group? {
            fchown(&file, None, Some(group)).map_err(|error| {
                let message = format!(
                    "cannot set the group of the file to {group}, the group of its directory: {error}; run this \
                     command as root"
                );
                io::Error::new(error.kind(), message)
            })?;
            file.set_permissions(Permissions::from_mode(mode.unwrap_or(SERVICE_MODE)))?;
        } else if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.write_all(content)
    };
    write_contents().inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Returns the group of the directory, if it is below `/etc/outgate`.
fn service_group(path: &Path) -> io::Result<Option<u32>> {
    let folder = folder_of(path).canonicalize()?;
    match folder.starts_with(CONFIG_DIR) {
        true => Ok(Some(fs::metadata(folder)?.gid())),
        false => Ok(None),
    }
}

fn describe_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(error.kind(), "the file already exists and was not changed"),
        _ => error,
    }
}
