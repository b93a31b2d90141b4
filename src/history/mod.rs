//! The history: each adopted configuration in a folder of its own, with its files, its origin and its changes.
//! Which configurations were active before, and what did they contain?
//!
//! The history contains no secrets. Of a file that a configuration names it has a digest, keyed with a key in a
//! separate file: a copy of an entry does not suffice to guess a secret. It contains hashes of tokens, so only
//! outgate's own user can read it.

#![expect(clippy::disallowed_methods, reason = "keeps configurations in files")]

mod announced;
pub mod bundle_folder;
mod durable;
pub mod known_fleet;
pub mod restore;
mod trusted;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{hmac, rand};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::difference::Difference;
use crate::config::{SourceSnapshot, pending_rollback};
use crate::digest::sha256;
use crate::policy::egress::list::ListVersion;
pub use durable::FolderLock;

/// The state folder of the packages.
pub const DEFAULT_STATE: &str = "/var/lib/outgate";
const HISTORY_DIR: &str = "history";
const ENTRY_FILE: &str = "entry.json";
/// The texts of all files of an entry, in their order.
const TEXTS_FILE: &str = "texts.json";
/// The extension of the key file, which lies beside the history folder. A copy of the folder does not contain the key.
const KEY_EXTENSION: &str = "key";
/// The length of the key, in bytes.
const KEY_LENGTH: usize = 32;
/// The input of the HMAC that identifies a key. No digest equals this text.
const KEY_ID_OF: &[u8] = b"outgate history key";
/// The folder in which the process with the lock writes an entry. It has no number.
const UNFINISHED_DIR: &str = ".unfinished";
/// Limits the size of an entry file, in bytes.
const ENTRY_MAX: u64 = 64 << 20;
/// Limits the size of a file of texts, in bytes.
const TEXTS_MAX: u64 = 1 << 30;

/// A folder of adopted configurations.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
    max_entries: usize,
}

/// One adopted configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    /// The cause of the adoption: `start`, `file change`, `signal`, `reload`, `rollback to N`.
    pub how: String,
    /// The difference to the previous configuration.
    #[serde(flatten)]
    pub difference: Difference,
    /// The digest of the whole configuration: HMAC-SHA256 of [`SourceSnapshot::digest`]. Former versions stored that
    /// digest itself.
    pub digest: String,
    pub version: String,
    /// The SHA-256 digest of the file of texts.
    pub texts: String,
    /// The absolute paths of the files, the main file first.
    pub files: Vec<PathBuf>,
    /// The mode of each file (chmod(2)).
    #[serde(default)]
    pub modes: Vec<Option<u32>>,
    /// The digest of each file that the configuration names: see [`SourceSnapshot::contents`].
    pub contents: BTreeMap<PathBuf, String>,
    /// Whether the digests are keyed.
    #[serde(default)]
    pub is_keyed: bool,
    /// The identifier of the key: HMAC-SHA256 of [`KEY_ID_OF`]. Former versions left it empty.
    #[serde(default)]
    pub key_id: String,
    /// The version of the ranges that customers see. Former versions had none.
    #[serde(default)]
    pub list: Option<ListVersion>,
}

impl History {
    /// Opens the history in systemd's state folder, else in the configured one, else in that of the packages if it
    /// exists.
    pub fn open(state: Option<&Path>, state_directory: Option<&Path>, max_entries: usize) -> io::Result<Option<Self>> {
        let folder = match state_directory.or(state) {
            Some(state) => state.join(HISTORY_DIR),
            None if Path::new(DEFAULT_STATE).is_dir() => Path::new(DEFAULT_STATE).join(HISTORY_DIR),
            None => return Ok(None),
        };
        durable::create_dir(&folder)?;
        Ok(Some(Self { folder, max_entries }))
    }

    /// Opens the history in a state folder, or in that of the packages, only to read it.
    pub fn of_state(state: Option<&Path>) -> Self {
        Self::for_reading(state.unwrap_or(Path::new(DEFAULT_STATE)).join(HISTORY_DIR))
    }

