//! `outgate check` on configurations with one mistake each, in sections that a route names.
//! Does `check` report the cause once, without its consequences?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use support::Folder;

/// The description of the mistake, the section with it, the line of the route, and the only error.
const CAUSES: &[(&str, &str, &str, &str)] = &[
    (
        "a signer whose only key is too short",
        "[signers.s]\nscheme = \"rfc9421\"\nkeys = [{ id = \"k\", secret = \"file:short\" }]",
        "sign = [\"s\"]",
        "the secret of the key k is too short: 5 bytes, not 16 or more",
    ),
    (
        "a signer whose only key is not there",
        "[signers.s]\nscheme = \"rfc9421\"\nkeys = [{ id = \"k\", secret = \"file:nowhere\" }]",
        "sign = [\"s\"]",
        "`signers.s.keys.secret` has no secret",
    ),
    (
        "a signer without a scheme",
        "[signers.s]\nkeys = [{ id = \"k\", secret = \"file:long\" }]",
        "sign = [\"s\"]",
        "`signers.s` has no `scheme`",
    ),
    (
        "a signer of an unknown scheme",
        "[signers.s]\nscheme = \"rfc9422\"\nkeys = [{ id = \"k\", secret = \"file:long\" }]",
        "sign = [\"s\"]",
        "no scheme is named \"rfc9422\"",
    ),
    (
        "a signer whose components prove nothing",
        "[signers.s]\nscheme = \"rfc9421\"\nkeys = [{ id = \"k\", secret = \"file:long\" }]\ncomponents = [\"@path\"]",
        "sign = [\"s\"]",
        "the components leave the body unsigned: a third party could replace it",
    ),
    (
        "a range behind NAT of another size",
        "[egress.p]\nranges = [{ cidr = \"10.0.0.16/30\", seen_as = \"203.0.113.16/29\" }]",
        "egress = \"p\"",
        "`10.0.0.16/30` cannot be seen as `203.0.113.16/29`, which has another size",
    ),
    (
        "a range behind NAT of another family",
        "[egress.p]\nranges = [{ cidr = \"10.0.0.16/30\", seen_as = \"2001:db8::/126\" }]",
        "egress = \"p\"",
        "`10.0.0.16/30` cannot be seen as `2001:db8::/126`, which is of another address family",
    ),
    (
        "two ranges with one outside range",
        "[egress.p]\nranges = [\"203.0.113.16/30\", { cidr = \"10.0.0.16/30\", seen_as = \"203.0.113.16/30\" }]",
        "egress = \"p\"",
        "targets see two ranges with the same addresses, of `203.0.113.16/30`",
    ),
    (
        "a range behind NAT without its size",
        "[egress.p]\nranges = [{ cidr = \"10.0.0.16/30\", nat = \"203.0.113.16\" }]",
        "egress = \"p\"",
        "unknown key `egress.p.ranges.nat`",
    ),
    ("a pool without a range", "[egress.p]\nranges = []", "egress = \"p\"", "`egress.p.ranges` is empty"),
    (
        "a trust whose only root has no certificate",
        "[trust.t]\nroots = [\"long\"]",
        "trust = \"t\"",
        "`trust.t.roots` has no certificates",
    ),
    (
        "a trust whose only root is no certificate",
        "[trust.t]\nroots = [\"bad.pem\"]",
        "trust = \"t\"",
        "is not usable as a root",
    ),
    (
        "a client whose only token is no hash",
        "[clients.c]\ntokens = [\"sha256:zz\"]",
        "clients = [\"c\"]",
        "`clients.c.tokens` is not the hash of a token",
    ),
    ("a limit whose rate is none", "[limits.l]\nrate = \"x\"", "limits = [\"l\"]", "`limits.l.rate` is not a rate"),
    (
        "a credential without its secret",
        "[credentials.c]\ntype = \"bearer\"\ntoken = \"file:nowhere\"",
        "credential = \"c\"",
        "`credentials.c.token` has no secret",
    ),
];

#[test]
fn check_reports_a_cause_once_without_its_consequences() {
    let folder = Folder::new();
    folder.write("short", "c2hvcnQ=");
    folder.write("long", "A".repeat(64));
    folder.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for name in ["short", "long"] {
        std::fs::set_permissions(folder.path(name), PermissionsExt::from_mode(0o600)).unwrap();
    }
    for (mistake, section, route, cause) in CAUSES {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[egress.default]\nranges = [\"192.0.2.1\"]\n\
             {section}\n[[routes]]\nname = \"r\"\nhosts = [\"hooks.acme.org\"]\n{route}\n"
        );
        let file = folder.write("config.toml", text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(file).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        let errors: Vec<&str> = printed.lines().filter(|line| line.starts_with("error")).collect();
        assert!(matches!(errors[..], [error] if error.contains(cause)), "{mistake}: {errors:#?}");
    }
}
