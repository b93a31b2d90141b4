//! Verifies the files of an audit log, and compares them with a checkpoint.
//! Which is the first record that was changed, removed or added?

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::chain::{Chain, ChainError};
use super::file::{self, Lines};
use super::note::Checkpoint;
use super::record::Record;
use crate::names::pluralize;

/// The first fault of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub path: PathBuf,
    /// Counts the lines of the file from 1.
    pub line: Option<u64>,
    pub seq: Option<u64>,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A file cannot be read, or is not among the files.
    Unreadable,
    /// A record was changed, removed or added.
    Broken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match self.seq {
            Some(seq) => write!(f, ": record {seq}: {}", self.what),
            None => write!(f, ": {}", self.what),
        }
    }
}

/// The outcome of a verification without a fault.
#[derive(Debug)]
pub struct Summary {
    /// Each file, with the number of its records.
    pub files: Vec<(PathBuf, u64)>,
    /// The `seq` of the first record.
    pub first: u64,
    pub checkpoint: Checkpoint,
    /// The bytes after the last record: a write that was cut off, or that is under way.
    pub partial: u64,
}

/// Verifies files in the order of their records, and calls `on_record` for each record. `kept`: a checkpoint that the
/// log must still contain.
pub fn verify(
    paths: &[PathBuf],
    kept: Option<&Checkpoint>,
    mut on_record: impl FnMut(Record),
) -> Result<Summary, Fault> {
    let mut chain: Option<Chain> = None;
    let (mut files, mut first, mut partial, mut origin) = (Vec::new(), 0, 0, String::new());
    // The hash of a record is in the next one, so only the next one shows that it was changed.
    let mut unconfirmed: Option<Record> = None;
    let paths = in_order(paths)?;
    for (index, path) in paths.iter().enumerate() {
        let before = chain.as_ref().map_or(0, Chain::next_seq);
        let mut reader = FileReader::open(path)?;
        while let Some(line) = reader.next()? {
            if reader.line == 1 {
                let resumed = Chain::resume(&line).map_err(|error| reader.broken(None, error.to_string()))?;
                if let Some(chain) = &chain {
                    reader.check_continuation(chain, &resumed)?;
                } else {
                    (first, chain) = (resumed.next_seq(), Some(resumed));
                }
            }
            let chain = chain.get_or_insert_default();
            let record = chain.verify(&line).map_err(|error| reader.fault(chain, &line, &error))?;
            if let Some(kept) = kept.filter(|kept| kept.size == chain.next_seq())
                && kept.root != chain.tree().root()
            {
                let what =
                    format!("the first {} records do not have the root of the checkpoint: one was changed", kept.size);
                return Err(reader.broken(Some(record.seq), what));
            }
            origin.clone_from(&record.account_sid);
            if let Some(confirmed) = unconfirmed.replace(record) {
                on_record(confirmed);
            }
        }
        partial = reader.lines.partial;
        if partial > 0 && index + 1 < paths.len() {
            let what =
                format!("the file ends in {partial} bytes of a record that is cut off, and another file follows");
            return Err(reader.broken(None, what));
        }
        let after = chain.as_ref().map_or(0, Chain::next_seq);
        files.push((path.clone(), after - if index == 0 { first } else { before }));
    }
    unconfirmed.into_iter().for_each(on_record);
    let chain = chain.unwrap_or_default();
    check_size(&paths, first, &chain, kept)?;
    Ok(Summary { files, first, checkpoint: Checkpoint::of(&origin, chain.tree()), partial })
}

/// Checks that the files have all records of the checkpoint.
fn check_size(paths: &[PathBuf], first: u64, chain: &Chain, kept: Option<&Checkpoint>) -> Result<(), Fault> {
    let Some(kept) = kept else { return Ok(()) };
    let fault = |kind, path: Option<&PathBuf>, what| {
        Err(Fault { kind, path: path.cloned().unwrap_or_default(), line: None, seq: None, what })
    };
    let (size, kept) = (chain.next_seq(), kept.size);
    if kept > size {
        let what = format!(
            "the log ends after {}, and the checkpoint covers {kept}: it lacks {} at its end",
            pluralize(size, "record"),
            pluralize(kept - size, "record")
        );
        return fault(FaultKind::Broken, paths.last(), what);
    }
    if kept <= first && first > 0 {
        let what = format!(
            "the checkpoint covers {}, and the files begin at record {first}: give the files before",
            pluralize(kept, "record")
        );
        return fault(FaultKind::Unreadable, paths.first(), what);
    }
    Ok(())
}

