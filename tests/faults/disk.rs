//! A full disk, a hanging disk, and a hanging stderr.
//! Do deliveries go on, and does outgate count and report what it cannot write?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bystander::{Fault, for_a_period};
use crate::support::audit::{records_in, try_reload, until_recorded, verify};
use crate::support::configuration::Config;
use crate::support::control::with_admin_socket;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, config, folder};
use crate::support::scrape::Scrape;
use crate::support::store::{self, StoreServer};
use crate::support::{Outgate, eventually};

/// The kernel answers each write to `/dev/full` with ENOSPC.
#[test]
fn full_disk_below_the_delivery_log_harms_no_delivery_and_lost_records_are_counted() {
    let plain = Receiver::plain(ok());
    let outgate =
        Outgate::run(folder(&Pki::new()), &config(&plain, &plain, "").add("log.deliveries", "file:/dev/full"));
    let url = format!("http://plain.example:{}/in", plain.port());
    let fault = Fault {
        name: "disk of the delivery log full",
        harmed: "no client; outgate loses the records",
        reported: "outgate_records_lost_total, OutgateRecordsLost",
    };
    let (harm, delivered) = fault.run(outgate.proxy, &url, |harm| {
        for_a_period(|| assert_eq!(harm.send(outgate.proxy, &url).status, 200));
    });
    let expected = (delivered + harm.counts["delivered"]) as f64;
    eventually("each delivery is counted, and its record as lost", || {
        let scrape = Scrape::of(&outgate);
        let count = |name: &str| scrape.sum(name, &[]);
        count("outgate_deliveries_total") == expected && count("outgate_records_lost_total") == expected
    });
    outgate.log.wait_for_lines(1, &["alert OutgateRecordsLost"]);
    assert_eq!(outgate.admin("/readyz").status, 200);
}

/// Hangs each write to the file of this name while the file exists that `OUTGATE_TEST_HANG` names.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static void hang(int fd) {
    char link[64], path[4096];
    const char *name = getenv("OUTGATE_TEST_FILE"), *while_there = getenv("OUTGATE_TEST_HANG");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || !name || !while_there || (size_t)length < strlen(name)) return;
    path[length] = 0;
    if (strcmp(path + length - strlen(name), name)) return;
    while (!access(while_there, F_OK)) usleep(10000);
}
ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    hang(fd);
    return real(fd, bytes, count);
}
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    hang(fd);
    return real(fd, pieces, count);
}
int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    hang(fd);
    return real(fd);
}
"#;

/// Starts the usual scene. The disk of this file hangs while the second value exists.
fn scene(file: &str, change: impl FnOnce(Config) -> Config) -> (Scene, PathBuf) {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    let (shim, hang) = (folder.build_shim(SHIM), folder.path("hang"));
    folder.write_config("config.toml", &change(with_admin_socket(&config(&good, &plain, ""))));
    let environment: [(&str, &Path); 3] =
        [("LD_PRELOAD", &shim), ("OUTGATE_TEST_FILE", Path::new(file)), ("OUTGATE_TEST_HANG", &hang)];
    let outgate = Outgate::run_in_with(folder, &environment);
    (Scene { pki, outgate, good, plain }, hang)
}

#[test]
fn hanging_disk_below_the_delivery_log_harms_no_delivery_and_loses_no_record_that_fits_the_queue() {
    let (scene, hang) =
        scene("/deliveries.jsonl", |config| config.add("log.deliveries", "file:{dir}/deliveries.jsonl"));
    let fault = Fault {
        name: "disk of the delivery log hangs",
        harmed: "no client; records beyond the queue of 64 MiB are lost",
        reported: "once records are lost: outgate_records_lost_total, OutgateRecordsLost",
    };
    let records = || fs::read_to_string(scene.outgate.folder.path("deliveries.jsonl")).unwrap_or_default();
    let url = scene.plain_url();
    let (harm, delivered) = fault.run(scene.outgate.proxy, &url, |harm| {
        fs::write(&hang, "").unwrap();
        for_a_period(|| assert_eq!(harm.send(scene.outgate.proxy, &url).status, 200));
    });
    let expected = delivered + harm.counts["delivered"];
    assert!((records().lines().count() as u64) < expected, "the disk hangs");
    fs::remove_file(&hang).unwrap();
    eventually("each delivery has one record", || records().lines().count() as u64 == expected);
    let scrape = Scrape::of(&scene.outgate);
    assert_eq!(scrape.sum("outgate_deliveries_total", &[]) as u64, expected);
    assert_eq!(scrape.sum("outgate_records_lost_total", &[]), 0.0);
}

#[test]
fn hanging_disk_below_the_audit_log_refuses_changes_and_harms_no_delivery() {
    let (scene, hang) = scene("/audit.jsonl", |config| config.add("audit.file", "{dir}/audit.jsonl"));
    until_recorded(&scene.outgate, "process.started", 1);
    let fault = Fault {
        name: "disk of the audit log hangs",
        harmed: "the operator: a change is refused after 15 s",
        reported: "audit_unwritable, /readyz, outgate_audit_writable 0, OutgateAuditUnwritable",
    };
    let next = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |harm| {
        fs::write(&hang, "").unwrap();
        harm.wait_for(|| {
            let (code, _, err) = try_reload(&scene, &next);
            assert!(code == 78 && err.contains("its disk has not answered for 15 s"), "{err}");
        });
        let ready = scene.outgate.admin("/readyz");
        assert!(ready.status == 200 && ready.text().contains("refused until the audit log"), "{}", ready.text());
        scene.outgate.wait_for_metric("outgate_audit_writable{} 0");
        scene.outgate.log.wait_for_lines(1, &["alert OutgateAuditUnwritable"]);
        fs::remove_file(&hang).unwrap();
    });
    eventually("a change is accepted again", || try_reload(&scene, &next).0 == 0);
    scene.outgate.wait_for_metric("outgate_audit_writable{} 1");
    assert_eq!(verify(&scene.outgate).0, 0);
    let records = records_in(&scene.outgate.folder.path("audit.jsonl"));
    assert!(records.iter().any(|record| record["event_type"] == "configuration.withdrawn"), "{records:?}");
}