    /// Opens a history only to read it.
    pub fn for_reading(folder: PathBuf) -> Self {
        Self { folder, max_entries: usize::MAX }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn set_max_entries(&mut self, max_entries: usize) {
        self.max_entries = max_entries;
    }

    /// Returns all readable entries, the oldest first.
    pub fn entries(&self) -> io::Result<Vec<HistoryEntry>> {
        Ok(self.numbers()?.into_iter().filter_map(|number| self.entry(number).ok()).collect())
    }

    pub fn last(&self) -> Option<HistoryEntry> {
        self.newest(1).pop()
    }

    /// Returns the readable entries with the highest numbers, the newest first.
    pub fn newest(&self, most: usize) -> Vec<HistoryEntry> {
        let numbers = self.numbers().unwrap_or_default();
        numbers.into_iter().rev().filter_map(|number| self.entry(number).ok()).take(most).collect()
    }

    pub fn entry(&self, number: u64) -> io::Result<HistoryEntry> {
        let path = self.entry_path(number);
        if !fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a folder", path.display())));
        }
        let bytes = durable::read(&path.join(ENTRY_FILE), ENTRY_MAX)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Returns what `after` changes compared with an entry.
    pub fn difference(&self, entry: &HistoryEntry, after: &SourceSnapshot) -> io::Result<Difference> {
        Ok(Difference::between(&self.snapshot(entry)?, &*self.with_comparable_digests(entry, after)?))
    }

    /// Returns whether an entry has the same configuration as `snapshot`.
    pub fn is_same(&self, entry: &HistoryEntry, snapshot: &SourceSnapshot) -> bool {
        self.with_comparable_digests(entry, snapshot).is_ok_and(|snapshot| snapshot.digest == entry.digest)
    }

    /// Returns the snapshot with digests that are comparable to those of `entry`. Fails if the entry's key is lost or
    /// damaged.
    fn with_comparable_digests<'w>(
        &self,
        entry: &HistoryEntry,
        snapshot: &'w SourceSnapshot,
    ) -> io::Result<Cow<'w, SourceSnapshot>> {
        if !entry.is_keyed {
            return Ok(Cow::Borrowed(snapshot));
        }
        let key = self.key()?;
        if !entry.key_id.is_empty() && entry.key_id != key_id(&key) {
            return Err(corrupt_entry("its digests were made with another key"));
        }
        Ok(Cow::Owned(with_keyed_digests(&key, snapshot)))
    }

    fn key(&self) -> io::Result<hmac::Key> {
        let path = self.folder.with_extension(KEY_EXTENSION);
        let read = durable::read(&path, KEY_LENGTH as u64);
        match read.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))? {
            bytes if bytes.len() == KEY_LENGTH => Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
            _ => Err(corrupt_entry("the key of its digests has the wrong length")),
        }
    }

    /// Returns the key, which is created with the first entry. The caller must hold the lock.
    fn key_or_new(&self) -> io::Result<hmac::Key> {
        if fs::exists(self.folder.with_extension(KEY_EXTENSION))? {
            return self.key();
        }
        let mut bytes = [0; KEY_LENGTH];
        rand::fill(&mut bytes).map_err(|_| io::Error::other("the operating system has no random bytes"))?;
        let unfinished = self.folder.with_extension(format!("{KEY_EXTENSION}{UNFINISHED_DIR}"));
        let _ = fs::remove_file(&unfinished); // left by a process that was killed
        durable::write_new(&unfinished, &bytes)?;
        durable::rename_durably(&unfinished, &self.folder.with_extension(KEY_EXTENSION))?;
        self.key()
    }

    /// Returns the configuration of an entry, with the stored digests.
    pub fn snapshot(&self, entry: &HistoryEntry) -> io::Result<SourceSnapshot> {
        let json = durable::read(&self.entry_path(entry.number).join(TEXTS_FILE), TEXTS_MAX)?;
        let texts: Vec<Arc<str>> = match sha256_hex(&json) == entry.texts {
            true => serde_json::from_slice(&json).map_err(io::Error::other)?,
            false => return Err(corrupt_entry("the texts of its files differ from those that were stored")),
        };
        if texts.len() != entry.files.len() {
            return Err(corrupt_entry("the numbers of its texts and of its files differ"));
        }
        let texts = entry.files.iter().cloned().zip(texts).collect();
        Ok(SourceSnapshot { texts, contents: entry.contents.clone(), digest: entry.digest.clone() })
    }

    /// Adds an entry with the next free number, and removes the oldest ones beyond the limit. The entry is written
    /// completely or not at all.
    pub fn add(&self, mut entry: HistoryEntry, snapshot: &SourceSnapshot) -> io::Result<u64> {
        let texts: Vec<&str> = snapshot.texts.iter().map(|(_, text)| &**text).collect();
        let texts = serde_json::to_vec(&texts).map_err(io::Error::other)?;
        entry.texts = sha256_hex(&texts);
        entry.files = snapshot.texts.iter().map(|(path, _)| pending_rollback::absolute(path)).collect();
        entry.modes = entry.files.iter().map(|path| Some(fs::metadata(path).ok()?.mode() & 0o666)).collect();
        let _lock = FolderLock::acquire(&self.folder)?;
        let key = self.key_or_new()?;
        let SourceSnapshot { contents, digest, .. } = with_keyed_digests(&key, snapshot);
        (entry.contents, entry.digest, entry.is_keyed) = (contents, digest, true);
        entry.key_id = key_id(&key);
        // Another process may have added entries in the meantime.
        entry.number = self.next_number().max(entry.number);
        let unfinished = self.folder.join(UNFINISHED_DIR);
        let added = self.write(&unfinished, &entry, &texts);
        if added.is_err() {
            let _ = durable::remove_dir(&unfinished); // the error of the write is returned
        }
        added?;
        self.evict_oldest();
        Ok(entry.number)
    }

    fn write(&self, unfinished: &Path, entry: &HistoryEntry, texts: &[u8]) -> io::Result<()> {
        durable::remove_dir(unfinished)?;
        durable::create_dir(unfinished)?;
        // If only certificates or tenants' keys changed, the texts of the last entry are linked.
        let same = self
            .last()
            .filter(|last| last.texts == entry.texts)
            .map(|last| self.entry_path(last.number).join(TEXTS_FILE));
        let path = unfinished.join(TEXTS_FILE);
        if same.is_none_or(|same| fs::hard_link(same, &path).is_err()) {
            durable::write_new(&path, texts)?;
        }
        let json = serde_json::to_vec_pretty(entry).map_err(io::Error::other)?;
        durable::write_new(&unfinished.join(ENTRY_FILE), &json)?;
        durable::rename_durably(unfinished, &self.entry_path(entry.number))
    }

    /// Returns the number of the next entry.
    pub fn next_number(&self) -> u64 {
        self.numbers().ok().and_then(|numbers| numbers.last().copied()).map_or(1, |last| last + 1)
    }

    fn entry_path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:06}"))
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers: Vec<u64> =
            fs::read_dir(&self.folder)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Removes old entries. It keeps the last `max_entries` entries, and the last entry of each of the last
    /// `max_entries` distinct texts: changes of keys and certificates thus evict no text that a person wrote. An entry
    /// that cannot be removed is removed the next time.
    fn evict_oldest(&self) {
        let (mut recent, mut texts) = (0, Vec::new());
        for number in self.numbers().unwrap_or_default().into_iter().rev() {
            let entry_texts = self.entry(number).ok().map(|entry| entry.texts);
            let is_distinct =
                entry_texts.is_some() && entry_texts.as_ref() != texts.last() && texts.len() < self.max_entries;
            texts.extend(entry_texts.filter(|_| is_distinct));
            recent += 1;
            if recent > self.max_entries && !is_distinct {
                let _ = durable::remove_dir(&self.entry_path(number));
            }
        }
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(&sha256(bytes))
}

