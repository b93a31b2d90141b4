//! Trust policies through the whole proxy: identities, pins, revocation lists, the rules of the Web PKI, and alerts.
//! Does each route apply its own trust, show its own identity, and share nothing with another?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use support::pki::{Identity, Pki};
use support::receiver::{Handshakes, Receiver, ok, respond_and_close, respond_with};
use support::scene::folder;
use support::{Folder, Outgate, Response};

/// How a target handles client certificates.
#[derive(Clone, Copy)]
pub(super) enum ClientCertificate {
    NotRequested,
    Optional,
    Required,
}

pub(super) fn server(identity: Identity, client_certificate: ClientCertificate, clients: &Pki) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let config = match client_certificate {
        ClientCertificate::NotRequested => config.unwrap().with_no_client_auth(),
        ClientCertificate::Optional => {
            config.unwrap().with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        }
        ClientCertificate::Required => config.unwrap().with_client_cert_verifier(verifier.build().unwrap()),
    };
    config.with_single_cert(identity.chain, identity.key).unwrap()
}

pub(super) const CLOSING: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const KEEP_ALIVE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn client_of(pki: &Pki, name: &str) -> Identity {
    pki.leaf_with(&[name], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
}

fn write_identity(folder: &Folder, name: &str, identity: &Identity) {
    folder.write(&format!("{name}.pem"), identity.chain_pem());
    let key = folder.write(&format!("{name}.key"), identity.key_pem());
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// Returns a configuration in which the path `/NAME` of `hook.example` has the trust `[trust.NAME]`.
pub(super) fn text(port: u16, trusts: &[(&str, &str)]) -> String {
    let mut text = "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
                    [clients.platform]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n\
                    [egress.default]\nranges = [\"127.0.7.0\"]\n[guard]\nallow = [\"127.0.0.0/8\"]\n\
                    [resolver.hosts]\n\"hook.example\" = [\"127.0.0.1\"]\n"
        .to_owned();
    for (name, keys) in trusts {
        text.push_str(&format!("[trust.{name}]\n{keys}\n"));
    }
    for (name, _) in trusts {
        text.push_str(&format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [\"hook.example\"]\npaths = [\"/{name}\"]\ntrust = \"{name}\"\n\
             ports = [{port}]\ntimeouts = {{ response = \"5s\", connect = \"10s\", tls = \"10s\" }}\n"
        ));
    }
    text
}

pub(super) const ROOTS: &str = "roots = [\"{dir}/ca.pem\"]";

pub(super) fn send(outgate: &Outgate, port: u16, path: &str, tenant: &str) -> Response {
    let field = if tenant.is_empty() { String::new() } else { format!("Outgate-Tenant: {tenant}\r\n") };
    outgate.post(&format!("https://hook.example:{port}{path}"), &field, "x")
}

fn last_handshake(handshakes: &Handshakes) -> support::receiver::Handshake {
    handshakes.lock().unwrap().last().unwrap().clone()
}

#[test]
fn trust_identity_is_shown_under_its_own_trust_alone_and_reloaded() {
    let (pki, clients) = (Pki::new(), Pki::new());
    let (first, second) = (client_of(&clients, "first"), client_of(&clients, "second"));
    let (target, handshakes) = Receiver::tls_with(
        server(pki.leaf(&["hook.example"]), ClientCertificate::Optional, &clients),
        respond_and_close(CLOSING),
    );
    let folder = folder(&pki);
    write_identity(&folder, "client", &first);
    let with = format!("{ROOTS}\nidentity = {{ certificate = \"{{dir}}/client.pem\", key = \"{{dir}}/client.key\" }}");
    let config = text(target.port(), &[("with", &with), ("without", ROOTS)]);
    let outgate = Outgate::run(folder, &config);
    let presented = |path: &str| {
        assert_eq!(send(&outgate, target.port(), path, "").status, 200, "{path}");
        last_handshake(&handshakes).client_certificate
    };
    assert_eq!(presented("/with"), Some(first.chain[0].to_vec()));
    assert_eq!(presented("/without"), None);
    assert_eq!(presented("/with"), Some(first.chain[0].to_vec()));
    write_identity(&outgate.folder, "client", &second);
    outgate.reconfigure(&config);
    assert_eq!(presented("/with"), Some(second.chain[0].to_vec()), "a session of the former identity is not resumed");
    assert_eq!(presented("/without"), None);
}

#[test]
fn trust_identity_that_the_target_requires_is_named_by_its_alert() {
    let (pki, clients) = (Pki::new(), Pki::new());
    let untrusted = client_of(&Pki::new(), "stranger");
    for http in ["http/1.1", "h2"] {
        let mut target = server(pki.leaf(&["hook.example"]), ClientCertificate::Required, &clients);
        target.alpn_protocols = vec![http.into()];
        let (target, _) = Receiver::tls_with(target, ok());
        let folder = folder(&pki);
        write_identity(&folder, "client", &untrusted);
        let with =
            format!("{ROOTS}\nidentity = {{ certificate = \"{{dir}}/client.pem\", key = \"{{dir}}/client.key\" }}");
        let outgate = Outgate::run(folder, &text(target.port(), &[("without", ROOTS), ("stranger", &with)]));
        for (path, id, name) in [("/without", 116, "certificate_required"), ("/stranger", 48, "unknown_ca")] {
            let response = send(&outgate, target.port(), path, "");
            assert_eq!((response.status, response.code()), (502, "tls_failed"), "{http} {path}: {response:?}");
            assert_eq!(response.json()["details"], name);
            assert_eq!(
                response.field("proxy-status"),
                format!(
                    "outgate; error=tls_alert_received; alert-id={id}; alert-message=\"{name}\"; details=\"{name}\""
                )
            );
        }
        assert!(target.requests().is_empty());
    }
}

#[test]
fn tls_sessions_are_shared_by_neither_trusts_nor_tenants() {
    let (pki, clients) = (Pki::new(), Pki::new());
    let (target, handshakes) = Receiver::tls_with(
        server(pki.leaf(&["hook.example"]), ClientCertificate::NotRequested, &clients),
        respond_and_close(CLOSING),
    );
    let stricter = format!("{ROOTS}\nmin_version = \"1.3\"");
    let none = "verify = \"none\"";
    let outgate = Outgate::run(
        folder(&pki),
        &text(target.port(), &[("one", ROOTS), ("same", ROOTS), ("other", &stricter), ("none", none)]),
    );
    let resumed = |path: &str, tenant: &str| {
        assert_eq!(send(&outgate, target.port(), path, tenant).status, 200);
        last_handshake(&handshakes).resumed
    };
    let steps = [
        ("/one", "", false),
        ("/one", "", true),
        ("/same", "", true), // another name for the same trust
        ("/other", "", false),
        ("/other", "", true),
        ("/one", "acme", false),
        ("/one", "acme", true),
        ("/one", "globex", false),
        ("/one", "globex", true),
        ("/other", "acme", false),
        ("/none", "", false),
        ("/none", "", false),
        ("/one", "", true),
    ];
    for (step, (path, tenant, expected)) in steps.into_iter().enumerate() {
        assert_eq!(resumed(path, tenant), expected, "{step}: {path} {tenant}");
    }
}

#[test]
fn target_connections_are_shared_by_neither_trusts_nor_tenants_nor_identities() {
    let (pki, clients) = (Pki::new(), Pki::new());
    let target = server(pki.leaf(&["hook.example"]), ClientCertificate::Optional, &clients);
    let (target, _) = Receiver::tls_with(target, respond_with(KEEP_ALIVE));
    let folder = folder(&pki);
    write_identity(&folder, "a", &client_of(&clients, "a"));
    write_identity(&folder, "b", &client_of(&clients, "b"));
    let with_identity = |name: &str| {
        format!("{ROOTS}\nidentity = {{ certificate = \"{{dir}}/{name}.pem\", key = \"{{dir}}/{name}.key\" }}")
    };
    let trusts = [("none", ROOTS), ("same", ROOTS), ("a", &with_identity("a")), ("b", &with_identity("b"))];
    let outgate = Outgate::run(folder, &text(target.port(), &trusts));
    let steps = [
        ("/none", "", 0),
        ("/same", "", 0),
        ("/a", "", 1),
        ("/b", "", 2),
        ("/a", "acme", 3),
        ("/a", "globex", 4),
        ("/a", "acme", 3),
        ("/none", "acme", 5),
        ("/a", "", 1),
        ("/none", "", 0),
    ];
    for (step, (path, tenant, connection)) in steps.into_iter().enumerate() {
        assert_eq!(send(&outgate, target.port(), path, tenant).status, 200);
        assert_eq!(target.wait_for_requests(step + 1)[step].connection, connection, "{step}: {path} {tenant}");
    }
}

#[test]
fn trust_crls_are_reloaded_when_their_file_changes() {
    let pki = Pki::new();
    let leaf = pki.leaf_with(&["hook.example"], |params| params.serial_number = Some(7_u64.into()));
    let target = Receiver::tls(leaf, respond_with(KEEP_ALIVE));
    let folder = folder(&pki);
    folder.write("ca.crl", pki.revoked(&[8]));
    let with_list = format!("{ROOTS}\ncrls = [\"{{dir}}/ca.crl\"]");
    let outgate = Outgate::run(folder, &text(target.port(), &[("listed", &with_list)]));
    let details = || {
        let response = send(&outgate, target.port(), "/listed", "");
        response.json()["details"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(send(&outgate, target.port(), "/listed", "").status, 200);
    let replace = |list: String| {
        let next = outgate.folder.write("ca.crl.new", list);
        outgate.after_reload(|| std::fs::rename(next, outgate.folder.path("ca.crl")).unwrap());
    };
    replace(pki.revoked(&[7]));
    assert_eq!(details(), "revoked", "not even over the connection that is open");
    replace(pki.revoked_until(&[], (2026, 2, 1)));
    assert_eq!(details(), "revocation_stale");
    replace(Pki::new().revoked(&[]));
    assert_eq!(details(), "revocation_unknown");
    replace(pki.revoked(&[]));
    assert_eq!(send(&outgate, target.port(), "/listed", "").status, 200);
}

/// The server sends only its leaf.
#[test]
fn unknown_issuer_names_the_missing_issuer_and_intermediates_complete_the_chain() {
    let pki = Pki::new();
    let intermediate = pki.intermediate("Acme Issuing CA");
    let leaf = intermediate.leaf(&["hook.example"]);
    let (receiver, _) =
        Receiver::tls_with(server(leaf, ClientCertificate::NotRequested, &pki), respond_and_close(CLOSING));
    let folder = folder(&pki);
    folder.write("intermediate.pem", &intermediate.pem);
    let completed = format!("{ROOTS}\nintermediates = [\"{{dir}}/intermediate.pem\"]");
    let outgate = Outgate::run(folder, &text(receiver.port(), &[("broken", ROOTS), ("mended", &completed)]));
    let response = send(&outgate, receiver.port(), "/broken", "");
    assert_eq!(
        (response.code(), response.json()["details"].as_str()),
        ("certificate_untrusted", Some("unknown_issuer"))
    );
    let expected = "the target's certificate is refused: the certificate's issuer is not trusted: the server did not send the \
                    certificate of the issuer \"CN=Acme Issuing CA\". If the issuer is an intermediate authority, configure the \
                    server to send its full chain; if the issuer is a root, the route does not trust it";
    assert_eq!(response.json()["detail"], expected);
    assert_eq!(send(&outgate, receiver.port(), "/mended", "").status, 200);
}

#[test]
fn certificate_untrusted_has_details_for_each_cause() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let pins = |one: &str| {
        format!("{ROOTS}\npins = [\"sha256/{one}\", \"sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"]")
    };
    let pinned = pins("n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=");
    let strict = format!("{ROOTS}\nstrict = true");
    let listed = format!("{ROOTS}\ncrls = [\"{{dir}}/other.crl\"]");
    let folder = folder(&pki);
    folder.write("other.crl", Pki::new().revoked(&[]));
    let trusts = [("pinned", pinned.as_str()), ("strict", &strict), ("listed", &listed), ("loose", ROOTS)];
    let outgate = Outgate::run(folder, &text(target.port(), &trusts));
    for (path, details) in
        [("/pinned", "pin_mismatch"), ("/strict", "validity_too_long"), ("/listed", "revocation_unknown")]
    {
        let response = send(&outgate, target.port(), path, "");
        assert_eq!((response.status, response.code()), (502, "certificate_untrusted"), "{path}: {response:?}");
        assert_eq!(response.json()["details"], details);
        assert_eq!(
            response.field("proxy-status"),
            format!("outgate; error=tls_certificate_error; details=\"{details}\"")
        );
    }
    assert_eq!(send(&outgate, target.port(), "/loose", "").status, 200);
    let records = outgate.records(4);
    let details: BTreeSet<_> = records.iter().filter_map(|record| record["details"].as_str()).collect();
    assert_eq!(details, BTreeSet::from(["pin_mismatch", "validity_too_long", "revocation_unknown"]));
}

/// Starts a target that responds to a ClientHello with these bytes.
fn target_responding_with(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 16 * 1024]);
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    port
}

#[test]
fn tls_without_a_common_version_or_cipher_is_tls_failed() {
    const HANDSHAKE_FAILURE: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];
    const PROTOCOL_VERSION: &[u8] = &[0x15, 3, 1, 0, 2, 2, 70];
    // A ServerHello of TLS 1.1: version, 32 random bytes, no session, a suite, no compression (RFC 5246 §7.4.1.3).
    const OLD: &[u8] = &[
        0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
        21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0xc0, 0x2f, 0,
    ];
    for (bytes, details, error) in [
        (
            HANDSHAKE_FAILURE,
            "handshake_failure",
            "tls_alert_received; alert-id=40; alert-message=\"handshake_failure\"",
        ),
        (PROTOCOL_VERSION, "protocol_version", "tls_alert_received; alert-id=70; alert-message=\"protocol_version\""),
        (OLD, "no_common", "tls_protocol_error"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "plaintext", "tls_protocol_error"),
    ] {
        let port = target_responding_with(bytes);
        let outgate = Outgate::run(folder(&Pki::new()), &text(port, &[("t", ROOTS)]));
        let response = send(&outgate, port, "/t", "");
        assert_eq!((response.status, response.code()), (502, "tls_failed"), "{details}: {response:?}");
        assert_eq!(response.json()["details"], details);
        assert_eq!(response.field("proxy-status"), format!("outgate; error={error}; details=\"{details}\""));
    }
}

#[test]
fn verify_none_is_reported_by_check_log_records_and_metrics() {
    let pki = Pki::new();
    let target = Receiver::tls(support::pki::self_signed(&["other.example"]), ok());
    let outgate = Outgate::run(folder(&pki), &text(target.port(), &[("open", "verify = \"none\""), ("full", ROOTS)]));
    assert!(
        outgate.log.all().iter().any(|line| line.contains("warning[unverified]: trust open verifies no certificate"))
    );
    assert_eq!(send(&outgate, target.port(), "/open", "").status, 200);
    assert_eq!(send(&outgate, target.port(), "/full", "").json()["details"], "self_signed");
    let records = outgate.records(2);
    let delivered = records.iter().find(|record| record["code"] == "delivered").unwrap();
    assert_eq!(delivered["tls"]["verified"], false);
    let metrics = outgate.admin("/metrics").text();
    assert!(metrics.contains("outgate_unverified_deliveries_total{route=\"*\"} 1"), "{metrics}");
}

#[test]
fn certificate_expiry_is_measured_and_logged_while_running() {
    const ROUNDS: usize = 5;
    assert!((0..ROUNDS).any(|_| expiry_is_logged()), "no start of {ROUNDS} was over before the certificate was due");
}

/// Returns false if the start took so long that the warning was due, as it may on a loaded machine.
fn expiry_is_logged() -> bool {
    /// How long after the start the warning comes.
    const DUE: std::time::Duration = std::time::Duration::from_secs(4);
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let folder = folder(&pki);
    let (now, begun) = (time::OffsetDateTime::now_utc(), std::time::Instant::now());
    // Slightly more than two weeks, so that the warning comes shortly after the start.
    let ends = now + time::Duration::days(14) + DUE;
    let client = Pki::new().leaf_with(&["us"], |params| params.not_after = ends);
    write_identity(&folder, "client", &client);
    folder.write("ca.crl", pki.revoked_until(&[], (2026, 2, 1)));
    let keys = format!(
        "{ROOTS}\nidentity = {{ certificate = \"{{dir}}/client.pem\", key = \"{{dir}}/client.key\" }}\n\
         crls = [\"{{dir}}/ca.crl\"]\ncrl_policy = \"lenient\""
    );
    let outgate = Outgate::run(folder, &text(target.port(), &[("t", &keys)]));
    let started = outgate.log.all().join("\n");
    // The expiry has a resolution of one second.
    if begun.elapsed() + std::time::Duration::from_secs(1) >= DUE {
        return false;
    }
    let metrics = outgate.admin("/metrics").text();
    let gauge = |usage: &str| {
        let start = format!("outgate_certificate_expiry_timestamp_seconds{{usage=\"{usage}\",trust=\"t\",file=");
        let line = metrics.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()
    };
    assert_eq!(gauge("identity"), ends.unix_timestamp());
    assert_eq!(gauge("crl"), date_time_ymd(2026, 2, 1).unix_timestamp());
    assert_eq!(gauge("roots"), date_time_ymd(4096, 1, 1).unix_timestamp());
    assert!(
        started.contains("ca.crl has been out of date since 2026-02-01") && !started.contains("client.pem expires")
    );
    outgate.log.wait_for("a warning", |lines| {
        lines.iter().any(|line| line.contains("WARN") && line.contains("client.pem expires at")).then_some(())
    });
    let is_repeated = |line: &&String| line.contains("WARN") && line.contains("ca.crl") && !line.contains("alert ");
    assert_eq!(outgate.log.all().iter().filter(is_repeated).count(), 0);
    true
}
