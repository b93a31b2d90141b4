//! The files of a delivery log, read from the newest record to the oldest, or followed.
//! Which records match, in which file are they, and which lines are no records?

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::MatchedLine;
use crate::names::folder_of;
use crate::state::observability::archives::{Archive, ArchiveNames};
use crate::state::observability::delivery_line::{DeliveryFilter, LINE_MAX, LogLine};

/// The interval between two looks at a file that is followed.
const POLL: Duration = Duration::from_millis(200);

/// The outcome of a search, apart from the records.
#[derive(Default)]
pub(super) struct LogSearch {
    /// Lines that are no records.
    pub(super) skipped: u64,
    /// Files that could not be read to their end, with the error.
    pub(super) unreadable: Vec<String>,
    /// The number of files that were read.
    pub(super) read: usize,
}

impl LogSearch {
    /// Passes the newest matching records on, the newest first, until `found` returns `false`.
    pub(super) fn newest_first(
        &mut self,
        log: &Path,
        filter: &DeliveryFilter,
        limit: usize,
        found: &mut dyn FnMut(MatchedLine) -> bool,
    ) {
        let mut pass_on = |lines: VecDeque<MatchedLine>| lines.into_iter().rev().all(&mut *found);
        let names = ArchiveNames::of(log);
        let (active, archives) = open_with_archives(log, &names);
        match active {
            Ok((file, _)) => {
                let lines = self.scan(Box::new(file), log, filter, limit);
                if !pass_on(lines) {
                    return;
                }
            }
            Err(error) => self.report(log, &error),
        }
        let archives = archives.inspect_err(|error| self.report(folder_of(log), error)).unwrap_or_default();
        for archive in archives.into_iter().rev() {
            // Records are written after they arrive, so none of a file arrived after its end.
            if filter.since.is_some_and(|since| archive.ended < since) {
                break;
            }
            match names.open(&archive) {
                Ok(reader) => {
                    let lines = self.scan(reader, &archive.path, filter, limit);
                    if !pass_on(lines) {
                        return;
                    }
                }
                Err(error) => self.report(&archive.path, &error),
            }
        }
    }

    /// Keeps an error for the end. A file that does not exist is none.
    fn report(&mut self, path: &Path, error: &io::Error) {
        let help = match error.kind() {
            io::ErrorKind::NotFound => return,
            io::ErrorKind::PermissionDenied => "; run this command as root or as the user of outgate",
            _ => "",
        };
        self.unreadable.push(format!("{}: {error}{help}", path.display()));
    }

    /// Returns the last matching lines of a file, `limit` at most.
    fn scan(
        &mut self,
        file: Box<dyn Read>,
        path: &Path,
        filter: &DeliveryFilter,
        limit: usize,
    ) -> VecDeque<MatchedLine> {
        let (mut reader, mut lines) = (LineReader::new(file), VecDeque::new());
        let mut is_read = false;
        loop {
            let next = reader.next_line();
            self.read += usize::from(next.is_ok() && !std::mem::replace(&mut is_read, true));
            match next {
                Ok(Some(line)) => {
                    if let Some(found) = self.judge(line, filter) {
                        if lines.len() == limit {
                            lines.pop_front();
                        }
                        lines.push_back(found);
                    }
                }
                Ok(None) => {
                    self.skipped += u64::from(reader.has_unfinished_line());
                    return lines;
                }
                Err(error) => {
                    self.report(path, &error);
                    return lines;
                }
            }
        }
    }

    /// Returns the record of a line if it matches. Gaps match, unless they ended too early.
    fn judge(&mut self, line: &[u8], filter: &DeliveryFilter) -> Option<MatchedLine> {
        if !filter.may_match(line) {
            return None;
        }
        let Some(parsed) = LogLine::parse(line) else {
            self.skipped += u64::from(!line.trim_ascii().is_empty());
            return None;
        };
        let is_match = match &parsed {
            LogLine::Delivery(delivery) => filter.matches(delivery),
            LogLine::Gap(line) => filter.since.is_none_or(|since| line.gap.until >= since),
        };
        is_match.then(|| MatchedLine { parsed, text: String::from_utf8_lossy(line).into_owned() })
    }

