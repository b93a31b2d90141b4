//! The files of the delivery log: rotation, compression, retention, and what a crash, a full disk or `rm` leaves.
//! Is every record in exactly one file, and does the traffic go on?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate, eventually, required};

/// Receivers, and the folder `log` in which the delivery log is.
struct LogScene {
    plain: Receiver,
    folder: Folder,
    log: PathBuf,
}

impl LogScene {
    fn new() -> Self {
        let folder = folder(&Pki::new());
        let log = folder.path("log");
        fs::create_dir(&log).unwrap();
        Self { plain: Receiver::plain(ok()), folder, log }
    }

    /// A configuration with these keys of `[log]`.
    fn config(&self, keys: &str) -> Config {
        let log = format!("[log]\ndeliveries = \"file:{{dir}}/log/deliveries.jsonl\"\n{keys}\n");
        config(&self.plain, &self.plain, &log)
    }

    fn run(&self, keys: &str) -> Outgate {
        Outgate::run(Folder::linked(&self.folder), &self.config(keys))
    }

    fn deliver(&self, outgate: &Outgate, count: usize) {
        let url = format!("http://plain.example:{}/in", self.plain.port());
        (0..count).for_each(|_| assert_eq!(outgate.post(&url, "", "x").status, 200));
    }

    fn active(&self) -> PathBuf {
        self.log.join("deliveries.jsonl")
    }

    /// The names of the finished files, in their order.
    fn finished(&self) -> Vec<String> {
        let names = fs::read_dir(&self.log).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "deliveries.jsonl").collect();
        names.sort();
        names
    }

    /// Of a file that is compressed at the moment, the whole form counts.
    fn lines(&self) -> Vec<Value> {
        let names = self.finished();
        let is_compressed = |name: &String| [".zst", ".gz"].iter().any(|end| names.contains(&format!("{name}{end}")));
        let paths = names.iter().filter(|name| !is_compressed(name)).map(|name| self.log.join(name));
        paths.chain([self.active()]).flat_map(|path| lines(&path)).collect()
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.lines().iter().filter_map(id).collect();
        ids.sort();
        ids
    }

    /// Waits until this number of records is there, each of them once.
    fn wait_for_records(&self, count: usize) {
        eventually(&format!("{count} records, each once"), || {
            let mut ids = self.ids();
            let found = ids.len();
            ids.dedup();
            found == count && ids.len() == count
        });
    }
}

/// A line of the log, of now: a file whose first line is older than a day is rotated.
fn record(id: &str) -> String {
    json!({ "time": jiff::Timestamp::now(), "request_id": id, "code": "delivered" }).to_string() + "\n"
}

fn id(line: &Value) -> Option<String> {
    line["request_id"].as_str().map(str::to_owned)
}

/// The lines of a file, which may be compressed. A file that is gone or not whole has none.
fn lines(path: &Path) -> Vec<Value> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let mut text = String::new();
    let read = match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => zstd::stream::read::Decoder::new(file).unwrap().read_to_string(&mut text),
        Some("gz") => flate2::read::GzDecoder::new(file).read_to_string(&mut text),
        Some("tmp") => Ok(0),
        _ => File::read_to_string(&mut { file }, &mut text),
    };
    read.unwrap();
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{}: {line}", path.display()));
    // The last line may not be whole yet.
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parsed).collect()
}

#[test]
fn delivery_log_is_rotated_by_size_and_compressed_without_the_loss_of_a_record() {
    for (compress, ending) in [("zstd", ".jsonl.zst"), ("gzip", ".jsonl.gz"), ("none", ".jsonl")] {
        let scene = LogScene::new();
        let outgate = scene.run(&format!("rotate = {{ size = \"4 KiB\", compress = \"{compress}\" }}"));
        // Batches are written every 50 ms: each of these is a batch of its own or a few.
        for written in 1..=20 {
            scene.deliver(&outgate, 1);
            scene.wait_for_records(written);
        }
        let is_done = |names: &[String]| names.len() >= 2 && names.iter().all(|name| name.ends_with(ending));
        eventually(compress, || is_done(&scene.finished()));
        scene.wait_for_records(20);
        let size = fs::metadata(scene.active()).unwrap().len();
        assert!(size <= 4096, "{compress}: {size} bytes");
    }
}

