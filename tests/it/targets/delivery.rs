//! Deliveries over real sockets: forms, fields, signatures, refusals, records.
//! Does a webhook leave from the right address, and do response, request and record have the right fields?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::IpAddr;

use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok, respond_and_close, respond_with};
use support::scene::{SECRET, bad_receiver, billing, config, folder, scene, scene_with};
use support::signature::verify;
use support::{Outgate, post};

fn pool() -> Vec<IpAddr> {
    (0..4).map(|last| IpAddr::from([127, 0, 7, last])).collect()
}

#[test]
fn every_request_form_reaches_the_target_over_verified_tls_from_the_pool() {
    let scene = scene();
    let port = scene.good.port();
    let requests = [
        post(&format!("https://hook.example:{port}/in?a=1"), "", "{}"),
        post(&format!("http://hook.example:{port}/in?a=1"), "Outgate-TLS: 1\r\n", "{}"),
        post("/ignored", &format!("Outgate-Target: https://hook.example:{port}/in?a=1\r\n"), "{}"),
        post(&format!("https://HOOK.example.:{port}/in?a=1"), "", "{}"),
    ];
    let mut client = scene.outgate.connect();
    for request in &requests {
        client.send(request);
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{request}");
        let source: IpAddr = response.field("outgate-egress").parse().unwrap();
        assert!(pool().contains(&source), "{source}");
        assert!(!response.field("outgate-request-id").is_empty());
        assert_eq!(response.field("via"), "1.1 outgate");
        assert_eq!(response.field("proxy-status"), "outgate; received-status=200");
    }
    for received in scene.good.requests() {
        assert!(pool().contains(&received.from), "{received:?}");
        assert_eq!(received.line, "POST /in?a=1 HTTP/1.1");
        assert_eq!(received.all("host"), [format!("hook.example:{port}")]);
        assert_eq!(received.all("via"), ["1.1 outgate"]);
        assert!(
            !received.fields.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with("outgate-")),
            "{received:?}"
        );
        verify(&received, SECRET);
    }
    assert_eq!(scene.good.connections(), 1, "one client, one source, one connection");
}

#[test]
fn path_and_query_are_forwarded_byte_for_byte() {
    let scene = scene();
    for path in ["/a//b/../c;x=1", "/%41%2f?q=%20+&&", "/?", "//double", "/quote'(x)*!$"] {
        let response = scene.outgate.post(&format!("http://plain.example:{}{path}", scene.plain.port()), "", "");
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(scene.plain.requests().last().unwrap().line, format!("POST {path} HTTP/1.1"));
    }
}

#[test]
fn webhook_id_of_the_client_is_kept_and_two_keys_make_two_signatures() {
    const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    folder.write("old", format!("  {OLD}\n"));
    let text = config(&good, &plain, "").and(r#"signers.platform.keys = [{ id = "k0", secret = "file:{dir}/old" }]"#);
    let outgate = Outgate::run(folder, &text);
    let url = format!("https://hook.example:{}/", good.port());
    assert_eq!(outgate.post(&url, "Webhook-Id: msg_mine\r\n", "{}").status, 200);
    let received = &good.requests()[0];
    assert_eq!(received.all("webhook-id"), ["msg_mine"]);
    assert_eq!(received.field("webhook-signature").split(' ').count(), 2);
    verify(received, SECRET);
    verify(received, OLD);
    assert_eq!(outgate.records(1)[0]["signatures"].as_array().unwrap().len(), 2);
    for id in ["has.stop", "a:1:b", "a,s=0", "a b", "a\r\nWebhook-Id: b"] {
        assert_eq!(outgate.post(&url, &format!("Webhook-Id: {id}\r\n"), "{}").code(), "request_malformed", "{id}");
    }
}

#[test]
fn target_certificate_must_match_the_name() {
    let pki = Pki::new();
    let other_pki = Pki::new();
    let past = |params: &mut rcgen::CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let future = |params: &mut rcgen::CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    };
    let client_only = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    };
    let names = ["hook.example", "127.0.0.1"];
    let cases = [
        (bad_receiver(&names), "self_signed"),
        (Receiver::tls(other_pki.leaf(&names), ok()), "unknown_issuer"),
        (Receiver::tls(pki.leaf_with(&names, past), ok()), "expired"),
        (Receiver::tls(pki.leaf_with(&names, future), ok()), "not_yet_valid"),
        (Receiver::tls(pki.leaf(&["else.example"]), ok()), "name_mismatch"),
        (Receiver::tls(pki.leaf_with(&names, client_only), ok()), "wrong_usage"),
    ];
    for (receiver, details) in &cases {
        let outgate = Outgate::run(folder(&pki), &config(receiver, receiver, ""));
        for host in names {
            let response = outgate.post(&format!("https://{host}:{}/", receiver.port()), "", "secret");
            assert_eq!((response.status, response.code()), (502, "certificate_untrusted"), "{details} {host}");
            assert_eq!(response.json()["details"], *details, "{host}");
            assert_eq!(response.json()["retryable"], false);
            assert!(response.field("proxy-status").contains("tls_certificate_error"));
        }
        assert!(receiver.requests().is_empty(), "nothing was sent to {details}");
        assert_eq!(outgate.records(2)[0]["details"], *details);
    }
    let by_address = Receiver::tls(pki.leaf(&["127.0.0.1"]), ok());
    let outgate = Outgate::run(folder(&pki), &config(&by_address, &by_address, ""));
    assert_eq!(outgate.post(&format!("https://127.0.0.1:{}/", by_address.port()), "", "").status, 200);
}

