//! Traces: W3C Trace Context towards the target, and spans for a collector that decodes with OpenTelemetry's own package.
//! Does a trace lead from the client through outgate to the target, and do deliveries go on without the collector?
//!
//! These tests need what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::clients::InstalledClients;
use support::configuration::Config;
use support::pki::pem;
use support::ports::refusing;
use support::scene::{Scene, config, scene};
use support::{Client, Folder, TEST_TIMEOUT, eventually};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// `tests/clients/otlp_receiver.py`.
struct Collector {
    child: Child,
    commands: ChildStdin,
    port: u16,
    requests: Arc<Mutex<Vec<Value>>>,
    obeyed: Receiver<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    fn start(clients: &InstalledClients, arguments: &[&str]) -> Self {
        let mut command = clients.python("otlp_receiver");
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, mut lines) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        let requests = Arc::<Mutex<Vec<Value>>>::default();
        let seen = Arc::clone(&requests);
        let (obeys, obeyed) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                match serde_json::from_str(&line).unwrap() {
                    Value::Null => obeys.send(()).unwrap(),
                    request => seen.lock().unwrap().push(request),
                }
            }
        });
        Self { child, commands, port, requests, obeyed }
    }

    /// Gives a command, and waits until it holds.
    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        self.obeyed.recv_timeout(TEST_TIMEOUT).unwrap();
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }

    fn spans(&self) -> Vec<Value> {
        self.requests().iter().flat_map(|request| request["spans"].as_array().unwrap().clone()).collect()
    }

    /// Waits for the spans of this delivery, and returns them by name. The one of the delivery is `delivery`, and the one
    /// of the request that the target gets is `request`.
    fn spans_of(&self, trace_id: &str) -> HashMap<String, Value> {
        let of_trace = || {
            let spans = self.spans().into_iter().filter(|span| span["trace_id"] == trace_id);
            spans.collect::<Vec<_>>()
        };
        eventually(&format!("the spans of {trace_id}"), || !of_trace().is_empty());
        let name = |span: &Value| match span["kind"].as_u64() {
            Some(2) => "delivery".to_owned(),
            Some(3) => "request".to_owned(),
            _ => span["name"].as_str().unwrap().to_owned(),
        };
        of_trace().into_iter().map(|span| (name(&span), span)).collect()
    }
}

/// The usual configuration with these keys of `[traces]`.
fn traced(scene: &Scene, keys: &str) -> Config {
    config(&scene.good, &scene.plain, &format!("[traces]\n{keys}\n")).host("collector.example", "127.0.0.1")
}

fn endpoint(collector: &Collector, more: &str) -> String {
    format!("endpoint = \"http://127.0.0.1:{}\"\n{more}", collector.port)
}

/// Sends a webhook with these fields, and returns the fields that the target got, by name.
fn deliver(scene: &Scene, url: &str, fields: &str) -> (String, Vec<String>) {
    let before = scene.good.requests().len() + scene.plain.requests().len();
    assert_eq!(scene.outgate.post(url, fields, "x").status, 200);
    let receiver = if url == scene.good_url() { &scene.good } else { &scene.plain };
    let seen = receiver.requests();
    assert_eq!(scene.good.requests().len() + scene.plain.requests().len(), before + 1);
    let last = seen.last().unwrap();
    assert!(last.all("traceparent").len() <= 1, "{last:?}");
    let state = last.all("tracestate").iter().map(|state| (*state).to_owned()).collect();
    (last.field("traceparent").to_owned(), state)
}

