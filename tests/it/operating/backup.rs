//! `outgate backup` and `outgate restore`, with `age` and `tar` as an independent check.
//! Does another host continue from the backup, and is a damaged one refused?
//!
//! Needs Debian's `age`, and for buckets `s3s-fs`: skipped where one is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::audit::records_in;
use support::control::get;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::{Folder, Outgate, eventually};

use super::captures::{is_age_installed, new_recipient, text};
use super::captures_s3::{self, Server};

struct Scene {
    outgate: Outgate,
    receiver: Receiver,
    /// Of the tenant and of operators.
    keys: Folder,
}

/// Starts an outgate that has adopted two configurations and stored a capture.
fn scene() -> Scene {
    let (receiver, keys, folder) = (Receiver::plain(ok()), Folder::new(), folder(&Pki::new()));
    fs::create_dir(folder.path("recipients")).unwrap();
    fs::create_dir(folder.path("audit")).unwrap();
    folder.write("recipients/acme", new_recipient(&keys, "acme"));
    folder.write("backup-recipients", new_recipient(&keys, "operator"));
    new_recipient(&keys, "stranger");
    let outgate = Outgate::run(folder, &text(&receiver, ""));
    outgate.reconfigure(&outgate.config().add("server.max_deliveries", 77));
    let url = format!("http://plain.example:{}/in", receiver.port());
    assert_eq!(outgate.post(&url, "Outgate-Tenant: acme\r\n", "x").status, 200);
    eventually("the capture is stored", || {
        let folder = outgate.folder.path("captures/support");
        folder.is_dir() && contents(&folder).keys().any(|name| name.ends_with(".age"))
    });
    Scene { outgate, receiver, keys }
}

fn outgate(words: &[&str], environment: &[(&str, String)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(words).envs(environment.iter().map(|(name, value)| (*name, value))).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

impl Scene {
    fn path(&self, name: &str) -> String {
        self.outgate.folder.path(name).to_str().unwrap().to_owned()
    }

    /// Runs `outgate backup`, and returns the name of the backup.
    fn backup(&self, to: &str, environment: &[(&str, String)]) -> String {
        let (config, recipients, state) =
            (self.path("config.toml"), self.path("backup-recipients"), self.path("state"));
        let words = ["backup", "--config", &config, "--to", to, "--recipients", &recipients, "--state", &state];
        let output = outgate(&words, environment);
        assert_eq!(code(&output), 0, "{output:?}");
        String::from_utf8(output.stdout).unwrap().split_once(": ").unwrap().0.to_owned()
    }

    fn restore(&self, from: &str, key: &str, more: &[&str], environment: &[(&str, String)]) -> Output {
        let key = self.keys.path(key);
        let words = ["restore", "--from", from, "--identity", key.to_str().unwrap()];
        outgate(&[&words, more].concat(), environment)
    }
}

/// Returns the contents of all files below a folder by their paths.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(contents(&entry.path()).into_iter().map(|(path, text)| (format!("{name}/{path}"), text)));
        } else if kind.is_file() {
            found.insert(name, fs::read(entry.path()).unwrap_or_default());
        }
    }
    found
}

fn numbers(outgate: &Outgate) -> Vec<u64> {
    let history = get(outgate, "/v1/history").json();
    history["entries"].as_array().unwrap().iter().map(|entry| entry["number"].as_u64().unwrap()).collect()
}