#[test]
fn targets_that_routes_or_guard_forbid_are_refused() {
    let scene = scene();
    let (own, good) = (scene.outgate.proxy.port(), scene.good.port());
    for (url, code) in [
        (format!("https://169.254.169.254:{good}/"), "no_route"),
        (format!("https://unrouted.example:{good}/"), "no_route"),
        ("https://hook.example:22/".into(), "target_port_forbidden"),
        (format!("http://hook.example:{good}/"), "plaintext_forbidden"),
        ("https://hook.example/".into(), "connect_refused"),
    ] {
        assert_eq!(scene.outgate.post(&url, "", "x").code(), code, "{url}");
    }
    // outgate refuses its own listener even if a route allows it.
    let text = config(&scene.good, &scene.plain, "").push("routes.*.ports", own);
    scene.outgate.reconfigure(&text);
    let response = scene.outgate.post(&format!("https://127.0.0.1:{own}/"), "", "x");
    assert_eq!((response.status, response.code()), (502, "target_loops_back"));
    let response = scene.outgate.post(&scene.good_url(), "Via: 1.1 outgate\r\n", "x");
    assert_eq!(response.code(), "target_loops_back");

    // Without the exception, loopback is forbidden like any private network, and the client does not learn the address.
    scene.outgate.reconfigure(&text.remove("guard.allow"));
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!((response.status, response.code()), (502, "target_forbidden"));
    assert!(!response.text().contains("127.0.0.1"), "{}", response.text());
    let records = scene.outgate.records(8);
    assert!(records[7]["cause"].as_str().unwrap().contains("127.0.0.1"), "{}", records[7]);
    assert!(scene.good.requests().is_empty());
}

#[test]
fn target_response_cannot_set_the_fields_of_outgate() {
    let forged = "HTTP/1.1 200 OK\r\nConnection: date\r\nDate: Mon, 23 Nov 2026 02:20:00 GMT\r\nOutgate-Egress: 192.0.2.9\r\n\
                  Outgate-Error: no_egress\r\nKeep-Alive: x\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nok";
    let scene = scene_with(respond_with(forged), "");
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!((response.code(), response.field("keep-alive"), response.field("proxy-authenticate")), ("", "", ""));
    assert!(pool().contains(&response.field("outgate-egress").parse().unwrap()), "{response:?}");
    let reply = "HTTP/1.1 200 OK\r\nOutgate-Error: no_egress\r\nOutgate-Anything: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\
                 Via: 1.1 theirs\r\nProxy-Status: theirs\r\nSet-Cookie: a\r\nContent-Length: 2\r\n\r\nok";
    let scene = scene_with(respond_with(reply), "");
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!(response.code(), "");
    assert_eq!((response.field("outgate-anything"), response.field("x-hop"), response.field("x-kept")), ("", "", "1"));
    assert_eq!(response.field("via"), "1.1 theirs, 1.1 outgate");
    assert_eq!(response.field("proxy-status"), "theirs, outgate; received-status=200");
    assert_eq!(response.field("set-cookie"), "a");
    assert!(!response.field("date").is_empty());
}

