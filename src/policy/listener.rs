//! Listeners: TLS towards clients, the authorities of client certificates, and the trusted senders of the PROXY
//! protocol.
//! Which certificate does outgate present, which client certificates does it accept, and whose PROXY headers does it
//! trust?

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::UnixTime;

use super::addresses::special_range;
use super::anchors::{Anchors, Purpose};
use super::authn::{AuthnError, PeerCertificate};
use super::certified_key::load_certified_key;
use super::client_verifier::ClientCertificateVerifier;
use super::revocation;
use crate::config::WarningCode;
use crate::config::{self, Alpn, BindTls, Config, Listen, ListenerTls, Located, PemFile, Problem, Severity};
use crate::digest::{Fingerprint, Sha256};

/// The settings that apply between a socket and HTTP.
#[derive(Default)]
pub struct Listener {
    /// The TLS settings of each entry of a `listen` on TCP that has them.
    tls: HashMap<Listen, ServerTls>,
    /// The entries of `admin.listen` and `publish.listen` with TLS. An entry for clients may have the same address if the
    /// port is 0.
    own_tls: HashSet<Listen>,
    pub proxy_protocol: Option<ProxyProtocolPeers>,
}

/// The compiled TLS settings of a listener.
#[derive(Clone)]
pub struct ServerTls {
    /// SHA-256 over the presented chain, the client authorities and the ALPN protocols. Sessions may be resumed under
    /// an equal fingerprint.
    pub fingerprint: [u8; 32],
    pub certified_key: CertifiedKey,
    /// `None` if the listener requests no client certificates.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// The offered ALPN protocols (RFC 7301), the preferred one first.
    pub alpn: Vec<Alpn>,
}

/// The peers that send the PROXY protocol.
pub enum ProxyProtocolPeers {
    Any,
    Networks(Vec<IpNet>),
}

impl Listener {
    /// Returns the TLS settings of this socket; `None` for plaintext.
    pub fn tls(&self, at: &Listen) -> Option<&ServerTls> {
        self.tls.get(at)
    }

    /// Returns whether this socket of `admin.listen` or `publish.listen` has TLS.
    pub fn has_own_tls(&self, at: &Listen) -> bool {
        self.own_tls.contains(at)
    }

    /// Returns every socket with TLS.
    pub fn all_tls(&self) -> impl Iterator<Item = (&Listen, &ServerTls)> {
        self.tls.iter()
    }

    /// Verifies the client certificate of an open connection again. An authority or revocation list may have changed
    /// since the handshake, and a certificate of the chain may have expired.
    pub fn recheck_certificate(
        &self,
        certificate: &PeerCertificate,
        at: Option<&Listen>,
        now: Timestamp,
    ) -> Result<(), AuthnError> {
        let Some((leaf, others)) = certificate.chain().split_first() else { return Ok(()) };
        let Some(tls) = at.and_then(|at| self.tls(at)) else { return Err(AuthnError::CertificateUntrusted) };
        if tls.fingerprint == certificate.listener_fingerprint() && now.as_second() <= certificate.valid_until() {
            return Ok(());
        }
        let clients = tls.client_verifier.as_ref().ok_or(AuthnError::CertificateUntrusted)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        clients.verify_client_cert(leaf, others, time).map(|_| ()).map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::Revoked) => AuthnError::CertificateRevoked,
            _ if now.as_second() > certificate.valid_until() => {
                AuthnError::CertificateExpired(certificate.valid_until())
            }
            _ => AuthnError::CertificateUntrusted,
        })
    }
}

impl ServerTls {
    /// Replaces the ALPN protocols if the listener configures its own.
    fn with_alpn(mut self, alpn: Option<&[Alpn]>) -> Self {
        let Some(alpn) = alpn else { return self };
        self.alpn = alpn.to_vec();
        let mut fingerprint = Fingerprint::default();
        fingerprint.bytes(&self.fingerprint);
        alpn.iter().for_each(|alpn| fingerprint.bytes(&[*alpn as u8]));
        self.fingerprint = fingerprint.finish();
        self
    }
}

impl ProxyProtocolPeers {
    /// Returns whether a peer sends the PROXY protocol. The peer of a unix socket always does: it is a process of this
    /// host that the socket's mode admits.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        match (self, peer.map(|peer| peer.to_canonical())) {
            (ProxyProtocolPeers::Any, _) | (_, None) => true,
            (ProxyProtocolPeers::Networks(networks), Some(peer)) => {
                networks.iter().any(|network| network.contains(&peer))
            }
        }
    }
}

pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Listener {
    let proxies = config.server.proxy_protocol.as_ref().map(|written| match &written.value {
        config::ProxyProtocol::AnyPeer => ProxyProtocolPeers::Any,
        config::ProxyProtocol::From(networks) => {
            ProxyProtocolPeers::Networks(networks.iter().map(|network| network.value).collect())
        }
    });
    // Sockets that inherit the settings share one compilation, so that its problems are reported once.
    let shared = config.server.tls.as_ref().and_then(|tls| compile_tls(tls, problems));
    let mut tls = HashMap::new();
    for bind in config.server.listen.iter().filter(|bind| !matches!(bind.address, Listen::Unix(_))) {
        let own = match &bind.tls {
            BindTls::Off => None,
            BindTls::Inherited => shared.clone(),
            BindTls::Own(own) => compile_tls(own, problems),
        };
        tls.extend(own.map(|tls| (bind.address.clone(), tls.with_alpn(bind.alpn.as_deref()))));
    }
    let mut own_tls = HashSet::new();
    for bind in config.admin.listen.iter().chain(&config.publish.listen) {
        if let BindTls::Own(own) = &bind.tls {
            own_tls.insert(bind.address.clone());
            // These listeners speak HTTP/1.1 only.
            let own = compile_tls(own, problems).map(|tls| tls.with_alpn(Some(&[Alpn::Http1])));
            tls.extend(own.map(|tls| (bind.address.clone(), tls)));
        }
    }
    if config.server.all_tls().all(|tls| tls.client_ca.is_none())
        && let Some(name) = config.clients.values().find_map(|client| client.certificates.first())
    {
        let message = "client certificates have no effect: no listener has client_ca";
        let help = "add client_ca to server.tls, or to the tls of a listener: the authority that issues certificates to clients";
        problems.push(Problem::warning(WarningCode::NoClientCa, Some(name.span), message).help(help));
    }
    warn_public_listeners(config, &tls, problems);
    Listener { tls, own_tls, proxy_protocol: proxies }
}

/// Warns about an admin listener on a public address, and about tokens on a public listener without TLS.
fn warn_public_listeners(config: &Config, tls: &HashMap<Listen, ServerTls>, problems: &mut Vec<Problem>) {
    for bind in config.admin.listen.iter().filter(|bind| is_public(&bind.address)) {
        let message = format!("the admin listener on {} is reachable from the Internet", bind.address);
        let help =
            "write a loopback or private address, or \"unix:/path\": metrics and readiness require no credential";
        problems.push(Problem::warning(WarningCode::AdminPublic, Some(bind.span), message).help(help));
    }
    let Some((name, client)) = config.clients.iter().find(|(_, client)| !client.tokens.is_empty()) else { return };
    let is_open = |bind: &&Located<config::Bind>| is_public(&bind.address) && !tls.contains_key(&bind.address);
    // A listener whose TLS settings have a problem reports that problem only.
    let has_tls = |bind: &Located<config::Bind>| match &bind.tls {
        BindTls::Off => false,
        BindTls::Inherited => config.server.tls.is_some(),
        BindTls::Own(_) => true,
    };
    for bind in config.server.listen.iter().filter(is_open).filter(|bind| !has_tls(bind)) {
        let message = format!("clients send tokens in plaintext to {}", bind.address);
        let help = "add tls to the listener or to [server], or listen on a loopback or private address";
        let problem = Problem::warning(WarningCode::TokensInPlaintext, Some(bind.span), message).help(help);
        problems.push(problem.related(client.span, format!("{name} has a token")));
    }
}

/// Returns whether a listener is reachable from the Internet: it is on every address of the host, or on a public one.
/// The addresses of systemd's sockets are not known here.
fn is_public(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => {
            let ip = address.ip().to_canonical();
            ip.is_unspecified() || special_range(ip).is_none()
        }
        Listen::Unix(_) | Listen::Systemd => false,
    }
}

fn compile_tls(tls: &ListenerTls, problems: &mut Vec<Problem>) -> Option<ServerTls> {
    let provider = aws_lc_rs::default_provider();
    let certified = load_certified_key(&tls.certificate, &tls.key, &provider, problems);
    let clients = match &tls.client_ca {
        None => None,
        Some(ca) => Some(compile_client_verifier(ca, &tls.client_crls, &provider, problems)?),
    };
    Some(ServerTls {
        fingerprint: fingerprint(tls),
        certified_key: certified?,
        client_verifier: clients,
        alpn: vec![Alpn::Http2, Alpn::Http1],
    })
}

fn compile_client_verifier(
    ca: &Located<PemFile>,
    crls: &[Located<PemFile>],
    provider: &CryptoProvider,
    problems: &mut Vec<Problem>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let before = problems.len();
    let (mut roots, mut anchors) = (RootCertStore::empty(), Anchors::default());
    for (index, der) in ca.parts.iter().enumerate() {
        let what = format!("certificate {} of {}", index + 1, ca.path.display());
        anchors.add_at(der, Purpose::Clients, &mut roots, (&what, ca.span), problems);
    }
    let crls = revocation::compile(crls, problems);
    if problems[before..].iter().any(|problem| problem.severity == Severity::Problem) {
        return None;
    }
    let (hints, algorithms) = (roots.subjects(), provider.signature_verification_algorithms);
    Some(Arc::new(ClientCertificateVerifier { roots, anchors, crls, algorithms, hints }))
}

/// Returns the fingerprint of TLS settings. The private key is not part of it, since the certificate determines it.
fn fingerprint(tls: &ListenerTls) -> Sha256 {
    let mut fingerprint = Fingerprint::default();
    fingerprint.bytes(b"outgate listener\0");
    let mut add_file = |file: Option<&PemFile>| {
        let parts = file.map_or(&[][..], |file| &file.parts);
        fingerprint.number(parts.len() as u64);
        parts.iter().for_each(|part| fingerprint.part(part));
    };
    add_file(Some(&tls.certificate));
    add_file(tls.client_ca.as_deref());
    tls.client_crls.iter().for_each(|list| add_file(Some(list)));
    fingerprint.finish()
}

#[cfg(test)]
mod tests;
