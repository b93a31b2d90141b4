//! The disk of the audit log: full, hanging, read-only or gone, and a crash in the middle of a write.
//! Are changes refused while traffic goes on, and does the chain verify afterwards?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use support::audit::{
    audit_file, audited, checkpoint_key, is_of_drift_check, records_in, settled_records_in, try_reload, until_recorded,
    verify,
};
use support::configuration::Config;
use support::control::{call, status, with_admin_socket};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{Scene, config, folder};
use support::{Folder, Outgate, eventually};

/// Fills or hangs the disk below the audit log while a file is there. A full disk takes half of a write first.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int is_audit(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 12) return 0;
    path[length] = 0;
    return !strcmp(path + length - 12, "/audit.jsonl");
}
static int is_there(const char *name) {
    const char *path = getenv(name);
    return path && !access(path, F_OK);
}
ssize_t write(int fd, const void *bytes, size_t count) {
    static int half;
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!is_there("OUTGATE_TEST_FULL") || !is_audit(fd)) return real(fd, bytes, count);
    if ((half = !half)) return real(fd, bytes, count / 2);
    errno = ENOSPC;
    return -1;
}
int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    while (is_there("OUTGATE_TEST_HANG") && is_audit(fd)) usleep(10000);
    return real(fd);
}
"#;

struct Disk {
    scene: Scene,
    full: PathBuf,
    hang: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let pki = Pki::new();
        let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
        let folder = folder(&pki);
        let shim = folder.build_shim(SHIM);
        let (full, hang) = (folder.path("full"), folder.path("hang"));
        folder.write_config(
            "config.toml",
            &with_admin_socket(&config(&good, &plain, "")).add("audit.file", "{dir}/audit.jsonl"),
        );
        let environment: [(&str, &Path); 3] =
            [("LD_PRELOAD", &shim), ("OUTGATE_TEST_FULL", &full), ("OUTGATE_TEST_HANG", &hang)];
        let outgate = Outgate::run_in_with(folder, &environment);
        until_recorded(&outgate, "verification.disabled", 1);
        Self { scene: Scene { pki, outgate, good, plain }, full, hang }
    }

    fn next(&self, number: u32) -> Config {
        self.scene.outgate.config().and(&format!("[limits.l{number}]\nrate = \"1/s\"\n"))
    }
}

fn deliver(scene: &Scene) {
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
}

fn is_unwritable(scene: &Scene) -> bool {
    let ready = scene.outgate.admin("/readyz");
    assert_eq!(ready.status, 200);
    ready.text().contains("refused until the audit log can be written")
}

#[test]
fn full_disk_below_the_audit_log_refuses_changes_and_no_traffic() {
    let disk = Disk::new();
    let scene = &disk.scene;
    fs::write(&disk.full, "").unwrap();
    let before = fs::read(audit_file(&scene.outgate)).unwrap();
    let next = disk.next(1);
    for _ in 0..2 {
        let (code, _, err) = try_reload(scene, &next);
        assert!(code == 78 && err.contains("audit_unwritable") && err.contains("No space left on device"), "{err}");
        deliver(scene);
    }
    assert_eq!(status(scene)["configuration"]["number"], 1);
    assert!(is_unwritable(scene) && scene.outgate.has_metric("outgate_reload_failed 1"));
    assert!(scene.outgate.has_metric("outgate_audit_writable{} 0"), "{}", scene.outgate.admin("/metrics").text());
    assert_eq!(fs::read(audit_file(&scene.outgate)).unwrap(), before, "half a record is cut off again");
    scene.outgate.log.wait_for_lines(1, &["ERROR", "audit.jsonl cannot be written", "free space"]);
    fs::remove_file(&disk.full).unwrap();
    // What waited is written without a change.
    let gap = &until_recorded(&scene.outgate, "audit.gap", 1)[0];
    let records = records_in(&audit_file(&scene.outgate));
    let end = records.iter().position(|record| record == gap).unwrap();
    let waited = &records[before.iter().filter(|byte| **byte == b'\n').count()..end];
    assert_eq!(
        (&gap["event_data"]["waited"], &gap["event_data"]["lost"]),
        (&json!(waited.len()), &json!(0)),
        "{gap} {waited:#?}"
    );
    let waited = waited.iter().map(|record| record["event_type"].as_str().unwrap());
    assert_eq!(waited.filter(|name| !is_of_drift_check(name)).collect::<Vec<_>>(), ["configuration.rejected"; 2]);
    assert_eq!(until_recorded(&scene.outgate, "configuration.rejected", 2).len(), 2);
    eventually("ready without a fault", || !is_unwritable(scene));
    assert!(scene.outgate.has_metric("outgate_audit_writable{} 1"));
    assert_eq!(try_reload(scene, &next).0, 0);
    assert_eq!(verify(&scene.outgate).0, 0);
}

