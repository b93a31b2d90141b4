//! `examples/compose`: a file for docker compose, checked without a container.
//! Does docker-compose accept the file, and does outgate run with what it says?
//!
//! Needs Debian's docker-compose: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use super::{checked, config, folder_with, has, new_key, path, receiver_on_this_host, verify_with_public_key};
use crate::support::clients::InstalledClients;
use crate::support::configuration::{Replace, token_hash};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::{Folder, Outgate, eventually};

const HOST: &str = "hooks.acme.example";

/// Reads the file as docker-compose does, with its schema.
fn compose(file: &Path) -> Output {
    Command::new("docker-compose").arg("--file").arg(file).arg("config").output().unwrap()
}

#[test]
fn compose_file_is_accepted_and_a_wrong_one_is_not() {
    if !has("docker-compose", "--version") {
        return;
    }
    let output = compose(&path("compose/compose.yaml"));
    assert!(output.status.success(), "{output:?}");
    let folder = Folder::new();
    let text = std::fs::read_to_string(path("compose/compose.yaml")).unwrap();
    for (right, wrong) in [("read_only: true", "readonly: true"), ("retries", "retry"), ("- state:", "- states:")] {
        let text = match right {
            "retries" => text.replace_one("interval: 10s", "interval: 10s\n      retry: 3"),
            _ => text.replace_one(right, wrong),
        };
        let output = compose(&folder.write("compose.yaml", text));
        assert!(!output.status.success(), "{wrong}: {output:?}");
    }
}

#[test]
fn container_has_the_network_of_the_host_and_no_privilege() {
    let Some(installed) = InstalledClients::open() else { return };
    let document = installed.yaml(&path("compose/compose.yaml")).remove(0);
    let service = &document["services"]["outgate"];
    for (key, value) in [
        ("network_mode", json!("host")),
        ("user", json!("65532:65532")),
        ("read_only", json!(true)),
        ("cap_drop", json!(["ALL"])),
        ("security_opt", json!(["no-new-privileges:true"])),
    ] {
        assert_eq!(service[key], value, "{key}");
    }
    let keys = config("compose/config/config.toml").to_string();
    for secret in service["secrets"].as_array().unwrap() {
        let name = secret.as_str().unwrap();
        assert!(document["secrets"][name]["file"].is_string(), "{name} has a file");
        assert!(keys.contains(&format!("file:/run/secrets/{name}")), "the configuration names {name}");
    }
}

#[test]
fn outgate_runs_with_the_configuration_and_the_health_check_of_the_compose_file() {
    let Some(installed) = InstalledClients::open() else { return };
    let service = installed.yaml(&path("compose/compose.yaml")).remove(0)["services"]["outgate"].clone();
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&[HOST]), ok());
    let folder = folder_with(&pki);
    new_key(&folder, "platform-2026-11.pem");
    let key = toml::toml! {
        id = "2026-11"
        secret = "file:{dir}/platform-2026-11.pem"
    };
    let text = config("compose/config/config.toml").set("signers.platform.keys", [key]);
    folder.write_config("config.toml", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public"], "addresses of documentation");

    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("admin.listen", ["127.0.0.1:0", "unix:{dir}/admin.sock"])
        .set("egress.default.ranges", ["127.0.7.16/28"])
        .set("clients.billing.tokens", [token_hash("TOKEN")])
        .and(&receiver_on_this_host(&receiver, HOST))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    folder.write_config("config.toml", &text);
    let file = folder.path("config.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    for word in service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()) {
        command.arg(if word == "/etc/outgate/config.toml" { file.to_str().unwrap() } else { word });
    }
    let outgate = Outgate::start(command, folder);
    let fields = "Proxy-Authorization: Bearer TOKEN\r\n";
    let response = outgate.post(&format!("https://{HOST}:{}/in", receiver.port()), fields, "{}");
    assert_eq!(response.status, 200, "{response:?}");
    verify_with_public_key(&receiver.requests()[0], &outgate.folder);

    let test = service["healthcheck"]["test"].as_array().unwrap();
    let words: Vec<&str> = test.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[..2], ["CMD", "/usr/bin/outgate"]);
    let socket = format!("unix:{}", outgate.folder.path("admin.sock").display());
    let exit_code = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(words).args(["--admin", &socket]).output().unwrap().status.code()
    };
    assert_eq!(exit_code(&words[2..]), Some(0));
    // A rejected configuration is a degradation: outgate still delivers, so the container stays healthy.
    std::fs::write(&file, "no configuration").unwrap();
    eventually("outgate is degraded", || exit_code(&["status"]) == Some(1));
    assert_eq!(exit_code(&words[2..]), Some(0));
    drop(outgate);
    assert_ne!(exit_code(&words[2..]), Some(0), "no process, no health");
}
