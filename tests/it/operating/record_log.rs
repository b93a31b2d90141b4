//! Delivery records in a file that is rotated, full, or cannot be opened.
//! Are lost records and failed rotations reported?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, eventually};

struct Scene {
    outgate: Outgate,
    plain: Receiver,
}

/// Starts a proxy with this destination of delivery records, which another program rotates.
fn scene(deliveries: &str) -> Scene {
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, &format!("[log]\ndeliveries = \"{deliveries}\"\nrotate = false\n"));
    Scene { outgate: Outgate::run(folder(&Pki::new()), &text), plain }
}

impl Scene {
    fn deliver(&self) {
        let url = format!("http://plain.example:{}/in", self.plain.port());
        assert_eq!(self.outgate.post(&url, "", "x").status, 200);
    }

    fn wait_for_log_line(&self, words: &str) -> String {
        let found = |lines: &[String]| lines.iter().find(|line| line.contains(words)).cloned();
        self.outgate.log.wait_for(words, found)
    }
}

fn records(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn delivery_log_in_a_file_gets_one_line_of_json_for_each_delivery() {
    let folder = folder(&Pki::new());
    let path = folder.write("deliveries.jsonl", "{\"code\":\"of a former process\"}\n");
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, "[log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\n");
    let scene = Scene { outgate: Outgate::run(folder, &text), plain };
    scene.deliver();
    scene.deliver();
    eventually("two more records", || records(&path) == 3);
    let text = fs::read_to_string(&path).unwrap();
    let codes: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["code"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(codes, ["of a former process", "delivered", "delivered"]);
    assert!(scene.outgate.records(0).is_empty(), "nothing goes to stdout");
}

/// logrotate renames the file and sends USR1.
#[test]
fn usr1_reopens_the_delivery_log_after_a_rotation() {
    let scene = scene("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (scene.outgate.folder.path("deliveries.jsonl"), scene.outgate.folder.path("rotated"));
    scene.deliver();
    eventually("a record", || records(&path) == 1);
    fs::rename(&path, &rotated).unwrap();
    scene.deliver();
    eventually("a record in the old file until USR1", || records(&rotated) == 2);
    assert!(!path.exists());
    scene.outgate.signal("USR1");
    scene.wait_for_log_line("deliveries.jsonl was reopened");
    scene.deliver();
    eventually("a record in the new file", || records(&path) == 1);
    assert_eq!(records(&rotated), 2);
}

#[test]
fn usr1_that_cannot_reopen_the_delivery_log_keeps_the_old_file_and_reports_it() {
    let scene = scene("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (scene.outgate.folder.path("deliveries.jsonl"), scene.outgate.folder.path("rotated"));
    assert!(scene.outgate.has_metric("outgate_log_reopen_failed 0"));
    fs::rename(&path, &rotated).unwrap();
    fs::create_dir(&path).unwrap();
    scene.outgate.signal("USR1");
    let line = scene.wait_for_log_line("cannot reopen");
    assert!(line.contains("deliveries.jsonl") && line.contains("WARN"), "{line}");
    assert!(scene.outgate.has_metric("outgate_log_reopen_failed 1"));
    let ready = scene.outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("cannot reopen"), "{}", ready.text());
    scene.deliver();
    eventually("a record in the old file", || records(&rotated) == 1);
    // outgate opens the file as soon as possible, without another signal.
    fs::remove_dir(&path).unwrap();
    scene.wait_for_log_line("is open again");
    scene.deliver();
    eventually("a record in the new file", || records(&path) == 1);
    assert_eq!(records(&rotated), 1);
    assert!(scene.outgate.has_metric("outgate_log_reopen_failed 0"));
    assert!(!scene.outgate.admin("/readyz").text().contains("reopen"));
}

#[test]
fn usr1_and_hup_without_a_change_are_logged() {
    let scene = scene("file:{dir}/deliveries.jsonl");
    scene.outgate.signal("USR1");
    assert!(scene.wait_for_log_line("deliveries.jsonl was reopened").contains("INFO"));
    scene.outgate.signal("HUP");
    assert!(scene.wait_for_log_line("configuration unchanged: number 1 stays active").contains("INFO"));
}

#[test]
fn usr1_does_not_wait_for_the_reader_of_a_pipe_at_the_path_of_the_log() {
    let scene = scene("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (scene.outgate.folder.path("deliveries.jsonl"), scene.outgate.folder.path("rotated"));
    fs::rename(&path, &rotated).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    scene.outgate.signal("USR1");
    let line = scene.wait_for_log_line("cannot reopen");
    assert!(line.contains("deliveries.jsonl"), "{line}");
    scene.deliver();
    eventually("a record in the old file", || records(&rotated) == 1);
    fs::remove_file(&path).unwrap();
    scene.wait_for_log_line("is open again");
}

#[test]
fn lost_records_are_reported_in_the_log_with_their_count_and_path() {
    let mut scene = scene("file:/dev/full");
    (0..3).for_each(|_| scene.deliver());
    let line = scene.wait_for_log_line("since the start): ");
    assert!(line.contains("/dev/full") && line.contains("No space left"), "{line}");
    scene.deliver();
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    scene.wait_for_log_line("(4 since the start)");
    let lost_counts = |line: &String| -> Option<u32> {
        let (before, _) = line.split_once(" since the start)")?;
        let (_, lost) = before.rsplit_once("lost ")?;
        lost.split(' ').next()?.parse().ok()
    };
    let lines = scene.outgate.log.all();
    let lost_counts: Vec<u32> = lines.iter().filter_map(lost_counts).collect();
    assert!(lost_counts.len() <= 2 && lost_counts.iter().sum::<u32>() == 4, "{lost_counts:?}");
}

#[test]
fn lost_records_are_reported_for_the_file_that_lost_them_after_a_reload() {
    let scene = scene("file:/dev/full");
    scene.deliver();
    eventually("a lost record", || {
        scene.outgate.admin("/readyz").text().contains("1 delivery record could not be written")
    });
    let config = fs::read_to_string(scene.outgate.folder.path("config.toml")).unwrap();
    scene.outgate.reconfigure(&config.replace_one("/dev/full", "{dir}/deliveries.jsonl"));
    // The periodic report or the reload logs the loss, and only one of them.
    let line = scene.wait_for_log_line("since the start): ");
    assert!(line.contains("/dev/full cannot be written: No space left"), "{line}");
    // The new file has lost no records.
    assert!(!scene.outgate.admin("/readyz").text().contains("could not be written"));
    assert!(scene.outgate.has_metric("outgate_records_lost_total 1"), "{}", scene.outgate.admin("/metrics").text());
    assert!(
        scene.outgate.has_metric("# TYPE outgate_records_lost_total counter")
            && scene.outgate.has_metric("outgate_log_lines_lost_total 0")
    );
    scene.deliver();
    eventually("a record in the new file", || records(&scene.outgate.folder.path("deliveries.jsonl")) == 1);
}

#[test]
fn check_tests_that_the_delivery_log_can_be_written() {
    let plain = Receiver::plain(ok());
    let check = |deliveries: &str| {
        let folder = folder(&Pki::new());
        let text = config(&plain, &plain, &format!("[log]\ndeliveries = \"{deliveries}\"\n"));
        let path = folder.write_config("config.toml", &text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(path).output().unwrap();
        assert!(!folder.path("new.jsonl").exists(), "check creates nothing");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("file:{dir}/new.jsonl").0, 0);
    for wrong in ["file:{dir}/missing/new.jsonl", "file:{dir}/", "file:{dir}/key/new.jsonl"] {
        let (code, printed) = check(wrong);
        assert!(code == 1 && printed.contains("outgate cannot write the delivery log"), "{wrong}: {printed}");
    }
}
