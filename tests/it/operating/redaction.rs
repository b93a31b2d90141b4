//! Secrets and phone numbers that a client plants in every part of its requests.
//! Does none of them reach a record, the log, a refusal, the admin listener or the output of a command?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::strategy::{Strategy, ValueTree};
use proptest::string::string_regex;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::configuration::Config;
use support::http2::{
    END_HEADERS, END_STREAM, HEADERS, RST_STREAM, connect_http2, field, frame, head, read_until_frame,
};
use support::ports::refusing;
use support::scene::{Scene, config, scene, scene_of};
use support::{Outgate, Response, post};

/// Sets of plants. Each is carried by some twenty requests.
const ROUNDS: usize = 4;

/// Random secrets and numbers.
#[derive(Debug)]
struct Plants {
    token: String,
    uuid: String,
    sid: String,
    hex: String,
    /// A secret that does not look random, for services whose paths are secrets.
    word: String,
    /// The digits of a number.
    number: String,
    grouped: String,
}

impl Plants {
    fn new(runner: &mut TestRunner) -> Self {
        let mut text = |regex: &str| string_regex(regex).unwrap().new_tree(runner).unwrap().current();
        let number = text("[1-9][0-9]{10,13}");
        Self {
            token: text("[A-Za-z0-9_-]{43}"),
            uuid: text("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"),
            sid: text("AC[0-9a-f]{32}"),
            hex: text("[0-9a-f]{32}"),
            word: text("planted[a-z]{6}"),
            grouped: text("\\+[1-9][0-9]-[0-9]{2}-[0-9]{4}-[0-9]{4}"),
            number,
        }
    }

    fn all(&self) -> [&str; 7] {
        [&self.token, &self.uuid, &self.sid, &self.hex, &self.word, &self.number, &self.grouped]
    }

    /// A path with every secret, and the numbers in every encoding.
    fn path(&self) -> String {
        let Self { token, uuid, sid, hex, word, number, grouped } = self;
        let encoded: String = number.bytes().map(|digit| format!("%{digit:x}")).collect();
        let twice = encoded.split('%').collect::<Vec<_>>().join("%25");
        let spaced = grouped.split('-').collect::<Vec<_>>().join("%20");
        let wide: String = number.bytes().map(|digit| format!("%u{digit:04x}")).collect();
        format!(
            "/hooks/{token}/{uuid}/{sid}/%{:x}{}/+{number}/{encoded}/{twice}/{grouped}/{spaced}/{wide}\
             ?secret={token}&word={word}&to=%2B{number}",
            hex.as_bytes()[0],
            &hex[1..]
        )
    }

    fn fields(&self) -> String {
        let Self { token, uuid, hex, number, grouped, .. } = self;
        format!(
            "Authorization: Bearer {token}\r\nCookie: a={hex}\r\nX-Secret: {uuid}\r\nX-From: {grouped}\r\n\
             Webhook-Id: msg_+{number}\r\n"
        )
    }
}

/// What a text says, also to a reader that removes percent-encoding.
fn readings(text: &str) -> Vec<String> {
    let mut readings = vec![text.to_owned()];
    for layer in 0..3 {
        let bytes = readings[layer].as_bytes();
        let (mut decoded, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            // IIS decodes %uXXXX.
            let (digits, length) = if bytes.get(at + 1) == Some(&b'u') { (at + 2, 4) } else { (at + 1, 2) };
            let hex = bytes.get(digits..digits + length).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
                Some(byte) => (decoded.push(byte), at = digits + length),
                None => (decoded.push(bytes[at]), at += 1),
            };
        }
        readings.push(String::from_utf8_lossy(&decoded).into_owned());
    }
    readings
}

/// The outputs, each with its name.
#[derive(Default)]
struct Outputs(Vec<(String, String)>);

impl Outputs {
    fn add(&mut self, name: &str, text: impl Into<String>) {
        self.0.push((name.to_owned(), text.into()));
    }

    fn add_answer(&mut self, name: &str, answer: &Response) {
        self.add(name, format!("{} {:?}\n{}", answer.reason, answer.fields, answer.text()));
    }

    /// The lines that have a plant, with the name of the output and the plant.
    fn leaks(&self, plants: &Plants) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, text) in &self.0 {
            for reading in readings(text) {
                for plant in plants.all() {
                    let line = reading.lines().find(|line| line.contains(plant));
                    leaks.extend(line.map(|line| format!("{name} has {plant}: {line}")));
                }
            }
        }
        leaks
    }
}

