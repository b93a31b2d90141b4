//! The writer of an audit log: a record is on the disk before the change that it names takes effect.
//! What is on the disk after a full disk, a rotation or a power failure?
//!
//! Two processes may write one log, while one takes over from the other. Each append locks the log, and first reads
//! the records that the other process has added.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::AuditSettings;
use super::chain::{Chain, ChainError};
use super::file::{self, Lines, LogLock};
use super::note::Checkpoint;
use super::record::{AUDIT_EXPIRED, AUDIT_RECOVERED, AUDIT_REMOVED, Event, EventType};
use crate::names::pluralize;

/// A record that is on the disk.
#[derive(Clone, Debug)]
pub struct WrittenRecord {
    /// The line, without its line feed.
    pub line: Vec<u8>,
    pub event_type: EventType,
    pub at: Timestamp,
}

/// An open audit log.
pub struct AuditLog {
    settings: AuditSettings,
    file: File,
    /// The bytes of whole records. A record that could not be written is cut off again.
    length: u64,
    chain: Chain,
    /// The error of the last checkpoint. Its record is on the disk.
    checkpoint_error: Option<String>,
    /// The closed file whose deletion is recorded.
    expiring: Option<PathBuf>,
}

impl AuditLog {
    /// Opens the log and verifies its last file. The first append cuts off a partial last record, and states this.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written, or its records do not form a chain. outgate must not append to such a file.
    pub fn open(settings: AuditSettings) -> io::Result<Self> {
        let _lock = LogLock::acquire(&settings.path)?;
        Self::open_locked(settings)
    }

    fn open_locked(settings: AuditSettings) -> io::Result<Self> {
        let file = file::open_for_appending(&settings.path)?;
        let chain = Chain::default();
        let mut log = Self { settings, file, length: 0, chain, checkpoint_error: None, expiring: None };
        if log.adopt_records()?.is_none() {
            log.continue_closed_file()?;
        }
        log.check_checkpoint()?;
        file::sync_folder(&log.settings.path)?;
        Ok(log)
    }

    pub fn settings(&self) -> &AuditSettings {
        &self.settings
    }

    /// Adopts settings for the same path, and signs the newest checkpoint with the new key.
    pub fn set_settings(&mut self, settings: AuditSettings) {
        if settings != self.settings {
            self.settings = settings;
            self.checkpoint_error = self.write_checkpoint().err().map(|error| error.to_string());
        }
    }

    /// Returns the number of records.
    pub fn size(&self) -> u64 {
        self.chain.next_seq()
    }

    pub fn checkpoint_error(&self) -> Option<&str> {
        self.checkpoint_error.as_deref()
    }

    /// Appends records in one write, and waits until they are on the disk. Returns all records that were written.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file cannot be written. The log is then as it was before.
    pub fn append(&mut self, events: Vec<Event>) -> io::Result<Vec<WrittenRecord>> {
        let Some(first) = events.first() else { return Ok(Vec::new()) };
        let at = first.at;
        let _lock = LogLock::acquire(&self.settings.path)?;
        let removed = self.follow(at)?;
        if self.length >= self.settings.file_size_max {
            self.close_file()?;
        }
        let mut all = self.prepare(at)?;
        all.extend(removed);
        all.extend(events);
        self.write(all)
    }

    /// Deletes the oldest closed file if its last record is older than `keep`, after a record states this. Returns
    /// whether it has deleted one. `written` gets the records, also if the file then cannot be deleted.
    ///
    /// # Errors
    ///
    /// The file does not verify, and stays; or the disk has an error.
    pub fn expire(&mut self, now: Timestamp, written: &mut Vec<WrittenRecord>) -> io::Result<bool> {
        let is_old = |date: Timestamp| date < now && now.duration_since(date).unsigned_abs() >= self.settings.keep;
        let Some(path) = file::closed_files(&self.settings.path)?.into_iter().next() else { return Ok(false) };
        let modified = Timestamp::try_from(path.metadata()?.modified()?).map_err(io::Error::other)?;
        // A file that was written to lately is not read.
        if !is_old(modified) {
            return Ok(false);
        }
        let ClosedFile { first, chain } = read_closed(&path)?;
        if !chain.last_date().is_some_and(is_old) {
            return Ok(false);
        }
        if self.expiring.as_ref() != Some(&path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (last, days) = (chain.next_seq() - 1, self.settings.keep.as_secs() / 86_400);
            let what = format!("{name} with the records {first} to {last} is older than {days} days and is deleted");
            let event = Event::new(AUDIT_EXPIRED, name, now, what).with("first_seq", first).with("last_seq", last);
            written.extend(self.append(vec![event])?);
            self.expiring = Some(path.clone());
        }
        let cannot = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        file::remove(&path).map_err(cannot)?;
        Ok(true)
    }

