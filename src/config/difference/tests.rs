//! Tests of the difference between two configurations.
//! Is every kind of change reported once, and without secrets?

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

fn snapshot(files: &[(&str, &str)], contents: &[(&str, &str)]) -> SourceSnapshot {
    SourceSnapshot {
        texts: files.iter().map(|(path, text)| ((*path).into(), Arc::from(*text))).collect(),
        contents: contents.iter().map(|(path, digest)| ((*path).into(), (*digest).into())).collect(),
        digest: String::new(),
    }
}

fn changes(before: &str, after: &str) -> Vec<String> {
    let [before, after] = [before, after].map(|text| snapshot(&[("/etc/c.toml", text)], &[]));
    Difference::between(&before, &after).changes
}

#[test]
fn difference_compares_files_relative_to_the_main_file() {
    let text = "[server.tls]\ncertificate = \"c.pem\"\n[trust.public]\nroots = [\"/etc/ca.pem\"]";
    let ours =
        |digest| snapshot(&[("/etc/outgate/c.toml", text)], &[("/etc/outgate/c.pem", digest), ("/etc/ca.pem", "2")]);
    let theirs = |digest| snapshot(&[("/staging/n.toml", text)], &[("/staging/c.pem", digest), ("/etc/ca.pem", "2")]);
    assert!(Difference::between(&ours("1"), &theirs("1")).is_empty());
    assert_eq!(Difference::between(&ours("1"), &theirs("3")).changes, ["server.tls: /etc/outgate/c.pem changed"]);
}

#[test]
fn difference_reports_every_kind_of_change() {
    for (before, after, expected) in [
        ("[server]\nlisten = [\"a\"] # one", "server.listen = ['a']", &[][..]),
        (
            "[[routes]]\nname = \"acme\"\negress = \"default\"",
            "[[routes]]\nname = \"acme\"\negress = \"eu\"",
            &["routes.acme: egress \"default\" → \"eu\""],
        ),
        (
            "[clients.billing]\nnetworks = [\"10.0.0.0/8\"]",
            "[clients.shop]\nnetworks = [\"10.0.0.0/8\"]",
            &["clients.billing: removed", "clients.shop: added: { networks = [\"10.0.0.0/8\"] }"],
        ),
        (
            "[limits.a]\nrate = \"50/s\"\nburst = 5",
            "[limits.a]\nrate = \"20/s\"\nconcurrency = 7",
            &["limits.a: burst 5 removed", "limits.a: concurrency 7 added", "limits.a: rate \"50/s\" → \"20/s\""],
        ),
        (
            "[egress.default]\nranges = [\"192.0.2.0/28\", \"198.51.100.0/28\"]",
            "[egress.default]\nranges = [\"198.51.100.0/28\", { cidr = \"2001:db8::/64\", until = 2027-01-01T00:00:00Z }]",
            &[
                "egress.default: ranges \"192.0.2.0/28\" removed",
                "egress.default: ranges { cidr = \"2001:db8::/64\", until = 2027-01-01T00:00:00Z } added",
            ],
        ),
        (
            "[signers.a]\nkeys = [{ id = \"k1\", secret = \"env:K\" }]",
            "[signers.a]\nkeys = [{ id = \"k1\", secret = \"env:K\", until = \"soon\" }, { id = \"k2\" }]",
            &["signers.a.keys.k1: until \"soon\" added", "signers.a.keys.k2: added: { id = \"k2\" }"],
        ),
        (
            "[trust.a]\nroots = [\"x\", \"y\"]",
            "[trust.a]\nroots = [\"y\", \"x\"]",
            &["trust.a: roots in another order"],
        ),
        (
            "[resolver.hosts]\n\"a.example\" = [\"192.0.2.1\"]",
            "[resolver.hosts]\n\"a.example\" = [\"192.0.2.2\"]",
            &["resolver.hosts: a.example \"192.0.2.1\" removed", "resolver.hosts: a.example \"192.0.2.2\" added"],
        ),
        ("", "[a_key_of_tomorrow]\nx = true", &["a_key_of_tomorrow: x true added"]),
        ("[[routes]]\nname = \"a\"", "", &["routes.a: removed"]),
        ("x = 1", "x = \"1\"", &["x: 1 → \"1\""]),
        (
            "[server]\nworkers = 1\nlisten = [\"systemd\"]",
            "[server]\nworkers = 2\nlisten = [\"127.0.0.1:1\"]",
            &[
                "server: listen \"systemd\" removed (takes effect at the next restart)",
                "server: listen \"127.0.0.1:1\" added",
                "server: workers 1 → 2 (takes effect at the next restart)",
            ],
        ),
    ] {
        assert_eq!(changes(before, after), expected, "{before}\n---\n{after}");
    }
}

