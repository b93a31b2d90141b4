//! Captures, which their tenant opens with the command `age`, and which `outgate captures` manages.
//! Does a capture contain what passed, for its tenant only, while its store works or not?
//!
//! Needs Debian's `age`: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use support::audit::{records_in, verify};
use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok, respond_and_close, respond_with};
use support::scene::{config, folder};
use support::{Folder, Outgate, Response, eventually};

const TENANTS: [&str; 2] = ["acme", "globex"];

struct Scene {
    outgate: Outgate,
    receiver: Receiver,
    /// The private keys, which the operator does not have.
    keys: Folder,
}

/// Returns whether `age` and `ssh-keygen` are installed.
pub(super) fn is_age_installed() -> bool {
    let has = |program: &str, argument| {
        Command::new(program)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    let installed = has("age", "--version") && has("ssh-keygen", "-?");
    assert!(installed || !support::required(), "age or ssh-keygen is missing");
    installed
}

/// Generates an X25519 key, and returns the recipient.
pub(super) fn new_recipient(keys: &Folder, name: &str) -> String {
    let path = keys.path(name);
    assert!(Command::new("age-keygen").arg("-o").arg(&path).stderr(Stdio::null()).status().unwrap().success());
    let output = Command::new("age-keygen").arg("-y").arg(&path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn new_ssh_recipient(keys: &Folder, name: &str, kind: &[&str]) -> String {
    let path = keys.path(name);
    let mut command = Command::new("ssh-keygen");
    assert!(command.args(["-q", "-N", "", "-f"]).arg(&path).args(["-t"]).args(kind).status().unwrap().success());
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

fn until(hours: i64) -> String {
    (Timestamp::now() + SignedDuration::from_hours(hours)).to_string()
}

pub(super) fn text(receiver: &Receiver, more: &str) -> Config {
    let client = "[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";
    let capture = format!(
        "[captures.support]\nroutes = [\"plain\"]\nrecipients_dir = \"{{dir}}/recipients\"\nstore = \"{{dir}}/captures\"\n\
         until = \"{}\"\n{more}\n",
        until(1)
    );
    let config = config(receiver, receiver, &format!("{client}{capture}"));
    config.push("admin.listen", "unix:{dir}/admin.sock").add("audit.file", "{dir}/audit/audit.jsonl")
}

fn scene(reaction: Reaction, more: &str) -> Scene {
    let (receiver, keys, folder) = (Receiver::plain(reaction), Folder::new(), folder(&Pki::new()));
    fs::create_dir(folder.path("recipients")).unwrap();
    fs::create_dir(folder.path("audit")).unwrap();
    for tenant in TENANTS {
        folder.write(&format!("recipients/{tenant}"), new_recipient(&keys, tenant));
    }
    let config = text(&receiver, more);
    Scene { outgate: Outgate::run(folder, &config), receiver, keys }
}

impl Scene {
    fn post(&self, tenant: &str, fields: &str, body: &str) -> Response {
        let url = format!("http://plain.example:{}/in?to=%2B819012345678", self.receiver.port());
        self.outgate.post(&url, &format!("Outgate-Tenant: {tenant}\r\n{fields}"), body)
    }

    fn store(&self) -> PathBuf {
        self.outgate.folder.path("captures/support")
    }

    /// Waits for the capture of a request, and returns its path.
    fn stored(&self, response: &Response) -> PathBuf {
        let id = response.field("outgate-request-id");
        let mut found = None;
        eventually("the capture is stored", || {
            found = files(&self.store()).into_iter().find(|path| path.to_str().unwrap().contains(id));
            found.is_some()
        });
        found.unwrap()
    }

    fn captured(&self, tenant: &str, response: &Response) -> Value {
        let path = self.stored(response);
        assert!(path.starts_with(self.store().join(tenant)), "{}", path.display());
        serde_json::from_slice(&self.open(tenant, &path).unwrap()).unwrap()
    }

    /// Opens a capture with `age` and a private key.
    fn open(&self, key: &str, path: &Path) -> Option<Vec<u8>> {
        let output = Command::new("age").arg("--decrypt").arg("--identity").arg(self.keys.path(key)).arg(path).output();
        let output = output.unwrap();
        output.status.success().then_some(output.stdout)
    }

    /// Erases captures, and returns the proofs, of which the last is empty.
    fn erase(&self, arguments: &[&str]) -> Vec<Value> {
        let output = run_json(&self.outgate, &[&["erase"], arguments].concat());
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for audit records of a type.
    fn recorded(&self, event_type: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        eventually(&format!("{count} records of {event_type}"), || {
            found = records_in(&self.outgate.folder.path("audit/audit.jsonl"));
            found.retain(|record| record["event_type"] == event_type);
            found.len() >= count
        });
        found
    }
}

/// Runs `outgate captures`.
pub(super) fn run(outgate: &Outgate, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.arg("captures").args(arguments).arg("--config").arg(outgate.folder.path("config.toml"));
    command.output().unwrap()
}

fn run_json(outgate: &Outgate, arguments: &[&str]) -> Vec<u8> {
    let output = run(outgate, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

pub(super) fn list(outgate: &Outgate, arguments: &[&str]) -> Vec<Value> {
    serde_json::from_slice(&run_json(outgate, &[&["list"], arguments].concat())).unwrap()
}

/// Waits until outgate has counted this many captures with this result.
pub(super) fn wait_for_result(outgate: &Outgate, result: &str, count: usize) {
    let metric = format!("outgate_captures_total{{capture=\"support\",result=\"{result}\"}} {count}");
    outgate.wait_for_metric(&metric);
}

/// Returns the sealed captures below a folder.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    let mut files: Vec<_> = entries.flat_map(below).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "age"));
    files.sort();
    files
}

#[test]
fn captures_contain_the_exchange_and_open_with_the_tenants_key_only() {
    if !is_age_installed() {
        return;
    }
    let reaction =
        respond_with("HTTP/1.1 202 Accepted\r\nX-Trace: t1\r\nSet-Cookie: s=s3cret\r\nContent-Length: 4\r\n\r\ndone");
    let scene = scene(reaction, "");
    let response =
        scene.post("acme", "Webhook-Id: evt_1\r\nX-Kind: paid\r\nAuthorization: Bearer s3cret\r\n", "{\"n\": 1.0}");
    assert_eq!(response.status, 202);
    let captured = scene.captured("acme", &response);
    assert_eq!(captured["request_id"], response.field("outgate-request-id"));
    assert_eq!(captured["tenant"], "acme");
    assert_eq!(captured["webhook_id"], "evt_1");
    assert_eq!(captured["target"], format!("http://plain.example:{}", scene.receiver.port()));
    assert_eq!(captured["request"]["method"], "POST");
    assert_eq!(captured["request"]["path"], "/in?to=%2B819012345678");
    assert_eq!(captured["request"]["body"]["text"], "{\"n\": 1.0}");
    assert_eq!(captured["request"]["body"]["complete"], true);
    let fields = captured["request"]["headers"].as_array().unwrap();
    assert!(
        fields.contains(&json!(["X-Kind", "paid"])) && fields.contains(&json!(["Authorization", "***"])),
        "{fields:?}"
    );
    assert!(!fields.iter().any(|field| field[0].as_str().unwrap().starts_with("outgate")), "{fields:?}");
    assert_eq!(captured["response"]["status"], 202);
    assert_eq!(captured["response"]["body"]["text"], "done");
    let fields = captured["response"]["headers"].as_array().unwrap();
    assert!(fields.contains(&json!(["X-Trace", "t1"])) && fields.contains(&json!(["Set-Cookie", "***"])), "{fields:?}");

    // Neither another tenant nor a reader of the disk finds what it contains.
    let path = scene.stored(&response);
    assert_eq!(scene.open("globex", &path), None);
    let sealed = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    assert!(sealed.starts_with("age-encryption.org/v1\n-> X25519 ") && !sealed.contains("plain.example"), "{sealed}");
    use std::os::unix::fs::PermissionsExt;
    for folder in ["captures", "captures/support"] {
        let permissions = fs::metadata(scene.outgate.folder.path(folder)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o700, "{folder}");
    }
}

#[test]
fn captures_are_sealed_to_ssh_keys_and_follow_changes_of_the_recipients() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "tenants = [\"acme\", \"globex\"]");
    let (folder, keys) = (&scene.outgate.folder, &scene.keys);
    let ssh =
        [new_ssh_recipient(keys, "ed25519", &["ed25519"]), new_ssh_recipient(keys, "rsa", &["rsa", "-b", "2048"])];
    scene.outgate.after_reload(|| drop(folder.write("recipients/acme", format!("# Acme\n{}{}", ssh[0], ssh[1]))));
    let path = scene.stored(&scene.post("acme", "", "both"));
    for (key, opens) in [("ed25519", true), ("rsa", true), ("acme", false), ("globex", false)] {
        assert_eq!(scene.open(key, &path).is_some(), opens, "{key}");
    }

    // A broken file affects only its tenant.
    scene.outgate.after_reload(|| drop(folder.write("recipients/acme", "AGE-SECRET-KEY-1\n")));
    scene.outgate.log.wait_for_lines(1, &["recipients/acme", "private key", "the capture support has nothing"]);
    assert_eq!(scene.post("acme", "", "none").status, 200);
    wait_for_result(&scene.outgate, "no_recipients", 1);
    scene.captured("globex", &scene.post("globex", "", "one"));
    assert_eq!(files(&scene.store()).len(), 2);
}

#[test]
fn captures_need_a_tenant_with_recipients() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    assert_eq!(scene.post("initech", "", "x").status, 200);
    let url = format!("http://plain.example:{}/in", scene.receiver.port());
    assert_eq!(scene.outgate.post(&url, "", "x").status, 200);
    wait_for_result(&scene.outgate, "no_recipients", 2);
    scene.stored(&scene.post("acme", "", "x"));
    assert_eq!(files(&scene.store()).len(), 1);
}

#[test]
fn captures_lose_listed_fields_and_the_values_at_pointers_before_the_seal() {
    if !is_age_installed() {
        return;
    }
    let json = "{\"user\":{\"phone\":\"+15550100\",\"id\":7}}";
    let reaction =
        respond_with(&format!("HTTP/1.1 200 OK\r\nX-Number: s3cret\r\nContent-Length: {}\r\n\r\n{json}", json.len()));
    let scene = scene(reaction, "headers = [\"X-Number\"]\npointers = [\"/user/phone\"]");
    let captured = scene.captured("acme", &scene.post("acme", "X-Number: s3cret\r\n", json));
    for side in ["request", "response"] {
        assert!(captured[side]["headers"].as_array().unwrap().contains(&json!(["X-Number", "***"])), "{captured}");
        assert_eq!(captured[side]["body"]["text"], "{\"user\":{\"id\":7,\"phone\":\"***\"}}");
    }
    let captured = scene.captured("acme", &scene.post("acme", "", "phone=%2B15550100"));
    assert!(captured["request"]["body"]["omitted"].is_string(), "{captured}");
    assert!(!captured.to_string().contains("15550100"), "{captured}");
    // The target got all of it.
    assert_eq!(scene.receiver.requests()[1].body, b"phone=%2B15550100");
}

#[test]
fn captures_have_the_first_bytes_of_streams_and_say_what_is_missing() {
    if !is_age_installed() {
        return;
    }
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nabcdefgh\r\n8\r\nijklmnop\r\n0\r\n\r\n";
    let scene = scene(respond_with(response), "body_max = \"10 B\"");
    let mut client = scene.outgate.connect();
    client.send(format!(
        "POST http://plain.example:{}/in HTTP/1.1\r\nHost: h\r\nOutgate-Tenant: acme\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\n1234\r\n",
        scene.receiver.port()
    ));
    client.send("8\r\n567890ab\r\n0\r\n\r\n");
    let response = client.response();
    assert_eq!(response.text(), "abcdefghijklmnop");
    let captured = scene.captured("acme", &response);
    let body = |length: u64, text: &str| json!({ "length": length, "complete": true, "truncated": true, "text": text });
    assert_eq!(captured["request"]["body"], body(12, "1234567890"));
    assert_eq!(captured["response"]["body"], body(16, "abcdefghij"));
    assert_eq!(scene.receiver.requests()[0].body, b"1234567890ab");
}

#[test]
fn captures_of_failed_deliveries_have_the_code() {
    if !is_age_installed() {
        return;
    }
    for framing in ["Content-Length: 10\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3\r\n"] {
        let scene = scene(respond_and_close(&format!("HTTP/1.1 200 OK\r\n{framing}cut")), "");
        let mut client = scene.outgate.connect();
        client.send(support::post(
            &format!("http://plain.example:{}/in", scene.receiver.port()),
            "Outgate-Tenant: acme\r\n",
            "x",
        ));
        client.rest();
        eventually("a capture", || files(&scene.store()).len() == 1);
        let captured: Value = serde_json::from_slice(&scene.open("acme", &files(&scene.store())[0]).unwrap()).unwrap();
        assert_eq!(captured["code"], "connection_lost", "{framing}");
        assert_eq!(
            captured["response"]["body"],
            json!({ "length": 3, "complete": false, "truncated": false, "text": "cut" }),
            "{framing}"
        );
    }
}

#[test]
fn captures_select_webhook_ids_and_end() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "webhook_ids = [\"evt_1\"]");
    assert_eq!(scene.recorded("capture.updated", 1)[0]["resource_sid"], "captures.support");
    assert_eq!(scene.post("acme", "Webhook-Id: evt_2\r\n", "x").status, 200);
    scene.stored(&scene.post("acme", "Webhook-Id: evt_1\r\n", "x"));
    scene.outgate.reconfigure(&scene.outgate.config().set("captures.support.until", until(-1)));
    let changed = &scene.recorded("capture.updated", 2)[1];
    assert!(changed["event_data"]["changes"][0].as_str().unwrap().starts_with("captures.support: until"), "{changed}");
    assert_eq!(scene.post("acme", "Webhook-Id: evt_1\r\n", "x").status, 200);
    scene.outgate.reconfigure(&scene.outgate.config().set("captures.support.until", until(1)));
    scene.stored(&scene.post("acme", "Webhook-Id: evt_1\r\n", "x"));
    assert_eq!(files(&scene.store()).len(), 2);
}

#[test]
fn captures_are_deleted_after_keep() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "keep = \"2s\"");
    let path = scene.stored(&scene.post("acme", "", "x"));
    let sealed = fs::read(&path).unwrap();
    eventually("the capture is deleted", || !path.exists());
    eventually("the tenant's folder is deleted, too", || !scene.store().join("acme").exists());
    let record = scene.recorded("capture.expired", 1).remove(0);
    assert_eq!(
        (&record["event_data"]["tenant"], &record["event_data"]["count"]),
        (&json!("acme"), &json!(1)),
        "{record}"
    );
    assert_eq!(record["event_data"]["objects"][0]["sha256"], sha256(&sealed));
}

