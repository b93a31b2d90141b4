//! Delivery records in a file that is rotated, full, or cannot be opened.
//! Does an operator learn what becomes of the records?

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

struct Place {
    outgate: Outgate,
    plain: Receiver,
}

/// Records go where `deliveries` says.
fn place(deliveries: &str) -> Place {
    let plain = Receiver::plain(ok());
    let text = config(&plain, &plain, &format!("[log]\ndeliveries = \"{deliveries}\"\n"));
    Place { outgate: Outgate::run(folder(&Pki::new()), &text), plain }
}

impl Place {
    fn deliver(&self) {
        let url = format!("http://plain.example:{}/in", self.plain.port());
        assert_eq!(self.outgate.post(&url, "", "x").status, 200);
    }

    fn logged(&self, words: &str) -> String {
        let found = |lines: &[String]| lines.iter().find(|line| line.contains(words)).cloned();
        self.outgate.log.until(words, found)
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
    let place = Place { outgate: Outgate::run(folder, &text), plain };
    place.deliver();
    place.deliver();
    eventually("two more records", || records(&path) == 3);
    let text = fs::read_to_string(&path).unwrap();
    let codes: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["code"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(codes, ["of a former process", "delivered", "delivered"]);
    assert!(place.outgate.records(0).is_empty(), "nothing goes to stdout");
}

/// logrotate renames the file and sends USR1.
#[test]
fn usr1_reopens_the_delivery_log_after_a_rotation() {
    let place = place("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (place.outgate.folder.path("deliveries.jsonl"), place.outgate.folder.path("rotated"));
    place.deliver();
    eventually("a record", || records(&path) == 1);
    fs::rename(&path, &rotated).unwrap();
    place.deliver();
    eventually("a record in the old file until USR1", || records(&rotated) == 2);
    assert!(!path.exists());
    place.outgate.signal("USR1");
    place.logged("deliveries.jsonl was reopened");
    place.deliver();
    eventually("a record in the new file", || records(&path) == 1);
    assert_eq!(records(&rotated), 2);
}

#[test]
fn usr1_that_cannot_reopen_the_delivery_log_keeps_the_old_file_and_reports_it() {
    let place = place("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (place.outgate.folder.path("deliveries.jsonl"), place.outgate.folder.path("rotated"));
    assert!(place.outgate.has_metric("outgate_log_reopen_failed 0"));
    fs::rename(&path, &rotated).unwrap();
    fs::create_dir(&path).unwrap();
    place.outgate.signal("USR1");
    let line = place.logged("cannot reopen");
    assert!(line.contains("deliveries.jsonl") && line.contains("WARN"), "{line}");
    assert!(place.outgate.has_metric("outgate_log_reopen_failed 1"));
    let ready = place.outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("cannot reopen"), "{}", ready.text());
    place.deliver();
    eventually("a record in the old file", || records(&rotated) == 1);
    // Once it can be opened, it is, without another signal.
    fs::remove_dir(&path).unwrap();
    place.logged("is open again");
    place.deliver();
    eventually("a record in the new file", || records(&path) == 1);
    assert_eq!(records(&rotated), 1);
    assert!(place.outgate.has_metric("outgate_log_reopen_failed 0"));
    assert!(!place.outgate.admin("/readyz").text().contains("reopen"));
}

#[test]
fn usr1_and_hup_without_a_change_are_logged() {
    let place = place("file:{dir}/deliveries.jsonl");
    place.outgate.signal("USR1");
    assert!(place.logged("deliveries.jsonl was reopened").contains("INFO"));
    place.outgate.signal("HUP");
    assert!(place.logged("configuration unchanged: number 1 stays active").contains("INFO"));
}

#[test]
fn usr1_does_not_wait_for_the_reader_of_a_pipe_at_the_path_of_the_log() {
    let place = place("file:{dir}/deliveries.jsonl");
    let (path, rotated) = (place.outgate.folder.path("deliveries.jsonl"), place.outgate.folder.path("rotated"));
    fs::rename(&path, &rotated).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    place.outgate.signal("USR1");
    let line = place.logged("cannot reopen");
    assert!(line.contains("deliveries.jsonl"), "{line}");
    place.deliver();
    eventually("a record in the old file", || records(&rotated) == 1);
    fs::remove_file(&path).unwrap();
    place.logged("is open again");
}

#[test]
fn lost_records_are_reported_in_the_log_with_their_count_and_path() {
    let mut place = place("file:/dev/full");
    (0..3).for_each(|_| place.deliver());
    let line = place.logged("delivery records were lost");
    assert!(line.contains("/dev/full") && line.contains("No space left"), "{line}");
    place.deliver();
    place.outgate.signal("TERM");
    assert!(place.outgate.wait().success());
    place.logged("(4 since the start)");
    let told = |line: &String| -> Option<u32> {
        let (before, _) = line.split_once(" delivery records were lost")?;
        before.rsplit(' ').next()?.parse().ok()
    };
    let lines = place.outgate.log.all();
    let told: Vec<u32> = lines.iter().filter_map(told).collect();
    assert!(told.len() <= 2 && told.iter().sum::<u32>() == 4, "{told:?}");
}

#[test]
fn lost_records_are_reported_for_the_file_that_lost_them_after_a_reload() {
    let place = place("file:/dev/full");
    place.deliver();
    eventually("a lost record", || {
        place.outgate.admin("/readyz").text().contains("1 delivery records could not be written")
    });
    let config = fs::read_to_string(place.outgate.folder.path("config.toml")).unwrap();
    place.outgate.reconfigure(&config.replace_one("/dev/full", "{dir}/deliveries.jsonl"));
    // Once: by the minute's report or by the reload.
    let line = place.logged("delivery records were lost");
    assert!(line.contains("/dev/full cannot be written: No space left"), "{line}");
    // The new file has lost no records.
    assert!(!place.outgate.admin("/readyz").text().contains("delivery records"));
    assert!(place.outgate.has_metric("outgate_records_lost_total 1"), "{}", place.outgate.admin("/metrics").text());
    assert!(
        place.outgate.has_metric("# TYPE outgate_records_lost counter")
            && place.outgate.has_metric("outgate_log_lines_lost_total 0")
    );
    place.deliver();
    eventually("a record in the new file", || records(&place.outgate.folder.path("deliveries.jsonl")) == 1);
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
        let (code, said) = check(wrong);
        assert!(code == 1 && said.contains("outgate cannot write the delivery log"), "{wrong}: {said}");
    }
}
