//! An outgate with an audit log, and the records of the log.
//! What does the audit log say?

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::configuration::Config;
use super::control::{run, with_admin_socket};
use super::scene::{Scene, scene_of};
use super::{Outgate, eventually};

/// The usual scene with an admin socket and an audit log; files are not watched.
pub fn audited() -> Scene {
    audited_with(&|text| text.clone())
}

pub fn audited_with(change: &dyn Fn(&Config) -> Config) -> Scene {
    let scene = scene_of(&|text| change(&with_admin_socket(text).add("audit.file", "{dir}/audit.jsonl")));
    until_recorded(&scene.outgate, "process.started", 1);
    scene
}

pub fn audit_file(outgate: &Outgate) -> PathBuf {
    outgate.folder.path("audit.jsonl")
}

/// The records of a file so far.
pub fn records_in(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("a record is JSON: {line}"))).collect()
}

/// The records of this type, once there are `count`.
pub fn until_recorded(outgate: &Outgate, event_type: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    eventually(&format!("{count} records of {event_type}"), || {
        found = records_in(&audit_file(outgate));
        found.retain(|record| record["event_type"] == event_type);
        found.len() >= count
    });
    found
}

/// Whether an event is one of the drift check, which compares the files with the active configuration every 2 s. A change
/// that a test makes may come between the write and the reload.
pub fn is_of_drift_check(event_type: &str) -> bool {
    ["configuration.drifted", "configuration.restored"].contains(&event_type)
}

/// The records of a file once each drift has ended: the drift check adds none to them.
pub fn settled_records_in(path: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    eventually("the end of each drift", || {
        records = records_in(path);
        let count = |name: &str| records.iter().filter(|record| record["event_type"] == name).count();
        count("configuration.drifted") == count("configuration.restored")
    });
    records
}

/// Writes a configuration and requests its reload: the exit code, stdout and stderr.
pub fn try_reload(scene: &Scene, config: &Config) -> (i32, String, String) {
    super::control::write(scene, config);
    super::control::exit_code_and_output(&run(scene, &["reload"]))
}

/// Runs `outgate audit` with these words: the exit code, stdout and stderr.
pub fn audit(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).arg("audit").args(words).output().unwrap();
    super::control::exit_code_and_output(&output)
}

/// Verifies the audit log of a scene.
pub fn verify(outgate: &Outgate) -> (i32, String, String) {
    audit(&["verify", "--config", outgate.folder.path("config.toml").to_str().unwrap()])
}

/// A new Ed25519 key in PEM, as `outgate keys new` makes it.
pub fn checkpoint_key() -> String {
    let words = ["keys", "new", "--scheme", "rfc9421", "--algorithm", "ed25519"];
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