    /// Follows the log if its file is no longer at the path. Returns the record that this requires.
    fn follow(&mut self, at: Timestamp) -> io::Result<Option<Event>> {
        let adopted = self.adopt_records();
        if file::is_at(&self.file, &self.settings.path)? {
            return adopted.map(|_| None);
        }
        if adopted.is_err() {
            // The operator has moved a broken log away: a new one begins, as at a start.
            *self = Self::open_locked(self.settings.clone())?;
            return Ok(None);
        }
        let was_closed = self.is_own_file_closed();
        let file = file::open_for_appending(&self.settings.path)?;
        let mut next = Self {
            settings: self.settings.clone(),
            file,
            length: 0,
            chain: Chain::default(),
            checkpoint_error: self.checkpoint_error.take(),
            expiring: self.expiring.take(),
        };
        let size = self.size();
        if let Some(resumed) = next.adopt_records()? {
            // Another process may have closed several files since the last look.
            if next.size() < size || resumed.next_seq() == size && !resumed.is_same(&self.chain) {
                return Err(io::Error::other("another audit log stands at this path"));
            }
            *self = next;
            return Ok(None);
        }
        next.chain = std::mem::take(&mut self.chain);
        *self = next;
        file::sync_folder(&self.settings.path)?;
        let path = self.settings.path.display().to_string();
        let removed = format!("the file that ended after {} was removed from {path}", pluralize(size, "record"));
        Ok((!was_closed).then(|| Event::new(AUDIT_REMOVED, path, at, removed).with("size", size)))
    }

    /// Returns whether another process has closed the open file, so that it stands among the closed ones.
    fn is_own_file_closed(&self) -> bool {
        let closed = file::closed_files(&self.settings.path).unwrap_or_default();
        closed.iter().any(|path| file::is_at(&self.file, path).unwrap_or(false))
    }

    /// Verifies the records of the file that are new since the last look, and adds them to the chain. Returns the state
    /// before the first record of the file, if this record is new.
    fn adopt_records(&mut self) -> io::Result<Option<Chain>> {
        if self.file.metadata()?.len() < self.length {
            return Err(io::Error::other("another program has cut off records at the end of the file"));
        }
        let mut lines = Lines::new(self.file.try_clone()?, self.length)?;
        let mut resumed = None;
        while let Some(line) = lines.next()? {
            if self.length == 0 {
                self.chain = resume(&self.settings.path, &line)?;
                resumed = Some(self.chain.clone());
            }
            verify(&mut self.chain, &self.settings.path, &line)?;
            self.length = lines.length;
        }
        Ok(resumed)
    }

    /// Compares the log with its newest checkpoint, which a crash cannot make newer than the log.
    fn check_checkpoint(&self) -> io::Result<()> {
        let path = super::checkpoint_path(&self.settings.path);
        let Some(checkpoint) = read_checkpoint(&path) else { return Ok(()) };
        let (size, path) = (self.size(), path.display());
        if checkpoint.size > size {
            let message =
                format!("{path} covers {} records, and the log has {size}: records are missing", checkpoint.size);
            return Err(io::Error::other(message));
        }
        if checkpoint.size == size && checkpoint.root != self.chain.tree().root() {
            return Err(io::Error::other(format!("{path} has another root for {size} records: a record was changed")));
        }
        Ok(())
    }

