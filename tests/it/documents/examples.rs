//! The unchanged examples of `docs/requests.md`.
//! Does each one deliver a signed webhook?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use support::Outgate;
use support::clients::{InstalledClients, Language};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{billing, config, folder};

/// Returns the languages and texts of a page's code blocks.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    fenced.filter(|(language, _)| !language.is_empty()).collect()
}

/// Returns a complete Go program with an example.
fn go_program(example: &str) -> String {
    format!(
        "package main\nimport (\"net/http\"; \"net/url\"; \"strings\")\nfunc main() {{\n{example}\n\
         if err != nil {{ panic(err) }}\n_ = response.Body.Close()\n}}\n"
    )
}

/// Returns a complete Java program with an example.
fn java(example: &str) -> String {
    let imports = [
        "org.apache.http.HttpHost",
        "org.apache.http.auth.*",
        "org.apache.http.client.CredentialsProvider",
        "org.apache.http.client.methods.HttpPost",
        "org.apache.http.entity.*",
        "org.apache.http.impl.client.*",
    ];
    let imports: String = imports.iter().map(|name| format!("import {name};\n")).collect();
    format!("{imports}class Example {{ public static void main(String[] words) throws Exception {{\n{example}\n}} }}\n")
}

#[test]
fn every_example_of_a_request_form_delivers_a_signed_webhook() {
    let Some(installed) = InstalledClients::open() else { return };
    let pki = Pki::new();
    let (receiver, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let text = config(&receiver, &plain, &billing("TOKEN")).remove("server.allow_anonymous");
    let outgate = Outgate::run(folder(&pki), &text);

    let (mut run, mut expected, mut records) = (0, 0, 0);
    for (language, text) in blocks(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/requests.md"))) {
        // The only changes are the receiver on this host and free ports.
        let text = text
            .replace_all("hooks.acme.example", &format!("hook.example:{}", receiver.port()))
            .replace_all("4750", &outgate.proxy.port().to_string());
        let command = match language {
            "sh" => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(text.as_str());
                Some(shell)
            }
            "python" => Some(installed.example(Language::Python, &text)),
            "js" => Some(installed.example(Language::Node, &text)),
            "ruby" => installed.has("httpclient").then(|| {
                let mut ruby = Command::new("ruby");
                ruby.arg("-e").arg(text.as_str());
                ruby
            }),
            "go" => installed.compiled_example("go", &go_program(&text)),
            "java" => installed.compiled_example("apache", &java(&text)),
            _ => continue,
        };
        run += 1;
        let Some(mut command) = command else { continue };
        command.env_remove("http_proxy").env_remove("https_proxy").env_remove("no_proxy").env_remove("NO_PROXY");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{language}: {output:?}");
        expected += 1;
        // Apache HttpClient sends its credential only after a 407, which also has a record.
        records += if language == "java" { 2 } else { 1 };
        let received = receiver.requests();
        assert_eq!(received.len(), expected, "{language}: {output:?}");
        let last = received.last().unwrap();
        assert!(last.line.starts_with("POST /"), "{language}: {last:?}");
        assert!(!last.field("webhook-signature").is_empty(), "{language}: {last:?}");
        let record = &outgate.records(records)[records - 1];
        assert_eq!((&record["client"], &record["tenant"]), (&"billing".into(), &"acme".into()), "{language}");
    }
    assert!(run >= 7, "only {run} examples were found");
}
