//! The unchanged examples of `docs/requests.md`.
//! Does each one deliver a signed webhook?
//!
//! Needs curl: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`. `tests/it/examples/senders.rs` runs the
//! programs that the page names.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{billing, config, folder};
use support::{Outgate, required};

/// Returns the languages and texts of a page's code blocks.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    fenced.filter(|(language, _)| !language.is_empty()).collect()
}

#[test]
fn every_example_of_a_request_form_delivers_a_signed_webhook() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(!required(), "curl is missing");
        eprintln!("skipped: curl is missing");
        return;
    }
    let pki = Pki::new();
    let (receiver, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let text = config(&receiver, &plain, &billing("TOKEN")).remove("server.allow_anonymous");
    let outgate = Outgate::run(folder(&pki), &text);

    let mut run = 0;
    for (language, text) in blocks(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/requests.md"))) {
        // The only changes are the receiver on this host and free ports.
        let text = text
            .replace_all("hooks.acme.example", &format!("hook.example:{}", receiver.port()))
            .replace_all("4750", &outgate.proxy.port().to_string());
        if language != "sh" {
            continue;
        }
        run += 1;
        let mut command = Command::new("sh");
        command.arg("-c").arg(text.as_str());
        command.env_remove("http_proxy").env_remove("https_proxy").env_remove("no_proxy").env_remove("NO_PROXY");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{text}: {output:?}");
        let received = receiver.requests();
        assert_eq!(received.len(), run, "{text}: {output:?}");
        let last = received.last().unwrap();
        assert!(last.line.starts_with("POST /"), "{text}: {last:?}");
        assert!(!last.field("webhook-signature").is_empty(), "{text}: {last:?}");
        let record = &outgate.records(run)[run - 1];
        assert_eq!((&record["client"], &record["tenant"]), (&"billing".into(), &"acme".into()), "{text}");
    }
    assert!(run >= 2, "only {run} examples were found");
}
