//! The warnings of a configuration: their codes, their number, and acknowledged ones.
//! Is the output of `check` short enough to read?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use support::configuration::Replace;
use support::{Folder, Outgate};

/// The time limit of `check`, which takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
const BASE: &str = "[egress.default]\nranges = [\"198.51.100.16/28\"]\n";

/// Returns the exit code, stdout and stderr of `check`.
fn check(text: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = Folder::new();
    let path = folder.write("config.toml", text);
    let output = Command::new("timeout")
        .arg(LIMIT.as_secs().to_string())
        .arg(env!("CARGO_BIN_EXE_outgate"))
        .args(["check", "--config"])
        .arg(path)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn routes(count: usize) -> String {
    let mut text = format!("{BASE}[clients.local]\nnetworks = [\"127.0.0.0/8\"]\n");
    for number in 0..count {
        write!(text, "[[routes]]\nname = \"r{number}\"\nhosts = [\"h{number}.com\"]\nplaintext = \"allow\"\n").unwrap();
    }
    text
}

#[test]
fn warnings_are_shown_up_to_a_bound_with_a_summary_in_time_that_grows_with_their_number() {
    let (many, start) = (routes(20_000), Instant::now());
    let (code, _, printed) = check(&many, &[]);
    assert_eq!(code, 0, "after {:?}", start.elapsed());
    assert_eq!(printed.matches("warning[plaintext]: outgate may send webhooks in plaintext").count(), 25);
    assert!(printed.contains("19975 more warnings of this kind"), "{printed}");
    assert!(printed.contains("valid, with 20001 warnings"), "{printed}");
    let (code, json, _) = check(&many, &["--json"]);
    assert_eq!(code, 0, "after {:?}", start.elapsed());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let last = json.as_array().unwrap().iter().rfind(|warning| warning["code"] == "plaintext").unwrap();
    assert_eq!((&last["key"], &last["line"]), (&"routes.plaintext".into(), &(4 + 4 * 20_000).into()));
}

#[test]
fn acknowledged_warnings_are_not_shown_and_a_code_without_a_warning_is_reported() {
    let text = routes(3);
    let (_, _, printed) = check(&text, &[]);
    assert!(printed.contains("warning[plaintext]") && printed.contains("warning[not_public]"), "{printed}");
    let (code, _, printed) = check(&format!("acknowledge = [\"plaintext\", \"not_public\"]\n{text}"), &[]);
    assert_eq!((code, printed.trim()), (0, "valid, with 0 warnings and 4 acknowledged"));
    let (code, _, printed) =
        check(&format!("acknowledge = [\"plaintext\", \"not_public\", \"no_route\"]\n{text}"), &[]);
    assert!(code == 0 && printed.contains("no warning has the code \"no_route\" now"), "{printed}");
    assert!(printed.contains("valid, with 1 warning and 4 acknowledged"), "{printed}");
    let (code, _, printed) = check(&format!("acknowledge = [\"plain_text\"]\n{text}"), &[]);
    assert!(code == 1 && printed.contains("did you mean \"plaintext\"?"), "{printed}");
    assert!(printed.contains("not valid: 1 problem,"), "{printed}");
}

#[test]
fn check_refuses_a_unix_listener_without_its_folder_or_group() {
    let folder = Folder::new();
    let text = |socket: &str, group: &str| {
        let listen = format!("{{ address = \"unix:{}\", mode = \"0660\"{group} }}", folder.path(socket).display());
        format!("[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = [{listen}]\n{BASE}")
    };
    let (code, _, printed) = check(&text("admin.sock", ""), &[]);
    assert_eq!(code, 0, "{printed}");
    for (socket, group, words) in [
        ("missing/admin.sock", "", "No such file or directory"),
        ("admin.sock", ", group = \"no-such-group\"", "this host has no group"),
    ] {
        let (code, _, printed) = check(&text(socket, group), &[]);
        assert!(
            code == 1 && printed.contains("outgate cannot listen on unix:") && printed.contains(words),
            "{printed}"
        );
    }
    assert!(!folder.path("admin.sock").exists(), "check creates nothing");
    // systemd makes the folder when the service starts.
    let below_run = text("admin.sock", "").replace_one(&folder.path("").display().to_string(), "/run/outgate-missing/");
    assert_eq!(check(&below_run, &[]).0, 0);
}

#[test]
fn check_reports_what_outgate_cannot_write_beside_other_problems_and_no_consequences() {
    let text = format!(
        "{BASE}[log]\ndeliveries = \"file:/nowhere/deliveries.log\"\n\
         [limits.slow]\nrate = \"2/sec\"\nburst = 3\n[signers.s]\nscheme = \"hmac\"\n\
         keys = [{{ id = \"k\", secret = \"file:/nowhere/key\" }}]\n"
    );
    let (code, _, printed) = check(&text, &[]);
    assert!(code == 1 && printed.contains("outgate cannot write the delivery log"), "{printed}");
    assert!(printed.contains("/nowhere/key does not exist") && printed.contains("2/sec"), "{printed}");
    assert!(!printed.contains("burst has no effect"), "the rate is there, but not valid: {printed}");
    let (_, _, printed) = check(&format!("{BASE}[limits.slow]\nconcurrency = 1\nburst = 3\n"), &[]);
    assert!(printed.contains("burst has no effect without a rate"), "{printed}");
    let (_, _, printed) = check(&format!("{BASE}[admin]\nlisten = [\"unix:here/admin.sock\"]\n"), &[]);
    assert!(printed.contains("write \"unix:/run/outgate/admin.sock\""), "{printed}");
}

#[test]
fn acknowledged_warnings_are_not_logged_by_run() {
    let config = |codes: &str, most: &str| {
        format!(
            "acknowledge = [{codes}]\n[server]\nlisten = [\"127.0.0.1:0\"]\n{most}\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
             [egress.default]\nranges = [\"127.0.7.0/30\"]\n[clients.local]\nnetworks = [\"127.0.0.0/8\"]\n\
             [trust.open]\nverify = \"none\"\n[[routes]]\nname = \"all\"\nhosts = [\"hooks.acme.com\"]\ntrust = \"open\"\n"
        )
    };
    let log = |text: &str| {
        let outgate = Outgate::run_limited(Folder::new(), text, 656);
        let words = |line: &String| ["WARN", "warning"].iter().any(|word| line.contains(word));
        outgate.log.all().into_iter().filter(words).collect::<Vec<_>>()
    };
    let printed = log(&config("", "max_connections = 500")).join("\n");
    for code in ["unverified", "file_descriptors", "not_public"] {
        assert_eq!(printed.matches(&format!("warning[{code}]")).count(), 1, "{printed}");
    }
    assert_eq!(printed.matches("verifies no certificate").count(), 1, "{printed}");
    let acknowledged = "\"unverified\", \"file_descriptors\", \"not_public\"";
    assert_eq!(log(&config(acknowledged, "max_connections = 500")), [""; 0]);
    // The default of max_connections depends on the descriptor limit.
    assert_eq!(log(&config("\"unverified\", \"not_public\"", "")), [""; 0]);
}

#[test]
fn check_warns_of_public_admin_listeners_and_of_tokens_in_plaintext() {
    let token = "tokens = [\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"]";
    let printed = |listen: &str, admin: &str| {
        let text = format!(
            "[server]\nlisten = [\"{listen}\"]\n[admin]\nlisten = [\"{admin}\"]\n{BASE}[clients.billing]\n{token}\n\
             [[routes]]\nname = \"all\"\nhosts = [\"*\"]\n"
        );
        check(&text, &[]).2
    };
    for public in ["0.0.0.0:4750", "8.8.8.8:4750", "[::]:4750"] {
        assert!(printed(public, "127.0.0.1:4751").contains("warning[tokens_in_plaintext]"), "{public}");
        assert!(printed("127.0.0.1:4751", public).contains("warning[admin_public]"), "{public}");
    }
    for private in ["127.0.0.1:4750", "10.0.0.1:4750", "unix:/run/outgate/x.sock"] {
        let printed = printed(private, "127.0.0.1:4751") + &printed("127.0.0.1:4751", private);
        assert!(!printed.contains("tokens_in_plaintext") && !printed.contains("admin_public"), "{private}: {printed}");
    }
}

#[test]
fn check_counts_the_log_servers_the_traces_and_the_alerts_as_users_of_named_sections() {
    let folder = Folder::new();
    let audit_file = folder.path("audit.jsonl").display().to_string();
    let text = format!(
        "{BASE}[egress.alerts]\nranges = [\"198.51.100.32/28\"]\n[clients.local]\nnetworks = [\"127.0.0.0/8\"]\n\
         [trust.audit]\n[trust.traces]\n[trust.webhook]\n[trust.alerts]\n[trust.spare]\n\
         [traces]\nendpoint = \"https://collector.example:4318\"\ntrust = \"traces\"\n\
         [alerts]\nwebhook = \"https://ops.acme.com/outgate\"\negress = \"alerts\"\ntrust = \"webhook\"\n\
         syslog = [{{ url = \"tcp+tls://siem.example:6514\", trust = \"alerts\" }}]\n\
         [audit]\nfile = \"{audit_file}\"\nsyslog = [{{ url = \"tcp+tls://siem.example:6514\", trust = \"audit\" }}]\n\
         [[routes]]\nname = \"all\"\nhosts = [\"hooks.acme.com\"]\n"
    );
    let (code, _, printed) = check(&text, &[]);
    let unused: Vec<&str> = printed.lines().filter(|line| line.starts_with("warning[unused]")).collect();
    assert_eq!((code, unused), (0, vec!["warning[unused]: no route uses the trust spare"]), "{printed}");
}
