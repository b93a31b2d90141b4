//! A disk that hangs, with the history or the delivery log on it.
//! Does a delivery, a reload or a start wait for the disk?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate, TEST_TIMEOUT, eventually};

/// A library that blocks `opendir` of the history and `open64` of the delivery log while the file exists that
/// `OUTGATE_TEST_HANG` names.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void hold_up(const char *path, const char *end) {
    const char *hang = getenv("OUTGATE_TEST_HANG");
    size_t length = strlen(path), tail = strlen(end);
    if (hang && length > tail && !strcmp(path + length - tail, end))
        while (!access(hang, F_OK)) usleep(10000);
}
DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    hold_up(path, "/history");
    return real(path);
}
int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    hold_up(path, "/deliveries.jsonl");
    return real(path, flags, mode);
}
"#;

struct Scene {
    target: Receiver,
    plain: Receiver,
    folder: Folder,
    shim: PathBuf,
    hang: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let pki = Pki::new();
        let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
        let folder = folder(&pki);
        let (shim, hang) = (folder.build_shim(SHIM), folder.path("hang"));
        Self { target, plain, folder, shim, hang }
    }

    fn text(&self, more: &str) -> Config {
        config(&self.target, &self.plain, more).add("server.workers", 1).push("admin.listen", "unix:{dir}/admin.sock")
    }

    fn run(&self) -> Outgate {
        self.run_with("")
    }

    fn run_with(&self, more: &str) -> Outgate {
        self.folder.write_config("config.toml", &self.text(more));
        let environment: [(&str, &Path); 2] = [("LD_PRELOAD", &self.shim), ("OUTGATE_TEST_HANG", &self.hang)];
        Outgate::run_in_with(Folder::linked(&self.folder), &environment)
    }

    fn hang(&self) {
        std::fs::write(&self.hang, "").unwrap();
    }

    fn release(&self) {
        std::fs::remove_file(&self.hang).unwrap();
    }

    fn deliver(&self, outgate: &Outgate) {
        let url = format!("https://hook.example:{}/in", self.target.port());
        assert_eq!(outgate.post(&url, "", "x").status, 200);
    }

    fn wait_for_entry(&self, number: &str) {
        let entry = self.folder.path("state").join("history").join(number);
        eventually(&format!("configuration {number} is in the history"), || entry.exists());
    }
}

#[test]
fn history_on_a_disk_that_hangs_holds_up_no_delivery_and_no_reload() {
    let scene = Scene::new();
    let outgate = scene.run();
    scene.wait_for_entry("000001");
    scene.hang();
    for number in 2..=4 {
        let text = scene.text(&format!("[limits.l{number}]\nconcurrency = 1\n"));
        let next = scene.folder.write_config("next", &text);
        std::fs::rename(next, scene.folder.path("config.toml")).unwrap();
        let is_adopted = |lines: &[String]| lines.iter().any(|line| line.contains(&format!("number {number},")));
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !is_adopted(&outgate.log.all()) {
            assert!(Instant::now() < deadline, "configuration {number} is not adopted");
            scene.deliver(&outgate);
        }
    }
    scene.release();
    scene.wait_for_entry("000004");
}

#[test]
fn history_on_a_disk_that_hangs_holds_up_no_start() {
    let scene = Scene::new();
    let before = scene.run();
    scene.wait_for_entry("000001");
    drop(before);
    let text = scene.text("[limits.other]\nconcurrency = 1\n");
    scene.hang();
    let outgate = scene.run();
    scene.deliver(&outgate);
    let ready = outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("the disk did not respond"), "{}", ready.text());
    outgate.reconfigure(&text);
    scene.deliver(&outgate);
    scene.release();
    // The configuration of the start is in the history already, so the next one has number 2.
    scene.wait_for_entry("000002");
    eventually("the history is written", || !outgate.admin("/readyz").text().contains("is not in the history"));
    let status = support::control::get(&outgate, "/v1/status").json();
    assert_eq!(status["configuration"]["number"], 2, "{status:#}");
}

#[test]
fn delivery_log_on_a_disk_that_hangs_holds_up_no_start() {
    let scene = Scene::new();
    scene.hang();
    let outgate = scene.run_with("[log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\n");
    scene.deliver(&outgate);
    let is_reported = |outgate: &Outgate| outgate.admin("/readyz").text().contains("the delivery log is not open yet");
    assert!(is_reported(&outgate), "{}", outgate.admin("/readyz").text());
    outgate.log.wait_for_lines(1, &["cannot open the delivery log"]);
    scene.release();
    let records = || std::fs::read_to_string(scene.folder.path("deliveries.jsonl")).unwrap_or_default();
    eventually("the record that waited is written", || records().lines().count() == 1 && !is_reported(&outgate));
}

#[test]
fn delivery_log_that_cannot_be_opened_ends_the_start() {
    let scene = Scene::new();
    // Even root cannot open a folder for writing.
    std::fs::create_dir(scene.folder.path("deliveries.jsonl")).unwrap();
    let text = scene.text("[log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\n");
    let config = scene.folder.write_config("config.toml", &text);
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["run", "--config"]).arg(config).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(73) && printed.contains("cannot open the delivery log"), "{printed}");
}