#[test]
fn delivery_log_is_rotated_by_age_even_without_traffic() {
    let scene = LogScene::new();
    let outgate = scene.run("rotate = { age = \"1s\" }");
    scene.deliver(&outgate, 1);
    eventually("a finished file", || scene.finished().iter().any(|name| name.ends_with(".zst")));
    assert_eq!(fs::metadata(scene.active()).unwrap().len(), 0);
    scene.wait_for_records(1);
}

#[test]
fn delivery_log_deletes_files_that_are_older_than_keep() {
    let scene = LogScene::new();
    let old = "deliveries-20250101T000000.000Z.jsonl.zst";
    let young = jiff::Timestamp::now().strftime("deliveries-%Y%m%dT%H%M%S%.3fZ.jsonl.gz").to_string();
    for name in [old, &young, "deliveries-old.jsonl", "other-20250101T000000.000Z.jsonl.zst"] {
        fs::write(scene.log.join(name), "").unwrap();
    }
    let outgate = scene.run("rotate = { keep = \"180d\" }");
    eventually("the old file is deleted", || !scene.log.join(old).exists());
    assert_eq!(scene.finished().len(), 3, "{:?}", scene.finished());
    outgate.log.wait_for_lines(1, &["deleted 1 file of the delivery log", "older than log.rotate.keep"]);
}

#[test]
fn delivery_log_deletes_the_oldest_files_beyond_total() {
    let scene = LogScene::new();
    let name = |hours: i64| {
        let time = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        time.strftime("deliveries-%Y%m%dT%H%M%S%.3fZ.jsonl").to_string()
    };
    let names: Vec<String> = (0..5).rev().map(name).collect();
    names.iter().for_each(|name| fs::write(scene.log.join(name), vec![b'x'; 5000]).unwrap());
    let outgate = scene.run("rotate = { size = \"4 KiB\", total = \"12 KiB\", compress = \"none\" }");
    eventually("the newest two are left", || scene.finished() == names[3..]);
    outgate.log.wait_for_lines(1, &["deleted 3 files of the delivery log", "more than log.rotate.total"]);
}

#[test]
fn delivery_log_that_ends_within_a_record_is_cut_and_has_a_gap() {
    let scene = LogScene::new();
    fs::write(scene.active(), format!("{}{{\"time\":\"2026-11-26T00:0", record("before"))).unwrap();
    let outgate = scene.run("");
    outgate.log.wait_for_lines(1, &["ended within a record: outgate cut its 24 bytes"]);
    scene.deliver(&outgate, 1);
    eventually("three lines", || lines(&scene.active()).len() == 3);
    let found = lines(&scene.active());
    assert_eq!((&found[0]["request_id"], &found[1]["gap"]["lost"]), (&"before".into(), &1.into()));
    assert!(found[1]["gap"]["why"].as_str().unwrap().contains("a former process ended"), "{}", found[1]);
}

/// What is no record is not outgate's to delete: the line is ended, and records follow.
#[test]
fn delivery_log_that_ends_within_another_text_keeps_it() {
    let scene = LogScene::new();
    fs::write(scene.active(), "not a record").unwrap();
    let outgate = scene.run("");
    scene.deliver(&outgate, 1);
    eventually("a record", || fs::read_to_string(scene.active()).unwrap().lines().count() == 2);
    assert!(fs::read_to_string(scene.active()).unwrap().starts_with("not a record\n{"));
}

#[test]
fn kill_in_the_middle_of_writing_loses_no_line_that_was_written() {
    let scene = LogScene::new();
    let outgate = scene.run("rotate = { size = \"4 KiB\" }");
    scene.deliver(&outgate, 12);
    scene.wait_for_records(12);
    outgate.signal("KILL");
    drop(outgate);
    let outgate = scene.run("rotate = { size = \"4 KiB\" }");
    scene.deliver(&outgate, 3);
    scene.wait_for_records(15);
}