#[test]
fn spans_of_a_delivery_reach_the_collector_over_http_and_grpc_with_and_without_tls() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene();
    let identity = scene.pki.leaf(&["collector.example"]);
    let folder = Folder::new();
    let chain = folder.write("chain.pem", pem("CERTIFICATE", &identity.chain[0]));
    let key = folder.write("key.pem", pem("PRIVATE KEY", identity.key.secret_der()));
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    scene.outgate.folder.write("token", "Bearer of the collector\n");
    for (protocol, has_tls) in [("http", false), ("http", true), ("grpc", false), ("grpc", true)] {
        let identity: &[&str] = if has_tls { &[&chain, &key] } else { &[] };
        let collector = Collector::start(&clients, &[&[protocol, "0"], identity].concat());
        let (port, sampled) = (collector.port, format!("protocol = \"{protocol}\"\nsample = 1"));
        let keys = match has_tls {
            true => format!(
                "endpoint = \"https://collector.example:{port}\"\nheaders = {{ Authorization = \"file:{{dir}}/token\" }}\n\
                 {sampled}"
            ),
            false => format!("endpoint = \"http://127.0.0.1:{port}\"\n{sampled}"),
        };
        let written = scene.outgate.records(0).len();
        scene.outgate.reconfigure(&traced(&scene, &keys));
        let (sent, _) = deliver(&scene, &scene.good_url(), "");
        let record = scene.outgate.records(written + 1)[written].clone();
        let trace_id = record["trace_id"].as_str().unwrap();
        let spans = collector.spans_of(trace_id);
        let (delivery, request) = (&spans["delivery"], &spans["request"]);
        assert_eq!(sent, format!("00-{trace_id}-{}-03", request["span_id"].as_str().unwrap()), "{protocol}");
        assert_eq!(
            (&delivery["parent"], &delivery["name"], &delivery["status"][0]),
            (&json!(""), &json!("POST"), &json!(0))
        );
        let mut expected = vec!["body", "delivery", "dns", "queue", "request", "sign"];
        if record["reused"] == false {
            expected.extend(["connect", "tls"]);
            assert_eq!(spans["tls"]["attributes"]["tls.protocol.version"], "1.3");
        }
        assert_eq!(
            spans.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            expected.into_iter().collect(),
            "{protocol}"
        );
        for (name, span) in spans.iter().filter(|(name, _)| *name != "delivery") {
            assert_eq!(span["parent"], delivery["span_id"], "{name}");
            let time = |span: &Value, end: &str| span[end].as_u64().unwrap();
            assert!(time(span, "start") <= time(span, "end"), "{span}");
            assert!(
                time(delivery, "start") <= time(span, "start") && time(span, "end") <= time(delivery, "end"),
                "{span}"
            );
        }
        let attributes = &delivery["attributes"];
        for (key, value) in [
            ("http.request.method", json!("POST")),
            ("http.response.status_code", json!(200)),
            ("server.address", json!("hook.example")),
            ("url.path", json!("/in")),
            ("url.scheme", json!("https")),
            ("client.address", json!("127.0.0.1")),
            ("outgate.route", json!("signed")),
            ("outgate.code", json!("delivered")),
            ("outgate.request_id", record["request_id"].clone()),
        ] {
            assert_eq!(attributes[key], value, "{key}: {attributes}");
        }
        let attributes = &request["attributes"];
        let url = format!("https://hook.example:{}/in", scene.good.port());
        assert_eq!((&attributes["url.full"], &attributes["network.peer.address"]), (&json!(url), &json!("127.0.0.1")));
        assert_eq!(attributes["network.local.address"], record["source"]);
        let export = &collector.requests()[0];
        assert_eq!((&export["resource"]["service.name"], &export["scope"][0]), (&json!("outgate"), &json!("outgate")));
        let authorization = export["headers"]["authorization"].as_str();
        assert_eq!(authorization, has_tls.then_some("Bearer of the collector"), "{protocol}");
        if protocol == "http" {
            assert_eq!(export["headers"][":path"], "/v1/traces");
        }
    }
}