    /// Continues the newest closed file: the file at the path has no record yet.
    fn continue_closed_file(&mut self) -> io::Result<()> {
        if let Some(newest) = file::closed_files(&self.settings.path)?.last() {
            self.chain = read_closed(newest)?.chain;
        }
        Ok(())
    }

    /// Renames the full file, and opens the next one.
    fn close_file(&mut self) -> io::Result<()> {
        file::rename(&self.settings.path, &file::closed_name(&self.settings.path, self.size()))?;
        self.file = file::open_for_appending(&self.settings.path)?;
        self.length = 0;
        file::sync_folder(&self.settings.path)
    }

    /// Cuts off a partial record. Returns the records that come before the next ones.
    fn prepare(&mut self, at: Timestamp) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let partial = self.file.metadata()?.len().saturating_sub(self.length);
        if self.length == 0 && self.size() > 0 {
            let former = file::closed_name(&self.settings.path, self.size());
            let former = former.file_name().unwrap_or_default().to_string_lossy().into_owned();
            events.push(self.chain.continuation(&former, at));
        }
        if partial > 0 {
            self.file.set_len(self.length)?;
            let what = format!(
                "the file ended in {partial} bytes of a record that was not written to its end; they were removed"
            );
            let path = self.settings.path.display().to_string();
            events.push(Event::new(AUDIT_RECOVERED, path, at, what).with("bytes", partial));
        }
        Ok(events)
    }

    fn write(&mut self, events: Vec<Event>) -> io::Result<Vec<WrittenRecord>> {
        let (mut chain, mut bytes, mut written) = (self.chain.clone(), Vec::new(), Vec::new());
        for event in events {
            let (event_type, at) = (event.event_type, event.at);
            let (line, next) = chain.extend(&self.settings.origin, event)?;
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
            written.push(WrittenRecord { line, event_type, at });
            chain = next;
        }
        if let Err(error) = self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            // The next record must not continue a part of this one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.chain = chain;
        self.checkpoint_error = self.write_checkpoint().err().map(|error| error.to_string());
        Ok(written)
    }

    /// Replaces the file with the newest checkpoint. A copy that another host keeps shows a log that was cut off.
    fn write_checkpoint(&self) -> io::Result<()> {
        let Some(signer) = &self.settings.signer else { return Ok(()) };
        let note = Checkpoint::of(&self.settings.origin, self.chain.tree()).sign(signer);
        file::replace(&super::checkpoint_path(&self.settings.path), &note)
    }
}

/// Reads the checkpoint beside the log, and does not verify its signature: a process that can write a false checkpoint
/// can also remove the file.
fn read_checkpoint(path: &Path) -> Option<Checkpoint> {
    let note = io::read_to_string(io::Read::take(file::open_for_reading(path).ok()?, super::NOTE_MAX as u64)).ok()?;
    Checkpoint::parse(&note).ok()
}

/// The `seq` of the first record of a closed file, and the chain after its last record.
struct ClosedFile {
    first: u64,
    chain: Chain,
}

/// Reads and verifies a closed file.
fn read_closed(path: &Path) -> io::Result<ClosedFile> {
    let mut lines = Lines::new(file::open_for_reading(path)?, 0)?;
    let mut closed = None;
    while let Some(line) = lines.next()? {
        let closed = match &mut closed {
            Some(closed) => closed,
            None => {
                let chain = resume(path, &line)?;
                closed.insert(ClosedFile { first: chain.next_seq(), chain })
            }
        };
        verify(&mut closed.chain, path, &line)?;
    }
    closed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} has no record", path.display())))
}

fn resume(path: &Path, line: &[u8]) -> io::Result<Chain> {
    Chain::resume(line).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} does not verify at its first line: {error}", path.display()),
        )
    })
}

fn verify(chain: &mut Chain, path: &Path, line: &[u8]) -> io::Result<()> {
    let seq = chain.next_seq();
    chain.verify(line).map(drop).map_err(|error| invalid(path, seq, &error))
}

fn invalid(path: &Path, seq: u64, error: &ChainError) -> io::Error {
    let message = format!("{} does not verify at the record {seq}: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests;
