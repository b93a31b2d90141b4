//! The operator's exercise: webhooks fail for different reasons, and one command tells about each.
//! Which party is at fault, and what should the operator do?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::TcpListener;

use outgate::delivery::refusal::TABLE;
use support::configuration::Config;
use support::control::{exit_code_and_output, run, with_admin_socket};
use support::ports::refusing;
use support::receiver::{Receiver, ok, respond_and_close, respond_with};
use support::scene::{Scene, bad_receiver, scene_of};
use support::{eventually, post};

struct Case {
    code: &'static str,
    /// The party at fault, as the command names it.
    fault: &'static str,
    url: String,
    tenant: &'static str,
    body: usize,
}

/// Returns the configuration. Only the silent target has a short response timeout.
fn configuration(config: &Config, ports: &[u16], silent: u16) -> Config {
    let silent = format!(
        "[[routes]]\nname = \"silent\"\nhosts = [\"silent.example\"]\nports = [{silent}]\nplaintext = \"allow\"\n\
         timeouts = {{ response = \"200ms\" }}\n"
    );
    let more = "[clients.local]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\"]\n[limits.few]\nrate = \"1/h\"\n\
                [[routes]]\nname = \"limited\"\nhosts = [\"limited.example\"]\nports = []\nplaintext = \"allow\"\n\
                limits = [\"few\"]\n";
    let config = with_admin_socket(config).host("limited.example", "127.0.0.1").host("private.example", "10.0.0.1");
    let config = config.push("routes.signed.hosts", "private.example").and(more);
    let config = ports.iter().fold(config, |config, port| config.push("routes.*.ports", port));
    config.host("silent.example", "127.0.0.1").and(&silent)
}

/// The story that the command tells about the delivery.
fn story(scene: &Scene, id: &str) -> String {
    let ask = || exit_code_and_output(&run(scene, &["deliveries", "--request-id", id]));
    eventually("the record", || ask().0 == 0);
    ask().1
}

#[test]
fn one_command_tells_the_party_at_fault_and_the_next_step_for_each_failure() {
    let (_closed, refusing) = refusing();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let malformed = Receiver::plain(respond_with("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok"));
    let closing = Receiver::plain(respond_and_close(""));
    let (untrusted, greeting, good) =
        (bad_receiver(&["hook.example"]), Receiver::plaintext_greeting(), Receiver::plain(ok()));
    let silent = silent.local_addr().unwrap().port();
    let ports = [refusing, malformed.port(), closing.port(), untrusted.port(), greeting.port(), good.port()];
    let scene = scene_of(&|config| configuration(config, &ports, silent));

    let https = |port: u16| format!("https://hook.example:{port}/in");
    let http = |port: u16| format!("http://plain.example:{port}/in");
    let limited = format!("http://limited.example:{}/in", good.port());
    assert_eq!(scene.outgate.post(&limited, "", "x").status, 200, "the only one of this hour");
    let case = |code, fault, url| Case { code, fault, url, tenant: "acme", body: 1 };
    let (client, target) = ("the client, or what the configuration allows it", "the target hook.example");
    let cases = [
        case("no_route", client, "http://nowhere.example/in".to_owned()),
        case("plaintext_forbidden", client, format!("http://hook.example:{}/in", good.port())),
        case("target_port_forbidden", client, https(1)),
        case("target_forbidden", client, format!("https://private.example:{}/in", good.port())),
        case("rate_limited", client, limited),
        Case { tenant: "other", ..case("client_forbidden", client, https(good.port())) },
        Case { body: 65 * 1024, ..case("body_too_large", client, https(good.port())) },
        case("connect_refused", target, https(refusing)),
        case("certificate_untrusted", target, https(untrusted.port())),
        case("tls_failed", target, https(greeting.port())),
        case("response_timeout", "the target silent.example", format!("http://silent.example:{silent}/in")),
        case("response_malformed", "the target plain.example", http(malformed.port())),
        case("connection_lost", "the target plain.example", http(closing.port())),
    ];
    for Case { code, fault, url, tenant, body } in cases {
        let mut client = scene.outgate.connect();
        client.try_send(post(&url, &format!("Outgate-Tenant: {tenant}\r\n"), &"x".repeat(body)));
        let response = client.response();
        assert_eq!(response.code(), code, "{url}");
        let story = story(&scene, response.field("outgate-request-id"));
        let line = |step: &str| {
            let line = story.lines().find_map(|line| line.strip_prefix("  ")?.strip_prefix(step));
            line.unwrap_or_else(|| panic!("no {step} in\n{story}")).trim().to_owned()
        };
        assert!(story.lines().next().unwrap().contains(code), "{story}");
        assert_eq!(line("fault"), fault, "{story}");
        let row = TABLE.iter().find(|row| row.name == code).unwrap();
        assert_eq!(line("next"), row.advice, "{story}");
        assert!(line("end").contains(&format!("status {}", response.status)), "{story}");
    }
}