#[test]
fn hanging_disk_below_the_state_of_the_fleet_harms_no_delivery_and_no_announcement() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let (scene, hang) = scene("/fleet.json.tmp", |config| {
        // A busy machine answers late, and a store that is away is not the subject.
        let fleet =
            format!("[fleet]\nstore = \"redis://127.0.0.1:{}\"\nwait = \"1s\"\ntimeout = \"5s\"\n", server.port);
        let limit = "[limits.l]\nscope = \"fleet\"\nrate = \"100000/s\"\n";
        config.and(&fleet).and(limit).add("routes.*.limits", ["l"]).add("server.state", "{dir}/state")
    });
    let file = scene.outgate.folder.path("state/fleet.json");
    let has_stored = |live: &str| fs::read_to_string(&file).is_ok_and(|text| text.contains(live));
    eventually("the instance has stored what it knows", || has_stored("\"live\":1"));
    let process = server.cli(&["zrange", "outgate:{instances}", "0", "-1"]).trim().to_owned();
    let lease_end = || -> u64 { server.cli(&["zscore", "outgate:{instances}", &process]).trim().parse().unwrap() };
    let fault = Fault {
        name: "disk of the state of the fleet hangs",
        harmed: "no client; a restart reads what was known before",
        reported: "outgate reports nothing, because nothing fails",
    };
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |harm| {
        fs::write(&hang, "").unwrap();
        // A second process: the instance has to write the file.
        server.cli(&["zadd", "outgate:{instances}", "9e15", "other"]);
        scene.outgate.wait_for_metric("outgate_fleet_instances 2");
        let before = lease_end();
        for_a_period(|| assert_eq!(harm.send(scene.outgate.proxy, &scene.plain_url()).status, 200));
        eventually("the instance announces itself", || lease_end() > before + 1000);
        assert!(has_stored("\"live\":1"), "the disk hangs");
        fs::remove_file(&hang).unwrap();
        eventually("the instance stores it later", || has_stored("\"live\":2"));
    });
    scene.outgate.wait_for_metric("outgate_fleet_store_errors_total 0");

    fs::write(&hang, "").unwrap();
    server.cli(&["zrem", "outgate:{instances}", "other"]);
    scene.outgate.wait_for_metric("outgate_fleet_instances 1");
    scene.outgate.signal("TERM");
    let Scene { mut outgate, .. } = scene;
    assert!(outgate.wait().success(), "outgate ends while the disk hangs");
}

/// Starts outgate with its stderr in a pipe. Returns it, and the path of the pipe. The reader of the pipe is the process
/// whose number is in the file `reader`.
fn with_piped_stderr(config: &Config) -> (Outgate, PathBuf) {
    let folder = folder(&Pki::new());
    let pipe = folder.path("stderr");
    let path = folder.write_config("config.toml", config);
    let mut command = Command::new("sh");
    command.args(["-c", "mkfifo stderr; cat stderr >&2 & echo $! >reader; exec \"$0\" run --config \"$1\" 2>stderr"]);
    command.arg(fs::canonicalize(env!("CARGO_BIN_EXE_outgate")).unwrap()).arg(path);
    command.current_dir(folder.path(""));
    (Outgate::start(command, folder), pipe)
}

#[test]
fn hanging_stderr_harms_no_delivery_and_loses_no_line_that_fits_the_queue() {
    let plain = Receiver::plain(ok());
    let config = config(&plain, &plain, "").add("server.watch", false);
    let (outgate, pipe) = with_piped_stderr(&config);
    let reader = fs::read_to_string(outgate.folder.path("reader")).unwrap();
    let signal = |name: &str| assert!(Command::new("kill").args([name, reader.trim()]).status().unwrap().success());
    let reloads = |count: usize| {
        outgate.replace_config(&config.and(&format!("[limits.l{count}]\nrate = \"1/s\"\n")));
        outgate.signal("HUP");
        outgate.wait_for_metric(&format!("outgate_reloads_total{{result=\"adopted\"}} {count}"));
    };
    let fault = Fault {
        name: "stderr hangs",
        harmed: "no client; log lines beyond the queue are lost",
        reported: "once lines are lost: outgate_log_lines_lost_total, OutgateLogLinesLost",
    };
    let url = format!("http://plain.example:{}/in", plain.port());
    fault.run_by_law(&outgate, &url, &[], |harm| {
        signal("-STOP");
        // The pipe has no more room: the next line of outgate waits.
        let mut full = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        for size in [4096, 1] {
            while full.write_all(&b"\n".repeat(size)).is_ok() {}
        }
        let before = outgate.reloads();
        reloads(1);
        for_a_period(|| assert_eq!(harm.send(outgate.proxy, &url).status, 200));
        assert_eq!(outgate.reloads(), before, "the log hangs");
        assert_eq!(outgate.admin("/readyz").status, 200);
        signal("-CONT");
        outgate.log.wait_for_lines(before + 1, &["configuration reloaded"]);
    });
    reloads(2);
    outgate.wait_for_metric("outgate_log_lines_lost_total 0");
}
