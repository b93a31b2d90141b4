//! The configurations that were adopted, each in a folder of its own: as they were written, by whom, and what they changed.
//! What ran before, and what was it?
//!
//! Secrets are not kept: of a file that a configuration names there is its digest. Hashes of tokens are, so nobody but
//! our own user reads any of it.

mod durable;
pub mod restore;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::difference::Difference;
use crate::config::{Written, journal};

/// Where the packages have our own folder.
pub const DEFAULT_STATE: &str = "/var/lib/outgate";
const FOLDER: &str = "history";
const ENTRY: &str = "entry.json";
/// What is being written; it has no number.
const UNFINISHED: &str = ".unfinished-";
/// Others may be counting here, too.
const TRIES_MAX: usize = 100;

/// One folder of adopted configurations.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
    most: usize,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    /// `start`, `file change`, `signal`, `reload`, `rollback to N`.
    pub how: String,
    /// To the one before.
    #[serde(flatten)]
    pub difference: Difference,
    /// Of all that was read.
    pub digest: String,
    pub version: String,
    /// Absolute, the main file first. File number `n` of the folder is called `n`.
    pub files: Vec<PathBuf>,
    /// Of each of them: who might read it (chmod(2)).
    #[serde(default)]
    pub modes: Vec<Option<u32>>,
    /// SHA-256 of each file that they name.
    pub contents: BTreeMap<PathBuf, String>,
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
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(self.numbers()?.into_iter().filter_map(|number| self.entry(number).ok()).collect())
    }

    pub fn last(&self) -> Option<Entry> {
        self.numbers().ok()?.into_iter().rev().find_map(|number| self.entry(number).ok())
    }

    pub fn entry(&self, number: u64) -> io::Result<Entry> {
        let place = self.place(number);
        if !fs::symlink_metadata(&place)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no folder", place.display())));
        }
        let bytes = durable::read(&place.join(ENTRY))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// The configuration itself.
    pub fn written(&self, entry: &Entry) -> io::Result<Written> {
        let place = self.place(entry.number);
        let texts = entry.files.iter().enumerate().map(|(number, path)| {
            let text = durable::read(&place.join(number.to_string()))?;
            let text = String::from_utf8(text).map_err(io::Error::other)?;
            Ok((path.clone(), Arc::from(text)))
        });
        let texts = texts.collect::<io::Result<Vec<_>>>()?;
        Ok(Written { texts, contents: entry.contents.clone(), digest: entry.digest.clone() })
    }

    /// Adds one, with the next number that is free, and drops the oldest beyond what is kept. It is there as a whole or
    /// not at all.
    pub fn add(&self, mut entry: Entry, written: &Written) -> io::Result<u64> {
        entry.files = written.texts.iter().map(|(path, _)| journal::absolute(path)).collect();
        entry.modes = entry.files.iter().map(|path| Some(fs::metadata(path).ok()?.mode() & 0o666)).collect();
        entry.contents.clone_from(&written.contents);
        let unfinished = self.folder.join(format!("{UNFINISHED}{}", std::process::id()));
        for _ in 0..TRIES_MAX {
            durable::remove_folder(&unfinished)?;
            durable::make_folder(&unfinished)?;
            for (number, (_, text)) in written.texts.iter().enumerate() {
                durable::write(&unfinished.join(number.to_string()), text.as_bytes())?;
            }
            let json = serde_json::to_vec_pretty(&entry).map_err(io::Error::other)?;
            durable::write(&unfinished.join(ENTRY), &json)?;
            match durable::put_in_place(&unfinished, &self.place(entry.number)) {
                Ok(()) => {
                    self.drop_oldest();
                    return Ok(entry.number);
                }
                // A folder that is not empty is not replaced (rename(2)).
                Err(fault) if fault.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    entry.number = self.next().max(entry.number + 1);
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "others count faster"))
    }

    /// The number that the next one gets.
    pub fn next(&self) -> u64 {
        self.numbers().ok().and_then(|numbers| numbers.last().copied()).map_or(1, |last| last + 1)
    }

    fn place(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:06}"))
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers: Vec<u64> =
            fs::read_dir(&self.folder)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What cannot be dropped now is dropped the next time.
    fn drop_oldest(&self) {
        let numbers = self.numbers().unwrap_or_default();
        let too_many = numbers.len().saturating_sub(self.most);
        for number in numbers.into_iter().take(too_many) {
            let _ = durable::remove_folder(&self.place(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        Entry {
            number,
            at: Timestamp::UNIX_EPOCH,
            by: "start".into(),
            how: "start".into(),
            difference: Difference::default(),
            digest: number.to_string(),
            version: String::new(),
            files: Vec::new(),
            modes: Vec::new(),
            contents: BTreeMap::new(),
        }
    }

    #[test]
    fn entries_are_kept_whole_counted_on_and_bounded() {
        let folder = std::env::temp_dir().join(format!("outgate-history-{}", std::process::id()));
        let history = History::open(Some(&folder), None, 3).unwrap().unwrap();
        assert_eq!((history.next(), history.last().is_none()), (1, true));
        let written = Written { texts: vec![("/e/c.toml".into(), "text".into())], ..Written::default() };
        for number in 1..=5 {
            assert_eq!(history.add(entry(number), &written).unwrap(), number);
        }
        // A number that is taken is not given twice, and nothing is overwritten.
        assert_eq!(history.add(entry(5), &written).unwrap(), 6);
        // What was killed while it was written is nobody's.
        fs::create_dir(history.folder().join(".unfinished-1")).unwrap();
        fs::create_dir(history.place(9)).unwrap();
        let numbers: Vec<u64> = history.entries().unwrap().iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [4, 5, 6]);
        let last = history.last().unwrap();
        assert_eq!((last.number, history.written(&last).unwrap().texts), (6, written.texts));
        assert_eq!(history.next(), 10);
        // A link is not followed: whoever reads may see more than whoever wrote.
        let text = history.place(6).join("0");
        fs::rename(&text, history.place(6).join("x")).unwrap();
        std::os::unix::fs::symlink("x", &text).unwrap();
        assert!(history.written(&last).is_err());
        fs::rename(history.place(6).join("x"), text).unwrap();
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(history.place(6)), mode(history.place(6).join("0"))), (0o700, 0o600));
        fs::remove_dir_all(folder).unwrap();
    }
}