/// Sorts files by the `seq` of their first record. A file without a record comes last.
fn in_order(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Fault> {
    let mut files = Vec::new();
    for path in paths {
        let mut reader = FileReader::open(path)?;
        let first = reader.next()?.map(|line| Chain::resume(&line).map_or(0, |chain| chain.next_seq()));
        files.push((first.unwrap_or(u64::MAX), path.clone()));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// A file that is verified line by line.
struct FileReader<'a> {
    path: &'a Path,
    lines: Lines,
    /// The number of the current line, from 1.
    line: u64,
    /// The line after the current one, which tells which of two lines was changed.
    ahead: Option<Vec<u8>>,
}

impl<'a> FileReader<'a> {
    fn open(path: &'a Path) -> Result<Self, Fault> {
        let mut lines = file::open_for_reading(path)
            .and_then(|file| Lines::new(file, 0))
            .map_err(|error| unreadable(path, None, &error))?;
        let ahead = lines.next().map_err(|error| unreadable(path, Some(1), &error))?;
        Ok(Self { path, lines, line: 0, ahead })
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let Some(line) = self.ahead.take() else { return Ok(None) };
        self.line += 1;
        self.ahead = self.lines.next().map_err(|error| unreadable(self.path, Some(self.line + 1), &error))?;
        Ok(Some(line))
    }

    fn broken(&self, seq: Option<u64>, what: String) -> Fault {
        Fault { kind: FaultKind::Broken, path: self.path.to_owned(), line: Some(self.line), seq, what }
    }

    /// Returns the fault of the current line. If the next line shows that the current one is as it was written, the one
    /// before was changed.
    fn fault(&self, chain: &Chain, line: &[u8], error: &ChainError) -> Fault {
        let seq = chain.next_seq();
        let is_intact = self.ahead.as_ref().map(|ahead| Chain::is_followed_by(line, ahead));
        match (error, is_intact) {
            (ChainError::Previous, Some(true)) => Fault {
                line: Some(self.line - 1),
                ..self.broken(Some(seq - 1), "the record was changed: the next one has another hash of it".to_owned())
            },
            (ChainError::Previous, None) => {
                self.broken(Some(seq), format!("{error}: this record or the one before was changed"))
            }
            _ => self.broken(Some(seq), error.to_string()),
        }
    }

    /// Checks that this file continues the files before it.
    fn check_continuation(&self, chain: &Chain, resumed: &Chain) -> Result<(), Fault> {
        let (expected, found) = (chain.next_seq(), resumed.next_seq());
        if found != expected {
            return Err(self.broken(Some(expected), ChainError::Sequence { expected, found }.to_string()));
        }
        if resumed.is_same(chain) {
            return Ok(());
        }
        let what = "the file continues another log, or a record of the file before it was changed";
        Err(self.broken(Some(expected), what.to_owned()))
    }
}

fn unreadable(path: &Path, line: Option<u64>, error: &io::Error) -> Fault {
    let kind = if error.kind() == io::ErrorKind::InvalidData { FaultKind::Broken } else { FaultKind::Unreadable };
    Fault { kind, path: path.to_owned(), line, seq: None, what: error.to_string() }
}

/// Verifies each line of a log once: a record that was verified does not follow itself.
#[cfg(any(test, fuzzing))]
pub fn audit_logs(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(Ok(mut chain)) = lines.clone().next().map(Chain::resume) else { return };
    while let Some(line) = lines.next().filter(|line| chain.verify(line).is_ok()) {
        assert!(chain.clone().verify(line).is_err());
        assert_eq!(Checkpoint::of("log", chain.tree()).size, chain.next_seq());
    }
}
