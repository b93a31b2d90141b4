//! The judgement of a client's certificate, as rustls asks for it and as it is made again on an open connection.
//! Does this chain lead to an authority that the listener believes, and is nothing of it revoked?

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};

use super::anchors::Anchors;
use super::revocation::{self, Leniency, Revocation, RevocationList};
use super::signed;

pub(super) struct ClientVerifier {
    pub(super) roots: RootCertStore,
    pub(super) anchors: Anchors,
    pub(super) lists: Vec<RevocationList>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// Whose certificates a client is asked for.
    pub(super) hints: Vec<DistinguishedName>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").finish_non_exhaustive()
    }
}

impl ClientVerifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let parsed = EndEntityCert::try_from(leaf).map_err(told)?;
        if self.anchors.own().contains(leaf) {
            return self.judge_own(leaf, now);
        }
        let revoked = Cell::new(None);
        let unrevoked = |path: &VerifiedPath<'_>| {
            self.unrevoked(path, now).map_err(|said| {
                revoked.set(revoked.get().or(Some(said)));
                Error::CertDistrusted
            })
        };
        let (algorithms, usage) = (self.algorithms.all, KeyUsage::client_auth());
        let found = parsed.verify_for_usage(algorithms, &self.roots.roots, others, now, usage, None, Some(&unrevoked));
        match (found, revoked.get()) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(Revocation::Revoked)) => Err(CertificateError::Revoked),
            (Err(_), Some(_)) => Err(CertificateError::UnknownRevocationStatus),
            (Err(error), None) => Err(told(error)),
        }
    }

    /// A list that is out of date still counts here; a missing one does not let pass.
    fn unrevoked(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), Revocation> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let lenient = Leniency { unknown: false, stale: true };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        revocation::check(&self.lists, path, &self.anchors, lenient, self.algorithms.all, now)
    }

    /// A certificate that is trusted for itself alone: its holder proves its key, and nobody vouches for it.
    fn judge_own(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
        let parsed = signed::certificate(leaf).ok_or(CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let purposes = parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
        if parsed.validity().not_after.timestamp() < now {
            Err(CertificateError::Expired)
        } else if parsed.validity().not_before.timestamp() > now {
            Err(CertificateError::NotValidYet)
        } else if purposes.is_some_and(|purposes| !purposes.value.client_auth && !purposes.value.any) {
            Err(CertificateError::InvalidPurpose)
        } else {
            Ok(())
        }
    }
}

/// In rustls's words: from these it makes the alert that the client hears.
fn told(error: Error) -> CertificateError {
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

impl ClientCertVerifier for ClientVerifier {
    /// A certificate is one proof among others: which are asked for is the client's own section to say.
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
        self.judge(leaf, others, now)
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
