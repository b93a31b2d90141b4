//! The certificate chain and private key that outgate presents.
//! Do the key and the certificate match, and is the key usable for signing?

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{Located, PemFile, Problem, Secret};

/// Loads a certificate chain with its private key. Returns `None` after it reported a problem.
pub(super) fn load_certified_key(
    certificate: &Located<PemFile>,
    key: &Located<Secret>,
    provider: &CryptoProvider,
    problems: &mut Vec<Problem>,
) -> Option<CertifiedKey> {
    if certificate.parts.first().is_none_or(|der| X509Certificate::from_der(der).is_err()) {
        let message = format!("the first certificate of {} cannot be read", certificate.path.display());
        problems.push(Problem::at(certificate.span, message).help("write the path of X.509 certificates of version 3"));
    }
    let mut report = |message: String, help: &str| {
        let problem = Problem::at(key.span, message).related(certificate.span, "the certificate is here");
        problems.push(problem.help(help));
        None
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(key.expose()) else {
        return report(
            "no private key in PEM was found".into(),
            "write the path of a file with a PRIVATE KEY block that is not encrypted",
        );
    };
    let key = match provider.key_provider.load_private_key(key) {
        Ok(key) => key,
        Err(error) => {
            return report(format!("the private key is not usable: {error}"), "use a key of ECDSA, RSA or Ed25519");
        }
    };
    let chain = certificate.parts.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Some(certified),
        Err(_) => report(
            "the key does not match the certificate".into(),
            "use the key of the first certificate of the file; the certificates of authorities follow that certificate",
        ),
    }
}
