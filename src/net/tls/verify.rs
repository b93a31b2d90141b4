//! The judgement of a trust policy as rustls asks for it.
//! May this handshake go on?

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::policy::trust::Trust;
use crate::policy::trust::fault::{CertificateFault, CertificateRejection};

tokio::task_local! {
    /// What is seen in the handshake of this task: rustls's errors that make an alert have no room for it.
    static CAPTURED: RefCell<CapturedVerification>;
}

/// The evidence of a handshake, successful or not.
#[derive(Default)]
pub(super) struct CapturedVerification {
    /// The target's own certificate.
    pub(super) leaf: Option<CertificateDer<'static>>,
    /// The certificate that the trust has refused.
    pub(super) refused: Option<CertificateRejection>,
}

/// Drives a handshake, and gives what was seen in it.
pub(super) async fn watched<T>(handshake: impl Future<Output = T>) -> (T, CapturedVerification) {
    let scope = async { (handshake.await, CAPTURED.with(RefCell::take)) };
    CAPTURED.scope(RefCell::default(), scope).await
}

/// Whatever the trust lets pass: that the peer holds the certificate's key is always proved.
#[derive(Debug)]
pub(super) struct TrustVerifier {
    pub(super) trust: Arc<Trust>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for TrustVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Outside of a handshake of ours nothing is seen.
        let see = |change: &dyn Fn(&mut CapturedVerification)| {
            CAPTURED.try_with(|seen| change(&mut seen.borrow_mut())).unwrap_or_default()
        };
        see(&|seen| seen.leaf = Some(leaf.clone().into_owned()));
        match self.trust.judge(leaf, intermediates, name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => {
                see(&|seen| seen.refused = Some(refused.clone()));
                Err(Error::InvalidCertificate(to_rustls_error(refused.fault)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// In rustls's words where it has them: from these it makes the alert that the target hears.
fn to_rustls_error(fault: CertificateFault) -> CertificateError {
    match fault {
        CertificateFault::UnknownIssuer => CertificateError::UnknownIssuer,
        CertificateFault::Expired => CertificateError::Expired,
        CertificateFault::NotYetValid => CertificateError::NotValidYet,
        CertificateFault::NameMismatch => CertificateError::NotValidForName,
        CertificateFault::Revoked => CertificateError::Revoked,
        CertificateFault::BadSignature => CertificateError::BadSignature,
        fault => CertificateError::Other(OtherError(Arc::new(fault))),
    }
}
