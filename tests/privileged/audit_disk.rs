//! The audit log on a small disk of its own, on a disk that becomes read-only, and beside a journal of the test's own.
//! Are changes refused while traffic goes on, and does the journal get each record?
//!
//! Needs root and `unshare`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use crate::support;
use support::audit::{audited, records_in, try_reload, until_recorded, verify};
use support::scene::Scene;
use support::{TEST_TIMEOUT, eventually};

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";

/// Runs the test named `name` again in a mount namespace of its own. True inside, where the test goes on.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let can = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        assert!(!support::required(), "this host cannot make mount namespaces");
        eprintln!("skipped: needs root and unshare");
        return false;
    }
    let status = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("audit_disk::{name}")])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    false
}

fn mount(words: &[&str]) {
    assert!(Command::new("mount").args(words).status().unwrap().success(), "{words:?}");
}

/// Moves the audit log to a disk of 64 KiB.
fn on_small_disk(scene: &Scene) -> std::path::PathBuf {
    let disk = scene.outgate.folder.path("disk");
    fs::create_dir(&disk).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs", disk.to_str().unwrap()]);
    let next = scene.outgate.config().set("audit.file", "{dir}/disk/audit.jsonl");
    assert_eq!(try_reload(scene, &next).0, 0);
    disk
}

fn is_refused(scene: &Scene, reason: &str) {
    let next = scene.outgate.config().set("server.drain_timeout", "77s");
    let (code, _, err) = try_reload(scene, &next);
    assert!(code == 78 && err.contains("audit_unwritable") && err.contains(reason), "{err}");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert!(scene.outgate.admin("/readyz").text().contains("refused until the audit log can be written"));
}

fn goes_on(scene: &Scene, log: &Path) {
    eventually("the gap is recorded", || records_in(log).iter().any(|record| record["event_type"] == "audit.gap"));
    assert_eq!(support::control::run(scene, &["reload"]).status.code(), Some(0));
    let (code, out, err) = verify(&scene.outgate);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn full_disk_of_the_audit_log_refuses_changes_until_it_has_space() {
    if !inside("full_disk_of_the_audit_log_refuses_changes_until_it_has_space") {
        return;
    }
    let scene = audited();
    let disk = on_small_disk(&scene);
    let filling = disk.join("filling");
    let _ = fs::write(&filling, vec![0; 128 << 10]); // the disk is full before its end
    // The last page of the log still has room for some records.
    let log = disk.join("audit.jsonl");
    let mut rounds = 0;
    loop {
        let next = scene.outgate.config().set("server.drain_timeout", format!("{}s", 10 + rounds % 50));
        if try_reload(&scene, &next).0 == 78 {
            break;
        }
        rounds += 1;
        assert!(rounds < 100, "the disk is not full");
    }
    is_refused(&scene, "No space left on device");
    fs::remove_file(filling).unwrap();
    goes_on(&scene, &log);
}

#[test]
fn disk_that_becomes_read_only_refuses_changes_until_it_can_be_written() {
    if !inside("disk_that_becomes_read_only_refuses_changes_until_it_can_be_written") {
        return;
    }
    let scene = audited();
    let disk = on_small_disk(&scene);
    // The open file keeps the disk writable: the log is removed first.
    fs::remove_file(disk.join("audit.jsonl")).unwrap();
    let path = disk.to_str().unwrap();
    mount(&["--bind", path, path]);
    mount(&["-o", "remount,bind,ro", path]);
    is_refused(&scene, "Read-only file system");
    mount(&["-o", "remount,bind,rw", path]);
    goes_on(&scene, &disk.join("audit.jsonl"));
}

#[test]
fn journal_gets_each_audit_record_with_fields_of_its_own() {
    if !inside("journal_gets_each_audit_record_with_fields_of_its_own") {
        return;
    }
    mount(&["-t", "tmpfs", "tmpfs", "/run"]);
    fs::create_dir_all("/run/systemd/journal").unwrap();
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let scene = audited();
    let next = scene.outgate.config().add("audit.journald", true).add("alerts.journald", true);
    assert_eq!(try_reload(&scene, &next).0, 0);
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    let updated = until_recorded(&scene.outgate, "configuration.updated", 2).remove(1);
    let mut entry = vec![0; 1 << 20];
    let (length, text) = loop {
        let length = journal.recv(&mut entry).expect("an entry");
        let text = String::from_utf8(entry[..length].to_vec()).unwrap();
        // The probe of the journal is empty.
        if text.contains("OUTGATE_AUDIT_EVENT=configuration.updated\n") {
            break (length, text);
        }
    };
    let seq = updated["seq"].as_u64().unwrap();
    let has = |line: &str| assert!(text.contains(&format!("{line}\n")), "{length}: no {line} in {text}");
    has(&format!("OUTGATE_AUDIT_SEQ={seq}"));
    has(&format!("OUTGATE_AUDIT_ACTOR={}", updated["actor_sid"].as_str().unwrap()));
    has("PRIORITY=6");
    has("SYSLOG_IDENTIFIER=outgate");
    let record = text.lines().find_map(|line| line.strip_prefix("OUTGATE_AUDIT_RECORD=")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(record).unwrap(), updated);
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrat = 1\n")).0, 78);
    let alert = loop {
        let length = journal.recv(&mut entry).expect("an entry");
        let text = String::from_utf8(entry[..length].to_vec()).unwrap();
        if text.contains("OUTGATE_ALERT=OutgateReloadFailed\n") {
            break text;
        }
    };
    assert!(alert.contains("PRIORITY=4\n") && alert.contains("OUTGATE_ALERT_EVENT=alert.began\n"), "{alert}");
    // The journal goes away: records stay in the file, and the operator learns of it.
    drop(journal);
    fs::remove_file("/run/systemd/journal/socket").unwrap();
    assert_eq!(try_reload(&scene, &next.and("[limits.m]\nrate = \"1/s\"\n")).0, 0);
    scene.outgate.log.wait_for_lines(1, &["cannot send audit records to journald"]);
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    scene.outgate.log.wait_for_lines(1, &["audit records are sent to journald again"]);
    let length = journal.recv(&mut entry).unwrap();
    assert!(length > 0);
}
