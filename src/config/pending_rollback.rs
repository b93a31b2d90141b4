//! A rollback that has begun: the whole set of files that is to be there, beside the main file, until all of them are.
//! Which files count while some are new and some are old?
//!
//! Whoever puts files back does it one by one, and may be killed between two. So they are all written into one folder
//! first, which appears under its name in one step: from then on the configuration is what stands there, whatever
//! stands in their places, until they are what stands there and the folder is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{FILE_MAX, FileError, FileTracker};

/// Says what the files of the folder are; written like them before the folder has its name.
pub const MANIFEST: &str = "manifest.json";

/// File number `n` of the folder is called `n`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the configuration that comes back.
    pub number: u64,
    /// Absolute, the main file first.
    pub files: Vec<PathBuf>,
    /// Files that patterns of `include` find, and that the configuration had not.
    pub removed: BTreeSet<PathBuf>,
    #[serde(default)]
    pub modes: BTreeMap<PathBuf, u32>,
}

/// What counts in the place of what stands on disk.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    pub number: u64,
    /// By absolute path.
    pub texts: BTreeMap<PathBuf, Vec<u8>>,
    /// Who might read them, as far as that is known.
    pub modes: BTreeMap<PathBuf, u32>,
    pub removed: BTreeSet<PathBuf>,
}

/// A folder that is there and makes no sense: nothing can be told of the configuration then.
#[derive(Debug)]
pub struct UnreadableRollback(String);

impl fmt::Display for UnreadableRollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnreadableRollback {}

/// Where the folder of a main file stands.
pub fn path(main: &Path) -> PathBuf {
    let name = main.file_name().unwrap_or_default().to_string_lossy().into_owned();
    main.with_file_name(format!(".{name}.rollback"))
}

/// `None`: no rollback is under way.
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
            // It was finished, and went, while it was read.
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

    /// What a pattern finds: `found` on disk, but for what counts instead.
    pub(super) fn expand(&self, directory: &Path, matches: impl Fn(&str) -> bool, found: Vec<PathBuf>) -> Vec<PathBuf> {
        let folder = absolute(directory);
        let overlaid = self.texts.keys().filter(|path| path.parent() == Some(&folder));
        let overlaid = overlaid.filter_map(|path| path.file_name()).filter(|name| name.to_str().is_some_and(&matches));
        let mut all: BTreeSet<PathBuf> = overlaid.map(|name| directory.join(name)).collect();
        all.extend(found.into_iter().filter(|path| !self.removed.contains(&absolute(path))));
        all.into_iter().collect()
    }
}

/// From the root, without following anything.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