#[test]
fn target_connection_closed_while_idle_loses_no_webhook() {
    let scene = scene_with(respond_and_close("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "");
    for count in 1..=40 {
        assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200, "{count}");
        scene.good.wait_until_closed(count);
    }
    assert_eq!((scene.good.connections(), scene.good.requests().len()), (40, 40));
    let records = scene.outgate.records(40);
    assert!(records.iter().all(|record| record["code"] == "delivered" && record["reused"] == false));
}

#[test]
fn record_describes_the_delivery_without_private_data() {
    let scene = scene();
    let fields = "Authorization: Bearer SECRET-1\r\nCookie: SECRET-2\r\n";
    let response = scene.outgate.post(&format!("{}?token=SECRET-3", scene.good_url()), fields, "SECRET-4");
    let next = scene.outgate.post(&scene.good_url(), "", "x");
    let (first, second) = (&scene.outgate.record_of(&response), &scene.outgate.record_of(&next));
    assert!(!first.to_string().contains("SECRET"), "{first}");
    assert_eq!(first["request_id"], response.field("outgate-request-id"));
    assert_eq!((&first["client"], &first["route"]), (&"anonymous".into(), &"signed".into()));
    assert_eq!(
        (&first["method"], &first["host"], &first["path"]),
        (&"POST".into(), &"hook.example".into(), &"/in".into())
    );
    assert_eq!(
        (&first["port"], &first["source"]),
        (&scene.good.port().into(), &response.field("outgate-egress").into())
    );
    assert_eq!(
        (&first["status"], &first["code"], &first["address"]),
        (&200.into(), &"delivered".into(), &"127.0.0.1".into())
    );
    assert_eq!((&first["reused"], &second["reused"]), (&false.into(), &true.into()));
    assert_eq!((&first["tls"]["version"], &first["signatures"][0]), (&"TLSv1.3".into(), &"k1".into()));
    assert_eq!((&first["bytes_sent"], &first["bytes_received"]), (&8.into(), &2.into()));
    assert!(first["tls"]["certificate_expires"].is_string() && first["tls"]["suite"].is_string());
    for step in ["admit", "take_in", "resolve", "connect", "tls", "sign", "response", "total"] {
        assert!(first["ms"][step].is_number(), "{step}: {first}");
    }
    assert!(second["ms"]["connect"].is_null());
}

#[test]
fn tls_failure_of_a_plaintext_port_differs_from_a_timeout() {
    let pki = Pki::new();
    let plain = Receiver::plaintext_greeting();
    let outgate = Outgate::run(folder(&pki), &config(&plain, &plain, ""));
    let response = outgate.post(&format!("https://hook.example:{}/", plain.port()), "", "x");
    assert_eq!((response.status, response.code()), (502, "tls_failed"));
    assert_eq!(response.json()["details"], "plaintext");

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = config(&plain, &plain, "").set("routes.*.ports", [port]);
    outgate.reconfigure(&text.set("routes.signed.timeouts.tls", "100ms").set("routes.*.timeouts.response", "100ms"));
    assert_eq!(outgate.post(&format!("https://hook.example:{port}/"), "", "x").code(), "connect_timeout");
    let response = outgate.post(&format!("http://plain.example:{port}/"), "", "x");
    assert_eq!((response.status, response.code()), (504, "response_timeout"));
    assert_eq!(response.json()["retryable"], true);
}

#[test]
fn pool_without_a_usable_address_refuses_webhooks_as_no_egress() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.set("egress.default.ranges", ["198.51.100.0/30"]));
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!((response.status, response.code(), response.field("retry-after")), (503, "no_egress", "1"));
    assert_eq!(response.json()["blame"], "outgate");
    let ready = scene.outgate.admin("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("pool default has no usable source address"), "{}", ready.text());
    assert!(scene.good.requests().is_empty());
    scene.outgate.reconfigure(&text);
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.admin("/readyz").status, 200);
}

