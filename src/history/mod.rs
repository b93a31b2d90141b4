//! The configurations that were adopted, each in a folder of its own: as they were written, by whom, and what they changed.
//! What ran before, and what was it?
//!
//! Secrets are not kept: of a file that a configuration names there is its digest, under a key that is kept beside. Who
//! has a copy of an entry alone cannot try out what a secret is. Hashes of tokens are kept, so only outgate's
//! own user can read any of it.

mod durable;
pub mod restore;
mod trusted;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{digest, hmac, rand};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::difference::Difference;
use crate::config::snapshot::hex;
use crate::config::{SourceSnapshot, pending_rollback};
pub use durable::FolderLock;

/// Where the packages have our own folder.
pub const DEFAULT_STATE: &str = "/var/lib/outgate";
const FOLDER: &str = "history";
const ENTRY: &str = "entry.json";
/// The texts of all its files, in their order.
const TEXTS: &str = "texts.json";
/// The extension of the file beside the folder that has what digests are keyed with. A copy of the folder has it not.
const KEY: &str = "key";
/// In bytes.
const KEY_LENGTH: usize = 32;
/// What the identifier of a key is the HMAC of: no digest is this text.
const KEY_ID_OF: &[u8] = b"outgate history key";
/// What is being written, by whoever has the lock; it has no number.
const UNFINISHED: &str = ".unfinished";
/// No file of ours is larger.
const ENTRY_MAX: u64 = 64 << 20;
const TEXTS_MAX: u64 = 1 << 30;

/// One folder of adopted configurations.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
    most: usize,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    /// `start`, `file change`, `signal`, `reload`, `rollback to N`.
    pub how: String,
    /// To the one before.
    #[serde(flatten)]
    pub difference: Difference,
    /// Of all that was read: HMAC-SHA256 of [`SourceSnapshot::digest`], or that itself in an entry of a former version.
    pub digest: String,
    pub version: String,
    /// SHA-256 of their texts, as they are kept.
    pub texts: String,
    /// Absolute, the main file first.
    pub files: Vec<PathBuf>,
    /// Of each of them: who might read it (chmod(2)).
    #[serde(default)]
    pub modes: Vec<Option<u32>>,
    /// The same of each file that they name: see [`SourceSnapshot::contents`].
    pub contents: BTreeMap<PathBuf, String>,
    /// Whether digests are keyed.
    #[serde(default)]
    pub is_keyed: bool,
    /// Says which key that was: HMAC-SHA256 of [`KEY_ID_OF`]. Empty in an entry of a former version.
    #[serde(default)]
    pub key_id: String,
}

impl History {
    /// In our own folder: systemd's, else the one that is configured, else where the packages have it, if it is there.
    pub fn open(state: Option<&Path>, passed: Option<&Path>, most: usize) -> io::Result<Option<Self>> {
        let folder = match passed.or(state) {
            Some(state) => state.join(FOLDER),
            None if Path::new(DEFAULT_STATE).is_dir() => Path::new(DEFAULT_STATE).join(FOLDER),
            None => return Ok(None),
        };
        durable::make_folder(&folder)?;
        Ok(Some(Self { folder, most }))
    }