#[test]
fn compression_that_a_crash_has_cut_is_done_again() {
    let scene = LogScene::new();
    let now = jiff::Timestamp::now();
    let name = |seconds: i64| {
        let time = now - jiff::SignedDuration::from_secs(seconds);
        scene.log.join(time.strftime("deliveries-%Y%m%dT%H%M%S%.3fZ.jsonl").to_string())
    };
    let ending = |path: &Path, ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
    let whole = |text: &str| zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    // One that was cut, one whose source was not deleted yet, and a temporary file of one that is gone.
    let (cut, done, gone) = (name(30), name(20), name(10));
    fs::write(&cut, record("cut")).unwrap();
    fs::write(ending(&cut, ".zst.tmp"), &whole(&record("cut"))[..20]).unwrap();
    fs::write(&done, record("done")).unwrap();
    fs::write(ending(&done, ".zst"), whole(&record("done"))).unwrap();
    fs::write(ending(&gone, ".zst.tmp"), "rest").unwrap();
    let _outgate = scene.run("");
    let files = || scene.finished().iter().map(|name| scene.log.join(name)).collect::<Vec<_>>();
    eventually("two compressed files", || files() == [ending(&cut, ".zst"), ending(&done, ".zst")]);
    assert_eq!(scene.ids(), ["cut", "done"]);
}

#[test]
fn deleted_delivery_log_is_created_again_with_its_folder() {
    let scene = LogScene::new();
    let outgate = scene.run("");
    scene.deliver(&outgate, 1);
    scene.wait_for_records(1);
    fs::remove_file(scene.active()).unwrap();
    scene.deliver(&outgate, 1);
    scene.wait_for_records(1);
    outgate.log.wait_for_lines(1, &["deliveries.jsonl was deleted: records now go to the file at this path"]);
    fs::remove_dir_all(&scene.log).unwrap();
    scene.deliver(&outgate, 1);
    eventually("a record in a new folder", || lines(&scene.active()).len() == 1);
    assert!(outgate.has_metric("outgate_records_lost_total 0"));
}

#[test]
fn delivery_log_whose_folder_cannot_be_created_again_has_a_gap_once_it_can() {
    let scene = LogScene::new();
    let outgate = scene.run("");
    scene.deliver(&outgate, 1);
    scene.wait_for_records(1);
    // outgate may create the folder again between the two.
    eventually("a file where the folder was", || {
        let _ = fs::remove_dir_all(&scene.log);
        fs::write(&scene.log, "a file where the folder was").is_ok()
    });
    outgate
        .log
        .wait_for_lines(1, &["was deleted, and cannot be opened again", "delivery records are lost until it can"]);
    scene.deliver(&outgate, 2);
    outgate.wait_for_metric("outgate_records_lost_total 2");
    assert!(outgate.admin("/readyz").text().contains("2 delivery records could not be written"));
    fs::remove_file(&scene.log).unwrap();
    // The gap is written without a further delivery.
    eventually("the gap", || lines(&scene.active()).len() == 1);
    let gap = &lines(&scene.active())[0]["gap"];
    assert!(gap["lost"] == 2 && gap["since"].is_string() && gap["until"].is_string(), "{gap}");
    eventually("ready without a complaint", || !outgate.admin("/readyz").text().contains("could not be written"));
    scene.deliver(&outgate, 1);
    scene.wait_for_records(1);
}

/// A filesystem of 64 KiB in a mount namespace: skipped where none can be made, required with `OUTGATE_TEST_ALL=1`.
#[test]
fn full_disk_loses_counted_records_and_the_log_goes_on_after_a_gap() {
    let scene = LogScene::new();
    let shell = "mount -t tmpfs -o size=64k tmpfs \"$0\" && exec \"$@\"";
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", shell]).arg(&scene.log);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        assert!(!required(), "this host cannot make mount namespaces");
        return;
    }
    scene.folder.write_config("config.toml", &scene.config("rotate = false"));
    let mut command = unshare();
    command.args([env!("CARGO_BIN_EXE_outgate"), "run", "--config"]).arg(scene.folder.path("config.toml"));
    let outgate = Outgate::start(command, Folder::linked(&scene.folder));
    let inside = PathBuf::from(format!("/proc/{}/root{}", outgate.pid(), scene.log.display()));
    let log = inside.join("deliveries.jsonl");
    let filler = inside.join("filler");
    fs::write(&filler, vec![0; 48 * 1024]).unwrap();
    let mut delivered = 0;
    let lost = || {
        let metrics = outgate.admin("/metrics").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("outgate_records_lost_total ")).unwrap();
        line.parse::<usize>().unwrap()
    };
    eventually("a lost record", || {
        scene.deliver(&outgate, 10);
        delivered += 10;
        lost() > 0
    });
    outgate.log.wait_for_lines(1, &["lost ", " delivery record", "No space left on device"]);
    let gaps = || lines(&log).iter().filter_map(|line| line["gap"]["lost"].as_u64()).sum::<u64>() as usize;
    let records = || lines(&log).iter().filter_map(id).count();
    eventually("every record is written or lost", || records() + lost() == delivered);
    fs::remove_file(&filler).unwrap();
    eventually("the gap has every lost record", || gaps() == lost());
    scene.deliver(&outgate, 1);
    eventually("records and gaps are all deliveries", || records() + gaps() == delivered + 1);
    assert_eq!(gaps(), lost());
}

