//! Tests of handshakes over loopback with servers that each have one defect.
//! Is every certificate error distinguished?

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyPair, NameConstraints, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::TlsVersion;

const TARGET_NAME: &str = "hooks.acme.example";

type TestAuthority = CertifiedIssuer<'static, KeyPair>;

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = params(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn authority(common_name: &str) -> TestAuthority {
    CertifiedIssuer::self_signed(authority_params(common_name), KeyPair::generate().unwrap()).unwrap()
}

/// The chain and key of a server, leaf first.
#[derive(Debug)]
struct FixedCertResolver(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedCertResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn cert_resolver(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> FixedCertResolver {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    FixedCertResolver(Arc::new(CertifiedKey::new(chain, aws_lc_rs::sign::any_supported_type(&key).unwrap())))
}

fn issued_chain(params: &CertificateParams, by: &TestAuthority, with: &[&TestAuthority]) -> FixedCertResolver {
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, by).unwrap().der().clone();
    cert_resolver([leaf].into_iter().chain(with.iter().map(|authority| authority.der().clone())).collect(), &key)
}

fn self_signed(params: &CertificateParams) -> FixedCertResolver {
    let key = KeyPair::generate().unwrap();
    cert_resolver(vec![params.self_signed(&key).unwrap().der().clone()], &key)
}

fn client_tls(roots: &[&CertificateDer<'static>], min_version: TlsVersion, verify: VerifyMode) -> ClientTls {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add((*root).clone()).unwrap();
    }
    let provider = aws_lc_rs::default_provider();
    ClientTls::new(&Arc::new(Trust::with_roots(store, min_version, verify, false, &provider)))
}

fn server(resolver: FixedCertResolver, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Performs a handshake with a peer that runs `serve` on the connection.
async fn with_peer<F: Future>(
    serve: impl FnOnce(TcpStream) -> F,
    config: &ClientTls,
    host: &Host,
    wait: Duration,
) -> Result<(MaybeTlsStream, HandshakeInfo), TlsError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let handshake =
        handshake(OutboundSocket::new(client), config, None, host, AlpnOffer::Http2OrHttp1, Instant::now() + wait);
    let serve = serve(accepted);
    tokio::pin!(handshake, serve);
    let outcome = tokio::select! {
        outcome = &mut handshake => outcome,
        _ = &mut serve => handshake.await,
    };
    outcome.map_err(|failed| failed.error)
}

async fn handshake_with(
    server: Arc<ServerConfig>,
    config: &ClientTls,
    host: &Host,
) -> Result<(MaybeTlsStream, HandshakeInfo), TlsError> {
    let serve = async move |stream| {
        if let Ok(mut stream) = TlsAcceptor::from(server).accept(stream).await {
            // The server writes, so that the client reads the TLS 1.3 session tickets.
            stream.write_all(b"x").await.unwrap();
            let _ = stream.read(&mut [0; 1]).await;
        }
    };
    with_peer(serve, config, host, Duration::from_secs(10)).await
}

fn name() -> Host {
    Host::Name(TARGET_NAME.into())
}

fn ip(text: &str) -> Host {
    Host::Ip(text.parse::<IpAddr>().unwrap())
}

const ALL_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

#[tokio::test]
async fn tls_handshake_accepts_a_valid_chain() {
    let root = authority("root");
    let config = client_tls(&[root.der()], TlsVersion::V1_2, VerifyMode::Full);
    let mut leaf = params("leaf", &[TARGET_NAME, "192.0.2.7", "2001:db8::7"]);
    leaf.not_after = date_time_ymd(2090, 1, 2);
    for host in [name(), ip("192.0.2.7"), ip("2001:db8::7")] {
        let (_, info) =
            handshake_with(server(issued_chain(&leaf, &root, &[]), ALL_VERSIONS), &config, &host).await.unwrap();
        let expires = "2090-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(
            info,
            HandshakeInfo {
                version: "TLSv1.3",
                suite: "TLS_AES_256_GCM_SHA384",
                expires,
                verified: true,
                speaks_http2: false
            }
        );
    }
    let (_, info) =
        handshake_with(server(issued_chain(&leaf, &root, &[]), &[&version::TLS12]), &config, &name()).await.unwrap();
    assert_eq!((info.version, info.suite), ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"));

    let middle = TestAuthority::signed_by(authority_params("middle"), KeyPair::generate().unwrap(), &root).unwrap();
    assert!(
        handshake_with(server(issued_chain(&leaf, &middle, &[&middle]), ALL_VERSIONS), &config, &name()).await.is_ok()
    );
}

#[tokio::test]
async fn tls_handshake_reports_each_certificate_error() {
    use VerifyError as F;
    let root = authority("root");
    let stranger = authority("stranger");
    let impostor = authority("root");
    let config = client_tls(&[root.der()], TlsVersion::V1_2, VerifyMode::Full);
    let good = || params("leaf", &[TARGET_NAME]);
    let altered = |alter: &dyn Fn(&mut CertificateParams)| {
        let mut params = good();
        alter(&mut params);
        params
    };
    let expired = altered(&|params| params.not_after = date_time_ymd(2001, 1, 1));
    let future = altered(&|params| params.not_before = date_time_ymd(2999, 1, 1));
    let for_clients = altered(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let is_authority = altered(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let mut constrained = authority_params("constrained");
    constrained.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("other.example".into())],
        excluded_subtrees: vec![],
    });
    let constrained = TestAuthority::signed_by(constrained, KeyPair::generate().unwrap(), &root).unwrap();
    let no_authority =
        TestAuthority::signed_by(params("no authority", &[]), KeyPair::generate().unwrap(), &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let anothers_key = |params: &CertificateParams| {
        cert_resolver(vec![params.signed_by(&key, &root).unwrap().der().clone()], &KeyPair::generate().unwrap())
    };

    let cases = [
        ("self-signed", self_signed(&good()), name(), F::SelfSigned),
        ("self-signed authority", self_signed(&is_authority), name(), F::SelfSigned),
        ("self-signed and expired", self_signed(&expired), name(), F::SelfSigned),
        ("self-signed for another name", self_signed(&params("leaf", &["other.example"])), name(), F::SelfSigned),
        ("stranger", issued_chain(&good(), &stranger, &[]), name(), F::UnknownIssuer),
        ("stranger with its root", issued_chain(&good(), &stranger, &[&stranger]), name(), F::UnknownIssuer),
        ("expired", issued_chain(&expired, &root, &[]), name(), F::Expired),
        ("expired, of a stranger", issued_chain(&expired, &stranger, &[]), name(), F::Expired),
        ("not yet valid", issued_chain(&future, &root, &[]), name(), F::NotYetValid),
        ("other name", issued_chain(&params("leaf", &["other.example"]), &root, &[]), name(), F::NameMismatch),
        (
            "name of the common name only",
            issued_chain(&params(TARGET_NAME, &[]), &root, &[]),
            name(),
            F::NoSubjectAltName,
        ),
        ("deeper than its wildcard", issued_chain(&params("l", &["*.example"]), &root, &[]), name(), F::NameMismatch),
        ("address in no SAN", issued_chain(&good(), &root, &[]), ip("192.0.2.7"), F::NameMismatch),
        ("other address", issued_chain(&params("l", &["192.0.2.8"]), &root, &[]), ip("192.0.2.7"), F::NameMismatch),
        ("for clients", issued_chain(&for_clients, &root, &[]), name(), F::WrongUsage),
        ("an authority's", issued_chain(&is_authority, &root, &[]), name(), F::CaAsLeaf),
        ("issued by a leaf", issued_chain(&good(), &no_authority, &[&no_authority]), name(), F::WrongUsage),
        ("issuer constrained", issued_chain(&good(), &constrained, &[&constrained]), name(), F::WrongUsage),
        ("impostor", issued_chain(&good(), &impostor, &[]), name(), F::UnknownIssuer),
        ("another's key", anothers_key(&good()), name(), F::BadSignature),
        ("no certificate", cert_resolver(vec![b"junk".to_vec().into()], &key), name(), F::Malformed),
    ];
    for (what, resolver, host, expected) in cases {
        match handshake_with(server(resolver, ALL_VERSIONS), &config, &host).await {
            Err(TlsError::Certificate { error, .. }) => assert_eq!(error, expected, "{what}"),
            other => panic!("{what}: {:?}", other.map(|(_, info)| info)),
        }
    }
}

#[tokio::test]
async fn tls_handshake_accepts_a_self_signed_root() {
    let key = KeyPair::generate().unwrap();
    let mut leaf = params("leaf", &[TARGET_NAME]);
    let show = |leaf: &CertificateParams| {
        let certificate = leaf.self_signed(&key).unwrap().der().clone();
        (
            client_tls(&[&certificate], TlsVersion::V1_2, VerifyMode::Full),
            server(cert_resolver(vec![certificate], &key), ALL_VERSIONS),
        )
    };
    let (config, good) = show(&leaf);
    assert!(handshake_with(good, &config, &name()).await.is_ok());
    leaf.not_after = date_time_ymd(2001, 1, 1);
    let (config, expired) = show(&leaf);
    let error = handshake_with(expired, &config, &name()).await.unwrap_err();
    assert!(matches!(error, TlsError::Certificate { error: VerifyError::Expired, .. }), "{error:?}");
}

#[tokio::test]
async fn tls_handshake_without_verification_still_requires_the_key() {
    let config = client_tls(&[], TlsVersion::V1_2, VerifyMode::None);
    let leaf = params("leaf", &["other.example"]);
    assert!(handshake_with(server(self_signed(&leaf), ALL_VERSIONS), &config, &name()).await.is_ok());
    let certificate = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
    for versions in [&[&version::TLS13], &[&version::TLS12]] {
        let stolen = cert_resolver(vec![certificate.clone()], &KeyPair::generate().unwrap());
        let error = handshake_with(server(stolen, versions), &config, &name()).await.unwrap_err();
        assert!(matches!(error, TlsError::Certificate { error: VerifyError::BadSignature, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn tls_handshake_reports_the_alert_for_an_old_version() {
    let root = authority("root");
    let config = client_tls(&[root.der()], TlsVersion::V1_3, VerifyMode::Full);
    let old = server(issued_chain(&params("leaf", &[TARGET_NAME]), &root, &[]), &[&version::TLS12]);
    let error = handshake_with(old, &config, &name()).await.unwrap_err();
    assert!(matches!(error, TlsError::Alert { id: 70, name: "protocol_version" }), "{error:?}");
}

#[tokio::test]
async fn tls_handshake_distinguishes_peers_without_tls() {
    let config = client_tls(&[authority("root").der()], TlsVersion::V1_2, VerifyMode::Full);
    let second = Duration::from_secs(10);
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "220 mail.example ESMTP\r\n"] {
        let speak = async |mut stream: TcpStream| {
            stream.write_all(greeting.as_bytes()).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await
        };
        let error = with_peer(speak, &config, &name(), second).await.unwrap_err();
        assert!(matches!(error, TlsError::Plaintext), "{greeting:?}: {error:?}");
    }
    let close = async |mut stream: TcpStream| stream.read(&mut [0; 4096]).await.map(drop);
    let error = with_peer(close, &config, &name(), second).await.unwrap_err();
    assert!(matches!(error, TlsError::Lost(_)), "{error:?}");

    let stall = async |_stream: TcpStream| std::future::pending::<()>().await;
    let error = with_peer(stall, &config, &name(), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout), "{error:?}");
}

#[tokio::test]
async fn tls_handshake_rejects_a_name_that_is_no_dns_name() {
    let config = client_tls(&[authority("root").der()], TlsVersion::V1_2, VerifyMode::Full);
    let stall = async |_stream: TcpStream| std::future::pending::<()>().await;
    let error = with_peer(stall, &config, &Host::Name("a b".into()), Duration::from_secs(10)).await.unwrap_err();
    assert!(matches!(error, TlsError::Certificate { error: VerifyError::NameMismatch, .. }), "{error:?}");
}

#[derive(Debug)]
struct TestTime(u64);

impl TimeProvider for TestTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

#[tokio::test]
async fn tls_resumption_revalidates_the_certificate() {
    const NOON: u64 = 1_800_014_400; // 2027-01-15, noon
    let root = authority("root");
    let mut leaf = params("leaf", &[TARGET_NAME]);
    leaf.not_after = date_time_ymd(2027, 1, 16);
    let server = server(issued_chain(&leaf, &root, &[]), ALL_VERSIONS);
    let mut config = client_tls(&[root.der()], TlsVersion::V1_2, VerifyMode::Full);
    let mut at = async |time: u64| {
        config.set_time_provider(Arc::new(TestTime(time)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let serve = async {
            let mut stream = TlsAcceptor::from(Arc::clone(&server)).accept(accepted).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            Ok::<_, std::io::Error>(stream)
        };
        let connect = async {
            let deadline = Instant::now() + Duration::from_secs(10);
            let (stream, _) =
                handshake(OutboundSocket::new(client), &config, None, &name(), AlpnOffer::Http2OrHttp1, deadline)
                    .await
                    .map_err(|failed| failed.error)?;
            let mut stream = TokioIo::new(stream);
            let read = stream.read(&mut [0; 1]).await.unwrap(); // this reads the session tickets too
            assert_eq!(read, 1);
            let MaybeTlsStream::Https(stream) = stream.into_inner() else { panic!() };
            Ok::<_, TlsError>(stream.inner().get_ref().1.handshake_kind().unwrap())
        };
        let (_stream, handshake_kind) = tokio::join!(serve, connect);
        handshake_kind
    };
    assert_eq!(at(NOON).await.unwrap(), HandshakeKind::Full);
    assert_eq!(at(NOON + 3600).await.unwrap(), HandshakeKind::Resumed);
    let error = at(NOON + 13 * 3600).await.unwrap_err();
    assert!(matches!(error, TlsError::Certificate { error: VerifyError::Expired, .. }), "{error:?}");
}
