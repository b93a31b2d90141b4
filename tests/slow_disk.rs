//! A disk that hangs below the history of adopted configurations.
//! Does a delivery, a reload or a start wait for it?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate, PATIENCE};

/// Holds up whoever lists the history for as long as the file is there that `OUTGATE_TEST_HANG` names.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    const char *hang = getenv("OUTGATE_TEST_HANG");
    size_t length = strlen(path);
    if (hang && length > 8 && !strcmp(path + length - 8, "/history"))
        while (!access(hang, F_OK)) usleep(10000);
    return real(path);
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
        let (source, shim, hang) = (folder.write("shim.c", SHIM), folder.path("shim.so"), folder.path("hang"));
        // The C compiler that builds the cryptography.
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&shim, &source]).arg("-ldl").status();
        assert!(built.unwrap().success());
        Self { target, plain, folder, shim, hang }
    }

    fn text(&self, more: &str) -> String {
        config(&self.target, &self.plain, more).replace("[server]", "[server]\nworkers = 1")
    }

    fn run(&self) -> Outgate {
        let text = self.text("").replace("{dir}", &self.folder.path("").display().to_string());
        self.folder.write("config.toml", text);
        let environment: [(&str, &Path); 2] = [("LD_PRELOAD", &self.shim), ("OUTGATE_TEST_HANG", &self.hang)];
        Outgate::run_in_with(Folder::linked(&self.folder), &environment)
    }

    fn hang(&self) {
        std::fs::write(&self.hang, "").unwrap();
    }

    fn go_on(&self) {
        std::fs::remove_file(&self.hang).unwrap();
    }

    fn deliver(&self, outgate: &Outgate) {
        let url = format!("https://hook.example:{}/in", self.target.port());
        assert_eq!(outgate.post(&url, "", "x").status, 200);
    }

    fn until_kept(&self, number: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.folder.path("state").join("history").join(number).exists() {
            assert!(Instant::now() < deadline, "configuration {number} is not kept");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn history_on_a_disk_that_hangs_holds_up_neither_deliveries_nor_reloads() {
    let scene = Scene::new();
    let outgate = scene.run();
    scene.until_kept("000001");
    scene.hang();
    for number in 2..=4 {
        let text = scene.text(&format!("[limits.l{number}]\nconcurrency = 1\n"));
        let next = text.replace("{dir}", &scene.folder.path("").display().to_string());
        let next = scene.folder.write("next", next);
        std::fs::rename(next, scene.folder.path("config.toml")).unwrap();
        let is_adopted = |lines: &[String]| lines.iter().any(|line| line.contains(&format!("number {number},")));
        let deadline = Instant::now() + PATIENCE;
        while !is_adopted(&outgate.log.all()) {
            assert!(Instant::now() < deadline, "configuration {number} is not adopted");
            scene.deliver(&outgate);
        }
    }
    scene.go_on();
    scene.until_kept("000004");
}

#[test]
fn history_on_a_disk_that_hangs_holds_up_no_start() {
    let scene = Scene::new();
    let before = scene.run();
    scene.until_kept("000001");
    drop(before);
    let text = scene.text("[limits.other]\nconcurrency = 1\n");
    scene.hang();
    let outgate = scene.run();
    scene.deliver(&outgate);
    let ready = outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("the disk has not answered"), "{}", ready.text());
    outgate.reconfigure(&text);
    scene.deliver(&outgate);
    scene.go_on();
    // What the process started with was kept already: it has that number, and the next one counts on.
    scene.until_kept("000002");
    let deadline = Instant::now() + PATIENCE;
    while outgate.admin("/readyz").text().contains("is not kept") {
        assert!(Instant::now() < deadline, "{}", outgate.admin("/readyz").text());
    }
    let status = outgate.admin("/status").json();
    assert_eq!(status["configuration"]["number"], 2, "{status:#}");
}