#[test]
fn reload_changes_the_rotation_without_a_restart_or_a_lost_record() {
    let scene = LogScene::new();
    let outgate = scene.run("rotate = false");
    scene.deliver(&outgate, 12);
    scene.wait_for_records(12);
    assert_eq!(scene.finished(), [""; 0]);
    outgate.reconfigure(&scene.config("rotate = { size = \"4 KiB\", compress = \"gzip\" }"));
    eventually("a finished file", || scene.finished().iter().any(|name| name.ends_with(".gz")));
    outgate.reconfigure(&scene.config("rotate = { size = \"8 KiB\", compress = \"zstd\" }"));
    scene.deliver(&outgate, 24);
    eventually("a file in the other form", || scene.finished().iter().any(|name| name.ends_with(".zst")));
    scene.wait_for_records(36);
}

/// During an upgrade two processes write to one log.
#[test]
fn two_processes_rotate_one_delivery_log_without_the_loss_of_a_record() {
    let scene = LogScene::new();
    let rotate = "rotate = { size = \"4 KiB\" }";
    let (old, new) = (scene.run(rotate), scene.run(rotate));
    let mut count = 0;
    // How many records a file has depends on how many come while one process rotates.
    eventually("compressed files", || {
        scene.deliver(&old, 2);
        scene.deliver(&new, 2);
        count += 4;
        scene.wait_for_records(count);
        count >= 40 && scene.finished().iter().filter(|name| name.ends_with(".zst")).count() >= 3
    });
    scene.wait_for_records(count);
}

#[test]
fn rotation_that_fails_keeps_the_file_and_is_reported() {
    let scene = LogScene::new();
    // A folder has the name of the compressed file, so the compression cannot end.
    let name = jiff::Timestamp::now().strftime("deliveries-%Y%m%dT%H%M%S%.3fZ.jsonl").to_string();
    fs::write(scene.log.join(&name), record("a")).unwrap();
    fs::create_dir(scene.log.join(format!("{name}.zst.tmp"))).unwrap();
    let outgate = scene.run("");
    outgate.log.wait_for_lines(1, &["cannot rotate, compress or delete files of the delivery log", "deliveries.jsonl"]);
    assert!(outgate.admin("/readyz").text().contains("cannot rotate, compress or delete files"));
    scene.deliver(&outgate, 1);
    eventually("a record", || lines(&scene.active()).len() == 1);
    assert!(scene.log.join(&name).exists());
}

/// An operator may keep the log on another disk.
#[test]
fn rotation_follows_a_symbolic_link_and_leaves_the_link() {
    let scene = LogScene::new();
    let elsewhere = scene.folder.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("deliveries.jsonl"), scene.active()).unwrap();
    let outgate = scene.run("rotate = { age = \"1s\" }");
    scene.deliver(&outgate, 1);
    let finished = || {
        let names = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".zst")).count()
    };
    eventually("a finished file on the other disk", || finished() == 1);
    assert!(scene.active().is_symlink() && elsewhere.join("deliveries.jsonl").exists());
    assert_eq!(scene.finished(), [""; 0]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let output = command.args(["deliveries", "--json", "--file"]).arg(scene.active()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
}