#[test]
fn captures_stop_at_total_max_until_some_are_erased() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "total_max = \"3 KiB\"");
    eventually("the store is full", || {
        assert_eq!(scene.post("acme", "", "x").status, 200);
        scene.outgate.admin("/metrics").text().contains("capture=\"support\",result=\"full\"")
    });
    let size: u64 = files(&scene.store()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!((1..=3 << 10).contains(&size), "{size}");
    scene.outgate.log.wait_for_lines(1, &["captures.support", "of 3072", "raise total_max"]);
    assert!(run(&scene.outgate, &["erase", "--tenant", "acme"]).status.success());
    eventually("captures are stored again", || {
        scene.post("acme", "", "x");
        !files(&scene.store()).is_empty()
    });
}

#[test]
fn deliveries_go_on_while_the_store_of_captures_is_gone() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    scene.stored(&scene.post("acme", "", "x"));
    // A deleted folder is created again.
    fs::remove_dir_all(scene.store()).unwrap();
    scene.stored(&scene.post("acme", "", "x"));
    // A file in its place is not replaced.
    fs::remove_dir_all(scene.store()).unwrap();
    fs::write(scene.store(), "in the way").unwrap();
    for _ in 0..3 {
        assert_eq!(scene.post("acme", "", "x").status, 200);
    }
    wait_for_result(&scene.outgate, "failed", 3);
    scene.outgate.log.wait_for_lines(1, &["captures.support: cannot use the store", "deliveries go on"]);
    fs::remove_file(scene.store()).unwrap();
    scene.stored(&scene.post("acme", "", "x"));
    scene.outgate.log.wait_for_lines(1, &["captures.support: the store", "works again"]);
    assert_eq!(scene.receiver.requests().len(), 6);
    assert_eq!(scene.outgate.log.all().iter().filter(|line| line.contains("cannot use the store")).count(), 1);
}

