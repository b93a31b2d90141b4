//! `outgate deliveries`: the answer to "why did customer X not get webhook Y?".
//! Does the command find a delivery, wherever its record is, and tell its story?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::configuration::Config;
use support::control::{exit_code_and_output, get, run, with_admin_socket};
use support::pki::Pki;
use support::ports::refusing;
use support::process::Process;
use support::receiver::{Receiver, ok};
use support::scene::{Scene, config, folder, scene_of};
use support::{Folder, Outgate, eventually, post};

/// The command on a log of the test's own.
fn deliveries(log: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["deliveries", "--file"]).arg(log).args(words).output().unwrap()
}

fn record(id: &str, time: &str, tenant: &str, code: &str) -> String {
    let record = json!({ "time": time, "request_id": id, "tenant": tenant, "method": "POST", "scheme": "https",
        "host": format!("{tenant}.example"), "port": 443, "path": "/in", "source": "198.51.100.17", "status": 200,
        "status_class": "2xx", "code": code, "blame": "none", "ms": { "total": 12.5 } });
    format!("{record}\n")
}

/// A log of four files: two compressed, one finished, and the one that outgate writes to.
fn log_of_four_files(folder: &Folder) -> PathBuf {
    let write = |name: &str, bytes: Vec<u8>| drop(folder.write(name, bytes));
    let zstd = |text: String| zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    let gzip = |text: String| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let of =
        |day: u8, id: &str, tenant: &str, code: &str| record(id, &format!("2026-11-0{day}T10:00:00Z"), tenant, code);
    write(
        "d-20261101T235959.999Z.jsonl.zst",
        zstd(of(1, "a1", "acme", "delivered") + &of(1, "a2", "other", "delivered")),
    );
    write("d-20261102T235959.999Z.jsonl.gz", gzip(of(2, "b1", "acme", "connect_timeout")));
    write("d-20261103T235959.999Z.jsonl", of(3, "c1", "acme", "delivered").into_bytes());
    folder.write("d.jsonl", of(4, "d1", "other", "no_route") + &of(4, "d2", "acme", "delivered"))
}

/// The ids that the command shows, in their order.
fn ids(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["request_id"].as_str().unwrap().to_owned();
    text.lines().map(id).collect()
}

#[test]
fn deliveries_reads_finished_and_compressed_files_the_newest_record_first() {
    let folder = Folder::new();
    let log = log_of_four_files(&folder);
    let found = |words: &[&str]| ids(&deliveries(&log, &[&["--json"], words].concat()));
    assert_eq!(found(&[]), ["d2", "d1", "c1", "b1", "a2", "a1"]);
    assert_eq!(found(&["--limit", "4"]), ["d2", "d1", "c1", "b1"]);
    assert_eq!(found(&["--tenant", "acme"]), ["d2", "c1", "b1", "a1"]);
    assert_eq!(found(&["--host", "OTHER.example"]), ["d1", "a2"]);
    assert_eq!(found(&["--code", "connect_timeout"]), ["b1"]);
    assert_eq!(found(&["--request-id", "a1"]), ["a1"]);
    assert_eq!(found(&["--source", "198.51.100.17", "--since", "2026-11-03T00:00:00Z"]), ["d2", "d1", "c1"]);
    assert_eq!(found(&["--since", "2026-01-01T00:00:00+09:00", "--tenant", "other"]), ["d1", "a2"]);
    let (code, out, err) = exit_code_and_output(&deliveries(&log, &["--source", "198.51.100.18"]));
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", "outgate: no delivery matches\n"));
    let (code, _, err) = exit_code_and_output(&deliveries(&log, &["--code", "timeout"]));
    assert!(code == 1 && err.contains("no code \"timeout\"; docs/refusals.md lists the codes"), "{err}");
    let (code, out, _) = exit_code_and_output(&deliveries(&log, &["--tenant", "acme"]));
    assert_eq!((code, out.lines().count()), (0, 5), "a head and four rows: {out}");
    assert!(
        out.lines().nth(3).unwrap().contains("connect_timeout") && out.contains("POST https://acme.example/in"),
        "{out}"
    );
}

