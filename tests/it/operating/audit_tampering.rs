//! An audit log that was changed after it was written.
//! Does `outgate audit verify` name the first record that is not as it was written?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::path::{Path, PathBuf};

use outgate::audit::{AuditLog, AuditSettings, Event, PROCESS_STARTED};
use serde_json::Value;
use support::Folder;
use support::audit::{audit, audited, checkpoint_key, try_reload, until_recorded, verify};
use support::configuration::Replace;

const RECORDS: usize = 6;

/// A log of [`RECORDS`] records in files of this size, with the key of its checkpoints.
struct Log {
    folder: Folder,
}

impl Log {
    fn new() -> Self {
        Self::with_files_of(1 << 20)
    }

    fn with_files_of(file_size_max: u64) -> Self {
        let folder = Folder::new();
        let mut log = AuditLog::open(Self::settings(&folder, file_size_max)).unwrap();
        for number in 0..RECORDS {
            let at = jiff::Timestamp::from_second(1_800_000_000 + number as i64).unwrap();
            let event = Event::new(PROCESS_STARTED, "outgate", at, format!("event {number}")).with("number", number);
            log.append(vec![event]).unwrap();
        }
        Self { folder }
    }

    fn settings(folder: &Folder, file_size_max: u64) -> AuditSettings {
        let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        AuditSettings {
            path: folder.path("audit.jsonl"),
            origin: "egress-1/outgate".to_owned(),
            signer: Some(pair.into()),
            file_size_max,
            keep: std::time::Duration::from_secs(100 * 365 * 86_400),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path("audit.jsonl")
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path()).unwrap().lines().map(str::to_owned).collect()
    }

    fn write(&self, lines: &[String]) {
        self.folder.write("audit.jsonl", lines.concat_lines());
    }

    /// The exit code and the message of a verification without a checkpoint.
    fn verify(&self) -> (i32, String) {
        let (code, _, err) = audit(&["verify", self.path().to_str().unwrap()]);
        (code, err)
    }

    /// The exit code and the message of a verification with the log's checkpoint.
    fn verify_with_checkpoint(&self) -> (i32, String) {
        let path = self.folder.path("audit.jsonl.checkpoint");
        let (code, _, err) = audit(&["verify", self.path().to_str().unwrap(), "--checkpoint", path.to_str().unwrap()]);
        (code, err)
    }
}

trait ConcatLines {
    fn concat_lines(&self) -> String;
}

