//! The file with the dates of announced ranges, beside the history folder.
//! Since when can customers know each range, also after a restart?

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::history::{History, durable};
use crate::policy::egress::notice::Announcements;

/// The file in the state folder. It contains no secret.
const FILE: &str = "announced.json";
/// Limits the size of the file, in bytes: about 200,000 ranges.
const SIZE_MAX: u64 = 32 << 20;

impl History {
    /// Reads the announcements. `None`: outgate has not stored any yet.
    pub fn announcements(&self) -> io::Result<Option<Announcements>> {
        let path = self.announcements_path();
        let read = durable::read(&path, SIZE_MAX).and_then(|bytes| {
            serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        match read {
            Ok(announcements) => Ok(Some(announcements)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(durable::with_path("read", &path, &error)),
        }
    }

    /// Keeps a file that is no list of announcements under another name.
    pub fn set_announcements_aside(&self) -> io::Result<()> {
        let path = self.announcements_path();
        fs::rename(&path, path.with_extension("json.bad"))
    }

    /// Replaces the stored announcements.
    pub fn store_announcements(&self, announcements: &Announcements) -> io::Result<()> {
        let path = self.announcements_path();
        durable::replace(&path, &serde_json::to_vec(announcements)?, SIZE_MAX)
            .map_err(|error| durable::with_path("write", &path, &error))
    }

    fn announcements_path(&self) -> PathBuf {
        self.folder().with_file_name(FILE)
    }
}