    /// To look into.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder, most: usize::MAX }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn keeps(&mut self, most: usize) {
        self.most = most;
    }

    /// All that there are, the oldest first; what makes no sense is left out.
    pub fn entries(&self) -> io::Result<Vec<HistoryEntry>> {
        Ok(self.numbers()?.into_iter().filter_map(|number| self.entry(number).ok()).collect())
    }

    pub fn last(&self) -> Option<HistoryEntry> {
        self.numbers().ok()?.into_iter().rev().find_map(|number| self.entry(number).ok())
    }

    pub fn entry(&self, number: u64) -> io::Result<HistoryEntry> {
        let place = self.entry_path(number);
        if !fs::symlink_metadata(&place)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no folder", place.display())));
        }
        let bytes = durable::read(&place.join(ENTRY), ENTRY_MAX)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// What `after` changes of a configuration that was kept.
    pub fn difference(&self, entry: &HistoryEntry, after: &SourceSnapshot) -> io::Result<Difference> {
        Ok(Difference::between(&self.written(entry)?, &*self.in_terms_of(entry, after)?))
    }

    /// Whether a configuration that was kept is this one.
    pub fn is_same(&self, entry: &HistoryEntry, written: &SourceSnapshot) -> bool {
        self.in_terms_of(entry, written).is_ok_and(|written| written.digest == entry.digest)
    }

    /// With digests that can be compared with those of `entry`. The error: the key of the entry is lost or damaged.
    fn in_terms_of<'w>(
        &self,
        entry: &HistoryEntry,
        written: &'w SourceSnapshot,
    ) -> io::Result<Cow<'w, SourceSnapshot>> {
        if !entry.is_keyed {
            return Ok(Cow::Borrowed(written));
        }
        let key = self.key()?;
        if !entry.key_id.is_empty() && entry.key_id != key_id(&key) {
            return Err(damaged("its digests were made with another key"));
        }
        Ok(Cow::Owned(keyed(&key, written)))
    }

    fn key(&self) -> io::Result<hmac::Key> {
        let path = self.folder.with_extension(KEY);
        let read = durable::read(&path, KEY_LENGTH as u64);
        match read.map_err(|fault| io::Error::new(fault.kind(), format!("{}: {fault}", path.display())))? {
            bytes if bytes.len() == KEY_LENGTH => Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
            _ => Err(damaged("the key of its digests is not whole")),
        }
    }

    /// The key, which is made with the first entry. Call it with the lock.
    fn key_or_new(&self) -> io::Result<hmac::Key> {
        if fs::exists(self.folder.with_extension(KEY))? {
            return self.key();
        }
        let mut bytes = [0; KEY_LENGTH];
        rand::fill(&mut bytes).map_err(|_| io::Error::other("the operating system has no random bytes"))?;
        let unfinished = self.folder.with_extension(format!("{KEY}{UNFINISHED}"));
        let _ = fs::remove_file(&unfinished); // of a process that was killed
        durable::write(&unfinished, &bytes)?;
        durable::put_in_place(&unfinished, &self.folder.with_extension(KEY))?;
        self.key()
    }

    /// The configuration itself, with digests as they are kept.
    pub fn written(&self, entry: &HistoryEntry) -> io::Result<SourceSnapshot> {
        let json = durable::read(&self.entry_path(entry.number).join(TEXTS), TEXTS_MAX)?;
        let texts: Vec<Arc<str>> = match digest(&json) == entry.texts {
            true => serde_json::from_slice(&json).map_err(io::Error::other)?,
            false => return Err(damaged("the texts of its files are not what was kept")),
        };
        if texts.len() != entry.files.len() {
            return Err(damaged("it has not as many texts as files"));
        }
        let texts = entry.files.iter().cloned().zip(texts).collect();
        Ok(SourceSnapshot { texts, contents: entry.contents.clone(), digest: entry.digest.clone() })
    }

    /// Adds one, with the next number that is free, and drops the oldest beyond what is kept. It is there as a whole or
    /// not at all.
    pub fn add(&self, mut entry: HistoryEntry, written: &SourceSnapshot) -> io::Result<u64> {
        let texts: Vec<&str> = written.texts.iter().map(|(_, text)| &**text).collect();
        let texts = serde_json::to_vec(&texts).map_err(io::Error::other)?;
        entry.texts = digest(&texts);
        entry.files = written.texts.iter().map(|(path, _)| pending_rollback::absolute(path)).collect();
        entry.modes = entry.files.iter().map(|path| Some(fs::metadata(path).ok()?.mode() & 0o666)).collect();
        let _lock = FolderLock::acquire(&self.folder)?;
        let key = self.key_or_new()?;
        let SourceSnapshot { contents, digest, .. } = keyed(&key, written);
        (entry.contents, entry.digest, entry.is_keyed) = (contents, digest, true);
        entry.key_id = key_id(&key);
        // Others may have counted on since.
        entry.number = self.next().max(entry.number);
        let unfinished = self.folder.join(UNFINISHED);
        let added = self.write(&unfinished, &entry, &texts);
        if added.is_err() {
            let _ = durable::remove_folder(&unfinished); // what is wrong with the disk is told
        }
        added?;
        self.drop_oldest();
        Ok(entry.number)
    }

    fn write(&self, unfinished: &Path, entry: &HistoryEntry, texts: &[u8]) -> io::Result<()> {
        durable::remove_folder(unfinished)?;
        durable::make_folder(unfinished)?;
        // Where only a certificate or a tenant's key is another, the texts are there already.
        let same =
            self.last().filter(|last| last.texts == entry.texts).map(|last| self.entry_path(last.number).join(TEXTS));
        let place = unfinished.join(TEXTS);
        if same.is_none_or(|same| fs::hard_link(same, &place).is_err()) {
            durable::write(&place, texts)?;
        }
        let json = serde_json::to_vec_pretty(entry).map_err(io::Error::other)?;
        durable::write(&unfinished.join(ENTRY), &json)?;
        durable::put_in_place(unfinished, &self.entry_path(entry.number))
    }

    /// The number that the next one gets.
    pub fn next(&self) -> u64 {
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

    /// Those that are kept: the last ones, and as many that somebody wrote, the last of each, so that keys and certificates
    /// that come and go push none of these out. What cannot be dropped now is dropped the next time.
    fn drop_oldest(&self) {
        let (mut recent, mut texts) = (0, Vec::new());
        for number in self.numbers().unwrap_or_default().into_iter().rev() {
            let of_it = self.entry(number).ok().map(|entry| entry.texts);
            let is_another = of_it.is_some() && of_it.as_ref() != texts.last() && texts.len() < self.most;
            texts.extend(of_it.filter(|_| is_another));
            recent += 1;
            if recent > self.most && !is_another {
                let _ = durable::remove_folder(&self.entry_path(number));
            }
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The same with keyed digests.
fn keyed(key: &hmac::Key, written: &SourceSnapshot) -> SourceSnapshot {
    let tag = |digest: &String| hex(hmac::sign(key, digest.as_bytes()).as_ref());
    let contents = written.contents.iter().map(|(path, digest)| (path.clone(), tag(digest))).collect();
    SourceSnapshot { texts: written.texts.clone(), contents, digest: tag(&written.digest) }
}

fn key_id(key: &hmac::Key) -> String {
    hex(hmac::sign(key, KEY_ID_OF).as_ref())
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
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
        }
    }

    #[test]
    fn entries_are_kept_whole_counted_on_and_bounded() {
        let folder = std::env::temp_dir().join(format!("outgate-history-{}", std::process::id()));
        let history = History::open(Some(&folder), None, 3).unwrap().unwrap();
        assert_eq!((history.next(), history.last().is_none()), (1, true));
        let text =
            |text: &str| SourceSnapshot { texts: vec![("/e/c.toml".into(), text.into())], ..SourceSnapshot::default() };
        let numbers = || history.entries().unwrap().iter().map(|entry| entry.number).collect::<Vec<_>>();
        for number in 1..=5 {
            assert_eq!(history.add(entry(number), &text(&number.to_string())).unwrap(), number);
        }
        // A number that is taken is not given twice, and nothing is overwritten.
        let written = text("text");
        assert_eq!(history.add(entry(5), &written).unwrap(), 6);
        // What was killed while it was written is nobody's, and goes with the next.
        fs::create_dir(history.folder().join(UNFINISHED)).unwrap();
        assert_eq!(numbers(), [4, 5, 6]);
        // What only keys have changed pushes out nothing that somebody wrote, and takes no more room.
        for number in 7..=16 {
            history.add(entry(number), &written).unwrap();
        }
        assert_eq!(numbers(), [4, 5, 14, 15, 16]);
        assert!(!history.folder().join(UNFINISHED).exists());
        let inode = |number| fs::metadata(history.entry_path(number).join(TEXTS)).unwrap().ino();
        assert_eq!(inode(14), inode(16));
        fs::create_dir(history.entry_path(19)).unwrap();
        let last = history.last().unwrap();
        assert_eq!((last.number, history.written(&last).unwrap().texts), (16, written.texts));
        assert_eq!(history.next(), 20);
        // A link is not followed: whoever reads may see more than whoever wrote.
        let texts = history.entry_path(16).join(TEXTS);
        fs::rename(&texts, history.entry_path(16).join("x")).unwrap();
        std::os::unix::fs::symlink("x", &texts).unwrap();
        assert!(history.written(&last).is_err());
        fs::rename(history.entry_path(16).join("x"), &texts).unwrap();
        // Nor is what is not what was kept.
        fs::write(&texts, "[\"tex\"]").unwrap();
        assert_eq!(history.written(&last).unwrap_err().to_string(), "the texts of its files are not what was kept");
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(history.entry_path(16)), mode(texts)), (0o700, 0o600));
        assert_eq!(mode(history.folder().with_extension(KEY)), 0o600);
        fs::remove_dir_all(folder).unwrap();
    }
}