impl ConcatLines for [String] {
    fn concat_lines(&self) -> String {
        self.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// The same record with another value of this field.
fn tampered(line: &str, field: &str) -> String {
    let mut record: Value = serde_json::from_str(line).unwrap();
    let value = &mut record[field];
    *value = match &*value {
        Value::Number(number) => (number.as_u64().unwrap() + 1).into(),
        Value::String(text) if field == "event_date" => text.replace_one("2027", "2028").into(),
        Value::String(text) if field == "kind" => if text == "other" { "account" } else { "other" }.into(),
        Value::String(text) if field == "source" => if text == "internal" { "admin" } else { "internal" }.into(),
        Value::String(text) if field == "prev" => text.chars().rev().collect::<String>().into(),
        Value::String(text) => format!("{text}x").into(),
        Value::Null if field == "source_ip_address" => "192.0.2.1".into(),
        Value::Null => "another".into(),
        Value::Object(members) => {
            let mut members = members.clone();
            if field == "metadata" {
                members.insert("version".to_owned(), "0.0.0".into());
            } else {
                members.insert("added".to_owned(), 1.into());
            }
            members.into()
        }
        other => panic!("{field}: {other}"),
    };
    record.to_string()
}

#[test]
fn verify_accepts_a_log_as_it_was_written() {
    let log = Log::new();
    assert_eq!(log.verify().0, 0);
    let (code, err) = log.verify_with_checkpoint();
    assert_eq!(code, 0, "{err}");
}

#[test]
fn verify_names_a_record_of_which_any_field_was_changed() {
    let log = Log::new();
    let lines = log.lines();
    let record: Value = serde_json::from_str(&lines[2]).unwrap();
    let fields: Vec<String> = record.as_object().unwrap().keys().cloned().collect();
    assert!(fields.len() >= 20, "{fields:?}");
    for field in &fields {
        let mut changed = lines.clone();
        changed[2] = tampered(&lines[2], field);
        assert_ne!(changed[2], lines[2], "{field}");
        log.write(&changed);
        let (code, err) = log.verify();
        assert_eq!(code, 65, "{field}: {err}");
        assert!(err.contains("audit.jsonl:3: record 2: "), "{field}: {err}");
        // The last record has no record after it: the checkpoint shows the change.
        let mut changed = lines.clone();
        changed[RECORDS - 1] = tampered(&lines[RECORDS - 1], field);
        log.write(&changed);
        let (code, err) = log.verify_with_checkpoint();
        assert_eq!(code, 65, "{field} of the last record: {err}");
        assert!(err.contains("record 5: "), "{field} of the last record: {err}");
    }
}

#[test]
fn show_ends_before_the_first_record_that_was_changed() {
    let log = Log::new();
    let mut lines = log.lines();
    lines[2] = tampered(&lines[2], "description");
    log.write(&lines);
    let (code, out, err) = audit(&["show", log.path().to_str().unwrap(), "--json"]);
    assert!(code == 65 && err.contains("record 2: "), "{err}");
    let shown: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(shown.iter().map(|record| &record["seq"]).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn verify_names_records_that_were_removed_repeated_or_swapped() {
    let log = Log::new();
    let lines = log.lines();
    let mut removed = lines.clone();
    removed.remove(2);
    let mut repeated = lines.clone();
    repeated.insert(3, lines[2].clone());
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    let mut inserted = lines.clone();
    inserted.insert(2, "{\"seq\":2}".to_owned());
    for (case, changed, expected) in [
        ("removed", removed, "audit.jsonl:3: record 2: the line has seq 3"),
        ("repeated", repeated, "audit.jsonl:4: record 3: the line has seq 2, and 3 is next"),
        ("swapped", swapped, "audit.jsonl:3: record 2: the line has seq 3"),
        ("inserted", inserted, "audit.jsonl:3: record 2: the line is not an audit record"),
    ] {
        log.write(&changed);
        let (code, err) = log.verify();
        assert!(code == 65 && err.contains(expected), "{case}: {code} {err}");
    }
}

#[test]
fn verify_detects_a_log_that_was_cut_off_after_a_kept_checkpoint() {
    let log = Log::new();
    let lines = log.lines();
    for left in [0, 1, RECORDS - 1] {
        log.write(&lines[..left]);
        assert_eq!(log.verify().0, 0, "the chain alone shows no cut at its end");
        let (code, err) = log.verify_with_checkpoint();
        let records = if left == 1 { "record" } else { "records" };
        let expected = format!("the log ends after {left} {records}, and the checkpoint covers {RECORDS}");
        assert!(code == 65 && err.contains(&expected), "{left}: {err}");
    }
}

#[test]
fn verify_detects_a_log_that_was_written_again_after_a_kept_checkpoint() {
    let (log, other) = (Log::new(), Log::new());
    let mut rewritten = AuditLog::open(Log::settings(&other.folder, 1 << 20)).unwrap();
    let at = jiff::Timestamp::from_second(1_900_000_000).unwrap();
    rewritten.append(vec![Event::new(PROCESS_STARTED, "outgate", at, "more")]).unwrap();
    // The other log contains this one's checkpoint: its first records are the same.
    fs::copy(other.path(), log.path()).unwrap();
    assert_eq!(log.verify_with_checkpoint().0, 0);
    let forged = Folder::new();
    let mut forged_log = AuditLog::open(Log::settings(&forged, 1 << 20)).unwrap();
    for _ in 0..=RECORDS {
        forged_log.append(vec![Event::new(PROCESS_STARTED, "outgate", at, "forged")]).unwrap();
    }
    fs::copy(forged.path("audit.jsonl"), log.path()).unwrap();
    assert_eq!(log.verify().0, 0, "a whole chain");
    let (code, err) = log.verify_with_checkpoint();
    assert!(code == 65 && err.contains("do not have the root of the checkpoint"), "{err}");
}

#[test]
fn verify_checks_the_signature_of_a_checkpoint() {
    let log = Log::new();
    let note = log.folder.path("audit.jsonl.checkpoint");
    let verifier = Log::settings(&log.folder, 1).verifier().unwrap().to_string();
    let verify = |key: &str| {
        let (file, note) = (log.path(), note.to_str().unwrap().to_owned());
        audit(&["verify", file.to_str().unwrap(), "--checkpoint", &note, "--key", key])
    };
    let (code, out, err) = verify(&verifier);
    assert!(code == 0 && out.contains("its signature verifies"), "{out}{err}");
    let text = fs::read_to_string(&note).unwrap();
    fs::write(&note, text.replace_one("\n6\n", "\n5\n")).unwrap();
    let (code, _, err) = verify(&verifier);
    assert!(code == 65 && err.contains("the signature of the checkpoint does not verify"), "{err}");
    let (code, _, err) = verify("nonsense");
    assert!(code == 2 && err.contains("NAME+ID+KEY"), "{err}");
    // Without FILE, the key is that of the checkpoint beside the log.
    fs::write(&note, text).unwrap();
    let config = log.folder.write("config.toml", "audit.file = \"audit.jsonl\"\n");
    let verify = |more: &[&str]| audit(&[&["verify", "--config", config.to_str().unwrap()], more].concat());
    let (code, out, err) = verify(&["--key", &verifier]);
    assert!(code == 0 && out.contains("its signature verifies"), "{out}{err}");
    let (code, out, err) = verify(&[]);
    assert!(code == 0 && out.contains("its signature was not verified (--key)"), "{out}{err}");
    let (code, _, err) = verify(&["--key", &verifier, log.path().to_str().unwrap()]);
    assert!(code == 2 && err.contains("--key needs --checkpoint"), "{code} {err}");
    fs::remove_file(&note).unwrap();
    let (code, _, err) = verify(&["--key", &verifier]);
    assert!(code == 66 && err.contains("audit.jsonl.checkpoint"), "{code} {err}");
}

/// All files of the folder that belong to the log.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.to_str().unwrap().contains("checkpoint") && path.extension().unwrap() != "lock");
    files.sort();
    files
}

#[test]
fn verify_follows_the_chain_over_all_files_of_a_rotated_log() {
    let log = Log::with_files_of(1500);
    let files = files(log.path().parent().unwrap());
    assert!(files.len() >= 3, "{files:?}");
    let verify = |files: &[&PathBuf]| {
        let words: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
        let (code, _, err) = audit(&[&["verify"], &words[..]].concat());
        (code, err)
    };
    let all: Vec<_> = files.iter().rev().collect();
    assert_eq!(verify(&all).0, 0, "in any order");
    // `audit.jsonl` sorts first, and is the newest.
    let closed = &files[1..];
    let (code, err) = verify(&[&files[0]]);
    assert!(code == 0 && err.contains("the files before are not among these"), "{err}");
    let (code, err) = verify(&[&closed[0], &files[0]]);
    assert!(code == 65 && err.contains("are missing"), "{err}");
    let text = fs::read_to_string(&closed[0]).unwrap();
    let (before, last) = text.trim_end().rsplit_once('\n').unwrap();
    fs::write(&closed[0], format!("{before}\n{}\n", tampered(last, "description"))).unwrap();
    let (code, err) = verify(&all);
    assert!(code == 65 && err.contains("a record of the file before it was changed"), "{err}");
    fs::write(&closed[0], &text[..text.len() - 9]).unwrap();
    let (code, err) = verify(&all);
    assert!(code == 65 && err.contains("of a record that is cut off"), "{err}");
}

#[test]
fn verify_reports_missing_files_and_a_cut_that_a_crash_left() {
    let log = Log::new();
    let (code, _, err) = audit(&["verify", log.folder.path("missing.jsonl").to_str().unwrap()]);
    assert!(code == 66 && err.contains("missing.jsonl"), "{err}");
    let text = fs::read_to_string(log.path()).unwrap();
    fs::write(log.path(), &text[..text.len() - 9]).unwrap();
    let (code, err) = log.verify();
    assert!(code == 0 && err.contains("of a record that is not written to its end"), "{err}");
}

#[test]
fn proxy_refuses_changes_while_its_audit_log_does_not_verify() {
    let scene = audited();
    scene.outgate.folder.write("audit.key", checkpoint_key());
    let signed = scene.outgate.config().add("audit.checkpoint_key", "{dir}/audit.key");
    assert_eq!(try_reload(&scene, &signed).0, 0);
    let path = support::audit::audit_file(&scene.outgate);
    assert_eq!(verify(&scene.outgate).0, 0);
    let lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    let cut = &lines[..lines.len() - 1];
    fs::write(&path, cut.concat_lines()).unwrap();
    let next = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    let (code, _, err) = try_reload(&scene, &next);
    assert!(code == 78 && err.contains("audit_unwritable"), "{err}");
    assert!(err.contains("another program has cut off records"), "{err}");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    let (code, _, err) = verify(&scene.outgate);
    assert!(code == 65 && err.contains("it lacks"), "{err}");
    let scene = support::scene::Scene { outgate: scene.outgate.restarted(), ..scene };
    scene.outgate.log.wait_for_lines(1, &["records are missing", "keep its files as evidence"]);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    fs::rename(&path, scene.outgate.folder.path("evidence.jsonl")).unwrap();
    fs::remove_file(scene.outgate.folder.path("audit.jsonl.checkpoint")).unwrap();
    until_recorded(&scene.outgate, "audit.gap", 1);
    assert_eq!(try_reload(&scene, &next).0, 0);
    assert_eq!(verify(&scene.outgate).0, 0);
}

/// Needs the Python of `tests/clients/install`: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.
#[test]
fn another_implementation_verifies_the_chain_and_the_checkpoint_of_a_running_proxy() {
    let installed = std::env::var_os("OUTGATE_TEST_CLIENTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"), PathBuf::from);
    let python = installed.join("python/bin/python");
    if !python.exists() {
        assert!(!support::required(), "missing: {}; tests/clients/install installs it", python.display());
        return;
    }
    let scene = audited();
    scene.outgate.folder.write("audit.key", checkpoint_key());
    let next = scene.outgate.config().add("audit.checkpoint_key", "{dir}/audit.key").add("audit.rotate.size", "64 KiB");
    assert_eq!(try_reload(&scene, &next).0, 0);
    let (code, key, err) = audit(&["key", "--config", scene.outgate.folder.path("config.toml").to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    let updated = until_recorded(&scene.outgate, "audit.updated", 1).remove(0);
    assert_eq!(updated["event_data"]["verifier"], key.trim());
    let kept = scene.outgate.folder.path("kept.checkpoint");
    fs::copy(scene.outgate.folder.path("audit.jsonl.checkpoint"), &kept).unwrap();
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    let run = |checkpoint: &Path| {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/audit_verify.py");
        let mut command = std::process::Command::new(&python);
        let files = [checkpoint, &support::audit::audit_file(&scene.outgate)];
        let output = command.args([program, key.trim()]).args(files).output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    for checkpoint in [&kept, &scene.outgate.folder.path("audit.jsonl.checkpoint")] {
        let (is_good, said) = run(checkpoint);
        assert!(is_good && said.contains("records verify"), "{said}");
    }
    let path = support::audit::audit_file(&scene.outgate);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut changed = lines.clone();
    changed[0] = tampered(&lines[0], "description");
    for (lines, expected) in [(&changed[..], "record 1 does not follow"), (&lines[..1], "the checkpoint has")] {
        fs::write(&path, lines.concat_lines()).unwrap();
        let (is_good, said) = run(&kept);
        assert!(!is_good && said.contains(expected), "{said}");
    }
}
