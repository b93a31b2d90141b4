//! The only configuration code that opens files: it never blocks, limits each read, and tracks every path.
//! What does this file contain, and which files were read?

#![expect(clippy::disallowed_methods, reason = "opens the configuration and the files that it names")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

use crate::digest::{Fingerprint, Sha256, sha256};

/// The largest secret, in bytes.
pub(super) const SECRET_MAX: u64 = 64 << 10;

/// The largest configuration or certificate file, in bytes.
pub(super) const FILE_MAX: u64 = 8 << 20;
/// The most files that patterns of `include` may match.
pub(super) const INCLUDES_MAX: usize = 10_000;
/// Two changes within this time may have the same timestamp: most file systems have ticks of milliseconds, some of
/// two seconds.
const STAT_SETTLE_TIME: Duration = Duration::from_secs(3);

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum FileError {
    Missing,
    PermissionDenied,
    IsDirectory,
    /// A pipe, a socket or a device: reading it could block, or never end.
    NotRegular,
    TooLarge {
        max: u64,
    },
    /// A symbolic link where none is followed.
    Symlink,
    TooMany {
        max: usize,
    },
    Other(io::Error),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist"),
            Self::PermissionDenied => f.write_str("cannot be read: permission denied"),
            Self::IsDirectory => f.write_str("is a directory"),
            Self::NotRegular => f.write_str("is not a regular file"),
            Self::TooLarge { max } if *max < 1 << 20 => write!(f, "is larger than {} KiB", max >> 10),
            Self::TooLarge { max } => write!(f, "is larger than {} MiB", max >> 20),
            Self::Symlink => f.write_str("is a symbolic link"),
            Self::TooMany { max } => write!(f, "has more than {max} files"),
            Self::Other(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            io::ErrorKind::IsADirectory => Self::IsDirectory,
            _ => Self::Other(error),
        }
    }
}

/// The bytes of a file, and its stat from before they were read.
pub(super) struct FileContent {
    pub(super) bytes: Vec<u8>,
    pub(super) stat: FileStat,
}

/// The metadata of a file or directory. If it is settled, an equal stat means equal content. It includes the ctime,
/// which no user can set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStat {
    device: u64,
    inode: u64,
    size: i64,
    mode: u32,
    /// Nanoseconds since 1970.
    ctime_ns: i128,
}

impl FileStat {
    pub(super) fn from_stat(stat: &Stat) -> Self {
        let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        Self { device: stat.st_dev, inode: stat.st_ino, size: stat.st_size, mode: stat.st_mode, ctime_ns: changed }
    }

    /// Returns whether a change after `now` would change the stat.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(now.saturating_sub(STAT_SETTLE_TIME).as_nanos())
            .is_ok_and(|nanoseconds| self.ctime_ns < nanoseconds)
    }

    /// Returns whether any user of this host may read, write or execute the file.
    pub(super) fn is_world_accessible(&self) -> bool {
        self.mode & 0o007 != 0
    }
}

/// Tracks every path that a load reads or lists, with a running digest of the contents.
pub(super) struct FileTracker {
    paths: BTreeSet<PathBuf>,
    /// SHA-256 of each file that was read, and of each tenant's folder of keys.
    contents: BTreeMap<PathBuf, Sha256>,
    digest: Fingerprint,
}

/// The paths and contents that a load has read.
pub(super) struct ReadSet {
    pub(super) paths: Vec<PathBuf>,
    pub(super) contents: BTreeMap<PathBuf, Sha256>,
    /// SHA-256 over path and content of all that was read.
    pub(super) digest: Sha256,
}

impl FileTracker {
    pub(super) fn new() -> Self {
        Self { paths: BTreeSet::new(), contents: BTreeMap::new(), digest: Fingerprint::default() }
    }

    /// Reads and tracks a file. A file that cannot be read is tracked too, so that its appearance is a change.
    pub(super) fn read(&mut self, path: &Path, max: u64) -> Result<FileContent, FileError> {
        self.track(path);
        let content = read(path, max)?;
        self.update_digest(path.as_os_str().as_encoded_bytes());
        self.update_digest(&content.bytes);
        self.contents.insert(path.to_owned(), sha256(&content.bytes));
        Ok(content)
    }

    /// Tracks a file whose bytes come from an overlay.
    pub(super) fn read_overlaid(&mut self, path: &Path, bytes: &[u8]) -> Vec<u8> {
        self.track(path);
        self.update_digest(path.as_os_str().as_encoded_bytes());
        self.update_digest(bytes);
        bytes.to_vec()
    }

    /// Records the digest of a path that is not a single file.
    pub(super) fn record_digest(&mut self, path: PathBuf, digest: Sha256) {
        self.update_digest(&digest);
        self.contents.insert(path, digest);
    }

