//! Adapts a trust policy to rustls's certificate verifier.
//! May this handshake continue?

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::verified_chains::VerifiedChains;
use crate::policy::trust::error::{CertificateRejection, VerifyError};

tokio::task_local! {
    /// The evidence of the handshake in this task. The rustls errors that determine the alert cannot carry it.
    static CAPTURED: RefCell<CapturedVerification>;
}

/// The evidence of a handshake, whether it succeeds or fails.
#[derive(Default)]
pub(super) struct CapturedVerification {
    /// The target's certificate.
    pub(super) leaf: Option<CertificateDer<'static>>,
    /// The trust's rejection of a certificate.
    pub(super) rejection: Option<CertificateRejection>,
}

/// Runs a handshake, and returns its result with the evidence.
pub(super) async fn capture<T>(handshake: impl Future<Output = T>) -> (T, CapturedVerification) {
    let scope = async { (handshake.await, CAPTURED.with(RefCell::take)) };
    CAPTURED.scope(RefCell::default(), scope).await
}

/// Verifies certificates by the trust. The peer must always prove that it holds the certificate's key.
#[derive(Debug)]
pub(super) struct TrustVerifier {
    pub(super) chains: Arc<VerifiedChains>,
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
        // Outside the scope of [`capture`] nothing is recorded.
        let record = |change: &dyn Fn(&mut CapturedVerification)| {
            CAPTURED.try_with(|captured| change(&mut captured.borrow_mut())).unwrap_or_default()
        };
        record(&|captured| captured.leaf = Some(leaf.clone().into_owned()));
        match self.chains.verify(leaf, intermediates, name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => {
                record(&|captured| captured.rejection = Some(refused.clone()));
                Err(Error::InvalidCertificate(to_rustls_error(refused.error)))
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

/// Converts the error into rustls's, from which rustls derives the alert to the target.
fn to_rustls_error(error: VerifyError) -> CertificateError {
    match error {
        VerifyError::UnknownIssuer => CertificateError::UnknownIssuer,
        VerifyError::Expired => CertificateError::Expired,
        VerifyError::NotYetValid => CertificateError::NotValidYet,
        VerifyError::NameMismatch => CertificateError::NotValidForName,
        VerifyError::Revoked => CertificateError::Revoked,
        VerifyError::BadSignature => CertificateError::BadSignature,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    }
}
