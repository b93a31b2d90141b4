//! Tests with valid and invalid credentials, certificates and networks, and with configurations that are too open.
//! Is a request authenticated exactly as the client that it proves to be?

use super::*;
use crate::config::{Bind, Config, Listen, Located};
use crate::digest::sha256;
use crate::policy::fixture::{self, at, config, messages};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE};
use http::Method;

fn client(start: u32, tokens: &[&[u8]], networks: &[&str], tenants: &[&str]) -> Located<crate::config::Client> {
    let mut place = start;
    let mut next = || {
        place += 1;
        place
    };
    let client = crate::config::Client {
        tokens: tokens.iter().map(|token| at(next(), sha256(token))).collect(),
        networks: networks.iter().map(|network| at(next(), network.parse().unwrap())).collect(),
        tenants: tenants.iter().map(|tenant| at(next(), tenant.to_string())).collect(),
        ..fixture::client()
    };
    at(start, client)
}

fn config_with_clients(clients: Vec<(&str, Located<crate::config::Client>)>) -> Config {
    let clients = clients.into_iter().map(|(name, client)| (ClientName::new(name), client)).collect();
    Config { clients, ..config() }
}

fn sample_config() -> Config {
    config_with_clients(vec![
        ("billing", client(10, &[b"old", b"new"], &[], &["*"])),
        ("inside", client(20, &[b"in:side\xff"], &["10.1.0.0/16", "2001:db8::/32"], &["acme"])),
        ("lan", client(30, &[], &["10.0.0.0/8"], &[])),
        ("rack", client(40, &[], &["10.2.3.0/24"], &[])),
    ])
}

/// Adds certificate names to a client.
fn with_certificates(client: Located<crate::config::Client>, names: &[&str]) -> Located<crate::config::Client> {
    let start = client.span.start + 5;
    let certificates = (start..).zip(names).map(|(place, name)| at(place, (*name).to_owned())).collect();
    Located { value: crate::config::Client { certificates, ..client.value }, span: client.span }
}

fn client_with_public_key(start: u32, der: &[u8]) -> Located<crate::config::Client> {
    let key = crate::config::PublicKey { path: "a.pem".into(), der: der.to_vec() };
    let client = client(start, &[], &[], &[]);
    Located {
        value: crate::config::Client { public_keys: vec![at(start + 7, key)], ..client.value },
        span: client.span,
    }
}

fn with_required_proofs(
    client: Located<crate::config::Client>,
    require: &[AuthMethod],
) -> Located<crate::config::Client> {
    let require = require.iter().map(|proof| at(client.span.start + 8, *proof)).collect();
    Located { value: crate::config::Client { require, ..client.value }, span: client.span }
}

/// Returns a caller; an empty address stands for a unix socket.
fn caller_from(address: &str, names: &[&str]) -> Caller {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = PeerCertificate::from_handshake(names, vec![], [0; 32], i64::MAX);
    Caller::default().with_address(address.parse().ok()).with_certificate(certificate)
}

fn authenticate(clients: &Clients, caller: &Caller, credential: Option<&[u8]>) -> Result<(String, String), AuthnError> {
    let fields = Fields::default();
    let sent =
        SignableRequest { method: &Method::GET, target: "http://hook.example/", fields: &fields, has_body: false };
    let credentials =
        PresentedCredentials { caller, proxy_authorization: credential, client_validation: None, request: sent };
    let authenticated = clients.authenticate(&credentials, Timestamp::UNIX_EPOCH)?;
    Ok((authenticated.client.name().to_string(), authenticated.proof.map_or(ANONYMOUS, AuthMethod::as_str).to_owned()))
}