#[test]
fn rollback_that_the_full_disk_cannot_record_rejects_no_file() {
    let disk = Disk::new();
    let scene = &disk.scene;
    assert_eq!(try_reload(scene, &disk.next(1)).0, 0);
    fs::write(&disk.full, "").unwrap();
    let outcome = call(&scene.outgate, "POST", "/v1/rollback?number=1", "").json();
    assert!(outcome["outcome"] == "rejected" && outcome.to_string().contains("audit_unwritable"), "{outcome}");
    // The file on disk is still the active configuration.
    let status = status(scene);
    assert_eq!(
        (&status["configuration"]["number"], &status["rejected"], &status["drift"]),
        (&json!(2), &json!(null), &json!(null))
    );
    assert!(scene.outgate.has_metric("outgate_reload_failed 0"));
}

#[test]
fn hanging_disk_below_the_audit_log_refuses_a_change_after_a_time_and_withdraws_its_record() {
    let disk = Disk::new();
    let scene = &disk.scene;
    fs::write(&disk.hang, "").unwrap();
    let next = disk.next(1);
    let (code, _, err) = try_reload(scene, &next);
    assert!(code == 78 && err.contains("its disk has not answered for 15 s"), "{err}");
    deliver(scene);
    assert!(is_unwritable(scene));
    // The next change waits behind the first one, and is not recorded at all.
    let (code, _, err) = try_reload(scene, &next);
    assert!(code == 78 && err.contains("its disk has not answered for 15 s"), "{err}");
    fs::remove_file(&disk.hang).unwrap();
    let withdrawn = &until_recorded(&scene.outgate, "configuration.withdrawn", 1)[0];
    assert_eq!(withdrawn["event_data"]["number"], 2, "{withdrawn}");
    until_recorded(&scene.outgate, "configuration.rejected", 2);
    assert_eq!(until_recorded(&scene.outgate, "configuration.updated", 1).len(), 1);
    assert_eq!(until_recorded(&scene.outgate, "configuration.withdrawn", 1).len(), 1);
    assert_eq!(status(scene)["configuration"]["number"], 1);
    eventually("ready without a fault", || !is_unwritable(scene));
    assert_eq!(try_reload(scene, &next).0, 0);
    assert_eq!(verify(&scene.outgate).0, 0);
}

/// Requests a reload over the admin socket.
fn request_reload(scene: &Scene) {
    support::control::call(&scene.outgate, "POST", "/v1/reload", "");
}