#[test]
fn pool_select_spread_rotates_and_sticky_stays() {
    let scene = scene();
    let sources = |text: &Config| -> Vec<IpAddr> {
        scene.outgate.reconfigure(text);
        let send = |_| scene.outgate.post(&scene.good_url(), "", "x").field("outgate-egress").parse().unwrap();
        (0..8).map(send).collect()
    };
    let text = config(&scene.good, &scene.plain, "");
    let spread = sources(&text.add("egress.default.select", "spread"));
    let distinct: std::collections::BTreeSet<_> = spread.iter().collect();
    assert_eq!(distinct.len(), 4, "{spread:?}");
    let sticky = sources(&text.add("egress.default.select", "sticky").add("egress.default.exclude", ["127.0.7.0"]));
    assert!(sticky.iter().all(|source| *source == sticky[0] && *source != IpAddr::from([127, 0, 7, 0])), "{sticky:?}");
}

#[test]
fn rate_limit_refusal_has_retry_after_and_ratelimit_fields() {
    let limits = "[limits.tight]\nrate = \"1/h\"\nburst = 2\nper = [\"host\"]\n";
    let scene = scene();
    let text = config(&scene.good, &scene.plain, limits).add("routes.signed.limits", ["tight"]);
    scene.outgate.reconfigure(&text);
    for _ in 0..2 {
        assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    }
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!((response.status, response.code()), (429, "rate_limited"));
    let wait: u64 = response.field("retry-after").parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    assert!(response.field("ratelimit-policy").starts_with("\"tight\";q="), "{response:?}");
    assert!(response.field("ratelimit").starts_with("\"tight\";r=0;t="), "{response:?}");
    // A reload neither refills nor drops the bucket.
    scene.outgate.reconfigure(&text.set("limits.tight.burst", 3));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 429);
}

#[test]
fn clients_are_identified_by_token_and_network() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, &billing("t0ken")).remove("server.allow_anonymous");
    scene.outgate.reconfigure(&text);
    let url = scene.good_url();
    let basic = "Proxy-Authorization: Basic YmlsbGluZzp0MGtlbg==\r\n";
    let bearer = "Proxy-Authorization: Bearer t0ken\r\n";
    for fields in [
        "",
        "Proxy-Authorization: Bearer wrong\r\n",
        "Proxy-Authorization: Basic !!!\r\n",
        "Proxy-Authorization: Digest x\r\n",
    ] {
        let response = scene.outgate.post(&url, fields, "x");
        assert_eq!((response.status, response.code()), (407, "client_unauthenticated"), "{fields}");
        assert!(response.field("proxy-authenticate").contains("Basic realm"));
    }
    for fields in [basic, bearer] {
        assert_eq!(scene.outgate.post(&url, &format!("{fields}Authorization: Bearer theirs\r\n"), "x").status, 200);
        let received = scene.good.requests().pop().unwrap();
        assert_eq!((received.field("proxy-authorization"), received.field("authorization")), ("", "Bearer theirs"));
    }
    assert_eq!(scene.outgate.post(&url, &format!("{bearer}Outgate-Tenant: acme\r\n"), "x").status, 200);
    let response = scene.outgate.post(&url, &format!("{bearer}Outgate-Tenant: other\r\n"), "x");
    assert_eq!((response.status, response.code()), (403, "client_forbidden"));
    // An unidentified client gets no information about routes.
    assert_eq!(scene.outgate.post("https://unrouted.example/", "", "x").code(), "client_unauthenticated");
}

#[test]
fn request_bodies_arrive_whole_with_their_length() {
    // An HTTP/1.0 target does not support chunks, so outgate does not reuse its connection for a stream.
    let old = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
    let scene = scene_with(respond_with(old), "");
    let upload = |method: &str| {
        let mut client = scene.outgate.connect();
        let url = scene.plain_url();
        client.send(format!(
            "{method} {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ));
        assert_eq!(client.response().status, 200);
    };
    for method in ["POST", "POST", "GET", "DELETE"] {
        upload(method);
        let received = scene.plain.requests().pop().unwrap();
        assert_eq!((received.body.as_slice(), received.line.ends_with("HTTP/1.1")), (&b"hello"[..], true), "{method}");
    }
    // Servers respond with 411 if an empty body has no length.
    for url in [scene.good_url(), scene.plain_url()] {
        assert_eq!(scene.outgate.post(&url, "", "").status, 200);
    }
    for received in [scene.good.requests().pop().unwrap(), scene.plain.requests().pop().unwrap()] {
        assert_eq!(received.all("content-length"), ["0"]);
    }
}