#[test]
fn authn_accepts_valid_and_refuses_invalid_credentials() {
    let mut problems = vec![];
    let clients = Clients::compile(&sample_config(), &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    let basic = |text: &[u8]| format!("Basic {}", BASE64_STANDARD.encode(text)).into_bytes();
    let huge = basic(&vec![b'a'; 1 << 20]);
    let (outside, lan, rack, inside) = ("192.0.2.1", "10.9.9.9", "::ffff:10.2.3.4", "2001:db8::1");
    type Case = (&'static str, Option<Vec<u8>>, Result<&'static str, AuthnError>);
    let table: Vec<Case> = vec![
        (outside, Some(basic(b"billing:old")), Ok("billing")),
        (outside, Some(basic(b"billing:new")), Ok("billing")),
        ("", Some(basic(b"billing:new")), Ok("billing")),
        (outside, Some(b"bearer   new  ".to_vec()), Ok("billing")),
        (outside, Some(b"BEARER old".to_vec()), Ok("billing")),
        (outside, Some(format!("bAsIc  {}", BASE64_STANDARD_NO_PAD.encode("billing:old")).into()), Ok("billing")),
        (inside, Some(basic(b"inside:in:side\xff")), Ok("inside")),
        ("10.1.2.3", Some(b"Bearer in:side\xff".to_vec()), Ok("inside")),
        // A valid credential from a forbidden network, and from a unix socket.
        (outside, Some(basic(b"inside:in:side\xff")), Err(AuthnError::ForbiddenNetwork)),
        ("", Some(basic(b"inside:in:side\xff")), Err(AuthnError::ForbiddenNetwork)),
        // Authentication by network; the longest prefix wins.
        (lan, None, Ok("lan")),
        (rack, None, Ok("rack")),
        (outside, None, Err(AuthnError::NoCredential)),
        ("", None, Err(AuthnError::NoCredential)),
        (inside, None, Err(AuthnError::NoCredential)),
        // An invalid credential is refused from every network.
        (lan, Some(basic(b"billing:wrong")), Err(AuthnError::Invalid)),
        (lan, Some(basic(b"lan:")), Err(AuthnError::Invalid)),
        (lan, Some(basic(b"nobody:old")), Err(AuthnError::Invalid)),
        (lan, Some(basic(b"\xff:old")), Err(AuthnError::Invalid)),
        (lan, Some(basic(b"billing")), Err(AuthnError::Invalid)),
        (lan, Some(basic(b"")), Err(AuthnError::Invalid)),
        (lan, Some(b"Basic".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(b"Basic !!!".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(b"Bearer ".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(b"".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(b"Digest username=billing".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(b" Bearer old".to_vec()), Err(AuthnError::Invalid)),
        (lan, Some(huge), Err(AuthnError::Invalid)),
        (lan, Some(format!("Basic {}", BASE64_URL_SAFE.encode("billing:>>>???")).into()), Err(AuthnError::Invalid)),
    ];
    for (peer, credential, expected) in table {
        let found = authenticate(&clients, &caller_from(peer, &[]), credential.as_deref()).map(|(client, _)| client);
        assert_eq!(
            found.as_deref(),
            expected.as_ref().map(|name| *name),
            "{peer} {:?}",
            credential.map(|c| String::from_utf8_lossy(&c).into_owned())
        );
    }
}

#[test]
fn client_may_act_for_its_listed_tenants_only() {
    let clients = Clients::compile(&sample_config(), &mut vec![]);
    assert_eq!((clients.count(), Clients::compile(&config(), &mut vec![]).count()), (4, 0));
    for (client, tenant, expected) in
        [("billing", "anyone", true), ("inside", "acme", true), ("inside", "acm", false), ("lan", "acme", false)]
    {
        assert_eq!(clients.by_name[client].may_act_for(&TenantName::new(tenant)), expected, "{client} {tenant}");
    }
}

#[test]
fn anonymous_clients_are_accepted_only_without_a_credential() {
    let mut config = sample_config();
    config.server.allow_anonymous.value = true;
    let mut problems = vec![];
    let clients = Clients::compile(&config, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(authenticate(&clients, &caller_from("", &[]), None), Ok(("anonymous".into(), "anonymous".into())));
    assert_eq!(authenticate(&clients, &caller_from("", &[]), Some(b"Bearer wrong")), Err(AuthnError::Invalid));
    assert_eq!(authenticate(&clients, &caller_from("", &["stranger.internal"]), None), Err(AuthnError::Invalid));
    assert!(!clients.get(&ClientName::new(ANONYMOUS)).unwrap().may_act_for(&TenantName::new("acme")));
}

#[test]
fn authn_by_certificate_accepts_restricts_and_conflicts() {
    use AuthMethod::{Certificate, Network, Token};
    let spiffe = "spiffe://acme.example/billing";
    let clients = Clients::compile(
        &config_with_clients(vec![
            ("billing", with_certificates(client(10, &[b"bill"], &[], &[]), &["Billing.Internal", spiffe])),
            ("crm", with_certificates(client(20, &[], &["10.1.0.0/16"], &[]), &["crm.internal"])),
            (
                "both",
                with_required_proofs(
                    with_certificates(client(30, &[b"both"], &[], &[]), &["both.internal"]),
                    &[Token, Certificate],
                ),
            ),
            ("near", with_required_proofs(client(40, &[b"near"], &["10.1.0.0/16"], &[]), &[Network, Token])),
            ("lan", client(50, &[], &["10.0.0.0/8"], &[])),
        ]),
        &mut vec![],
    );
    let authenticated = |client: &str, proof: &str| Ok((client.to_owned(), proof.to_owned()));
    let (bill, both, near) = (Some(&b"Bearer bill"[..]), Some(&b"Bearer both"[..]), Some(&b"Bearer near"[..]));
    let (outside, lan, inside) = ("192.0.2.1", "10.9.9.9", "10.1.0.1");
    for (address, certificate, credential, expected) in [
        (outside, &["billing.internal"][..], None, authenticated("billing", "certificate")),
        (outside, &["x.internal", spiffe], None, authenticated("billing", "certificate")),
        (outside, &["billing.internal", spiffe], None, authenticated("billing", "certificate")),
        (outside, &["billing.internal"], bill, authenticated("billing", "certificate")),
        ("", &["billing.internal"], None, authenticated("billing", "certificate")),
        (outside, &["BILLING.internal"], None, Err(AuthnError::Invalid)),
        (outside, &["a.billing.internal"], None, Err(AuthnError::Invalid)),
        (outside, &["spiffe://acme.example/billing/x"], None, Err(AuthnError::Invalid)),
        // A certificate of no client is refused unless a token names the client.
        (lan, &["stranger.internal"], None, Err(AuthnError::Invalid)),
        (lan, &["stranger.internal"], bill, authenticated("billing", "token")),
        (lan, &["stranger.internal"], Some(b"Bearer wrong"), Err(AuthnError::Invalid)),
        // Proofs of two clients conflict.
        (inside, &["billing.internal", "crm.internal"], None, Err(AuthnError::Conflicting)),
        (inside, &["crm.internal"], bill, Err(AuthnError::Conflicting)),
        // A client with a certificate does not authenticate by network.
        (inside, &[], None, authenticated("lan", "network")),
        (inside, &["crm.internal"], None, authenticated("crm", "certificate")),
        (lan, &["crm.internal"], None, Err(AuthnError::ForbiddenNetwork)),
        ("", &["crm.internal"], None, Err(AuthnError::ForbiddenNetwork)),
        // Clients with required proofs.
        (outside, &["both.internal"], both, authenticated("both", "certificate")),
        (outside, &["both.internal"], None, Err(AuthnError::MissingProof(Token))),
        (outside, &[], both, Err(AuthnError::MissingProof(Certificate))),
        (outside, &["stranger.internal"], both, Err(AuthnError::MissingProof(Certificate))),
        (inside, &[], near, authenticated("near", "token")),
        (lan, &[], near, Err(AuthnError::ForbiddenNetwork)),
    ] {
        let found = authenticate(&clients, &caller_from(address, certificate), credential);
        assert_eq!(found, expected, "{address} {certificate:?} {credential:?}");
    }
}

#[test]
fn clients_compile_reports_each_problem() {
    let token: &[u8] = b"t";
    let open = |listen: Listen, mut config: Config| {
        config.server.listen.push(at(9, Bind::new(listen)));
        config
    };
    let anyone = |mut config: Config| {
        config.server.allow_anonymous.value = true;
        config
    };
    let public = || Listen::Tcp(([0, 0, 0, 0], 4750).into());
    const OPEN_PROXY: &str = "allow_anonymous on a listener that other hosts can reach is an open proxy";
    const EVERYONE: &str = "every address authenticates as the client a: an open proxy";
    let halves = || config_with_clients(vec![("a", client(10, &[], &["0.0.0.0/1", "128.0.0.0/1"], &[]))]);
    let table: Vec<(Config, &[&str])> = vec![
        (config(), &["warning: no client is configured: outgate would refuse every request"]),
        (anyone(config()), &[]),
        (open(Listen::Unix("/run/x".into()), anyone(config())), &[]),
        (open(public(), anyone(config())), &[OPEN_PROXY]),
        (open(Listen::Systemd, anyone(config())), &[OPEN_PROXY]),
        (config_with_clients(vec![("a", client(10, &[], &[], &[]))]), &["the client a has no means of authentication"]),
        (halves(), &[]),
        (open(public(), halves()), &[EVERYONE]),
        (open(public(), config_with_clients(vec![("a", client(10, &[], &["::/0"], &[]))])), &[EVERYONE]),
        (open(public(), config_with_clients(vec![("a", client(10, &[token], &["::/0"], &[]))])), &[]),
        // A user name with a colon has no form in Basic credentials.
        (
            config_with_clients(vec![("a:b", client(10, &[token], &[], &[]))]),
            &["warning: the client a:b cannot use Basic credentials: a colon ends the user name there (RFC 7617 §2)"],
        ),
        (config_with_clients(vec![("a:b", client(10, &[], &["10.0.0.0/8"], &[]))]), &[]),
        (
            config_with_clients(vec![("a", client(10, &[token], &[], &[])), ("b", client(20, &[token], &[], &[]))]),
            &["two clients have the same token"],
        ),
        (
            config_with_clients(vec![
                ("a", client(10, &[], &["10.0.0.0/8"], &[])),
                ("b", client(20, &[], &["10.0.0.0/8"], &[])),
            ]),
            &["two clients have the same network and no other proof"],
        ),
        (
            config_with_clients(vec![
                ("a", with_certificates(client(10, &[], &[], &[]), &["A.internal"])),
                ("b", with_certificates(client(20, &[], &[], &[]), &["a.internal"])),
            ]),
            &["two clients have the same certificate name"],
        ),
        (
            config_with_clients(vec![("a", with_certificates(client(10, &[], &[], &[]), &["*.internal"]))]),
            &["not a subject alternative name"],
        ),
        (
            open(
                public(),
                config_with_clients(vec![("a", with_certificates(client(10, &[], &["::/0"], &[]), &["a.internal"]))]),
            ),
            &[],
        ),
        (
            config_with_clients(vec![(
                "a",
                with_required_proofs(
                    client(10, &[token], &[], &[]),
                    &[AuthMethod::Token, AuthMethod::Signature, AuthMethod::Network],
                ),
            )]),
            &[
                "the client a requires signature, and has no public_keys",
                "the client a requires network, and has no networks",
            ],
        ),
        (
            config_with_clients(vec![("a", client_with_public_key(10, b"no key"))]),
            &["the public key in a.pem is malformed"],
        ),
        (
            config_with_clients(vec![("anonymous", client(10, &[token], &[], &[]))]),
            &["the name \"anonymous\" is reserved for unauthenticated clients"],
        ),
    ];
    for (config, expected) in table {
        let mut problems = vec![];
        Clients::compile(&config, &mut problems);
        assert_eq!(messages(&problems), expected);
    }
}

#[test]
fn clients_compile_reports_a_shared_token_with_both_places() {
    let config = config_with_clients(vec![("a", client(10, &[b"t"], &[], &[])), ("b", client(20, &[b"t"], &[], &[]))]);
    let mut problems = vec![];
    Clients::compile(&config, &mut problems);
    let places = (problems[0].span.unwrap().start, problems[0].related.as_ref().unwrap().0.start);
    assert_eq!(places, (21, 11));
}

#[test]
fn authn_errors_name_what_is_wrong() {
    for (error, expected) in [
        (AuthnError::NoCredential, "no credential"),
        (AuthnError::Invalid, "wrong credential"),
        (AuthnError::Conflicting, "credentials of different clients"),
        (AuthnError::Signature("it is late"), "signature: it is late"),
        (AuthnError::MissingProof(AuthMethod::Token), "no proof by token"),
        (AuthnError::ForbiddenNetwork, "the client connected from a network that its `networks` do not list"),
        (AuthnError::CertificateExpired(0), "the client certificate expired at 1970-01-01T00:00:00Z"),
        (AuthnError::CertificateExpired(i64::MAX), "the client certificate expired"),
        (AuthnError::CertificateRevoked, "the client certificate was revoked"),
        (AuthnError::CertificateUntrusted, "the listener no longer trusts the client certificate"),
    ] {
        assert_eq!(error.to_string(), expected);
    }
}

/// The clocks of two instances may differ by as much as that of a client may: each in another direction.
#[test]
fn replay_token_lives_until_no_clock_accepts_the_signature() {
    let token = ReplayToken::for_test([0; 32], 1000);
    for (now, expected) in [(900, 220), (1000, 120), (1119, 1), (1120, 1), (i64::MAX, 1)] {
        assert_eq!(token.lifetime(now).as_secs(), expected, "{now}");
    }
}
