//! The verification of client certificates, in the handshake and again on an open connection.
//! Does this chain lead to an authority that the listener trusts, and is no certificate of it revoked?

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};

use super::anchors::{self, Anchors, Purpose};
use super::revocation::{self, Crl, RevocationError, RevocationPolicy};
use super::signed_der;

pub(super) struct ClientCertificateVerifier {
    pub(super) roots: RootCertStore,
    pub(super) anchors: Anchors,
    pub(super) crls: Vec<Crl>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// The names of the authorities that the CertificateRequest lists.
    pub(super) hints: Vec<DistinguishedName>,
}

impl fmt::Debug for ClientCertificateVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").finish_non_exhaustive()
    }
}

impl ClientCertificateVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let parsed = EndEntityCert::try_from(leaf).map_err(to_certificate_error)?;
        match self.verify_chain(&parsed, others, now) {
            // A revocation overrides direct trust, which is older.
            Err(CertificateError::Revoked) => Err(CertificateError::Revoked),
            Err(_) if self.anchors.directly_trusted().contains(leaf) => self.verify_directly_trusted(leaf, now),
            judged => judged,
        }
    }

    fn verify_chain(
        &self,
        leaf: &EndEntityCert<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        // webpki tries other paths when this callback rejects one, and its error cannot carry the reason.
        let refused = OnceCell::new();
        let rules = |path: &VerifiedPath<'_>| {
            self.verify_path(path, now).map_err(|error| {
                refused.get_or_init(|| error);
                Error::CertDistrusted
            })
        };
        let (algorithms, usage) = (self.algorithms.all, KeyUsage::client_auth());
        match leaf.verify_for_usage(algorithms, &self.roots.roots, others, now, usage, None, Some(&rules)) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused.into_inner().unwrap_or_else(|| to_certificate_error(error))),
        }
    }

    /// Checks the rules that webpki leaves out on a path that webpki verified.
    fn verify_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), CertificateError> {
        self.check_revocation(path, now)?;
        for intermediate in path.intermediate_certificates().map(|certificate| certificate.der()) {
            let parsed = signed_der::parse_certificate(&intermediate).ok_or(CertificateError::BadEncoding)?;
            if !signed_der::may_sign_certificates(&parsed).map_err(|_| CertificateError::BadEncoding)? {
                return Err(CertificateError::InvalidPurpose);
            }
        }
        Ok(())
    }

    /// Checks the path against the revocation lists. An outdated list still counts; a missing list is an error.
    fn check_revocation(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), CertificateError> {
        if self.crls.is_empty() {
            return Ok(());
        }
        let policy = RevocationPolicy { allow_unknown: false, allow_stale: true };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let result = revocation::check(&self.crls, path, &self.anchors, policy, self.algorithms.all, now);
        result.map_err(|revocation| match revocation {
            RevocationError::Revoked => CertificateError::Revoked,
            RevocationError::Unknown | RevocationError::Stale => CertificateError::UnknownRevocationStatus,
        })
    }

    /// Verifies a directly trusted certificate by its own dates and uses. The handshake has proven possession of its
    /// key.
    fn verify_directly_trusted(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
        let parsed = signed_der::parse_certificate(leaf).ok_or(CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if parsed.validity().not_after.timestamp() < now {
            Err(CertificateError::Expired)
        } else if parsed.validity().not_before.timestamp() > now {
            Err(CertificateError::NotValidYet)
        } else if !anchors::serves(&parsed, Purpose::Clients) {
            Err(CertificateError::InvalidPurpose)
        } else {
            Ok(())
        }
    }
}

/// Converts a webpki error to the rustls error that selects the TLS alert.
fn to_certificate_error(error: Error) -> CertificateError {
    match error {
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Error::UnknownIssuer | Error::CertDistrusted => CertificateError::UnknownIssuer,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Error::BadDer | Error::BadDerTime => CertificateError::BadEncoding,
        error => CertificateError::Other(rustls::OtherError(Arc::new(error))),
    }
}

impl ClientCertVerifier for ClientCertificateVerifier {
    /// A certificate is optional in TLS: the client's section of the configuration says which proofs it requires.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, others, now)
            .map(|()| ClientCertVerified::assertion())
            .map_err(rustls::Error::InvalidCertificate)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
