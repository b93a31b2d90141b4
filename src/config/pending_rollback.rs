//! A pending rollback: a directory beside the main file with all files that the rollback restores.
//! Which files are the configuration while a rollback is unfinished?
//!
//! A rollback replaces files one by one, and may be killed in between. It therefore writes all of them
//! into one directory first, which gets its name atomically. From then on, the files of that directory
//! are the configuration. After all files are in place, the rollback removes the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{FILE_MAX, FileError, FileTracker};

/// The name of the manifest, which is written before the directory gets its name.
pub const MANIFEST: &str = "manifest.json";

/// The list of restored files. The directory has file number `n` under the name `n`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// The number of the configuration that is restored.
    pub number: u64,
    /// Absolute paths, the main file first.
    pub files: Vec<PathBuf>,
    /// Files that match patterns of `include` but are not part of the restored configuration.
    pub removed: BTreeSet<PathBuf>,
    #[serde(default)]
    pub modes: BTreeMap<PathBuf, u32>,
}

/// Files that replace those on disk.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    pub number: u64,
    /// The texts by absolute path.
    pub texts: BTreeMap<PathBuf, Vec<u8>>,
    /// The file modes, as far as they are known.
    pub modes: BTreeMap<PathBuf, u32>,
    pub removed: BTreeSet<PathBuf>,
}

/// The reason why a pending rollback cannot be read. The configuration is then unknown.
#[derive(Debug)]
pub struct UnreadableRollback(String);

impl fmt::Display for UnreadableRollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnreadableRollback {}

/// Returns the path of the pending rollback of a main file.
pub fn path(main: &Path) -> PathBuf {
    let name = main.file_name().unwrap_or_default().to_string_lossy().into_owned();
    main.with_file_name(format!(".{name}.rollback"))
}

/// Reads the pending rollback of a main file; `None`: there is none.
pub fn read(main: &Path) -> Result<Option<Overlay>, UnreadableRollback> {
    let folder = path(&absolute(main));
    let mut files = FileTracker::new();
    let manifest = match files.read(&folder.join(MANIFEST), FILE_MAX) {
        Ok(manifest) => manifest.bytes,
        Err(FileError::Missing) if !folder.exists() => return Ok(None),
        Err(error) => return Err(UnreadableRollback(format!("{}/{MANIFEST} {error}", folder.display()))),
    };
    let manifest: Manifest = serde_json::from_slice(&manifest)
        .map_err(|error| UnreadableRollback(format!("{}/{MANIFEST}: {error}", folder.display())))?;
    let mut texts = BTreeMap::new();
    for (number, path) in manifest.files.into_iter().enumerate() {
        let file = folder.join(number.to_string());
        match files.read(&file, FILE_MAX) {
            Ok(content) => texts.insert(path, content.bytes),
            // The rollback finished while its files were read.
            Err(FileError::Missing) if !folder.exists() => return Ok(None),
            Err(error) => return Err(UnreadableRollback(format!("{} {error}", file.display()))),
        };
    }
    Ok(Some(Overlay { number: manifest.number, texts, modes: manifest.modes, removed: manifest.removed }))
}

impl Overlay {
    pub(super) fn text(&self, path: &Path) -> Option<&[u8]> {
        self.texts.get(&absolute(path)).map(Vec::as_slice)
    }

    /// Returns the matches of a pattern: those on disk without the removed files, and those of the overlay.
    pub(super) fn expand(&self, directory: &Path, matches: impl Fn(&str) -> bool, found: Vec<PathBuf>) -> Vec<PathBuf> {
        let folder = absolute(directory);
        let overlaid = self.texts.keys().filter(|path| path.parent() == Some(&folder));
        let overlaid = overlaid.filter_map(|path| path.file_name()).filter(|name| name.to_str().is_some_and(&matches));
        let mut all: BTreeSet<PathBuf> = overlaid.map(|name| directory.join(name)).collect();
        all.extend(found.into_iter().filter(|path| !self.removed.contains(&absolute(path))));
        all.into_iter().collect()
    }
}

/// Returns the absolute path, without resolving symbolic links.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
