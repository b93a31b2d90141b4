//! A snapshot of a configuration: the texts of its files, and the digests of the files that they reference.
//! What does the history store of an adopted configuration?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::problem::SourceMap;

/// The texts and digests of a configuration. It has no secret, because outgate does not adopt a configuration with
/// one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SourceSnapshot {
    /// The main file, then those that it includes.
    pub texts: Vec<(PathBuf, Arc<str>)>,
    /// SHA-256, in hex, of each other file, and of each folder of a tenant's keys.
    pub contents: BTreeMap<PathBuf, String>,
    /// The digest of the whole: [`Config::digest`](super::Config), in hex.
    pub digest: String,
}

impl SourceSnapshot {
    pub(super) fn new(
        texts: impl Iterator<Item = (u16, Arc<str>)>,
        sources: &SourceMap,
        mut contents: BTreeMap<PathBuf, [u8; 32]>,
        digest: [u8; 32],
    ) -> Self {
        let path = |file| sources.get(file).map(|(path, _)| path.to_owned());
        let texts: Vec<_> = texts.filter_map(|(file, text)| Some((path(file)?, text))).collect();
        for (path, _) in &texts {
            contents.remove(path);
        }
        let contents = contents.into_iter().map(|(path, digest)| (path, HEXLOWER.encode(&digest))).collect();
        Self { texts, contents, digest: HEXLOWER.encode(&digest) }
    }

    /// Returns the time of the last modification of the files. `None`: there are no files.
    pub fn modified_at(&self) -> Option<Timestamp> {
        let modified = |path: &PathBuf| Timestamp::try_from(std::fs::metadata(path).ok()?.modified().ok()?).ok();
        self.texts.iter().filter_map(|(path, _)| modified(path)).max()
    }

    /// The path of the main file.
    pub fn main_path(&self) -> &Path {
        self.texts.first().map_or(Path::new(""), |(path, _)| path)
    }
}