#[test]
fn difference_hides_secrets() {
    let changes = changes(
        "[clients.a]\ntoken = \"hunter1\"\ntokens = [\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"]",
        "[clients.a]\ntoken = \"hunter2\"\ntokens = [\"sha256:1111111111111111111111111111111111111111111111111111111111111111\"]",
    );
    let expected = [
        "clients.a: token (hidden) → (hidden)",
        "clients.a: tokens \"sha256:0000000000000000…\" removed",
        "clients.a: tokens \"sha256:1111111111111111…\" added",
    ];
    assert_eq!(changes, expected);
}

#[test]
fn difference_merges_included_files() {
    let main = "include = [\"conf.d/*\"]\n[[routes]]\nname = \"a\"\n";
    let before = snapshot(&[("/e/c.toml", main), ("/e/conf.d/1", "[[routes]]\nname = \"b\"\n[clients.x]\n")], &[]);
    let after = snapshot(
        &[("/e/c.toml", "include = [\"conf.d/*\"]\n"), ("/e/conf.d/2", "[[routes]]\nname = \"a\"\nports = [1]\n")],
        &[],
    );
    let changes = Difference::between(&before, &after).changes;
    assert_eq!(changes, ["clients.x: removed", "routes.a: ports [1] added", "routes.b: removed"]);
}

#[test]
fn difference_attributes_changed_files_to_the_sections_that_name_them() {
    let text = "[trust.public]\ncrls = [\"crls/x.pem\"]\n[signers.s]\nkey_dir = \"keys\"\nkeys = [{ id = \"1\", secret = \"file:k\" }]\n\
                [credentials.c]\npassword = \"credential:pw\"\n[server]\ntls = { certificate = \"l.pem\" }";
    let files = |digest, more: &[&str]| {
        let paths = ["/e/crls/x.pem", "/e/k", "/run/credentials/pw", "/e/l.pem", "/e/keys/acme"];
        let contents: Vec<_> = paths.iter().chain(more).map(|path| (*path, digest)).collect();
        snapshot(&[("/e/c.toml", text)], &contents)
    };
    let changes = Difference::between(&files("1", &["/e/keys/beta"]), &files("2", &["/e/keys/gamma"])).changes;
    let mut expected = [
        "trust.public: /e/crls/x.pem changed",
        "signers.s: /e/k changed",
        "signers.s: /e/keys/acme changed",
        "signers.s: /e/keys/beta removed",
        "signers.s: /e/keys/gamma added",
        "server.tls: /e/l.pem changed",
        "credentials.c: /run/credentials/pw changed",
    ];
    expected.sort_by_key(|line| line.split(": ").nth(1).unwrap_or_default().to_owned());
    assert_eq!(changes, expected);
    assert!(Difference::between(&files("1", &[]), &files("1", &[])).is_empty());
}

#[test]
fn difference_of_a_hundred_thousand_routes_is_truncated() {
    let route = |number: usize, egress: &str| {
        format!("[[routes]]\nname = \"r{number}\"\nhosts = [\"h{number}.example\"]\negress = \"{egress}\"\n")
    };
    let text = |egress: &str| (0..100_000).map(|number| route(number, egress)).collect::<String>();
    let (before, after) = (text("default"), text("eu"));
    let start = Instant::now();
    let [before, after] = [&before, &after].map(|text| snapshot(&[("/e/c.toml", text)], &[]));
    let difference = Difference::between(&before, &after);
    // A loaded debug build takes half a minute. A comparison of each route with each would take far longer.
    assert!(start.elapsed() < Duration::from_secs(300), "{:?}", start.elapsed());
    assert_eq!((difference.changes.len(), difference.more), (CHANGES_MAX, 100_000 - CHANGES_MAX));
    assert!(difference.to_string().ends_with("and 99900 more\n"));
}