#[test]
fn waiting_captures_are_stored_when_the_process_ends() {
    if !is_age_installed() {
        return;
    }
    let mut scene = scene(ok(), "");
    // Sealing to ten recipients takes longer than a delivery.
    let recipients: String = (0..10).map(|index| new_recipient(&scene.keys, &format!("key{index}"))).collect();
    scene.outgate.after_reload(|| drop(scene.outgate.folder.write("recipients/acme", recipients)));
    for _ in 0..10 {
        assert_eq!(scene.post("acme", "", "x").status, 200);
    }
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    assert_eq!(files(&scene.store()).len(), 10);
}

#[test]
fn captures_list_export_and_erase_those_of_one_tenant() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    let mut ids = Vec::new();
    for tenant in ["acme", "acme", "globex"] {
        let response = scene.post(tenant, "", tenant);
        scene.stored(&response);
        ids.push(response.field("outgate-request-id").to_owned());
    }
    let listed: Vec<_> =
        list(&scene.outgate, &[]).into_iter().map(|mut capture| capture["request_id"].take()).collect();
    assert_eq!(listed.len(), 3);
    assert!(ids.iter().all(|id| listed.iter().any(|listed| *listed == *id)), "{listed:?}");
    assert_eq!(list(&scene.outgate, &["--tenant", "globex"])[0]["request_id"], ids[2]);
    let text = String::from_utf8(run(&scene.outgate, &["list", "--tenant", "globex"]).stdout).unwrap();
    assert!(text.contains(&ids[2]) && text.lines().count() == 1, "{text}");
    assert_eq!(list(&scene.outgate, &["--capture", "other"]), [Value::Null; 0]);

    let out = Folder::new();
    let target = out.path("").display().to_string();
    let export = |arguments: &[&str]| run(&scene.outgate, &[&["export", "--out", &target], arguments].concat());
    let one = export(&["--tenant", "acme", "--request-id", &ids[1]]);
    let path = PathBuf::from(String::from_utf8(one.stdout).unwrap().trim_end());
    let opened: Value = serde_json::from_slice(&scene.open("acme", &path).unwrap()).unwrap();
    assert_eq!(opened["request_id"], ids[1]);
    let exported = &scene.recorded("capture.exported", 1)[0]["event_data"];
    assert_eq!((&exported["tenant"], &exported["count"]), (&json!("acme"), &json!(1)));
    assert_eq!(exported["objects"][0]["sha256"], sha256(&fs::read(&path).unwrap()));
    assert_eq!(export(&["--tenant", "acme", "--request-id", &ids[1]]).status.code(), Some(73), "the file exists");
    assert_eq!(export(&["--tenant", "initech"]).status.code(), Some(66));
    assert_eq!(export(&[]).status.code(), Some(2), "no tenant");
    assert_eq!(run(&scene.outgate, &["erase", "--tenant", ""]).status.code(), Some(69), "the empty name is no tenant");
    assert_eq!(String::from_utf8(export(&["--tenant", "globex"]).stdout).unwrap().lines().count(), 1);

    let before: Vec<_> =
        files(&scene.store().join("acme")).iter().map(|path| sha256(&fs::read(path).unwrap())).collect();
    let proofs = scene.erase(&["--tenant", "acme"]);
    let erased: Vec<_> = proofs[0]["objects"].as_array().unwrap().iter().map(|object| &object["sha256"]).collect();
    assert_eq!(erased, before.iter().collect::<Vec<_>>());
    let record = scene.recorded("capture.erased", 1).remove(0);
    assert_eq!(
        (&record["seq"], &record["event_data"]["objects"]),
        (&proofs[0]["seq"], &proofs[0]["objects"]),
        "{record}"
    );
    assert_eq!((&record["event_data"]["tenant"], &record["event_data"]["count"]), (&json!("acme"), &json!(2)));
    assert_eq!((&record["resource_sid"], &record["source"]), (&json!("captures.support"), &json!("admin")));
    assert_eq!(record["event_date"], proofs[0]["erased_at"]);
    assert_eq!((proofs.len(), proofs[1]["objects"].as_array().unwrap().len()), (2, 0));
    assert_eq!(verify(&scene.outgate).0, 0);
    assert_eq!(list(&scene.outgate, &[]).len(), 1);
    assert_eq!(scene.erase(&["--tenant", "acme"])[0]["objects"], json!([]));
    scene.captured("globex", &scene.post("globex", "", "x"));
    let text = String::from_utf8(run(&scene.outgate, &["erase", "--tenant", "globex"]).stdout).unwrap();
    let seq = &scene.recorded("capture.erased", 2)[1]["seq"];
    assert!(text.contains(&format!("erased: 2; audit records: {seq}\n")), "{text}");
}