/// Returns the snapshot with keyed digests.
fn with_keyed_digests(key: &hmac::Key, snapshot: &SourceSnapshot) -> SourceSnapshot {
    let tag = |digest: &String| HEXLOWER.encode(hmac::sign(key, digest.as_bytes()).as_ref());
    let contents = snapshot.contents.iter().map(|(path, digest)| (path.clone(), tag(digest))).collect();
    SourceSnapshot { texts: snapshot.texts.clone(), contents, digest: tag(&snapshot.digest) }
}

fn key_id(key: &hmac::Key) -> String {
    HEXLOWER.encode(hmac::sign(key, KEY_ID_OF).as_ref())
}

fn corrupt_entry(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> HistoryEntry {
        HistoryEntry {
            number,
            at: Timestamp::UNIX_EPOCH,
            by: "start".into(),
            how: "start".into(),
            difference: Difference::default(),
            digest: number.to_string(),
            version: String::new(),
            files: Vec::new(),
            modes: Vec::new(),
            texts: String::new(),
            contents: BTreeMap::new(),
            is_keyed: false,
            key_id: String::new(),
            list: None,
        }
    }

    #[test]
    fn history_entries_are_atomic_numbered_and_bounded() {
        let folder = std::env::temp_dir().join(format!("outgate-history-{}", std::process::id()));
        let history = History::open(Some(&folder), None, 3).unwrap().unwrap();
        assert_eq!((history.next_number(), history.last().is_none()), (1, true));
        let text =
            |text: &str| SourceSnapshot { texts: vec![("/e/c.toml".into(), text.into())], ..SourceSnapshot::default() };
        let numbers = || history.entries().unwrap().iter().map(|entry| entry.number).collect::<Vec<_>>();
        for number in 1..=5 {
            assert_eq!(history.add(entry(number), &text(&number.to_string())).unwrap(), number);
        }
        // A number in use is not given again, and no entry is overwritten.
        let snapshot = text("text");
        assert_eq!(history.add(entry(5), &snapshot).unwrap(), 6);
        // The rest of an interrupted write is ignored, and removed by the next write.
        fs::create_dir(history.folder().join(UNFINISHED_DIR)).unwrap();
        assert_eq!(numbers(), [4, 5, 6]);
        // Entries with equal texts evict no other text, and share one file of texts.
        for number in 7..=16 {
            history.add(entry(number), &snapshot).unwrap();
        }
        assert_eq!(numbers(), [4, 5, 14, 15, 16]);
        assert!(!history.folder().join(UNFINISHED_DIR).exists());
        let inode = |number| fs::metadata(history.entry_path(number).join(TEXTS_FILE)).unwrap().ino();
        assert_eq!(inode(14), inode(16));
        fs::create_dir(history.entry_path(19)).unwrap();
        let last = history.last().unwrap();
        assert_eq!((last.number, history.snapshot(&last).unwrap().texts), (16, snapshot.texts));
        assert_eq!(history.next_number(), 20);
        // Links are not followed: the reader may have more rights than the writer.
        let texts = history.entry_path(16).join(TEXTS_FILE);
        fs::rename(&texts, history.entry_path(16).join("x")).unwrap();
        std::os::unix::fs::symlink("x", &texts).unwrap();
        assert!(history.snapshot(&last).is_err());
        fs::rename(history.entry_path(16).join("x"), &texts).unwrap();
        // Changed texts are rejected.
        fs::write(&texts, "[\"tex\"]").unwrap();
        assert_eq!(
            history.snapshot(&last).unwrap_err().to_string(),
            "the texts of its files differ from those that were stored"
        );
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(history.entry_path(16)), mode(texts)), (0o700, 0o600));
        assert_eq!(mode(history.folder().with_extension(KEY_EXTENSION)), 0o600);
        fs::remove_dir_all(folder).unwrap();
    }
}
