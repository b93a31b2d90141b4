//! A snapshot of a configuration: the texts of its files, and the digests of the files that they reference.
//! What does the history store of an adopted configuration?

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::include::INCLUDABLE;
use super::problem::SourceMap;
use crate::digest::Fingerprint;

/// The section of the pools. Hosts of a fleet may list ranges of their own.
const EGRESS: &str = "egress";

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

    /// Returns a hash over what the hosts of a fleet should have in common: the sections that a bundle may have, without
    /// the pools. In which files they are does not matter, and the files that they refer to are not part of it.
    pub fn common_digest(&self) -> String {
        let is_common = |section: &str| section != EGRESS && INCLUDABLE.contains(&section);
        let (mut named, mut listed) = (BTreeSet::new(), Vec::new());
        for table in self.texts.iter().filter_map(|(_, text)| text.parse::<toml::Table>().ok()) {
            for (section, value) in table.into_iter().filter(|(section, _)| is_common(section)) {
                match value {
                    toml::Value::Table(entries) => {
                        named.extend(entries.into_iter().map(|(name, entry)| format!("{section}.{name} = {entry}")));
                    }
                    list => listed.push(format!("{section} = {list}")),
                }
            }
        }
        HEXLOWER.encode(&Fingerprint::of_parts(named.iter().chain(&listed).map(|entry| entry.as_bytes())))
    }

    /// The path of the main file.
    pub fn main_path(&self) -> &Path {
        self.texts.first().map_or(Path::new(""), |(path, _)| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(texts: &[&str]) -> String {
        let texts = texts.iter().map(|text| (PathBuf::from("config.toml"), Arc::from(*text))).collect();
        SourceSnapshot { texts, ..SourceSnapshot::default() }.common_digest()
    }

    #[test]
    fn hosts_of_a_fleet_are_compared_by_the_sections_that_they_have_in_common() {
        let usual = digest(&["[limits.a]\nrate = \"1/s\"\n[limits.b]\nrate = \"2/s\"\n[[routes]]\nname = \"r\"\n"]);
        for same in [
            &["[[routes]]\nname=\"r\"", "[limits.b]\nrate = \"2/s\"\n[limits.a]\nrate = '1/s' # a comment"][..],
            &["[server]\nlisten = [\"10.0.0.5:4750\"]\n[egress.default]\nranges = [\"198.51.100.16/28\"]\n\
                 [limits]\na = { rate = \"1/s\" }\nb = { rate = \"2/s\" }\n[[routes]]\nname = \"r\"\n"],
        ] {
            assert_eq!(digest(same), usual, "{same:?}");
        }
        for other in ["2/s", "name = \"q\""] {
            let text = "[limits.a]\nrate = \"1/s\"\n[limits.b]\nrate = \"2/s\"\n[[routes]]\nname = \"r\"\n";
            let changed = if other == "2/s" { text.replace("1/s", other) } else { text.replace("name = \"r\"", other) };
            assert_ne!(digest(&[&changed]), usual, "{changed}");
        }
        assert_ne!(
            digest(&["[[routes]]\nname = \"r\"\n"]),
            digest(&["[[routes]]\nname = \"r\"\n[[routes]]\nname = \"r\"\n"])
        );
    }
}
