//! Tests of listeners, of their warnings, and of the client certificates of open connections.
//! Which settings does a listener have, and how long may a client stay?

use std::path::PathBuf;

use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::config::{Bind, Client, Secret};
use crate::names::ClientName;
use crate::policy::fixture::pki::{Authority, DAY, NOW, date};
use crate::policy::fixture::{at, client, config, messages};

fn tcp(address: &str) -> Listen {
    Listen::Tcp(address.parse().unwrap())
}

#[test]
fn listener_is_public_on_every_address_and_on_public_ones() {
    for (address, expected) in [
        ("0.0.0.0:80", true),
        ("[::]:80", true),
        ("[::ffff:0.0.0.0]:80", true),
        ("1.1.1.1:80", true),
        ("[2606:4700::1111]:80", true),
        ("127.0.0.1:80", false),
        ("[::1]:80", false),
        ("10.0.0.1:80", false),
        ("[::ffff:10.0.0.1]:80", false),
        ("[fd00::1]:80", false),
    ] {
        assert_eq!(is_public(&tcp(address)), expected, "{address}");
    }
    assert!(!is_public(&Listen::Unix("/run/outgate.sock".into())) && !is_public(&Listen::Systemd));
}

#[test]
fn listener_warns_about_the_admin_and_about_tokens_on_public_addresses() {
    let warnings = |listen: &str, admin: &str, client: Client| {
        let mut written = config();
        written.server.listen = vec![at(1, Bind::new(tcp(listen)))];
        written.admin.listen = vec![at(2, Bind::new(tcp(admin)))];
        written.clients = [(ClientName::new("a"), at(3, client))].into();
        let mut problems = Vec::new();
        compile(&written, &mut problems);
        messages(&problems)
    };
    let with_token = || Client { tokens: vec![at(4, [7; 32])], ..client() };
    let (private, public) = ("127.0.0.1:4750", "0.0.0.0:4750");
    let none = Vec::<String>::new();
    assert_eq!(warnings(private, private, with_token()), none);
    assert_eq!(warnings(public, private, client()), none, "a client without a token");
    let plaintext = "warning: clients send tokens in plaintext to 0.0.0.0:4750";
    assert_eq!(warnings(public, private, with_token()), [plaintext]);
    let admin = "warning: the admin listener on 0.0.0.0:4750 is reachable from the Internet";
    assert_eq!(warnings(private, public, with_token()), [admin]);
}

#[test]
fn proxy_protocol_is_expected_from_the_configured_peers_and_on_unix_sockets() {
    let networks = ProxyProtocolPeers::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
    let contains = |peers: &ProxyProtocolPeers, ip: &str| peers.contains(Some(ip.parse().unwrap()));
    assert!(contains(&networks, "10.1.2.3") && contains(&networks, "::ffff:10.1.2.3") && networks.contains(None));
    assert!(!contains(&networks, "11.0.0.1"));
    assert!(contains(&ProxyProtocolPeers::Any, "11.0.0.1"));
}

/// A connection without a client certificate, and one whose listener has lost its TLS settings.
#[test]
fn listener_rechecks_certificates_of_connections_that_have_one() {
    let (listener, listen) = (Listener::default(), tcp("127.0.0.1:4750"));
    let recheck = |certificate: &PeerCertificate| {
        listener.recheck_certificate(certificate, Some(&listen), Timestamp::UNIX_EPOCH).is_ok()
    };
    assert!(recheck(&PeerCertificate::default()));
    let chain = vec![vec![0x30].into()];
    assert!(!recheck(&PeerCertificate::from_handshake(Vec::new(), chain, [1; 32], i64::MAX)));
}

/// Returns the authority of a listener, and its TLS settings, of which `change` changes the files.
fn settings(root: &Authority, change: impl FnOnce(&mut ListenerTls)) -> ListenerTls {
    let file = |parts| at(1, PemFile { path: PathBuf::from("a.pem"), parts });
    let key = KeyPair::generate().unwrap();
    let leaf = root.leaf_of(&key, |_| {});
    let mut tls = ListenerTls {
        certificate: file(vec![leaf.to_vec()]),
        key: at(2, Secret::new(key.serialize_pem().into_bytes())),
        client_ca: Some(file(vec![root.der.to_vec()])),
        client_crls: vec![],
    };
    change(&mut tls);
    tls
}

fn compiled(tls: &ListenerTls) -> Option<ServerTls> {
    compile_tls(tls, &mut Vec::new())
}