fn run(outputs: &mut Outputs, scene: &Scene, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(arguments);
    if !arguments.contains(&"--proxy") {
        command.arg("--config").arg(scene.outgate.folder.path("config.toml"));
    }
    let output = command.output().unwrap();
    let text = String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap();
    outputs.add(&arguments[..2].join(" "), &*text);
    text
}

/// Routes for the services, for paths that are ambiguous, and for targets that refuse.
fn planted_config(usual: &Config, closed: u16, plants: &[Plants]) -> Config {
    let numbered: Vec<String> = plants.iter().map(|plants| format!("sms-{}.example", plants.number)).collect();
    let services = ["hooks.slack.com", "discord.com", "acme.webhook.office.com", "plain.example"];
    let usual = usual.push("admin.listen", "unix:{dir}/admin.sock");
    let mut text = usual.set("routes.plain.hosts", services).and(&format!(
        "[circuit]\nfailures = 1\n[clients.billing]\nnetworks = [\"127.0.0.2/32\"]\n\
         [[routes]]\nname = \"ambiguous\"\nhosts = [\"paths.example\"]\npaths = [\"/in/\"]\n\
         [[routes]]\nname = \"numbered\"\nhosts = {numbered:?}\nports = [{closed}]\n"
    ));
    for host in services[..3].iter().copied().chain(numbered.iter().map(String::as_str)) {
        text = text.host(host, "127.0.0.1");
    }
    text
}

/// Sends requests that carry the plants in each of their parts.
fn send_plants(scene: &Scene, closed: u16, plants: &Plants, outputs: &mut Outputs) {
    let Plants { token, uuid, sid, hex, word, number, grouped } = plants;
    let outgate = &scene.outgate;
    let (path, fields, body) = (plants.path(), plants.fields(), format!("{token} {grouped} +{number}"));
    let port = scene.plain.port();
    let good = format!("https://hook.example:{}{path}", scene.good.port());
    let service = |host: &str, path: &str| format!("http://{host}:{port}{path}");
    for url in [
        good.clone(),
        service("hooks.slack.com", &format!("/services/T01/B02/{word}")),
        service("discord.com", &format!("/api/webhooks/12/{word}")),
        service("acme.webhook.office.com", &format!("/webhookb2/{word}@{uuid}/IncomingWebhook/{hex}/{uuid}")),
    ] {
        let answer = outgate.post(&url, &fields, &body);
        assert_eq!(answer.status, 200, "{url}: {answer:?}");
        outputs.add_answer("a delivery", &answer);
    }
    let refused = [
        (format!("https://unrouted.example{path}"), String::new(), "no_route"),
        (format!("https://sms-{number}.unrouted.example{path}"), String::new(), "no_route"),
        (format!("https://{token}:{number}@hook.example{path}"), String::new(), "request_malformed"),
        (format!("https://hook.example/{token}\\{number}"), String::new(), "request_malformed"),
        (format!("ftp://hook.example{path}"), String::new(), "request_malformed"),
        (format!("https://paths.example/in/%2e%2e/{token}/+{number}"), String::new(), "request_malformed"),
        (format!("https://sms-{number}.example:{closed}{path}"), String::new(), "connect_refused"),
        (format!("http://hook.example{path}"), String::new(), "plaintext_forbidden"),
        (good.clone(), format!("Outgate-Tenant: {token}\r\n"), "client_forbidden"),
        (good.clone(), format!("Outgate-Tenant: {uuid}\r\n"), "client_forbidden"),
        (good.clone(), format!("Outgate-Tenant: +{number}\r\n"), "client_forbidden"),
        (good.clone(), format!("Outgate-TLS: {token}\r\n"), "request_malformed"),
        (good.clone(), format!("Webhook-Id: {token}.{number}\r\n"), "request_malformed"),
        (good.clone(), format!("Max-Forwards: {token}\r\n"), ""),
        (
            good.clone(),
            format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{token}:{hex}"))),
            "client_unauthenticated",
        ),
        (good.clone(), format!("Proxy-Authorization: Bearer {token}\r\n"), "client_unauthenticated"),
    ];
    for (url, more, code) in refused {
        let fields = if more.starts_with("Webhook-Id") { more } else { format!("{fields}{more}") };
        let answer = outgate.post(&url, &fields, &body);
        assert_eq!(answer.code(), code, "{url} {fields} {answer:?}");
        outputs.add_answer(&format!("the refusal of {code}"), &answer);
    }
    for request in [
        format!("{} {good} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", &sid[..30]),
        format!("POST {good} {token} HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("CONNECT sms-{number}.example:444 HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("CONNECT {token}@hook.example:443 HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("POST {good} HTTP/1.1\r\nHost: h\r\n{token} {number}: x\r\n\r\n"),
    ] {
        let mut client = outgate.connect();
        client.send(&request);
        let method = request.split(' ').next().unwrap();
        outputs.add_answer("an answer", &client.response_to(method));
    }
    for fields in [head(&good), [head(&good), field("x-number", number), field("X-Secret", token)].concat()] {
        let mut client = connect_http2(outgate);
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields));
        let _ = read_until_frame(&mut client, &[HEADERS, RST_STREAM]);
    }
    for arguments in [
        ["explain", "POST", &good, "--json"],
        ["explain", "POST", &format!("https://unrouted.example{path}"), "--json"],
        ["explain", "POST", &format!("https://paths.example/in/%2e%2e/{token}"), "--tenant=acme"],
        ["explain", "POST", &good, &format!("--tenant={token}")],
        ["explain", "POST", &good, "--running"],
        ["send", &good, "-d", &body],
        ["send", &format!("https://sms-{number}.example:{closed}{path}"), "--json", "-d"],
        ["egress", "probe", &format!("https://sms-{number}.example:{closed}{path}"), "--json"],
        ["egress", "probe", &format!("https://{token}@hook.example{path}"), "--json"],
    ] {
        let mut arguments = arguments.to_vec();
        if arguments.last() == Some(&"-d") {
            arguments.push(&body);
        }
        run(outputs, scene, &arguments);
    }
    let proxy = format!("http://{}", outgate.proxy);
    run(outputs, scene, &["send", &good, "--proxy", &proxy, "-H", &format!("X-Secret: {token}"), "--json"]);
}

