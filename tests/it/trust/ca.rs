//! `outgate ca new`, and the checks of `server.ca`.
//! Does the new authority have the requested properties and no others?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use support::Folder;
use support::pki::{Pki, self_signed};
use x509_parser::prelude::{FromDer, X509Certificate};

const ROUTE: &str = "[[routes]]\nname = \"inspect\"\nhosts = [\"*\"]\nconnect = \"inspect\"\n";

fn outgate(folder: &Folder, arguments: &[&str]) -> Output {
    let directory = folder.path("");
    Command::new(env!("CARGO_BIN_EXE_outgate")).current_dir(directory).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the exit code and output of `check` for this `server.ca`, with or without a route that inspects.
fn check(folder: &Folder, ca: &str, route: &str) -> (Option<i32>, String) {
    let server = format!("[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n{ca}\n");
    folder.write("config.toml", format!("{server}[egress.default]\nranges = [\"127.0.7.0/30\"]\n{route}"));
    let output = outgate(folder, &["check", "--config", "config.toml"]);
    (output.status.code(), text(&output))
}

const CA: &str = "ca = { certificate = \"ca.pem\", key = \"ca.key\" }";

fn create_ca(folder: &Folder, options: &[&str]) {
    let output = outgate(folder, &[&["ca", "new"], options, &["ca.pem", "ca.key"]].concat());
    assert!(output.status.success() && text(&output).is_empty(), "{output:?}");
}

#[test]
fn ca_new_makes_an_authority_that_server_ca_accepts() {
    let folder = Folder::new();
    create_ca(&folder, &["--name", "Acme egress", "--years", "2"]);
    let (code, printed) = check(&folder, CA, ROUTE);
    assert_eq!(code, Some(0), "{printed}");
    let mode = |name| std::fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("ca.pem") & 0o400), (0o600, 0o400));

    let pem = std::fs::read(folder.path("ca.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=Acme egress");
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    assert!(certificate.key_usage().unwrap().unwrap().value.key_cert_sign());
    let days = certificate.validity().time_to_expiration().unwrap().whole_days();
    assert!((728..=730).contains(&days), "{days}");
    assert!(certificate.name_constraints().unwrap().is_none());
}

#[test]
fn ca_new_writes_permitted_domains_and_excludes_addresses() {
    let folder = Folder::new();
    create_ca(&folder, &["--permit", "ACME.example.", "--permit", "bücher.example"]);
    let pem = std::fs::read(folder.path("ca.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    let constraints = certificate.name_constraints().unwrap().unwrap();
    assert!(constraints.critical);
    let permitted: Vec<_> =
        constraints.value.permitted_subtrees.iter().flatten().map(|tree| tree.base.to_string()).collect();
    assert_eq!(permitted, ["DNSName(acme.example)", "DNSName(xn--bcher-kva.example)"]);
    assert_eq!(constraints.value.excluded_subtrees.iter().flatten().count(), 2);
}

#[test]
fn ca_new_overwrites_no_file() {
    let folder = Folder::new();
    for existing in ["ca.key", "ca.pem"] {
        folder.write(existing, "mine");
        let output = outgate(&folder, &["ca", "new", "ca.pem", "ca.key"]);
        assert_eq!(output.status.code(), Some(73), "{output:?}");
        assert!(text(&output).contains(&format!("cannot write {existing}")), "{output:?}");
        assert_eq!(std::fs::read(folder.path(existing)).unwrap(), b"mine");
        for (name, other) in [("ca.key", "ca.pem"), ("ca.pem", "ca.key")] {
            assert!(existing != name || !folder.path(other).exists(), "no half of an authority is left");
        }
        std::fs::remove_file(folder.path(existing)).unwrap();
    }
}

#[test]
fn ca_new_refuses_invalid_arguments_before_it_writes() {
    let folder = Folder::new();
    for wrong in [["--permit", "192.0.2.1"], ["--permit", "*.acme.example"], ["--years", "0"], ["--years", "31"]] {
        let output = outgate(&folder, &[&["ca", "new"], &wrong[..], &["ca.pem", "ca.key"]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(!folder.path("ca.pem").exists() && !folder.path("ca.key").exists());
    }
}

#[test]
fn server_ca_that_is_no_authority_is_a_problem() {
    let folder = Folder::new();
    let key = |name: &str, pem: String| {
        let path = folder.write(name, pem);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    create_ca(&folder, &[]);
    let other = Pki::new();
    folder.write("other.pem", &other.pem);
    key("other.key", other.key_pem());
    let leaf = self_signed(&["hook.example"]);
    folder.write("leaf.pem", leaf.chain_pem());
    key("leaf.key", leaf.key_pem());
    key("no.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned());

    let ca = |certificate: &str, key: &str| format!("ca = {{ certificate = {certificate:?}, key = {key:?} }}");
    for (ca, route, problem) in [
        (String::new(), ROUTE, "`connect = \"inspect\"` requires an authority, and `server.ca` is not configured"),
        (ca("leaf.pem", "leaf.key"), ROUTE, "the first certificate of leaf.pem may not sign certificates"),
        (ca("ca.pem", "other.key"), ROUTE, "the key does not match the certificate"),
        (ca("ca.pem", "no.key"), ROUTE, "no private key that can sign was found"),
        ("ca = { certificate = \"ca.pem\" }".to_owned(), ROUTE, "`server.ca` has no `key`"),
    ] {
        let (code, printed) = check(&folder, &ca, route);
        assert_eq!(code, Some(1), "{printed}");
        assert!(printed.contains(problem), "{problem}:\n{printed}");
    }
    let (code, printed) = check(&folder, CA, "");
    assert!(
        printed.contains("warning[unused]: no route has `connect = \"inspect\"`, so this authority is unused"),
        "{printed}"
    );
    assert_eq!(code, Some(0), "{printed}");
}