#[test]
fn captures_are_erased_in_parts_with_a_record_each() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    for _ in 0..25 {
        scene.post("acme", "", "x");
    }
    wait_for_result(&scene.outgate, "stored", 25);
    let counts: Vec<_> =
        scene.erase(&["--tenant", "acme"]).iter().map(|proof| proof["objects"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [20, 5, 0]);
    let records = scene.recorded("capture.erased", 2);
    assert_eq!(records.iter().map(|record| record["event_data"]["count"].as_u64().unwrap()).sum::<u64>(), 25);
}

#[test]
fn captures_are_not_exported_or_erased_without_an_audit_record() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    scene.stored(&scene.post("acme", "", "x"));
    let (audit, away) = (scene.outgate.folder.path("audit"), scene.outgate.folder.path("away"));
    scene.recorded("process.started", 1);
    fs::rename(&audit, &away).unwrap();
    let out = Folder::new();
    let target = out.path("").display().to_string();
    let export = run(&scene.outgate, &["export", "--tenant", "acme", "--out", &target]);
    assert_eq!(export.status.code(), Some(69), "{export:?}");
    assert!(String::from_utf8_lossy(&export.stderr).contains("audit_unwritable"), "{export:?}");
    assert!(files(&out.path("")).is_empty());
    assert_eq!(run(&scene.outgate, &["erase", "--tenant", "acme"]).status.code(), Some(69));
    assert_eq!(files(&scene.store()).len(), 1);
    assert_eq!(scene.post("acme", "", "x").status, 200);
    wait_for_result(&scene.outgate, "stored", 2);

    fs::rename(&away, &audit).unwrap();
    eventually("the audit log is written again", || {
        run(&scene.outgate, &["erase", "--tenant", "acme"]).status.success()
    });
    assert_eq!(scene.recorded("capture.erased", 1)[0]["event_data"]["count"], 2);
    assert!(files(&scene.store()).is_empty());
}