#[test]
fn trace_context_of_a_caller_is_continued_and_an_invalid_one_begins_a_new_trace() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene();
    let collector = Collector::start(&clients, &["http"]);
    scene.outgate.reconfigure(&traced(&scene, &endpoint(&collector, "sample = 0")));
    let url = scene.plain_url();
    let parent =
        |flags: &str| format!("Traceparent: 00-{TRACE}-{PARENT}-{flags}\r\nTracestate: a=1\r\nTracestate: b=2\r\n");
    let parts = |sent: &str| sent.split('-').map(str::to_owned).collect::<Vec<_>>();
    // The caller's flag decides, and its state stays.
    let (sent, state) = deliver(&scene, &url, &parent("01"));
    let sent = parts(&sent);
    assert_eq!((sent[1].as_str(), sent[3].as_str(), state.join(",").as_str()), (TRACE, "01", "a=1,b=2"));
    let spans = collector.spans_of(TRACE);
    assert_eq!(spans["delivery"]["parent"], PARENT);
    assert_eq!(spans["request"]["span_id"], sent[2]);
    let seen = collector.spans().len();
    let (unsampled, state) = deliver(&scene, &url, &parent("02"));
    let unsampled = parts(&unsampled);
    assert_eq!((unsampled[1].as_str(), unsampled[3].as_str(), state.len()), (TRACE, "02", 2));
    assert_ne!(unsampled[2], PARENT, "outgate is a hop of the trace");
    for invalid in [
        format!("Traceparent: 00-{TRACE}-{PARENT}\r\nTracestate: a=1\r\n"),
        format!("Traceparent: 00-{TRACE}-0000000000000000-01\r\nTracestate: a=1\r\n"),
        format!("{0}{0}", parent("01")),
        "Tracestate: a=1\r\n".to_owned(),
    ] {
        let (sent, state) = deliver(&scene, &url, &invalid);
        let sent = parts(&sent);
        assert!(
            sent[1] != TRACE && sent[1].len() == 32 && sent[3] == "02" && state.is_empty(),
            "{invalid}: {sent:?} {state:?}"
        );
    }
    // The bound of traces that callers sample.
    scene.outgate.reconfigure(&traced(&scene, &endpoint(&collector, "sample = 0\ncallers_max = 0")));
    assert_eq!(parts(&deliver(&scene, &url, &parent("01")).0)[3], "00");
    // A sampled one after it shows that no other has arrived.
    scene.outgate.reconfigure(&traced(&scene, &endpoint(&collector, "sample = 1")));
    let last = parts(&deliver(&scene, &url, "").0);
    collector.spans_of(&last[1]);
    assert!(collector.spans()[seen..].iter().all(|span| span["trace_id"] == last[1]), "{:?}", collector.spans());
}

#[test]
fn trace_context_passes_through_untouched_while_traces_are_off() {
    let scene = scene();
    for field in [format!("00-{TRACE}-{PARENT}-01"), "anything".to_owned()] {
        let (sent, state) =
            deliver(&scene, &scene.plain_url(), &format!("traceparent: {field}\r\ntracestate: a=1\r\n"));
        assert_eq!((sent, state), (field, vec!["a=1".to_owned()]));
    }
    let (sent, _) = deliver(&scene, &scene.plain_url(), "");
    assert!(sent.is_empty() && scene.outgate.records(3)[2]["trace_id"].is_null());
}

#[test]
fn spans_of_a_refusal_name_its_code_and_no_private_data() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene();
    let collector = Collector::start(&clients, &["http"]);
    let (_closed, port) = refusing();
    let text = traced(&scene, &endpoint(&collector, "sample = 1")).push("routes.*.ports", port);
    scene.outgate.reconfigure(&text);
    let (token, number) = ("dozjgNryP4J3jVmNHl0w5N_xSgXl3jLs0kxJp1aB2cD", "819012345678");
    let path = format!("/hooks/{token}/+{number}?secret={token}&to={number}");
    let refused =
        scene.outgate.post(&format!("https://hook.example:{port}{path}"), "Traceparent: planted\r\n", "a planted body");
    assert_eq!(refused.code(), "connect_refused");
    let trace_id = scene.outgate.records(1)[0]["trace_id"].as_str().unwrap().to_owned();
    let spans = collector.spans_of(&trace_id);
    assert!(!spans.contains_key("request"), "{spans:?}");
    for name in ["delivery", "connect"] {
        assert_eq!(spans[name]["attributes"]["error.type"], "connect_refused", "{name}");
        assert_eq!(spans[name]["status"][0], 2, "{name}");
    }
    let attributes = &spans["delivery"]["attributes"];
    assert_eq!(attributes["url.path"], "/hooks/***/+81901234XXXX");
    assert_eq!(
        (&attributes["outgate.blame"], &attributes["http.response.status_code"]),
        (&json!("target"), &json!(502))
    );
    let all = format!("{:?}", collector.requests());
    assert!([token, number, "planted"].iter().all(|plant| !all.contains(plant)), "{all}");
}

