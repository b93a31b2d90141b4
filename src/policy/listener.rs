//! What a client meets before it can ask: who is shown to it, whose word counts for it.
//! Which certificate do we show, which of theirs do we believe, and who may speak for others?

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::aws_lc_rs::digest::{Context, SHA256};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::identify::Held;
use crate::config::{self, At, Config, ListenerTls, PemFile, Problem, Severity};

/// A certificate that ends sooner is warned about.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// What stands between a socket and HTTP.
#[derive(Default)]
pub struct Listener {
    /// On TCP.
    pub tls: Option<Tls>,
    pub proxies: Option<Proxies>,
}

/// TLS towards clients, compiled.
pub struct Tls {
    /// SHA-256 over what is shown and what is believed: where it is equal, sessions may be resumed.
    pub fingerprint: [u8; 32],
    pub certified: CertifiedKey,
    /// `None`: certificates are not asked for.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Who sends the PROXY protocol.
pub enum Proxies {
    All,
    In(Vec<IpNet>),
}

impl Listener {
    /// Whether a certificate would be taken now, that was taken when its connection began: an authority or a list may
    /// have changed since.
    pub fn believes(&self, held: &Held, now: Timestamp) -> bool {
        let Some((leaf, others)) = held.chain.split_first() else { return true };
        let Some(tls) = &self.tls else { return false };
        if tls.fingerprint == held.under {
            return true;
        }
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        tls.clients.as_ref().is_some_and(|clients| clients.verify_client_cert(leaf, others, now).is_ok())
    }
}

impl Proxies {
    /// Behind a unix socket stands a process of this host, which its mode lets in.
    pub fn has(&self, peer: Option<IpAddr>) -> bool {
        match (self, peer.map(|peer| peer.to_canonical())) {
            (Proxies::All, _) | (_, None) => true,
            (Proxies::In(networks), Some(peer)) => networks.iter().any(|network| network.contains(&peer)),
        }
    }
}

pub fn compile(config: &Config, now: Timestamp, problems: &mut Vec<Problem>) -> Listener {
    let proxies = config.server.proxy_protocol.as_ref().map(|written| match &written.value {
        config::ProxyProtocol::Anyone => Proxies::All,
        config::ProxyProtocol::From(networks) => Proxies::In(networks.iter().map(|network| network.value).collect()),
    });
    let tls = config.server.tls.as_ref().and_then(|tls| compile_tls(tls, now, problems));
    if config.server.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())
        && let Some(name) = config.clients.values().find_map(|client| client.certificates.first())
    {
        let message = "no certificate can prove a client: the listener asks for none";
        let help = "add client_ca to server.tls: the authority that issues certificates to clients";
        problems.push(Problem::warning(Some(name.place), message).help(help));
    }
    Listener { tls, proxies }
}

fn compile_tls(tls: &ListenerTls, now: Timestamp, problems: &mut Vec<Problem>) -> Option<Tls> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = certified(tls, now, &provider, problems);
    let clients = match &tls.client_ca {
        None => None,
        Some(ca) => Some(clients(ca, &tls.client_crls, now, provider, problems)?),
    };
    Some(Tls { fingerprint: fingerprint(tls), certified: certified?, clients })
}

fn certified(
    tls: &ListenerTls,
    now: Timestamp,
    provider: &CryptoProvider,
    problems: &mut Vec<Problem>,
) -> Option<CertifiedKey> {
    judge_dates(&tls.certificate, now, problems);
    let mut wrong = |message: String, help: &str| {
        let problem = Problem::at(tls.key.place, message).also(tls.certificate.place, "its certificate");
        problems.push(problem.help(help));
        None
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(tls.key.expose()) else {
        return wrong("no private key in PEM stands there".into(), "a PRIVATE KEY block that is not encrypted");
    };
    let key = match provider.key_provider.load_private_key(key) {
        Ok(key) => key,
        Err(error) => {
            return wrong(format!("the private key is not usable: {error}"), "a key of ECDSA, RSA or Ed25519");
        }
    };
    let chain = tls.certificate.parts.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Some(certified),
        Err(_) => wrong(
            "the key and the certificate do not belong together".into(),
            "the key of the first certificate of the file; the certificates of authorities follow it",
        ),
    }
}

fn judge_dates(certificate: &At<PemFile>, now: Timestamp, problems: &mut Vec<Problem>) {
    let leaf = certificate.parts.first().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, leaf)) = leaf else {
        let message = format!("the first certificate of {} cannot be read", certificate.path.display());
        problems.push(Problem::at(certificate.place, message).help("an X.509 certificate of version 3"));
        return;
    };
    let (from, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    // RFC 5280 §4.1.2.5: the last date there is says "does not expire", and is beyond what a `Timestamp` holds.
    let until = Timestamp::from_second(until).unwrap_or(Timestamp::MAX);
    let message = if until < now {
        format!("the certificate has expired at {until}: no client will believe it")
    } else if until.duration_since(now) < EXPIRES_SOON {
        format!("the certificate expires at {until}")
    } else if from > now.as_second() {
        "the certificate is not valid yet: no client will believe it".to_owned()
    } else {
        return;
    };
    let help = "put a new one in its place: it is taken up at once";
    problems.push(Problem::warning(Some(certificate.place), message).help(help));
}

fn clients(
    ca: &At<PemFile>,
    lists: &[At<PemFile>],
    now: Timestamp,
    provider: Arc<CryptoProvider>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let before = problems.len();
    let mut roots = RootCertStore::empty();
    for (index, der) in ca.parts.iter().enumerate() {
        if let Err(error) = roots.add(CertificateDer::from_slice(der).into_owned()) {
            let (number, path) = (index + 1, ca.path.display());
            let message = format!("certificate {number} of {path} is not usable as an authority: {error}");
            problems.push(Problem::at(ca.place, message).help("an X.509 certificate of a certification authority"));
        }
    }
    lists.iter().for_each(|list| judge_list(list, now, problems));
    if problems[before..].iter().any(|problem| problem.severity == Severity::Problem) {
        return None;
    }
    let lists = lists.iter().flat_map(|list| &list.parts);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists.map(|der| CertificateRevocationListDer::from(der.clone())))
        // A certificate is one proof among others: which are asked for is the client's own section to say.
        .allow_unauthenticated()
        .build();
    match verifier {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            let problem = Problem::at(ca.place, format!("client certificates cannot be verified: {error}"));
            problems.push(problem.help("usable authorities, and revocation lists as RFC 5280 has them"));
            None
        }
    }
}

fn judge_list(list: &At<PemFile>, now: Timestamp, problems: &mut Vec<Problem>) {
    for (index, der) in list.parts.iter().enumerate() {
        let (number, path) = (index + 1, list.path.display());
        let Ok((_, parsed)) = CertificateRevocationList::from_der(der) else {
            let problem = Problem::at(list.place, format!("revocation list {number} of {path} cannot be read"));
            problems.push(problem.help("a certificate revocation list as RFC 5280 has it"));
            continue;
        };
        if parsed.next_update().is_some_and(|next| next.timestamp() < now.as_second()) {
            let message = format!("revocation list {number} of {path} is out of date");
            let help = "put the current one in its place; until then this one counts";
            problems.push(Problem::warning(Some(list.place), message).help(help));
        }
    }
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