#[test]
fn redaction_lets_no_planted_secret_or_number_reach_an_output() {
    let mut runner = TestRunner::default();
    let plants: Vec<Plants> = (0..ROUNDS).map(|_| Plants::new(&mut runner)).collect();
    let (_closed, closed) = refusing();
    let scene = scene_of(&|usual| planted_config(usual, closed, &plants));
    scene.outgate.reconfigure(&scene.outgate.config().and("[log]\nlevel = \"trace\"\n"));
    let mut outputs = Outputs::default();
    for plants in &plants {
        send_plants(&scene, closed, plants, &mut outputs);
    }
    // The circuits of the targets that refuse are reported by the maintenance, with their hosts.
    scene.outgate.log.wait_for_lines(ROUNDS, &["its circuit is open"]);
    let paths =
        ["", "v1/status", "v1/plan", "v1/egress", "v1/limits", "v1/circuits", "v1/deliveries", "v1/history", "nothing"];
    for path in paths.into_iter().chain(["metrics", "readyz"]) {
        outputs.add(path, support::control::get(&scene.outgate, &format!("/{path}")).text());
    }
    for arguments in [["deliveries", "--full"], ["deliveries", "--json"]] {
        let text = run(&mut outputs, &scene, &arguments);
        assert!(text.contains("/services/T01/B02/***"), "{text}");
    }
    let records = scene.outgate.records(ROUNDS * 26);
    outputs.add("the records", records.iter().map(|record| format!("{record}\n")).collect::<String>());
    outputs.add("the log", scene.outgate.log.all().join("\n"));
    let leaks: Vec<String> = plants.iter().flat_map(|plants| outputs.leaks(plants)).collect();
    assert!(leaks.is_empty(), "{plants:#?}\n{}", leaks.join("\n"));

    // The target got what was sent, and the records have what stands for it.
    let arrived =
        |plants: &Plants| scene.good.wait_for_requests(1).iter().any(|seen| seen.line.contains(&plants.path()));
    assert!(plants.iter().all(arrived));
    let path = |record: &Value| record["path"].as_str().unwrap_or_default().to_owned();
    let is_masked = |record: &Value| path(record).contains("/hooks/***/***/***/***/+") && path(record).contains("XXXX");
    assert!(records.iter().filter(|record| is_masked(record)).count() >= ROUNDS, "{records:#?}");
    let is_service = |record: &&Value| path(record) == "/services/T01/B02/***";
    assert_eq!(records.iter().filter(is_service).count(), ROUNDS);
    let is_numbered = |record: &&Value| record["host"].as_str().is_some_and(|host| host.ends_with("XXXX.example"));
    assert!(records.iter().filter(is_numbered).count() >= ROUNDS, "{records:#?}");
}

