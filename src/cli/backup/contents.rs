//! The files of an instance that a backup has: the state folder, the audit log, and the lists of its captures.
//! What does an instance store that no other place has?

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::capture_store::{Store, is_bucket};
use crate::config::Config;
use crate::names::folder_of;

/// The folder in which the proxy writes an entry of the history before it has a number.
const UNFINISHED: &str = ".unfinished";

/// A file of a backup.
pub(super) struct BackupFile {
    pub(super) name: String,
    pub(super) content: Box<dyn Read>,
    /// The length of the file when it was opened: a log may grow meanwhile.
    pub(super) length: u64,
    /// The device and the inode.
    identity: Option<(u64, u64)>,
}

/// Opens every file below the state folder. The proxy may replace files meanwhile: one that is gone is left out.
pub(super) fn state_files(folder: &Path, files: &mut Vec<BackupFile>) -> io::Result<()> {
    fs::read_dir(folder)?;
    walk(folder, "state", files)
}

fn walk(folder: &Path, name: &str, files: &mut Vec<BackupFile>) -> io::Result<()> {
    let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(()) };
    let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let (path, name) = (entry.path(), format!("{name}/{file_name}"));
        match unless_gone(entry.file_type())? {
            Some(kind) if kind.is_dir() && file_name != UNFINISHED => walk(&path, &name, files)?,
            Some(kind) if kind.is_file() => files.extend(open(&path, name)?),
            _ => {}
        }
    }
    Ok(())
}

/// Opens the files of an audit log. The order matters while the proxy writes: a checkpoint may not be newer than the log,
/// and a file that is closed meanwhile must be there once.
pub(super) fn audit_files(log: &Path, files: &mut Vec<BackupFile>) -> io::Result<()> {
    let log_name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let of_log = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(folder_of(log))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.retain(|name| name.strip_prefix(&log_name).is_some_and(|rest| rest.starts_with('.')));
        names.sort();
        Ok(names)
    };
    let is_closed = |name: &String| name[log_name.len() + 1..].bytes().all(|byte| byte.is_ascii_digit());
    let open = |name: &str| open(&folder_of(log).join(name), format!("audit/{name}"));
    for name in of_log()?.iter().filter(|name| !is_closed(name)) {
        files.extend(open(name)?);
    }
    let current = open(&log_name)?.ok_or(io::ErrorKind::NotFound)?;
    let identity = current.identity;
    files.push(current);
    for name in of_log()?.iter().filter(|name| is_closed(name)) {
        files.extend(open(name)?.filter(|file| file.identity != identity));
    }
    Ok(())
}

/// Lists the captures of each section, a line for each. The sealed captures themselves stay in their stores.
pub(super) fn capture_indexes(config: &Config, runtime: &Runtime, files: &mut Vec<BackupFile>) -> io::Result<()> {
    for (capture, section) in &config.captures {
        let Some(store) = &section.store else { continue };
        // Opening a folder would create it, with the owner of this command.
        if !is_bucket(store) && !store.join(capture.as_str()).is_dir() {
            continue;
        }
        let stored = runtime.block_on(Store::open(store, capture)?.list(None))?;
        let lines =
            stored.iter().map(|stored| format!("{}\n", json!({"name": stored.name.path(), "size": stored.size})));
        let (name, text) = (format!("captures/{capture}.jsonl"), lines.collect::<String>());
        let length = text.len() as u64;
        files.push(BackupFile { name, content: Box::new(Cursor::new(text)), length, identity: None });
    }
    Ok(())
}

/// Opens a regular file. `None`: it is gone.
fn open(path: &Path, name: String) -> io::Result<Option<BackupFile>> {
    let Some(file) = unless_gone(File::open(path))? else { return Ok(None) };
    let metadata = file.metadata()?;
    let identity = Some((metadata.dev(), metadata.ino()));
    Ok(Some(BackupFile { name, content: Box::new(file), length: metadata.len(), identity }))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
