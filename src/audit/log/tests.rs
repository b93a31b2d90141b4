//! Tests of the writer of an audit log, on files of their own.
//! Which files and records are there after a rotation, an expiry or another process?

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jiff::ToSpan;

use super::*;
use crate::audit::record::PROCESS_STARTED;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-audit-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Opens the log with files of two or three records.
    fn open(&self) -> io::Result<AuditLog> {
        AuditLog::open(AuditSettings {
            path: self.0.join("audit.jsonl"),
            origin: "test/outgate".to_owned(),
            signer: None,
            file_size_max: 1500,
            keep: Duration::from_secs(200 * 86_400),
        })
    }

    /// Opens the log, and writes a record for each of ten days.
    fn open_with_ten_records(&self) -> AuditLog {
        let mut log = self.open().unwrap();
        for number in 0..10 {
            log.append(vec![event(number)]).unwrap();
        }
        log
    }

    fn closed(&self) -> Vec<PathBuf> {
        file::closed_files(&self.0.join("audit.jsonl")).unwrap()
    }

    fn verify(&self) -> Result<super::super::Summary, super::super::Fault> {
        super::super::verify(&super::super::files(&self.0.join("audit.jsonl")).unwrap(), None, drop)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Sets the time of the last change to 1970.
fn backdate(path: &Path) {
    File::options().append(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

fn day(number: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + (24 * number).hours()
}

fn event(number: i64) -> Event {
    Event::new(PROCESS_STARTED, "outgate", day(number), "started")
}

#[test]
fn expired_files_are_deleted_after_a_record_and_the_rest_verifies() {
    let folder = Folder::new("expiry");
    let mut log = folder.open_with_ten_records();
    let before = folder.closed();
    assert!(before.len() >= 3, "{before:?}");
    assert!(!log.expire(day(300), &mut Vec::new()).unwrap(), "the files were written just now");
    before.iter().for_each(|path| backdate(path));
    assert!(!log.expire(day(199), &mut Vec::new()).unwrap(), "the first file has the days 0 and 1");
    let mut written = Vec::new();
    while log.expire(day(203), &mut written).unwrap() {}
    let expired = written.iter().filter(|record| record.event_type == AUDIT_EXPIRED).count();
    assert!(expired >= 1 && expired < before.len(), "{expired} of {before:?}");
    assert!(before[..expired].iter().all(|path| !path.exists()) && before[expired].exists());
    let summary = folder.verify().unwrap();
    assert_eq!((summary.first > 0, summary.checkpoint.size), (true, log.size()));
}

#[test]
fn file_that_does_not_verify_is_not_deleted() {
    let folder = Folder::new("unverified");
    let mut log = folder.open_with_ten_records();
    let first = &folder.closed()[0];
    let text = fs::read_to_string(first).unwrap();
    assert!(text.lines().count() >= 2, "{text}");
    fs::write(first, text.replacen("started", "stopped", 1)).unwrap();
    backdate(first);
    let error = log.expire(day(400), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("does not verify at the record 1"), "{error}");
    assert!(first.exists());
}

/// Sets or clears the attribute of a file that no user can delete. Returns whether this user and file system can.
fn set_immutable(path: &Path, flag: &str) -> bool {
    std::process::Command::new("chattr").arg(flag).arg(path).status().is_ok_and(|status| status.success())
}

/// Does nothing without root, or on a file system without attributes.
#[test]
fn file_that_cannot_be_deleted_is_recorded_once() {
    let folder = Folder::new("undeletable");
    let mut log = folder.open_with_ten_records();
    let first = &folder.closed()[0];
    backdate(first);
    let mut written = Vec::new();
    if !set_immutable(first, "+i") {
        return;
    }
    for _ in 0..3 {
        let error = log.expire(day(400), &mut written).unwrap_err().to_string();
        assert!(error.contains("not permitted"), "{error}");
    }
    assert!(set_immutable(first, "-i") && log.expire(day(400), &mut written).unwrap() && !first.exists());
    assert_eq!(written.iter().filter(|record| record.event_type == AUDIT_EXPIRED).count(), 1);
}

/// The message of a log that does not verify tells the operator to move it away.
#[test]
fn broken_log_that_was_moved_away_is_followed_by_a_new_one() {
    let (folder, evidence) = (Folder::new("broken"), Folder::new("broken-evidence"));
    let mut log = folder.open().unwrap();
    log.append(vec![event(0), event(1)]).unwrap();
    let path = folder.0.join("audit.jsonl");
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(log.append(vec![event(2)]).unwrap_err().to_string().contains("has cut off records"));
    fs::rename(&path, evidence.0.join("audit.jsonl")).unwrap();
    assert_eq!(log.append(vec![event(3)]).unwrap().len(), 1);
    assert_eq!((log.size(), folder.verify().unwrap().checkpoint.size), (1, 1));
}

#[test]
fn log_continues_after_a_crash_between_two_files() {
    let folder = Folder::new("between");
    let mut log = folder.open().unwrap();
    log.append(vec![event(0), event(1), event(2)]).unwrap();
    drop(log);
    // The crash came after the rename, before the first record of the next file.
    fs::rename(folder.0.join("audit.jsonl"), folder.0.join("audit.jsonl.000000000003")).unwrap();
    let mut log = folder.open().unwrap();
    let written = log.append(vec![event(3)]).unwrap();
    assert_eq!(written[0].event_type.name, "audit.continued");
    assert_eq!(folder.verify().unwrap().checkpoint.size, 5);
}

#[test]
fn two_writers_of_one_log_write_one_chain_over_all_files() {
    let folder = Folder::new("two");
    let mut logs = [folder.open().unwrap(), folder.open().unwrap()];
    for number in 0..30 {
        // The second writer sleeps through several rotations.
        let writer = usize::from(number % 10 == 9);
        logs[writer].append(vec![event(number)]).unwrap();
    }
    let summary = folder.verify().unwrap();
    assert!(summary.files.len() > 5 && summary.first == 0, "{summary:?}");
    assert_eq!(summary.checkpoint.size, 30 + summary.files.len() as u64 - 1);
}

#[test]
fn log_of_another_chain_at_the_path_is_not_continued() {
    let (folder, other) = (Folder::new("foreign"), Folder::new("foreign-other"));
    let (mut log, mut another) = (folder.open().unwrap(), other.open().unwrap());
    log.append(vec![event(0), event(1)]).unwrap();
    another.append(vec![event(5)]).unwrap();
    fs::rename(other.0.join("audit.jsonl"), folder.0.join("audit.jsonl")).unwrap();
    let error = log.append(vec![event(2)]).unwrap_err().to_string();
    assert_eq!(error, "another audit log stands at this path");
}
