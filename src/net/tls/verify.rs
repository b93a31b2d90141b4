//! The verifiers of a target's certificate: webpki's with its verdicts made finer, and the one that lets all pass.
//! Is this chain good, and if not, what is the one thing to say about it?

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::fault::CertificateFault;
use crate::config::Verify;
use crate::policy::trust::Trust;

pub(super) fn verifier(trust: &Trust, provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
    match trust.verify {
        Verify::None => Arc::new(Unverified(provider)),
        Verify::Full => {
            let webpki = WebPkiServerVerifier::builder_with_provider(Arc::clone(&trust.roots), provider)
                .build()
                .expect("a compiled trust that verifies has roots, and no revocation lists that could be malformed");
            Arc::new(Full { webpki, roots: Arc::clone(&trust.roots) })
        }
    }
}

#[derive(Debug)]
struct Full {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for Full {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.webpki
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
            .map_err(|error| refine(error, leaf, intermediates, &self.roots))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Where several things are wrong, one is told, in this order: self_signed; malformed; expired or not_yet_valid;
/// wrong_usage; bad_signature or unknown_issuer; name_mismatch. The first because webpki does not know it (it sees
/// an unknown issuer, or the date first), the rest in the order in which webpki looks. So an expired self-signed
/// certificate is self_signed: a new date would not help it.
///
/// Errors that need no refining are left alone, since rustls tells the target by alert what it found.
fn refine(
    error: Error,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
) -> Error {
    let Error::InvalidCertificate(found) = &error else { return error };
    let told = if is_self_signed(leaf) && !is_root(leaf, roots) {
        CertificateFault::SelfSigned
    } else if matches!(found, CertificateError::Other(_)) {
        // What webpki has more precise words for than rustls: an authority's certificate in a server's place or the
        // reverse, a chain longer than or for other names than its authority may issue; or one that it cannot read.
        if is_x509_v3(leaf) && intermediates.iter().all(is_x509_v3) {
            CertificateFault::WrongUsage
        } else {
            CertificateFault::Malformed
        }
    } else {
        return error;
    };
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(told))))
}

/// Issued by its own subject. Whether it is also signed by its own key says nothing more: nobody vouches for it.
fn is_self_signed(leaf: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| leaf.subject().as_raw() == leaf.issuer().as_raw())
}

/// A self-signed certificate that the operator has made a root is trusted; if it is refused, then for another reason.
fn is_root(leaf: &CertificateDer<'_>, roots: &RootCertStore) -> bool {
    let mut alone = RootCertStore::empty();
    alone.add(leaf.clone().into_owned()).is_ok()
        && roots.roots.iter().any(|root| {
            root.subject == alone.roots[0].subject
                && root.subject_public_key_info == alone.roots[0].subject_public_key_info
        })
}

fn is_x509_v3(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| certificate.version() == X509Version::V3)
}

/// `verify = "none"`: any certificate will do, but the peer must hold its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