#[test]
fn listener_fingerprint_changes_with_its_certificates_and_lists() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let tls = settings(&root, |_| {});
    let list = at(1, PemFile { path: PathBuf::from("a.crl"), parts: vec![root.list(|_| {})] });
    let other_leaf = settings(&root, |_| {});
    let mut all = vec![fingerprint(&tls), fingerprint(&other_leaf)];
    let changed = |change: &dyn Fn(&mut ListenerTls)| {
        let mut changed = tls.clone();
        change(&mut changed);
        fingerprint(&changed)
    };
    all.push(changed(&|tls| tls.client_ca = None));
    all.push(changed(&|tls| tls.client_ca.as_mut().unwrap().value.parts = vec![other.der.to_vec()]));
    all.push(changed(&|tls| tls.client_crls = vec![list.clone()]));
    assert_eq!(fingerprint(&tls), changed(&|_| {}));
    let distinct: HashSet<Sha256> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn listener_has_the_tls_of_each_socket() {
    let tls = at(2, settings(&Authority::root("root"), |_| {}));
    let mut written = config();
    let bind = |address: &str, tls| at(1, Bind { tls, ..Bind::new(tcp(address)) });
    written.server.listen = vec![
        bind("127.0.0.1:1", BindTls::Inherited),
        bind("127.0.0.1:2", BindTls::Own(Box::new(tls.clone()))),
        bind("127.0.0.1:3", BindTls::Off),
    ];
    written.admin.listen = vec![bind("127.0.0.1:4", BindTls::Own(Box::new(tls.clone())))];
    let sockets = |written: &Config| {
        let listener = compile(written, &mut Vec::new());
        let mut sockets: Vec<_> = listener.all_tls().map(|(listen, _)| listen.to_string()).collect();
        sockets.sort();
        assert!(sockets.iter().all(|socket| listener.tls(&tcp(socket)).is_some()));
        assert_eq!(listener.has_own_tls(&tcp("127.0.0.1:4")), sockets.contains(&"127.0.0.1:4".to_owned()));
        sockets
    };
    assert_eq!(sockets(&written), ["127.0.0.1:2", "127.0.0.1:4"]);
    written.server.tls = Some(tls);
    assert_eq!(sockets(&written), ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:4"]);
}

#[test]
fn listener_with_an_unusable_authority_or_list_has_no_tls() {
    let root = Authority::root("root");
    assert!(compiled(&settings(&root, |_| {})).is_some_and(|tls| tls.client_verifier.is_some()));
    assert!(compiled(&settings(&root, |tls| tls.client_ca = None)).is_some_and(|tls| tls.client_verifier.is_none()));
    let unreadable = || at(1, PemFile { path: PathBuf::from("a.pem"), parts: vec![vec![0]] });
    assert!(compiled(&settings(&root, |tls| tls.client_ca = Some(unreadable()))).is_none());
    assert!(compiled(&settings(&root, |tls| tls.client_crls = vec![unreadable()])).is_none());
}

/// The certificate of an open connection is verified again once the settings of its listener have changed, or once a
/// certificate of its chain has expired.
#[test]
fn listener_rechecks_certificates_after_a_change_and_after_their_end() {
    let root = Authority::root("root");
    let listen = tcp("127.0.0.1:4750");
    let tls = settings(&root, |_| {});
    let list = at(1, PemFile { path: PathBuf::from("a.crl"), parts: vec![root.revokes(7)] });
    let with_list = ListenerTls { client_crls: vec![list], ..tls.clone() };
    let listener =
        |tls: &ListenerTls| Listener { tls: [(listen.clone(), compiled(tls).unwrap())].into(), ..Listener::default() };
    let until = NOW + DAY;
    let leaf: CertificateDer<'static> = root.leaf(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date(until);
    });
    let other = Authority::root("other").leaf(|_| {});
    let recheck = |listener: &Listener, leaf: &CertificateDer<'static>, fingerprint, now| {
        let certificate = PeerCertificate::from_handshake(vec![], vec![leaf.clone()], fingerprint, until);
        listener.recheck_certificate(&certificate, Some(&listen), Timestamp::from_second(now).unwrap())
    };
    let (same, changed) = (fingerprint(&tls), [0; 32]);
    let plain = listener(&tls);
    // The handshake has verified it under the same settings.
    assert_eq!(recheck(&plain, &other, same, until), Ok(()));
    assert_eq!(recheck(&plain, &other, same, until + 1), Err(AuthnError::CertificateExpired(until)));
    assert_eq!(recheck(&plain, &other, changed, until), Err(AuthnError::CertificateUntrusted));
    assert_eq!(recheck(&plain, &leaf, changed, until), Ok(()));
    assert_eq!(recheck(&plain, &leaf, changed, until + 1), Err(AuthnError::CertificateExpired(until)));
    let revoking = listener(&with_list);
    assert_eq!(recheck(&revoking, &leaf, same, NOW), Err(AuthnError::CertificateRevoked));
    // A listener that no longer requests certificates trusts none.
    let without = listener(&ListenerTls { client_ca: None, ..tls.clone() });
    assert_eq!(recheck(&without, &leaf, same, NOW), Err(AuthnError::CertificateUntrusted));
}
