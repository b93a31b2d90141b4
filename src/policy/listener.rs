//! What a client meets before it can ask: who is shown to it, whose word counts for it.
//! Which certificate do we show, which of theirs do we believe, and who may speak for others?

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::aws_lc_rs::digest::{Context, SHA256};
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

/// What stands between a socket and HTTP.
#[derive(Default)]
pub struct Listener {
    /// TLS of each entry of `server.listen` that has it, on TCP.
    tls: HashMap<Listen, ServerTls>,
    pub proxy_protocol: Option<ProxyProtocolPeers>,
}

/// TLS towards clients, compiled.
#[derive(Clone)]
pub struct ServerTls {
    /// SHA-256 over what is shown, believed and offered: where it is equal, sessions may be resumed.
    pub fingerprint: [u8; 32],
    pub certified_key: CertifiedKey,
    /// `None`: certificates are not asked for.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Versions of HTTP that are offered (RFC 7301), the preferred one first.
    pub alpn: Vec<Alpn>,
}

/// Who sends the PROXY protocol.
pub enum ProxyProtocolPeers {
    Any,
    Networks(Vec<IpNet>),
}

impl Listener {
    /// TLS on this socket; `None`: plaintext.
    pub fn tls(&self, at: &Listen) -> Option<&ServerTls> {
        self.tls.get(at)
    }

    /// All that has TLS.
    pub fn all_tls(&self) -> impl Iterator<Item = (&Listen, &ServerTls)> {
        self.tls.iter()
    }

    /// Judges a certificate again that was taken when its connection began: an authority or a list may have changed since,
    /// and the certificate or one of its issuers may have expired.
    pub fn recheck_certificate(
        &self,
        certificate: &PeerCertificate,
        at: Option<&Listen>,
        now: Timestamp,
    ) -> Result<(), AuthnError> {
        let Some((leaf, others)) = certificate.chain.split_first() else { return Ok(()) };
        let Some(tls) = at.and_then(|at| self.tls(at)) else { return Err(AuthnError::CertificateUntrusted) };
        if tls.fingerprint == certificate.listener_fingerprint && now.as_second() <= certificate.valid_until {
            return Ok(());
        }
        let clients = tls.client_verifier.as_ref().ok_or(AuthnError::CertificateUntrusted)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        clients.verify_client_cert(leaf, others, time).map(|_| ()).map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::Revoked) => AuthnError::CertificateRevoked,
            _ if now.as_second() > certificate.valid_until => AuthnError::CertificateExpired(certificate.valid_until),
            _ => AuthnError::CertificateUntrusted,
        })
    }
}

impl ServerTls {
    /// With other versions of HTTP, if some are written.
    fn with_alpn(mut self, alpn: Option<&[Alpn]>) -> Self {
        let Some(alpn) = alpn else { return self };
        self.alpn = alpn.to_vec();
        let mut digest = Context::new(&SHA256);
        digest.update(&self.fingerprint);
        alpn.iter().for_each(|alpn| digest.update(&[*alpn as u8]));
        self.fingerprint.copy_from_slice(digest.finish().as_ref());
        self
    }
}

impl ProxyProtocolPeers {
    /// Behind a unix socket stands a process of this host, which its mode lets in.
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
    // Compiled once for all sockets that share it, so that its problems are told once.
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
    if config.server.all_tls().all(|tls| tls.client_ca.is_none())
        && let Some(name) = config.clients.values().find_map(|client| client.certificates.first())
    {
        let message = "no certificate can prove a client: the listener asks for none";
        let help = "add client_ca to server.tls, or to the tls of a listener: the authority that issues certificates to clients";
        problems.push(Problem::warning(WarningCode::NoClientCa, Some(name.span), message).help(help));
    }
    warn_public_listeners(config, &tls, problems);
    Listener { tls, proxy_protocol: proxies }
}

/// Warns of listeners on public addresses.
fn warn_public_listeners(config: &Config, tls: &HashMap<Listen, ServerTls>, problems: &mut Vec<Problem>) {
    for bind in config.admin.listen.iter().filter(|bind| is_public(&bind.address)) {
        let message = format!("strangers can reach the admin listener on {}", bind.address);
        let help = "write a loopback or private address, or \"unix:/path\": nothing there asks for a credential";
        problems.push(Problem::warning(WarningCode::AdminPublic, Some(bind.span), message).help(help));
    }
    let Some((name, client)) = config.clients.iter().find(|(_, client)| !client.tokens.is_empty()) else { return };
    let is_open = |bind: &&Located<config::Bind>| is_public(&bind.address) && !tls.contains_key(&bind.address);
    // Where TLS of a listener has a problem, that is what is told.
    let has_tls = |bind: &Located<config::Bind>| match &bind.tls {
        BindTls::Off => false,
        BindTls::Inherited => config.server.tls.is_some(),
        BindTls::Own(_) => true,
    };
    for bind in config.server.listen.iter().filter(is_open).filter(|bind| !has_tls(bind)) {
        let message = format!("tokens cross networks in plaintext to {}", bind.address);
        let help = "add tls to the listener or to [server], or listen on a loopback or private address";
        let problem = Problem::warning(WarningCode::TokensInPlaintext, Some(bind.span), message).help(help);
        problems.push(problem.related(client.span, format!("{name} has a token")));
    }
}

/// Whether strangers can reach it: all addresses of the host, or one that no registry keeps from the Internet. Where
/// systemd's sockets listen is not known here.
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
    lists: &[Located<PemFile>],
    provider: &CryptoProvider,
    problems: &mut Vec<Problem>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let before = problems.len();
    let (mut roots, mut anchors) = (RootCertStore::empty(), Anchors::default());
    for (index, der) in ca.parts.iter().enumerate() {
        let what = format!("certificate {} of {}", index + 1, ca.path.display());
        anchors.add_at(der, Purpose::Clients, &mut roots, (&what, ca.span), problems);
    }
    let lists = revocation::compile(lists, problems);
    if problems[before..].iter().any(|problem| problem.severity == Severity::Problem) {
        return None;
    }
    let (hints, algorithms) = (roots.subjects(), provider.signature_verification_algorithms);
    Some(Arc::new(ClientCertificateVerifier { roots, anchors, crls: lists, algorithms, hints }))
}

/// The key is the certificate's: it need not be part of it.
fn fingerprint(tls: &ListenerTls) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    digest.update(b"outgate listener\0");
    let mut parts = |file: Option<&PemFile>| {
        let parts = file.map_or(&[][..], |file| &file.parts);
        // Each part after its length, each file after its number of parts, so that no two read alike.
        digest.update(&(parts.len() as u64).to_be_bytes());
        for part in parts {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    };
    parts(Some(&tls.certificate));
    parts(tls.client_ca.as_deref());
    tls.client_crls.iter().for_each(|list| parts(Some(list)));
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.finish().as_ref());
    fingerprint
}