/// A process that is killed in a write leaves an unfinished file, which has sealed bytes only.
#[test]
fn captures_that_a_killed_process_left_unfinished_are_not_listed_and_are_deleted() {
    if !is_age_installed() {
        return;
    }
    let Scene { outgate, receiver, keys } = scene(ok(), "");
    let path = outgate.folder.path("captures/support/acme/2026-11-26/101500-5a3c9e0b.age#1");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "age-encryption.org/v1\n").unwrap();
    let scene = Scene { outgate: outgate.restarted(), receiver, keys };
    assert_eq!(list(&scene.outgate, &[]), [Value::Null; 0]);
    eventually("the unfinished file is deleted", || !path.exists());
    scene.stored(&scene.post("acme", "", "x"));
    assert_eq!(list(&scene.outgate, &[]).len(), 1);
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// A client that uploads slowly keeps its capture open, and another's is stored meanwhile.
#[test]
fn captures_of_a_client_that_hangs_up_are_marked_incomplete() {
    if !is_age_installed() {
        return;
    }
    let scene = scene(ok(), "");
    let mut stream = std::net::TcpStream::connect(scene.outgate.proxy).unwrap();
    let url = format!("http://plain.example:{}/in", scene.receiver.port());
    let head = format!("POST {url} HTTP/1.1\r\nHost: h\r\nOutgate-Tenant: acme\r\nContent-Length: 10\r\n\r\n");
    stream.write_all(format!("{head}12345").as_bytes()).unwrap();
    eventually("the target is connected", || scene.receiver.connections() == 1);
    scene.stored(&scene.post("acme", "", "x"));
    assert_eq!(files(&scene.store()).len(), 1);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read(&mut [0]);
    drop(stream);
    eventually("the capture of the unfinished upload", || files(&scene.store()).len() == 2);
    let bodies = files(&scene.store()).into_iter().map(|path| scene.open("acme", &path).unwrap());
    let bodies: Vec<Value> =
        bodies.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap()["request"]["body"].take()).collect();
    assert!(
        bodies.contains(&json!({ "length": 5, "complete": false, "truncated": false, "text": "12345" })),
        "{bodies:?}"
    );
}
