//! The restrictions of the running process: capabilities, new privileges, core dumps, Landlock and locked memory.
//! What can code that takes over the process still do?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder, scene};
use support::{Outgate, eventually};

/// Returns proc(5)'s status of each thread.
fn thread_statuses(outgate: &Outgate) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", outgate.pid())).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok()).collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name}: {status}")).trim()
}

/// Returns whether the kernel enforces Landlock.
fn has_landlock(outgate: &Outgate) -> bool {
    let lines = outgate.log.all();
    let line = lines.iter().find(|line| line.contains("sandbox: ")).expect("outgate logs its restrictions");
    let is_enforced = line.contains("(Landlock V");
    assert!(is_enforced || line.contains("Landlock is not available"), "{line}");
    // This process asks the kernel, too: an outgate that does not find Landlock must fail the test.
    let strictly = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = strictly.handle_access(AccessFs::Execute).and_then(Ruleset::create);
    assert_eq!(is_enforced, ruleset.is_ok(), "{line}");
    if !is_enforced {
        eprintln!("skipped: {line}");
    }
    is_enforced
}

/// A folder outside of the temporary folder, in which scenes run.
struct Outside(PathBuf);

impl Outside {
    fn new(name: &str) -> Self {
        let path = PathBuf::from("/var/tmp").join(format!("outgate-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        assert!(!path.canonicalize().unwrap().starts_with(std::env::temp_dir().canonicalize().unwrap()));
        Self(path)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn sandbox_leaves_no_thread_a_capability_or_new_privileges() {
    let scene = scene();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let statuses = thread_statuses(&scene.outgate);
    assert!(statuses.len() > 2, "{}", statuses.len());
    for status in &statuses {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{set}: {status}");
        }
        assert_eq!(field(status, "NoNewPrivs"), "1", "{status}");
    }
    // Root starts the tests in CI, and with the capability to reduce its bounding set.
    if rustix::process::geteuid().is_root() {
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let setpcap = 1 << 8;
        if u64::from_str_radix(field(&own, "CapEff"), 16).unwrap() & setpcap != 0 {
            assert_eq!(field(&statuses[0], "CapBnd"), "0000000000000000");
        }
    }
}

#[test]
fn sandbox_process_has_no_core_dump_and_is_closed_to_its_own_user() {
    let scene = scene();
    let limits = fs::read_to_string(format!("/proc/{}/limits", scene.outgate.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    // The owner of a process that is not dumpable is root (proc(5)); tests/privileged has the same as another user.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(format!("/proc/{}/fd", scene.outgate.pid())).unwrap().uid(), 0);
}

#[test]
fn sandbox_locks_the_memory_of_secrets() {
    let scene = scene();
    let status = fs::read_to_string(format!("/proc/{}/status", scene.outgate.pid())).unwrap();
    let locked: u64 = field(&status, "VmLck").trim_end_matches(" kB").trim().parse().unwrap();
    let is_reported = scene.outgate.log.all().iter().any(|line| line.contains("memory that the kernel may swap"));
    assert!(locked >= 64 || is_reported, "{locked} kB are locked");
}

#[test]
fn sandbox_landlock_denies_a_write_outside_of_the_folders_of_the_start() {
    let (pki, plain) = (Pki::new(), Receiver::plain(ok()));
    let (folder, url) = (folder(&pki), format!("http://plain.example:{}/in", plain.port()));
    fs::create_dir(folder.path("logs")).unwrap();
    let config = config(&plain, &plain, "").add("log.deliveries", "file:{dir}/logs/deliveries.jsonl");
    let outgate = Outgate::run(folder, &config);
    if !has_landlock(&outgate) {
        return;
    }
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    let (outside, logs) = (Outside::new("landlock"), outgate.folder.path("logs"));
    eventually("a record", || fs::metadata(logs.join("deliveries.jsonl")).is_ok_and(|log| log.len() > 0));
    // An attacker who may write to the folder redirects the log.
    fs::rename(&logs, outgate.folder.path("former")).unwrap();
    symlink(&outside.0, &logs).unwrap();
    outgate.signal("USR1");
    outgate.log.wait_for_lines(1, &["deliveries.jsonl", "Permission denied"]);
    assert_eq!(outgate.post(&url, "", "x").status, 200, "deliveries go on");
    assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 0);
    // A folder that is deleted and made again is writable.
    fs::remove_file(&logs).unwrap();
    fs::create_dir(&logs).unwrap();
    outgate.signal("USR1");
    eventually("a record in the new folder", || {
        outgate.post(&url, "", "x");
        fs::metadata(logs.join("deliveries.jsonl")).is_ok_and(|log| log.len() > 0)
    });
}

#[test]
fn sandbox_rejects_a_reload_that_writes_where_only_a_restart_may() {
    let scene = scene();
    if !has_landlock(&scene.outgate) {
        return;
    }
    let outside = Outside::new("reload");
    let config = scene.outgate.config();
    for (key, value) in [("log.deliveries", "deliveries.jsonl"), ("audit.file", "audit.jsonl")] {
        let path = outside.0.join(value).display().to_string();
        let value = if key == "log.deliveries" { format!("file:{path}") } else { path.clone() };
        scene.outgate.reconfigure_to_rejection(&config.add(key, value.as_str()));
        let words = format!("outgate cannot write to {path} before it is restarted");
        scene.outgate.log.wait_for_lines(1, &[&words]);
        assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    }
    // Another folder of the same parent needs no restart.
    fs::create_dir(scene.outgate.folder.path("other")).unwrap();
    scene.outgate.reconfigure(&config.add("log.deliveries", "file:{dir}/other/deliveries.jsonl"));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let log = scene.outgate.folder.path("other/deliveries.jsonl");
    eventually("a record", || fs::metadata(&log).is_ok_and(|log| log.len() > 0));
}