    /// Adds content to the digest that is part of the configuration but of no tracked file.
    pub(super) fn update_digest(&mut self, bytes: &[u8]) {
        self.digest.part(bytes);
    }

    /// Returns the files of a directory whose names match, sorted by name. As in a shell, `*` does not match a
    /// leading dot, so an editor's scratch file is ignored. The directory is tracked: a new file in it is a change.
    pub(super) fn glob(&mut self, directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, FileError> {
        self.track(directory);
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') != pattern.starts_with('.') || !matches_pattern(pattern, name) {
                continue;
            }
            if found.len() == INCLUDES_MAX {
                return Err(FileError::TooMany { max: INCLUDES_MAX });
            }
            found.push(directory.join(name));
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn track(&mut self, path: &Path) {
        self.paths.insert(path.to_owned());
    }

    pub(super) fn finish(self) -> ReadSet {
        ReadSet { paths: self.paths.into_iter().collect(), contents: self.contents, digest: self.digest.finish() }
    }
}

/// A digest of the metadata of files and directories. Two equal, settled fingerprints mean equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFingerprint {
    digest: Sha256,
    /// Whether any change after the time of reading would change the fingerprint.
    pub is_settled: bool,
}

impl StatFingerprint {
    /// Computes the fingerprint of paths that were read at `read_at`.
    pub fn compute<'a>(paths: impl Iterator<Item = &'a Path>, read_at: SystemTime) -> Self {
        let mut fingerprint = Fingerprint::default();
        let mut is_settled = true;
        for path in paths {
            let stat = rustix::fs::stat(path).ok().map(|stat| FileStat::from_stat(&stat));
            is_settled &= stat.is_none_or(|stat| stat.is_settled(read_at));
            fingerprint.part(format!("{path:?} {stat:?}").as_bytes());
        }
        Self { digest: fingerprint.finish(), is_settled }
    }
}

fn read(path: &Path, max: u64) -> Result<FileContent, FileError> {
    // O_NONBLOCK: opening a FIFO would wait for a writer, and a check before the open could be outdated.
    read_open_file(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?, max)
}

/// Reads a file that was opened with O_NONBLOCK.
pub(super) fn read_open_file(file: File, max: u64) -> Result<FileContent, FileError> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(FileError::IsDirectory);
    }
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    let stat = FileStat::from_stat(&rustix::fs::fstat(&file).map_err(io::Error::from)?);
    // Allocated once, so that no reallocation leaves a copy of a secret in memory.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(max) + 1).unwrap_or_default());
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLarge { max });
    }
    Ok(FileContent { bytes, stat })
}

/// Returns whether a name matches a pattern, in which `*` matches any text and all else is literal.
pub(super) fn matches_pattern(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The leftmost match leaves the most text for the remaining parts.
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_pattern_star_matches_any_text() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("[a]?", "[a]?", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn file_read_refuses_directories_devices_and_fifos_without_blocking() {
        assert!(matches!(read(Path::new("/"), 9), Err(FileError::IsDirectory)));
        assert!(matches!(read(Path::new("/dev/zero"), 9), Err(FileError::NotRegular)));
        assert!(matches!(read(Path::new("/dev/null/x"), 9), Err(FileError::Missing)));
        let path = std::env::temp_dir().join(format!("outgate-fifo-{}", std::process::id()));
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let error = read(&path, 9);
        fs::remove_file(&path).unwrap();
        assert!(matches!(error, Err(FileError::NotRegular)));
    }

    #[test]
    fn file_stat_is_settled_after_the_clock_resolution() {
        let stat_changed_at = |changed| FileStat { device: 1, inode: 1, size: 1, mode: 0o600, ctime_ns: changed };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        for (age, expected) in [(0, false), (2_999_999_999, false), (3_000_000_001, true), (-5_000_000_000, false)] {
            assert_eq!(stat_changed_at(1_000_000_000_000 - age).is_settled(now), expected, "{age}");
        }
    }

    #[test]
    fn file_tracker_limits_sizes_and_digests_contents() {
        let path = std::env::temp_dir().join(format!("outgate-files-{}", std::process::id()));
        fs::write(&path, b"12345").unwrap();
        let digest = |max| {
            let mut files = FileTracker::new();
            let error = files.read(&path, max).is_err();
            let read_set = files.finish();
            (error, (read_set.paths, read_set.digest))
        };
        let (whole, short) = (digest(5), digest(4));
        fs::write(&path, b"12346").unwrap();
        let changed = digest(5);
        fs::remove_file(&path).unwrap();
        assert_eq!((whole.0, short.0), (false, true));
        assert_eq!((&whole.1.0, &short.1.0), (&vec![path.clone()], &vec![path.clone()]));
        assert_ne!(whole.1.1, changed.1.1);
    }
}