#[test]
fn refusals_do_not_quote_a_tenant_whose_header_is_secret() {
    let scene = scene_of(&|text| text.add("redact.headers", ["Outgate-Tenant"]));
    let answer = scene.outgate.post(&scene.good_url(), "Outgate-Tenant: planted\r\n", "x");
    assert_eq!(answer.code(), "client_forbidden");
    let mut outputs = Outputs::default();
    outputs.add_answer("the refusal", &answer);
    outputs.add("the record", scene.outgate.records(1)[0].to_string());
    outputs.add("the log", scene.outgate.log.all().join("\n"));
    assert!(outputs.0.iter().all(|(_, text)| !text.contains("planted")), "{:#?}", outputs.0);
}

/// The path of the next record, of a webhook to this path.
fn recorded(outgate: &Outgate, url: &str, count: &mut usize) -> Value {
    *count += 1;
    assert_eq!(outgate.post(url, "", "x").status, 200);
    outgate.records(*count)[*count - 1]["path"].clone()
}

#[test]
fn redaction_has_the_form_that_the_section_and_the_route_choose_at_the_next_reload() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "").add("routes.plain.redact.path", "none");
    let text = text.add("routes.signed.paths", ["/in/"]);
    let signed =
        format!("https://hook.example:{}/in/9f86d081884c7d659a2feaa0c55ad015/+819012345678?q", scene.good.port());
    let mut count = 0;
    for (section, expected) in [
        ("path = \"masked\"", json!("/in/***/+81901234XXXX")),
        ("path = \"full\"", json!("/in/9f86d081884c7d659a2feaa0c55ad015/+81901234XXXX")),
        ("path = \"full\"\nphone_numbers = false", json!("/in/9f86d081884c7d659a2feaa0c55ad015/+819012345678")),
        ("path = \"template\"", json!("/in/*")),
        ("path = \"none\"", Value::Null),
    ] {
        scene.outgate.reconfigure(&text.and(&format!("[redact]\n{section}\n")));
        assert_eq!(recorded(&scene.outgate, &signed, &mut count), expected, "{section}");
        assert_eq!(recorded(&scene.outgate, &scene.plain_url(), &mut count), Value::Null, "the route's own form");
    }
}

#[test]
fn redaction_with_a_key_joins_the_records_of_one_number_and_hides_named_headers() {
    let scene = scene();
    scene.outgate.folder.write("redact.key", "0123456789abcdef0123456789abcdef\n");
    let text = config(&scene.good, &scene.plain, "").add("routes.signed.limits", ["few"]).and(
        "[redact]\nhmac_key = \"file:{dir}/redact.key\"\nheaders = [\"Webhook-Id\"]\n\
         [clients.crm]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n\
         [limits.few]\nrate = \"1/h\"\nper = [\"tenant\", \"host\"]\n",
    );
    scene.outgate.reconfigure(&text);
    let mut count = 0;
    let mut hash = |path: &str| {
        let url = format!("http://plain.example:{}/sms/{path}", scene.plain.port());
        let recorded = recorded(&scene.outgate, &url, &mut count);
        let (_, hash) = recorded.as_str().unwrap().split_once("hmac:").expect("a hash");
        hash.to_owned()
    };
    let one = hash("+819012345678");
    assert_eq!((one.len(), &hash("%2B81-90-1234-5678")), (16, &one));
    assert_ne!(hash("+819012345679"), one);
    let token = hash("9f86d081884c7d659a2feaa0c55ad015");
    assert_eq!(hash("%39f86d081884c7d659a2feaa0c55ad015"), token);
    let answer = scene.outgate.post(&scene.plain_url(), "Webhook-Id: msg_1\r\n", "x");
    assert_eq!(answer.status, 200);
    let record = scene.outgate.record_of(&answer);
    assert!(record["webhook_id"].as_str().unwrap().starts_with("hmac:"), "{record}");
    let answers = [200, 429].map(|status| {
        let answer = scene.outgate.post(&scene.good_url(), "Outgate-Tenant: +819012345678\r\n", "x");
        assert_eq!(answer.status, status);
        answer
    });
    let record = scene.outgate.record_of(&answers[1]);
    let tenant = format!("+81901234XXXX~hmac:{one}");
    assert_eq!(record["limit"]["key"], json!({ "tenant": tenant, "host": "hook.example" }), "{record}");
    assert_eq!(record["tenant"], json!(tenant));
    // A change of the key's file is a reload.
    let before = scene.outgate.reloads();
    scene.outgate.folder.write("redact.key", "fedcba9876543210fedcba9876543210\n");
    scene.outgate.log.wait_for_lines(before + 1, &["configuration reloaded"]);
    count = 8;
    let url = format!("http://plain.example:{}/sms/+819012345678", scene.plain.port());
    assert!(!recorded(&scene.outgate, &url, &mut count).as_str().unwrap().contains(&one));
}