#[test]
fn events_that_are_lost_while_the_disk_below_the_audit_log_hangs_are_stated_as_a_gap() {
    let disk = Disk::new();
    let scene = &disk.scene;
    support::control::write(scene, &scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\nrat = 1\n"));
    // The first rejection also begins a drift.
    request_reload(scene);
    until_recorded(&scene.outgate, "configuration.drifted", 1);
    fs::write(&disk.hang, "").unwrap();
    // Each rejection is an event, and 1000 of them wait.
    for _ in 0..1005 {
        request_reload(scene);
    }
    fs::remove_file(&disk.hang).unwrap();
    let gap = &until_recorded(&scene.outgate, "audit.gap", 1)[0];
    let lost = gap["event_data"]["lost"].as_u64().unwrap();
    assert!((1..=5).contains(&lost) && gap["description"].as_str().unwrap().contains("did not answer"), "{gap}");
    let rejected = until_recorded(&scene.outgate, "configuration.rejected", 1006 - lost as usize);
    assert_eq!(rejected.len() as u64 + lost, 1006);
    assert_eq!(verify(&scene.outgate).0, 0);
}

#[test]
fn gap_of_a_failed_disk_is_stated_in_the_audit_log_that_replaces_it() {
    let disk = Disk::new();
    let scene = &disk.scene;
    let good = scene.outgate.config();
    fs::write(&disk.full, "").unwrap();
    assert_eq!(try_reload(scene, &good.and("[limits.l]\nrat = 1\n")).0, 78);
    let (code, _, err) = try_reload(scene, &good.set("audit.file", "{dir}/other.jsonl"));
    assert_eq!(code, 0, "{err}");
    let records = records_in(&scene.outgate.folder.path("other.jsonl"));
    let types: Vec<_> = records.iter().map(|record| record["event_type"].as_str().unwrap()).collect();
    assert_eq!(types[..3], ["configuration.rejected", "configuration.drifted", "audit.gap"]);
    assert_eq!(types[3..5], ["configuration.updated", "audit.updated"]);
    assert_eq!((&records[2]["event_data"]["waited"], &records[2]["event_data"]["lost"]), (&json!(2), &json!(0)));
}

#[test]
fn failed_move_of_the_audit_log_leaves_no_record_of_the_change_in_the_former_log() {
    let disk = Disk::new();
    let scene = &disk.scene;
    fs::create_dir(scene.outgate.folder.path("sub")).unwrap();
    let first = scene.outgate.config();
    assert_eq!(try_reload(scene, &first.set("audit.file", "{dir}/other.jsonl")).0, 0);
    fs::write(&disk.full, "").unwrap();
    let (code, _, err) = try_reload(scene, &first.set("audit.file", "{dir}/sub/audit.jsonl"));
    assert!(code == 78 && err.contains("sub/audit.jsonl cannot be written"), "{err}");
    let other = scene.outgate.folder.path("other.jsonl");
    let types = || records_in(&other).iter().map(|record| record["event_type"].clone()).collect::<Vec<_>>();
    eventually("the rejection", || types().contains(&json!("configuration.rejected")));
    assert_eq!(types().iter().filter(|name| **name == "configuration.updated").count(), 1, "{:?}", types());
}

#[test]
fn stop_does_not_wait_for_a_hanging_disk_below_the_audit_log() {
    let mut disk = Disk::new();
    fs::write(&disk.hang, "").unwrap();
    disk.scene.outgate.signal("TERM");
    assert!(disk.scene.outgate.wait().success());
}

/// A log in a folder of its own, with a key.
fn in_folder() -> Scene {
    let scene = audited();
    fs::create_dir(scene.outgate.folder.path("logs")).unwrap();
    scene.outgate.folder.write("audit.key", checkpoint_key());
    let next = scene.outgate.config().set("audit.file", "{dir}/logs/audit.jsonl");
    let (code, _, err) = try_reload(&scene, &next.add("audit.checkpoint_key", "{dir}/audit.key"));
    assert_eq!(code, 0, "{err}");
    scene
}

#[test]
fn deleted_folder_of_the_audit_log_refuses_changes_until_it_is_there_again() {
    let scene = in_folder();
    let logs = scene.outgate.folder.path("logs");
    let size = settled_records_in(&logs.join("audit.jsonl")).len();
    fs::remove_dir_all(&logs).unwrap();
    let next = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    let (code, _, err) = try_reload(&scene, &next);
    assert!(code == 78 && err.contains("audit_unwritable") && err.contains("No such file"), "{err}");
    deliver(&scene);
    fs::create_dir(&logs).unwrap();
    assert_eq!(try_reload(&scene, &next).0, 0);
    let records = records_in(&logs.join("audit.jsonl"));
    assert_eq!(records[0]["event_type"], "audit.continued");
    assert_eq!((&records[0]["seq"], &records[0]["event_data"]["size"]), (&json!(size), &json!(size)));
    assert!(records.iter().any(|record| record["event_type"] == "audit.removed"), "{records:#?}");
    // The checkpoint covers the records that are gone and those that follow.
    let (code, _, err) = verify(&scene.outgate);
    assert!(code == 0 && err.contains(&format!("begins at record {size}")), "{err}");
}

#[test]
fn removed_file_of_the_audit_log_is_recorded_and_the_chain_goes_on() {
    let scene = in_folder();
    let (logs, kept) = (scene.outgate.folder.path("logs"), scene.outgate.folder.path("kept.jsonl"));
    fs::rename(logs.join("audit.jsonl"), &kept).unwrap();
    let next = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    assert_eq!(try_reload(&scene, &next).0, 0);
    let removed = &records_in(&logs.join("audit.jsonl"))[1];
    assert_eq!((&removed["event_type"], &removed["severity_id"]), (&json!("audit.removed"), &json!(4)), "{removed}");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let checkpoint = path(&logs.join("audit.jsonl.checkpoint"));
    let words = ["verify", &path(&logs.join("audit.jsonl")), &path(&kept), "--checkpoint", &checkpoint];
    let (code, out, err) = support::audit::audit(&words);
    assert!(code == 0 && out.contains("the log contains the checkpoint"), "{out}{err}");
}

#[test]
fn crash_in_the_middle_of_a_write_leaves_a_chain_that_verifies() {
    let scene = audited();
    let next = |number: u32| scene.outgate.config().and(&format!("[limits.l{number}]\nrate = \"1/s\"\n"));
    assert_eq!(try_reload(&scene, &next(1)).0, 0);
    let size = settled_records_in(&audit_file(&scene.outgate)).len();
    let Scene { pki, outgate, good, plain } = scene;
    // The state of the disk after kill -9 between two pages of a write.
    let path = audit_file(&outgate);
    let folder = Folder::linked(&outgate.folder);
    let whole = fs::read_to_string(&path).unwrap();
    outgate.signal("KILL");
    eventually("the end of the process", || !Path::new(&format!("/proc/{}/fd/0", outgate.pid())).exists());
    let half = &whole.lines().last().unwrap()[..100];
    fs::write(&path, format!("{whole}{half}")).unwrap();
    let (code, _, err) = verify(&outgate);
    assert!(code == 0 && err.contains("ends in 100 bytes of a record that is not written to its end"), "{err}");
    let again = Outgate::run_in(folder);
    let recovered = &until_recorded(&again, "audit.recovered", 1)[0];
    assert_eq!((&recovered["seq"], &recovered["event_data"]["bytes"]), (&json!(size), &json!(100)), "{recovered}");
    until_recorded(&again, "process.started", 2);
    let (code, _, err) = verify(&again);
    assert!(code == 0 && !err.contains("not written to its end"), "{err}");
    drop((again, outgate, pki, good, plain));
}

/// Kills the process again and again while it records changes.
#[test]
fn killed_process_leaves_a_chain_that_verifies_each_time() {
    let mut scene = audited();
    for round in 0..5 {
        let next = scene.outgate.config().set("server.drain_timeout", format!("{}s", 10 + round));
        support::control::write(&scene, &next);
        scene.outgate.signal("HUP");
        scene = Scene { outgate: scene.outgate.restarted(), ..scene };
        until_recorded(&scene.outgate, "process.started", round + 2);
        let (code, _, err) = verify(&scene.outgate);
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn two_processes_that_take_over_from_each_other_write_one_chain() {
    let scene = audited();
    let second = Folder::new();
    let other = scene.outgate.config().set("admin.listen", ["127.0.0.1:0"]);
    let other = Outgate::run(second, &other.add("server.state", "{dir}/state"));
    assert_eq!(until_recorded(&scene.outgate, "process.started", 2).len(), 2);
    let next = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    assert_eq!(try_reload(&scene, &next).0, 0);
    other.signal("TERM");
    until_recorded(&scene.outgate, "process.stopped", 1);
    assert_eq!(try_reload(&scene, &next.and("[limits.m]\nrate = \"1/s\"\n")).0, 0);
    let (code, out, err) = verify(&scene.outgate);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn rotated_audit_log_carries_the_chain_into_the_next_file() {
    let scene = audited();
    let mut next = scene.outgate.config().add("audit.rotate.size", "64 KiB");
    let routes: String = (0..100).map(|number| format!("[limits.n{number:03}]\nrate = \"1/s\"\n")).collect();
    next = next.and(&routes);
    let closed = || {
        let files = fs::read_dir(scene.outgate.folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        files.filter(|name| name.to_str().unwrap().starts_with("audit.jsonl.0")).count()
    };
    for burst in 1.. {
        let rates = (0..100)
            .fold(next.clone(), |next, number| next.set(&format!("limits.n{number:03}.rate"), format!("{burst}0/s")));
        assert_eq!(try_reload(&scene, &rates).0, 0);
        if closed() >= 2 {
            break;
        }
        assert!(burst < 50, "no file was closed");
    }
    let first = &records_in(&audit_file(&scene.outgate))[0];
    assert_eq!(first["event_type"], "audit.continued", "{first}");
    let (code, out, err) = verify(&scene.outgate);
    assert!(code == 0 && out.lines().count() >= 4, "{out}{err}");
    let scene = Scene { outgate: scene.outgate.restarted(), ..scene };
    until_recorded(&scene.outgate, "process.started", 1);
    assert_eq!(verify(&scene.outgate).0, 0);
}