    /// Passes the matching records of the log on as they are written. Returns when the log can no longer be read.
    pub(super) fn follow(
        &mut self,
        log: &Path,
        filter: &DeliveryFilter,
        found: &mut dyn FnMut(MatchedLine),
    ) -> io::Error {
        let mut followed = match FollowedFile::open(log) {
            Ok(followed) => followed,
            Err(error) => return error,
        };
        loop {
            let next = followed.next_lines(log, &mut |line| self.judge(line, filter).into_iter().for_each(&mut *found));
            if let Err(error) = next {
                return error;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The file that the proxy writes to, behind its present end.
struct FollowedFile {
    reader: LineReader,
    inode: u64,
    /// The end of the newest file that was finished before this one.
    finished: Option<Timestamp>,
    names: ArchiveNames,
}

impl FollowedFile {
    fn open(log: &Path) -> io::Result<Self> {
        let mut followed = Self::at_start(log)?;
        followed.reader.for_each_line(&mut |_| {})?;
        Ok(followed)
    }

    fn at_start(log: &Path) -> io::Result<Self> {
        let names = ArchiveNames::of(log);
        let (active, archives) = open_with_archives(log, &names);
        let (file, inode) = active?;
        let finished = archives?.last().map(|archive| archive.ended);
        Ok(Self { reader: LineReader::new(Box::new(file)), inode, finished, names })
    }

    /// Passes new lines on. After a rotation, the rest of the old file and whole files come before the new one.
    fn next_lines(&mut self, log: &Path, line: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let found = std::fs::metadata(log);
        let is_moved = found.as_ref().map_or(true, |found| found.ino() != self.inode);
        self.reader.for_each_line(line)?;
        if !is_moved {
            return Ok(());
        }
        let next = match Self::at_start(log) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()), // not created yet
            Err(error) => return Err(error),
        };
        let archives = self.names.list()?;
        let between = archives
            .iter()
            .filter(|archive| Some(archive.ended) > self.finished && Some(archive.ended) <= next.finished);
        // The first of them is the file that was followed.
        for archive in between.skip(1) {
            LineReader::new(self.names.open(archive)?).for_each_line(line)?;
        }
        *self = next;
        self.reader.for_each_line(line)?;
        Ok(())
    }
}

/// Opens the file that the proxy writes to, and lists the files that were finished before. The file has its inode.
fn open_with_archives(log: &Path, names: &ArchiveNames) -> (io::Result<(File, u64)>, io::Result<Vec<Archive>>) {
    loop {
        let active = open_file(log).and_then(|file| Ok((file.metadata()?.ino(), file)));
        let archives = names.list();
        // A rotation since the opening would show the file in both places.
        match active {
            Ok((inode, _)) if !std::fs::metadata(log).is_ok_and(|now| now.ino() == inode) => {}
            active => return (active.map(|(inode, file)| (file, inode)), archives),
        }
    }
}

/// Opens a regular file. The opening of a named pipe would wait for a writer.
fn open_file(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    File::open(path)
}

/// A reader of lines whose length is bounded, whatever the file has.
struct LineReader {
    reader: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
    is_taken: bool,
}

impl LineReader {
    fn new(file: Box<dyn Read>) -> Self {
        Self { reader: BufReader::with_capacity(128 * 1024, file), line: Vec::new(), is_taken: false }
    }

    /// Returns whether the file ends within a line, if it has been read to its end.
    fn has_unfinished_line(&self) -> bool {
        !self.is_taken && !self.line.is_empty()
    }

    /// Passes the whole lines on that there are now.
    fn for_each_line(&mut self, line: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while let Some(text) = self.next_line()? {
            line(text);
        }
        Ok(())
    }

    /// Returns the next whole line. `None`: there is none yet. A line that is too long is cut, so that it is no record.
    fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        if std::mem::take(&mut self.is_taken) {
            self.line.clear();
        }
        loop {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Ok(None);
            }
            let end = memchr::memchr(b'\n', available);
            let used = end.map_or(available.len(), |end| end + 1);
            let room = (LINE_MAX + 2).saturating_sub(self.line.len());
            self.line.extend_from_slice(&available[..end.unwrap_or(used).min(room)]);
            self.reader.consume(used);
            if end.is_some() {
                self.is_taken = true;
                return Ok(Some(&self.line));
            }
        }
    }
}

/// Returns the error for a log without a file to read.
pub(super) fn no_file(log: &Path) -> String {
    format!(
        "there is nothing to read: {} has neither {} nor finished files of it; log.deliveries names this file",
        folder_of(log).display(),
        log.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_shows_each_record_once_if_the_log_rotates_during_the_search() {
        let folder = std::env::temp_dir().join(format!("outgate-search-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join("deliveries.jsonl");
        let line = "{\"time\":\"2026-11-26T00:00:00Z\",\"request_id\":\"a\",\"code\":\"delivered\"}\n";
        std::fs::write(&log, line).unwrap();
        let mut found = 0;
        LogSearch::default().newest_first(&log, &DeliveryFilter::default(), 10, &mut |_| {
            found += 1;
            let _ = std::fs::rename(&log, folder.join("deliveries-20261126T000001.000Z.jsonl"));
            true
        });
        assert_eq!(found, 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
