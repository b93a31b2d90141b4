//! `examples/bank`: certificates on both sides, credentials of systemd, an audit log.
//! Does the partner get a signed webhook from the bank's certificate and address?

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{
    checked, config, curl, folder_with, has, new_key, path, receiver_on_this_host, verify_with_public_key, write_secret,
};
use crate::support::audit::records_in;
use crate::support::pki::{Identity, Pki};
use crate::support::receiver::{Handshakes, Receiver, ok};
use crate::support::{Folder, Outgate, eventually};

const HOST: &str = "hooks.partner.example";

/// A partner that demands a certificate of the bank.
fn partner(identity: Identity, bank: &Pki) -> (Receiver, Handshakes) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(bank.pem.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier).with_single_cert(identity.chain, identity.key).unwrap();
    Receiver::tls_with(config, ok())
}

fn client_of(pki: &Pki, name: &str) -> Identity {
    pki.leaf_with(&[name], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
}

/// Returns a folder with the files that the configuration names, and the credentials that the drop-in passes.
fn files(bank: &Pki, partner: &Pki) -> Folder {
    let folder = folder_with(bank);
    let (listener, to_partner) = (bank.leaf(&["127.0.0.1"]), client_of(bank, "outgate.bank.example"));
    folder.write("listener.pem", listener.chain_pem());
    folder.write("bank-ca.pem", &bank.pem);
    folder.write("partner-ca.pem", &partner.pem);
    folder.write("bank-client.pem", to_partner.chain_pem());
    write_secret(&folder, "listener", &listener.key_pem());
    write_secret(&folder, "bank-client", &to_partner.key_pem());
    for name in ["bank-2026-11", "audit"] {
        new_key(&folder, name);
    }
    let drop_in = std::fs::read_to_string(path("bank/outgate.service.d/credentials.conf")).unwrap();
    let passed = drop_in.lines().filter_map(|line| line.strip_prefix("LoadCredentialEncrypted=")?.split(':').next());
    let passed: Vec<&str> = passed.collect();
    assert_eq!(passed, ["listener", "bank-2026-11", "bank-client", "audit"]);
    assert!(passed.iter().all(|name| folder.path(name).exists()), "{passed:?}");
    folder
}

#[test]
fn partner_of_the_bank_gets_a_signed_webhook_over_mutual_tls() {
    if !has("curl", "--version") {
        return;
    }
    let (bank, partners) = (Pki::new(), Pki::new());
    let (receiver, handshakes) = partner(partners.leaf(&[HOST]), &bank);
    let folder = files(&bank, &partners);
    let text = config("bank/config.toml")
        .set("log.deliveries", "file:{dir}/deliveries.jsonl")
        .set("audit.file", "{dir}/audit.jsonl");
    folder.write_config("config.toml", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public", "guarded_host"], "documentation has no public names");

    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("admin.listen", ["127.0.0.1:0"])
        .set("egress.default.ranges", ["127.0.7.4/31"])
        .set("clients.payments.networks", ["127.0.0.0/8"])
        .and(&receiver_on_this_host(&receiver, HOST));
    folder.write_config("config.toml", &text);
    let credentials = folder.path("");
    let outgate = Outgate::run_in_with(folder, &[("CREDENTIALS_DIRECTORY", Path::new(&credentials))]);
    let folder = &outgate.folder;
    let application = client_of(&bank, "payments.bank.example");
    folder.write("payments.pem", application.chain_pem());
    write_secret(folder, "payments.key", &application.key_pem());

    let file = |name: &str| folder.path(name).display().to_string();
    let proxy = format!("https://{}", outgate.proxy);
    let send = |more: &[&str], path: &str| {
        let authority = file("bank-ca.pem");
        let url = format!("http://{HOST}:{}{path}", receiver.port());
        curl(&[&["--proxy", &proxy, "--proxy-cacert", &authority][..], more, &[&url]].concat())
    };
    let (certificate, key) = (file("payments.pem"), file("payments.key"));
    let identity = ["--proxy-cert", &certificate, "--proxy-key", &key];
    assert_eq!(send(&identity, "/payments/in"), "ok\n200");
    let received = &receiver.requests()[0];
    assert_eq!(
        (received.line.as_str(), received.body.as_slice()),
        ("POST /payments/in HTTP/1.1", b"{\"type\":\"ping\"}" as &[u8])
    );
    assert!(["127.0.7.4", "127.0.7.5"].contains(&received.from.to_string().as_str()), "{received:?}");
    verify_with_public_key(received, folder);
    let shown = handshakes.lock().unwrap()[0].client_certificate.clone().unwrap();
    let expected = std::fs::read(folder.path("bank-client.pem")).unwrap();
    assert_eq!(shown, CertificateDer::from_pem_slice(&expected).unwrap().to_vec());

    // An application without a certificate, and a path that is not the route's.
    assert!(send(&[], "/payments/in").contains("client_unauthenticated"));
    assert!(send(&identity, "/other").contains("no_route"));
    assert_eq!(receiver.requests().len(), 1);

    eventually("the records", || records_in(&folder.path("deliveries.jsonl")).len() == 3);
    let record = records_in(&folder.path("deliveries.jsonl")).remove(0);
    assert_eq!((&record["client"], &record["proof"]), (&"payments".into(), &"certificate".into()), "{record}");
    let mut verify = Command::new(env!("CARGO_BIN_EXE_outgate"));
    verify.args(["audit", "verify"]).arg(folder.path("audit.jsonl"));
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