#[test]
fn deliveries_go_on_while_the_collector_is_away_or_slow_and_drops_are_counted() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene();
    let mut collector = Collector::start(&clients, &["grpc"]);
    let (_closed, port) = refusing();
    let grpc = "protocol = \"grpc\"\nsample = 1\ntimeout = \"1s\"";
    scene.outgate.reconfigure(&traced(&scene, &format!("endpoint = \"http://127.0.0.1:{port}\"\n{grpc}")));
    let away = deliver(&scene, &scene.plain_url(), "").0;
    let words =
        ["cannot send spans to the collector", "Connection refused", "deliveries go on", "check traces.endpoint"];
    scene.outgate.log.wait_for_lines(1, &words);
    // The next configuration has a collector, and the spans that waited reach it.
    scene.outgate.reconfigure(&traced(&scene, &endpoint(&collector, grpc)));
    collector.spans_of(&away[3..35]);
    scene.outgate.log.wait_for_lines(1, &["takes spans again"]);
    assert!(scene.outgate.has_metric("outgate_spans_dropped_total 0"));

    collector.tell("delay 60");
    let slow = deliver(&scene, &scene.plain_url(), "").0;
    scene.outgate.log.wait_for_lines(1, &["cannot send spans", "no response within 1s"]);
    let begun = Instant::now();
    (0..20).for_each(|_| drop(deliver(&scene, &scene.plain_url(), "")));
    assert!(begun.elapsed() < Duration::from_secs(30), "no delivery waits: {:?}", begun.elapsed());
    collector.tell("ok");
    collector.spans_of(&slow[3..35]);

    // INVALID_ARGUMENT: the same spans would be refused again.
    collector.tell("status 3");
    deliver(&scene, &scene.plain_url(), "");
    let dropped = || {
        let metrics = scene.outgate.admin("/metrics").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("outgate_spans_dropped_total ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    eventually("dropped spans", || dropped() >= 3);
    collector.tell("ok");
    let (rejected, before) = (2, dropped());
    collector.tell(&format!("reject {rejected}"));
    deliver(&scene, &scene.plain_url(), "");
    eventually("spans that the collector rejects", || dropped() >= before + rejected);
    collector.tell("ok");
    // What waits is sent when the process ends.
    let last = deliver(&scene, &scene.plain_url(), "").0;
    scene.outgate.signal("TERM");
    collector.spans_of(&last[3..35]);
}

#[test]
fn exemplars_name_the_trace_of_a_sampled_delivery_in_openmetrics_alone() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene();
    let collector = Collector::start(&clients, &["http"]);
    scene.outgate.reconfigure(&traced(&scene, &endpoint(&collector, "sample = 1")));
    let trace_id = deliver(&scene, &scene.good_url(), "").0[3..35].to_owned();
    scene.outgate.records(1);
    let mut client = Client::connect(scene.outgate.admin);
    let accept = "application/openmetrics-text;version=1.0.0";
    client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"));
    let text = client.response().text();
    let mut parser = clients.python("openmetrics").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    let families = String::from_utf8(output.stdout).unwrap();
    let families = families.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut with_exemplar = Vec::new();
    for family in families {
        for sample in family["samples"].as_array().unwrap().iter().filter(|sample| !sample[3].is_null()) {
            let [name, _, _, exemplar] = &sample.as_array().unwrap()[..] else { panic!("{sample}") };
            assert_eq!(exemplar[0], json!({ "trace_id": trace_id }));
            assert!(exemplar[1].as_f64().unwrap() > 0.0 && exemplar[2].is_number(), "{sample}");
            with_exemplar.push(name.as_str().unwrap().to_owned());
        }
    }
    with_exemplar.dedup();
    assert_eq!(with_exemplar, ["outgate_delivery_duration_seconds_bucket", "outgate_step_duration_seconds_bucket"]);
    assert!(!scene.outgate.admin("/metrics").text().contains("trace_id"));
}