#[test]
fn another_host_continues_from_a_backup_of_a_running_proxy() {
    if !is_age_installed() {
        return;
    }
    let scene = scene();
    let (to, into) = (scene.path("backups"), scene.path("restored"));
    let name = scene.backup(&to, &[]);

    // age and tar open it, too.
    let (key, sealed) = (scene.keys.path("operator"), scene.outgate.folder.path(&format!("backups/{name}")));
    let mut age = Command::new("age");
    let mut age = age.arg("-d").arg("-i").arg(key).arg(sealed).stdout(Stdio::piped()).spawn().unwrap();
    let listed = Command::new("tar").arg("tz").stdin(age.stdout.take().unwrap()).output().unwrap();
    assert!(age.wait().unwrap().success() && listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.ends_with("manifest.json\n") && listed.contains("state/history/"), "{listed}");

    let checked = scene.restore(&to, "operator", &["--check", "--json"], &[]);
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap_or_else(|_| panic!("{checked:?}"));
    let files: Vec<_> =
        checked["manifest"]["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(files.join("\n") + "\nmanifest.json\n", listed);
    assert!(!Path::new(&into).exists());

    assert_eq!(code(&scene.restore(&to, "operator", &["--into", &into], &[])), 0);
    assert_eq!(contents(Path::new(&scene.path("state"))), contents(&scene.outgate.folder.path("restored/state")));
    let index = fs::read_to_string(scene.outgate.folder.path("restored/captures/support.jsonl")).unwrap();
    let index: Vec<Value> = index.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [capture] = index.as_slice() else { panic!("{index:?}") };
    let stored = scene.outgate.folder.path(&format!("captures/support/{}", capture["name"].as_str().unwrap()));
    assert_eq!(fs::metadata(stored).unwrap().len(), capture["size"].as_u64().unwrap());
    assert_eq!(code(&scene.restore(&to, "operator", &["--into", &into], &[])), 73, "it replaces no folder");

    // A new host with the restored folders adds to the history and to the audit log.
    let host = folder(&Pki::new());
    fs::create_dir(host.path("recipients")).unwrap();
    host.write("recipients/acme", new_recipient(&scene.keys, "other"));
    fs::rename(scene.outgate.folder.path("restored/state"), host.path("state")).unwrap();
    fs::rename(scene.outgate.folder.path("restored/audit"), host.path("audit")).unwrap();
    let before = records_in(&host.path("audit/audit.jsonl"));
    assert!(before.iter().any(|record| record["event_type"] == "process.started"), "{before:?}");
    let next = Outgate::run(host, &text(&scene.receiver, ""));
    // The history has its own thread.
    eventually("the history goes on", || numbers(&next) == [3, 2, 1]);
    assert_eq!(numbers(&scene.outgate), [2, 1]);
    let after = records_in(&next.folder.path("audit/audit.jsonl"));
    assert_eq!(after[..before.len()], before);
    let (code, out, err) = support::audit::verify(&next);
    assert!(code == 0 && after.len() > before.len(), "{out}{err}");
}

#[test]
fn backup_that_is_damaged_or_for_another_key_is_refused_whole() {
    if !is_age_installed() {
        return;
    }
    let scene = scene();
    let (to, into) = (scene.path("backups"), scene.path("restored"));
    assert_eq!(code(&scene.restore("/nonexistent", "operator", &["--check"], &[])), 66);
    let name = scene.backup(&to, &[]);
    let refused = scene.restore(&to, "stranger", &["--into", &into], &[]);
    assert_eq!(code(&refused), 65, "{refused:?}");
    let path = scene.outgate.folder.path(&format!("backups/{name}"));
    let whole = fs::read(&path).unwrap();
    let middle = whole.len() / 2;
    let flipped = |at: usize| [&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat();
    for damaged in
        [flipped(middle), flipped(whole.len() - 1), whole[..middle].to_vec(), whole[..whole.len() - 1].to_vec()]
    {
        fs::write(&path, damaged).unwrap();
        let refused = scene.restore(&to, "operator", &["--into", &into], &[]);
        assert_eq!(code(&refused), 65, "{refused:?}");
        assert_eq!(code(&scene.restore(&to, "operator", &["--check"], &[])), 65);
    }
    let left: Vec<_> =
        contents(&scene.outgate.folder.path("")).into_keys().filter(|name| name.contains("restored")).collect();
    assert!(left.is_empty(), "{left:?}");
    // A recipient file without a recipient, and a private key in its place.
    for (text, expected) in [("# nothing\n", 65), ("AGE-SECRET-KEY-1QQ\n", 65)] {
        scene.outgate.folder.write("backup-recipients", text);
        let (config, recipients) = (scene.path("config.toml"), scene.path("backup-recipients"));
        let output = outgate(&["backup", "--config", &config, "--to", &to, "--recipients", &recipients], &[]);
        assert_eq!(code(&output), expected, "{output:?}");
    }
}

#[test]
fn backup_in_a_bucket_has_several_parts_and_the_newest_is_restored() {
    if !captures_s3::is_installed() {
        return;
    }
    let root = Folder::new();
    fs::create_dir(root.path("backups")).unwrap();
    let (server, scene) = (Server::start(&root.path(""), 0), scene());
    let environment = captures_s3::environment(&server);
    // More than two parts of 8 MiB, which compression does not shorten.
    let mut random = vec![0; 20 << 20];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    scene.outgate.folder.write("state/random", &random);
    let name = scene.backup("s3://backups/egress-1", &environment);
    assert!(fs::metadata(root.path(&format!("backups/egress-1/{name}"))).unwrap().len() > 20 << 20);
    let into = scene.path("restored");
    let restored = scene.restore("s3://backups/egress-1", "operator", &["--into", &into], &environment);
    assert_eq!(code(&restored), 0, "{restored:?}");
    assert!(fs::read(scene.outgate.folder.path("restored/state/random")).unwrap() == random);
    let empty = scene.restore("s3://backups/egress-2", "operator", &["--check"], &environment);
    assert_eq!(code(&empty), 66, "{empty:?}");
}