/// Files that ended before `--since` are not opened: this one would be reported.
#[test]
fn deliveries_skips_files_that_ended_before_since() {
    let folder = Folder::new();
    let log = log_of_four_files(&folder);
    folder.write("d-20261101T235959.999Z.jsonl.zst", "damaged");
    let (code, _, err) = exit_code_and_output(&deliveries(&log, &["--since", "2026-11-02T00:00:00Z"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let output = deliveries(&log, &["--json"]);
    assert_eq!(ids(&output), ["d2", "d1", "c1", "b1"]);
    let (code, _, err) = exit_code_and_output(&output);
    assert!(code == 0 && err.contains("not shown: cannot read ") && err.contains("d-20261101"), "{err}");
}

#[test]
fn deliveries_skips_hostile_lines_and_prints_no_control_characters() {
    let folder = Folder::new();
    let hostile = "\u{1b}]0;title\u{7}\n{\"time\":\"2026-11-04T10:00:00Z\"}\n\u{0}\u{0}\n";
    let evil = record("evil", "2026-11-04T10:00:00Z", "\u{9b}31m\u{1b}[2J", "delivered");
    let long = format!("{}\n", "x".repeat(3 << 20));
    let log = folder.write("d.jsonl", format!("{hostile}{evil}{long}{}", &evil[..40]));
    for words in [&[][..], &["--json"], &["--full"]] {
        let (code, out, err) = exit_code_and_output(&deliveries(&log, words));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("evil") && !out.contains(|c: char| c.is_control() && c != '\n'), "{out:?}");
        assert!(err.contains("5 lines skipped"), "{err}");
    }
    let tenant = serde_json::from_slice::<Value>(&deliveries(&log, &["--json"]).stdout).unwrap()["tenant"].clone();
    assert_eq!(tenant, "\u{9b}31m\u{1b}[2J", "the value is the same");
}

#[test]
fn deliveries_says_that_there_is_nothing_to_read() {
    let folder = Folder::new();
    let (code, _, err) = exit_code_and_output(&deliveries(&folder.path("d.jsonl"), &[]));
    assert!(code == 66 && err.contains("there is nothing to read") && err.contains("log.deliveries"), "{err}");
    fs::create_dir(folder.path("d.jsonl")).unwrap();
    let (code, _, err) = exit_code_and_output(&deliveries(&folder.path("d.jsonl"), &[]));
    assert!(code == 66 && err.contains("cannot read"), "{err}");
    let text = config(&Receiver::plain(ok()), &Receiver::plain(ok()), "");
    let config = folder.write_config("config.toml", &with_admin_socket(&text));
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(["deliveries", "--config"]).arg(config).output().unwrap();
    let (code, _, err) = exit_code_and_output(&output);
    assert!(code == 69 && err.contains("log.deliveries is no file") && err.contains("no process listens"), "{err}");
}

#[test]
fn deliveries_refuses_a_named_pipe_as_a_log() {
    let folder = Folder::new();
    let pipe = folder.path("pipe.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (code, out, err) = exit_code_and_output(&deliveries(&pipe, &[]));
    assert_eq!((code, out.as_str()), (66, ""), "{err}");
    assert!(err.contains("it is no regular file"), "{err}");
}

#[test]
fn deliveries_shows_gaps_where_records_are_missing() {
    let folder = Folder::new();
    let gap = json!({ "time": "2026-11-04T10:00:01Z", "gap": { "lost": 7, "since": "2026-11-04T09:00:00Z",
        "until": "2026-11-04T10:00:01Z", "why": "No space left on device (os error 28)" } });
    let log = folder.write("d.jsonl", record("a", "2026-11-04T08:00:00Z", "acme", "delivered") + &format!("{gap}\n"));
    let (_, out, _) = exit_code_and_output(&deliveries(&log, &["--tenant", "acme"]));
    assert!(out.contains("7 delivery records lost between 2026-11-04T09:00:00.000Z and"), "{out}");
    assert!(out.contains("No space left on device"), "{out}");
    let (_, out, _) = exit_code_and_output(&deliveries(&log, &["--since", "2026-11-05T00:00:00Z"]));
    assert_eq!(out, "");
}

/// The record waits in the memory of the proxy for a while. An id of ten digits is masked in it.
#[test]
fn deliveries_finds_a_delivery_by_its_ids_at_once_and_in_the_file() {
    let mut scene =
        scene_of(&|config: &Config| with_admin_socket(config).add("log.deliveries", "file:{dir}/deliveries.jsonl"));
    let ids_of = |scene: &Scene, words: &[&str]| ids(&run(scene, &[&["deliveries", "--json"], words].concat()));
    let sent = scene.outgate.post(&scene.good_url(), "Webhook-Id: evt_20261126001\r\n", "x");
    let id = sent.field("outgate-request-id").to_owned();
    // A record may follow its response.
    eventually("the record", || ids_of(&scene, &["--request-id", &id]) == [&*id]);
    assert_eq!(ids_of(&scene, &["--webhook-id", "evt_20261126001"]), [&*id]);
    assert_eq!(ids_of(&scene, &["--webhook-id", "evt_1"]), [""; 0]);
    let answer =
        |id: &str| get(&scene.outgate, &format!("/v1/deliveries?webhook_id={id}")).json()["deliveries"].clone();
    assert_eq!(answer("evt_20261126001")[0]["request_id"], *id);
    assert_ne!(answer("evt_20261126001")[0]["webhook_id"], "evt_20261126001", "the record is masked");
    assert_eq!(answer("evt_1"), json!([]));
    // An id that outgate has generated is not masked.
    let generated = scene.outgate.post(&scene.good_url(), "", "x").field("outgate-request-id").to_owned();
    let sent = format!("msg_{generated}");
    eventually("the record", || ids_of(&scene, &["--webhook-id", &sent]) == [&*generated]);
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    for (webhook_id, id) in [("evt_20261126001", &id), (&*format!("msg_{generated}"), &generated)] {
        assert_eq!(ids_of(&scene, &["--webhook-id", webhook_id]), [&**id], "in the file");
    }
}

/// The running proxy has the last deliveries, whatever the log is.
#[test]
fn deliveries_asks_the_running_proxy_if_the_log_is_no_file() {
    for log in ["off", "stdout"] {
        let scene = scene_of(&|config: &Config| with_admin_socket(config).add("log.deliveries", log));
        let ids_of = |words: &[&str]| ids(&run(&scene, &[&["deliveries", "--json"], words].concat()));
        assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
        eventually("the first delivery", || ids_of(&[]).len() == 1);
        let refused = scene.outgate.post("http://nowhere.example/", "", "x");
        eventually("both deliveries", || ids_of(&[]).len() == 2);
        let id = refused.field("outgate-request-id");
        assert_eq!(ids_of(&[])[0], id, "the newest is first");
        assert_eq!(ids_of(&["--code", "no_route"]), [id]);
        assert_eq!(ids_of(&["--host", "hook.example", "--since", "1h"]).len(), 1);
        let (code, out, _) = exit_code_and_output(&run(&scene, &["deliveries", "--request-id", id]));
        assert!(code == 0 && out.contains("no_route") && out.contains("next "), "{out}");
        // Over TCP, outgate does not know the user.
        let answer = scene.outgate.admin("/v1/deliveries");
        assert!(answer.status == 401 && answer.text().contains("unix socket"), "{}", answer.text());
    }
}

#[test]
fn deliveries_request_id_tells_the_steps_the_party_at_fault_and_the_next_step() {
    let (_closed, port) = refusing();
    let scene = scene_of(&|config: &Config| {
        let config =
            with_admin_socket(config).push("routes.*.ports", port).add("log.deliveries", "file:{dir}/deliveries.jsonl");
        config.and("[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\"]\n")
    });
    let tenant = "Outgate-Tenant: acme\r\n";
    let good = scene.outgate.post(&scene.good_url(), tenant, "x");
    let refused = scene.outgate.post(&format!("https://hook.example:{port}/in"), tenant, "x");
    let story = |id: &str| exit_code_and_output(&run(&scene, &["deliveries", "--request-id", id]));
    let has_both = || ids(&run(&scene, &["deliveries", "--json"])).len() == 2;
    eventually("both records", || scene.outgate.folder.path("deliveries.jsonl").exists() && has_both());
    let (code, out, err) = story(good.field("outgate-request-id"));
    assert_eq!((code, err.as_str()), (0, ""));
    for words in [
        "client billing, identified by network, asked from 127.0.0.1 for POST https://hook.example",
        "for tenant acme",
        "route signed matched",
        "the name was resolved, and the guard cleared its addresses",
        "outgate chose the source address 127.0.7.",
        "outgate opened a connection",
        "outgate verified the target's certificate: TLSv1.3",
        "signed by k1",
        "the target responded with status 2xx",
        "the client got status 200 and 2 bytes",
        "none: the target received the webhook",
    ] {
        assert!(out.contains(words), "no {words:?} in\n{out}");
    }
    let (_, out, _) = story(refused.field("outgate-request-id"));
    for words in ["the delivery ended in this step: ", ": refused", "the target hook.example", "firewall rejects"] {
        assert!(out.contains(words), "no {words:?} in\n{out}");
    }
    assert!(out.lines().any(|line| line.starts_with("  connect") && line.contains(" ms  ")), "{out}");
}

#[test]
fn deliveries_follow_goes_on_over_a_rotation() {
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    let log = "[log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\nrotate = { size = \"4 KiB\" }\n";
    let outgate = Outgate::run(folder, &config(&plain, &plain, log));
    // The records of one connection are in the order of its requests.
    let mut client = outgate.connect();
    let mut deliver = || {
        client.send(post(&format!("http://plain.example:{}/in", plain.port()), "", "x"));
        client.response().field("outgate-request-id").to_owned()
    };
    let before = deliver();
    let path = outgate.folder.path("deliveries.jsonl");
    eventually("a record", || fs::read_to_string(&path).unwrap().contains(&before));
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["deliveries", "--follow", "--json", "--file"]).arg(&path);
    let following = Process::start(&mut command);
    // The command has begun to follow once it shows one of these.
    let mut expected = Vec::new();
    eventually("the first record that is followed", || {
        expected.push(deliver());
        !following.lines.all().is_empty()
    });
    let first = following.lines.all()[0].clone();
    let position = expected.iter().position(|id| first.contains(id.as_str())).unwrap();
    expected.extend((0..30).map(|_| deliver()));
    let expected = &expected[position..];
    let shown =
        following.lines.wait_for("every record", |lines| (lines.len() >= expected.len()).then(|| lines.to_vec()));
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(shown.iter().map(id).collect::<Vec<_>>(), expected);
    let finished = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("deliveries-"));
    assert!(finished.count() >= 2, "the log was rotated");
}

#[test]
fn deliveries_follow_shows_what_the_running_proxy_delivers() {
    let scene = scene_of(&with_admin_socket);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["deliveries", "--follow", "--config"]).arg(scene.outgate.folder.path("config.toml"));
    let following = Process::start(&mut command);
    eventually("a row", || {
        scene.outgate.post("http://nowhere.example/", "", "x");
        following.lines.all().iter().any(|line| line.contains(" no_route "))
    });
}
