//! `outgate send` as an operator runs it: directly from a configuration, and through a running proxy.
//! Does it send the webhook once, as the proxy would, and print the outcome?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::configuration::Replace;
use support::ports::refusing;
use support::receiver::respond_with;
use support::scene::{Scene, bad_receiver, billing, config, scene, scene_with};
use support::signature;

/// Runs with the configuration of the scene, unless the arguments name a proxy.
fn send(scene: &Scene, arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.arg("send").args(arguments);
    if !arguments.contains(&"--proxy") {
        command.arg("--config").arg(scene.outgate.folder.path("config.toml"));
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn exit_code_and_output(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn send_from_the_configuration_delivers_like_the_proxy() {
    let scene = scene();
    let (code, text) = exit_code_and_output(&send(&scene, &[&scene.good_url(), "-d", r#"{"type":"ping"}"#], ""));
    assert_eq!(code, 0, "{text}");
    let received = scene.good.wait_for_requests(1);
    assert_eq!((received.len(), &received[0].body[..]), (1, &br#"{"type":"ping"}"#[..]));
    assert_eq!(
        (received[0].line.as_str(), received[0].field("content-type")),
        ("POST /in HTTP/1.1", "application/json")
    );
    assert!(received[0].from.to_string().starts_with("127.0.7."), "{}", received[0].from);
    signature::verify(&received[0], support::scene::SECRET);
    for expected in [
        "source     127.0.7.",
        "route      signed",
        "signed     by k1",
        "connect ",
        "tls ",
        "response ",
        "200 OK\n",
        "\nok\n",
    ] {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }
    let value_of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(value_of("outgate-request-id:"), value_of("request "), "outgate's own id is shown whole");

    let (code, text) = exit_code_and_output(&send(
        &scene,
        &[&scene.good_url(), "-X", "PUT", "-H", "X-A: 1", "-d", "@-", "--json"],
        "piped",
    ));
    let response: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &response["delivered"], &response["status"], &response["body"]),
        (0, &true.into(), &200.into(), &"ok".into())
    );
    // A body may begin like an option, as with curl.
    assert_eq!(send(&scene, &[&scene.good_url(), "-d", "--secret"], "").status.code(), Some(0));
    assert_eq!(scene.good.wait_for_requests(3)[2].body, b"--secret");

    let record = &response["record"];
    assert_eq!((&record["code"], &record["proof"]), (&"delivered".into(), &"stated".into()), "{record}");
    assert_eq!((&record["request_id"], &record["source"]), (&response["request_id"], &response["source"]));
    assert!(record["ms"]["total"].as_f64() > record["ms"]["connect"].as_f64(), "{record}");
    let second = &scene.good.wait_for_requests(2)[1];
    assert_eq!((second.line.as_str(), second.field("x-a"), &second.body[..]), ("PUT /in HTTP/1.1", "1", &b"piped"[..]));
}

#[test]
fn send_through_a_proxy_acts_as_a_client() {
    let scene = scene();
    let proxy = format!("http://{}", scene.outgate.proxy);
    let (code, text) = exit_code_and_output(&send(&scene, &[&scene.good_url(), "-d", "{}", "--proxy", &proxy], ""));
    assert!(code == 0 && text.contains("source     127.0.7.") && text.contains("total "), "{text}");
    let record = &scene.outgate.records(1)[0];
    assert!(text.contains(record["request_id"].as_str().unwrap()), "{text}");
    assert_eq!(scene.good.requests().len(), 1);

    let (code, text) = exit_code_and_output(&send(&scene, &["https://elsewhere.example/", "--proxy", &proxy], ""));
    assert!(code == 69 && text.contains("refused    no_route") && text.contains("do not retry unchanged"), "{text}");
    let (_closed, refused) = refusing();
    let closed = format!("127.0.0.1:{refused}");
    let (code, text) =
        exit_code_and_output(&send(&scene, &[&scene.good_url(), "--proxy", &format!("http://{closed}")], ""));
    assert!(code == 69 && text.contains(&closed), "{text}");
}

#[test]
fn send_authenticates_with_the_credentials_of_the_proxy_url() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, &billing("test"));
    scene.outgate.reconfigure(&text.set("server.allow_anonymous", false));
    let proxy_address = scene.outgate.proxy;
    let send_via_proxy = |proxy: &str| {
        exit_code_and_output(&send(&scene, &[&scene.good_url(), "--tenant", "acme", "--proxy", proxy], ""))
    };
    let (code, text) = send_via_proxy(&format!("http://billing:test@{proxy_address}"));
    assert_eq!(code, 0, "{text}");
    let (code, text) = send_via_proxy(&format!("http://billing:guess@{proxy_address}"));
    assert!(code == 69 && text.contains("client_unauthenticated") && !text.contains("guess"), "{text}");
    let send_directly =
        |client: &[&str]| exit_code_and_output(&send(&scene, &[&[scene.good_url().as_str()], client].concat(), ""));
    assert_eq!(send_directly(&["--client", "billing", "--tenant", "acme"]).0, 0);
    assert!(send_directly(&["--client", "billing", "--tenant", "other"]).1.contains("client_forbidden"));
    for client in [&["--client", "nobody"][..], &[]] {
        assert_eq!(send_directly(client).0, 2, "{client:?}");
    }
}

#[test]
fn send_prints_the_cause_and_the_remedy_of_a_refusal() {
    let scene = scene();
    let bad = bad_receiver(&["hook.example"]);
    let url = scene.good_url().replace_one(&scene.good.port().to_string(), &bad.port().to_string());
    scene.outgate.reconfigure(&config(&bad, &scene.plain, ""));
    let (code, text) = exit_code_and_output(&send(&scene, &[&url, "-d", "{}"], ""));
    assert_eq!(code, 69, "{text}");
    for expected in
        ["certificate_untrusted (self_signed)", "blame      target", "do not retry unchanged", "502 Bad Gateway"]
    {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }
    let (_, text) = exit_code_and_output(&send(&scene, &[&url, "--json"], ""));
    let response: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&response["delivered"], &response["refusal"]["code"]),
        (&false.into(), &"certificate_untrusted".into())
    );
    assert_eq!(bad.requests().len(), 0);
}

/// A response must not send control sequences to the operator's terminal.
#[test]
fn send_escapes_control_characters_of_the_response() {
    let scene = scene_with(
        respond_with("HTTP/1.1 500 Broken\r\nX-Odd: a\u{9b}2Jb\r\nContent-Length: 8\r\n\r\n\u{1b}[31mred"),
        "",
    );
    let (code, text) = exit_code_and_output(&send(&scene, &[&scene.plain_url()], ""));
    assert!(code == 1 && text.contains("500") && text.contains("[31mred"), "{code} {text}");
    assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text:?}");
}

#[test]
fn send_rejects_wrong_usage_and_sends_nothing() {
    let scene = scene();
    let url = scene.good_url();
    for arguments in [
        &["-X", "CONNECT", &url][..],
        &["-H", "Content-Length: 3", &url],
        &["-H", "no colon", &url],
        &["-d", "@/nowhere", &url],
        &["--proxy", "127.0.0.1:1", &url],
        &["--proxy", "https://127.0.0.1:1", &url],
        &["--proxy", "http://127.0.0.1:1", "--client", "billing", &url],
        &[],
    ] {
        let (code, text) = exit_code_and_output(&send(&scene, arguments, ""));
        assert!(code == 2 && !text.is_empty(), "{arguments:?}: {code} {text}");
    }
    let (code, text) = exit_code_and_output(&send(&scene, &["no url"], ""));
    assert!(code == 69 && text.contains("request_malformed"), "{code} {text}");
    // The value may be a credential in the wrong form or place.
    for (arguments, expected) in [
        (["--proxy", "http://user:SECRET@127.0.0.1"], "add the port of the proxy"),
        (["--header", "Authorization SECRET"], "write it as NAME: VALUE"),
        (["--client", "ogt_SECRET"], "the configuration has no client of this name"),
    ] {
        let (code, text) = exit_code_and_output(&send(&scene, &[&arguments[..], &[&url]].concat(), ""));
        assert!(code == 2 && text.contains(expected) && !text.contains("SECRET"), "{arguments:?}: {code} {text}");
    }
    assert_eq!(scene.good.requests().len(), 0);
}