#[test]
fn redaction_in_explain_shows_the_path_as_records_have_it() {
    let scene = scene();
    let mut outputs = Outputs::default();
    let url = format!("https://hook.example:{}/in/f47ac10b-58cc-4372-a567-0e02b2c3d479?q=1", scene.good.port());
    let text = run(&mut outputs, &scene, &["explain", "POST", &url]);
    assert!(text.contains("\npath       /in/*** in records\n"), "{text}");
    let authority = format!("hook.example:{}", scene.good.port());
    assert!(!run(&mut outputs, &scene, &["explain", "CONNECT", &authority]).contains("\npath "));
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "").and("[redact]\npath = \"none\"\n"));
    let text = run(&mut outputs, &scene, &["explain", "POST", &url]);
    assert!(text.contains("\npath       none in records\n"), "{text}");
}

/// The rest of a record is as it was sent: a request id, an address, a host.
#[test]
fn redaction_keeps_ordinary_records_as_they_are() {
    let scene = scene();
    let mut client = scene.outgate.connect();
    client.send(post(&scene.good_url(), "Webhook-Id: msg_2KWPBgLlAfxdpX2AI54pPJ85f4W\r\n", "x"));
    let answer = client.response();
    assert_eq!(answer.status, 200);
    let record = &scene.outgate.records(1)[0];
    assert_eq!(record["request_id"], answer.field("outgate-request-id"));
    assert_eq!((&record["host"], &record["path"]), (&json!("hook.example"), &json!("/in")));
    assert_eq!((&record["method"], &record["webhook_id"]), (&json!("POST"), &json!("msg_2KWPBgLlAfxdpX2AI54pPJ85f4W")));
}

/// The string literals of a source file outside its comments.
fn literals(source: &str) -> Vec<String> {
    let (mut found, mut literal, mut escaped) = (Vec::new(), None::<String>, false);
    for line in source.lines() {
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            match &mut literal {
                Some(text) if escaped || c != '"' => {
                    escaped = c == '\\' && !escaped;
                    text.push(c);
                }
                Some(_) => found.extend(literal.take()),
                None if line[at..].starts_with("//") => break,
                None if c == '"' && before != '\'' => literal = Some(String::new()),
                None => {}
            }
            before = c;
        }
        escaped = false; // a backslash at the end of a line continues the literal
    }
    found
}

/// The program's own words pass the redactor whole: it masks what they quote.
#[test]
fn redaction_keeps_the_sentences_of_refusals() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src/delivery");
    let (mut folders, mut sentences) = (vec![std::path::PathBuf::from(root)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sentences.extend(literals(&std::fs::read_to_string(path).unwrap())),
            }
        }
    }
    sentences.retain(|text| text.contains(' ') && !text.contains('\\'));
    // The mark of a format looks like a query.
    let sentences: Vec<String> = sentences.iter().map(|text| text.split(":?}").collect::<Vec<_>>().join("}")).collect();
    assert!(sentences.len() > 100, "{sentences:#?}");
    let redactor = outgate::policy::redact::Redactor::default();
    let changed = sentences.iter().filter(|text| redactor.message(text).as_str() != text.as_str());
    assert_eq!(changed.collect::<Vec<_>>(), [""; 0]);
}
