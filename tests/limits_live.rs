//! Limits of a running proxy: what only reports.
//! What do clients, records and metrics see of a limit?

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::json;
use support::Client;
use support::scene::{Scene, config, scene};

/// The usual scene, with this limit on the routes.
fn limited(limit: &str) -> Scene {
    let scene = scene();
    scene.outgate.reconfigure(&with_limit(&scene, limit));
    scene
}

fn with_limit(scene: &Scene, limit: &str) -> String {
    let text = config(&scene.good, &scene.plain, &format!("[limits.l]\n{limit}\n"));
    text.replace("body_max =", "limits = [\"l\"]\nbody_max =")
}

/// A delivery that stays under way until its client sends the last byte.
fn unfinished(scene: &Scene) -> Client {
    let mut client = scene.outgate.connect();
    client.send(format!(
        "POST {} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        scene.plain_url()
    ));
    // It has got through when it is asked for its body.
    assert_eq!(client.one_answer("POST").status, 100);
    client
}

#[test]
fn what_only_reports_refuses_nothing() {
    let scene = limited("rate = \"1/h\"\nconcurrency = 1\nwait = \"1h\"\nreport_only = true");
    let first = unfinished(&scene);
    let answer = scene.outgate.post(&scene.plain_url(), "", "x");
    assert_eq!((answer.status, answer.field("ratelimit-policy")), (200, ""));
    let would = |kind: &str| json!([{ "kind": "limit", "name": "l", "code": kind }]);
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["would_refuse"]), (&json!("delivered"), &would("concurrency_limited")));
    drop(first);
    assert!(scene.outgate.records(2)[1].get("would_refuse").is_none());
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.records(3)[2]["would_refuse"], would("rate_limited"));
    let metrics = scene.outgate.admin("/metrics").text();
    for code in ["concurrency_limited", "rate_limited"] {
        let line = format!("outgate_report_only_total{{kind=\"limit\",name=\"l\",code=\"{code}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    // What it counted, it counts on when it is enforced.
    scene.outgate.reconfigure(&with_limit(&scene, "rate = \"1/h\"\nconcurrency = 1"));
    let answer = scene.outgate.post(&scene.plain_url(), "", "x");
    assert_eq!((answer.status, answer.code()), (429, "rate_limited"));
}
