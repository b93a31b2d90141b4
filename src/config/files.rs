//! The only code of the configuration that opens files: never blocks on one, never reads without a limit, forgets none.
//! What stands in this file, and which files were looked at?

#![expect(clippy::disallowed_methods, reason = "opens the configuration and the files that it names")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustix::fs::Stat;

/// The bytes of a secret at most: no key is longer.
pub(super) const SECRET_MAX: u64 = 64 << 10;

/// No configuration or certificate file is larger.
pub(super) const FILE_MAX: u64 = 8 << 20;
/// No pattern may name more files.
pub(super) const INCLUDES_MAX: usize = 10_000;
/// Two changes within this time may bear the same time: file systems have clocks of their own, most with ticks of
/// milliseconds, some of two seconds.
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
            Self::PermissionDenied => f.write_str("may not be read: permission denied"),
            Self::IsDirectory => f.write_str("is a directory"),
            Self::NotRegular => f.write_str("is not a regular file"),
            Self::TooLarge { max } if *max < 1 << 20 => write!(f, "is larger than {} KiB", max >> 10),
            Self::TooLarge { max } => write!(f, "is larger than {} MiB", max >> 20),
            Self::Symlink => f.write_str("is a link"),
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

/// A file's bytes, and what it looked like before they were read.
pub(super) struct FileContent {
    pub(super) bytes: Vec<u8>,
    pub(super) stat: FileStat,
}

/// What a file or a folder looks like from outside: the same as before means the same content, once it is settled. It
/// includes the time of the last change of the inode (ctime), which no user can set back.
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

    /// Whether a change after `now` would show.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(now.saturating_sub(STAT_SETTLE_TIME).as_nanos())
            .is_ok_and(|nanoseconds| self.ctime_ns < nanoseconds)
    }

    /// Whether any user of this host may read it, or worse.
    pub(super) fn is_world_accessible(&self) -> bool {
        self.mode & 0o007 != 0
    }
}

/// Every file and directory looked at, and the running digest of their content.
pub(super) struct FileTracker {
    paths: BTreeSet<PathBuf>,
    /// SHA-256 of each file that was read, and of what else stands at a path.
    contents: BTreeMap<PathBuf, [u8; 32]>,
    digest: digest::Context,
}

/// What reading has looked at.
pub(super) struct ReadSet {
    pub(super) paths: Vec<PathBuf>,
    pub(super) contents: BTreeMap<PathBuf, [u8; 32]>,
    /// SHA-256 over path and content of all that was read.
    pub(super) digest: [u8; 32],
}

impl FileTracker {
    pub(super) fn new() -> Self {
        Self { paths: BTreeSet::new(), contents: BTreeMap::new(), digest: digest::Context::new(&digest::SHA256) }
    }

    /// A file that cannot be read is remembered too: that it appears is a change.
    pub(super) fn read(&mut self, path: &Path, max: u64) -> Result<FileContent, FileError> {
        self.track(path);
        let content = read(path, max)?;
        self.update_digest(path.as_os_str().as_encoded_bytes());
        self.update_digest(&content.bytes);
        self.contents.insert(path.to_owned(), sha256(&content.bytes));
        Ok(content)
    }

    /// As if these were the bytes of the file.
    pub(super) fn read_overlaid(&mut self, path: &Path, bytes: &[u8]) -> Vec<u8> {
        self.track(path);
        self.update_digest(path.as_os_str().as_encoded_bytes());
        self.update_digest(bytes);
        bytes.to_vec()
    }

    /// What stands at a path, where that is more than a file.
    pub(super) fn record_digest(&mut self, path: PathBuf, digest: [u8; 32]) {
        self.update_digest(&digest);
        self.contents.insert(path, digest);
    }

    /// Content that is part of the configuration and stands in no file of ours.
    pub(super) fn update_digest(&mut self, bytes: &[u8]) {
        // The length keeps "ab", "c" and "a", "bc" apart.
        self.digest.update(&(bytes.len() as u64).to_be_bytes());
        self.digest.update(bytes);
    }

    /// The files of a directory whose names match, sorted by name; as in a shell `*` does not match a leading dot, so
    /// that an editor's scratch file is no configuration. The directory is remembered: a new file in it is a change.
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
        let mut digest = [0; 32];
        digest.copy_from_slice(self.digest.finish().as_ref());
        ReadSet { paths: self.paths.into_iter().collect(), contents: self.contents, digest }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    sum
}

/// What files and folders look like from outside. Two that are equal, and settled, stand for the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFingerprint {
    digest: [u8; 32],
    /// Whether a change after the time that was asked about would show.
    pub is_settled: bool,
}

impl StatFingerprint {
    /// Of what was read at `then`.
    pub fn compute<'a>(paths: impl Iterator<Item = &'a Path>, read_at: SystemTime) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut is_settled = true;
        for path in paths {
            let stat = rustix::fs::stat(path).ok().map(|stat| FileStat::from_stat(&stat));
            is_settled &= stat.is_none_or(|stat| stat.is_settled(read_at));
            context.update(format!("{path:?} {stat:?};").as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self { digest, is_settled }
    }
}

fn read(path: &Path, max: u64) -> Result<FileContent, FileError> {
    // O_NONBLOCK: opening a FIFO would wait for a writer, and what the path names may change after any check of it.
    read_open_file(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?, max)
}

/// Of a file that was opened so that it does not block.
pub(super) fn read_open_file(file: File, max: u64) -> Result<FileContent, FileError> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(FileError::IsDirectory);
    }
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    let stat = FileStat::from_stat(&rustix::fs::fstat(&file).map_err(io::Error::from)?);
    // Sized at once, so that no half-grown copy of a secret stays behind in memory.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(max) + 1).unwrap_or_default());
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLarge { max });
    }
    Ok(FileContent { bytes, stat })
}

/// `*` stands for any text, and nothing else is special.
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
        // The first place where a part fits leaves the most to the others.
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
