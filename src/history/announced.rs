//! The file with the dates of announced ranges, beside the history folder.
//! Since when can customers know each range, also after a restart?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::history::{DEFAULT_STATE, History, durable};
use crate::policy::egress::notice::Announcements;

/// The file in the state folder. It contains no secret.
const FILE: &str = "announced.json";
/// Limits the size of the file, in bytes: about 200,000 ranges.
const SIZE_MAX: u64 = 32 << 20;

impl History {
    /// Reads the announcements. `None`: outgate has not stored any yet. A file that is not readable as such is kept under
    /// another name.
    pub fn announcements(&self) -> io::Result<Option<Announcements>> {
        let path = self.announcements_path();
        read(&path).inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                let _ = fs::rename(&path, path.with_extension("json.bad")); // the error is reported
            }
        })
    }

    /// Replaces the stored announcements.
    pub fn store_announcements(&self, announcements: &Announcements) -> io::Result<()> {
        let path = self.announcements_path();
        let write = || {
            let (bytes, unfinished) = (serde_json::to_vec(announcements)?, path.with_extension("json.tmp"));
            if bytes.len() as u64 > SIZE_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            durable::write_new(&unfinished, &bytes)?;
            durable::rename_durably(&unfinished, &path)
        };
        write().map_err(|error| named("write", &path, &error))
    }

    fn announcements_path(&self) -> PathBuf {
        self.folder().with_file_name(FILE)
    }
}

/// Reads the announcements in a state folder, or in that of the packages.
pub fn stored_announcements(state: Option<&Path>) -> io::Result<Option<Announcements>> {
    read(&state.unwrap_or(Path::new(DEFAULT_STATE)).join(FILE))
}

fn read(path: &Path) -> io::Result<Option<Announcements>> {
    let read = durable::read(path, SIZE_MAX).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    match read {
        Ok(announcements) => Ok(Some(announcements)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named("read", path, &error)),
    }
}

fn named(action: &str, path: &Path, error: &io::Error) -> io::Error {
    let kind = if error.kind() == io::ErrorKind::UnexpectedEof { io::ErrorKind::InvalidData } else { error.kind() };
    io::Error::new(kind, format!("cannot {action} {}: {error}", path.display()))
}
