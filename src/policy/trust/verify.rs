//! The verification of a target's chain: webpki's checks, and the rules that it leaves out on the path that it finds.
//! Does this chain prove this name under this trust policy, and if not, which error is reported?
//!
//! If several errors apply, the first in this order is reported:
//!
//! 1. self_signed. webpki reports an unknown issuer or the date instead, and a new date would not help.
//! 2. Errors that keep webpki from a path, in its own order: malformed; ca_as_leaf; expired or not_yet_valid;
//!    wrong_usage; unknown_issuer, weak_key, weak_signature, unsupported_algorithm or bad_signature.
//! 3. Errors of the path found: revocation, a key, a usage, the validity, the pins.
//! 4. The target's name, and under `strict` the other names.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::super::anchors::{self, Purpose};
use super::super::revocation::{self, Crl, RevocationError, RevocationPolicy};
use super::super::signed_der;
use super::error::{CertificateRejection, VerifyError};
use super::{Trust, chain, strict};
use crate::config::{CrlPolicy, VerifyMode};
use crate::digest::sha256;

/// Algorithms with broken hashes: MD2, MD5 and SHA-1 with RSA, SHA-1 with DSA and ECDSA.
const WEAK_SIGNATURES: [&str; 6] = [
    "1.2.840.113549.1.1.2",
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.3.14.3.2.29",
    "1.2.840.10040.4.3",
    "1.2.840.10045.4.1",
];

impl Trust {
    /// Verifies a target's chain and name. With `verify = "none"`, every chain passes.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), CertificateRejection> {
        if self.verify == VerifyMode::None {
            return Ok(());
        }
        let others = self.path_candidates(presented);
        let result = self.verify_chain(leaf, &others, now).map_err(|error| match error {
            ChainError::RuleViolation(error) => error.into(),
            ChainError::NoPath(_) if chain::is_self_signed(self, leaf) && !self.is_root(leaf) => {
                VerifyError::SelfSigned.into()
            }
            ChainError::NoPath(error) => self.to_rejection(&error, leaf, &others),
        });
        match result {
            // A revocation overrides direct trust, which is older.
            Err(refused) if refused.error == VerifyError::Revoked => return Err(refused),
            // The certificate may be directly trusted as well.
            Err(_) if self.anchors.directly_trusted().contains(leaf) => self.verify_directly_trusted(leaf, now)?,
            result => result?,
        }
        let parsed = EndEntityCert::try_from(leaf).map_err(|_| VerifyError::Malformed)?;
        parsed.verify_is_valid_for_subject_name(name).map_err(|error| match error {
            Error::CertNotValidForName(_) if has_no_server_name(leaf) => VerifyError::NoSubjectAltName.into(),
            Error::CertNotValidForName(_) => VerifyError::NameMismatch.into(),
            _ => CertificateRejection::from(VerifyError::Malformed),
        })?;
        if self.strict { strict::check_web_pki_names(leaf).map_err(CertificateRejection::from) } else { Ok(()) }
    }

    /// Returns the first moment after `now` at which the verdict about this chain may change: a certificate begins or ends,
    /// or a revocation list does. `None`: a certificate cannot be read.
    pub fn next_change(
        &self,
        leaf: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<UnixTime> {
        let others = self.path_candidates(presented);
        let mut moments: Vec<i64> = self.crls.iter().flat_map(Crl::validity).collect();
        for der in std::iter::once(leaf).chain(others.iter()) {
            let certificate = signed_der::parse_certificate(der)?;
            let validity = certificate.validity();
            // notAfter is the last second of the validity (RFC 5280 §4.1.2.5), and nextUpdate the first after that of a list.
            moments.extend([validity.not_before.timestamp(), validity.not_after.timestamp().saturating_add(1)]);
        }
        let next = moments.into_iter().filter(|moment| *moment > unix_seconds(now)).min();
        let next = next.map_or(u64::MAX, |next| u64::try_from(next).unwrap_or_default());
        Some(UnixTime::since_unix_epoch(Duration::from_secs(next)))
    }

    /// Returns the certificates for a path between leaf and root: those that the target sent, and the configured ones.
    fn path_candidates<'a>(&'a self, presented: &'a [CertificateDer<'a>]) -> Cow<'a, [CertificateDer<'a>]> {
        if self.intermediates.is_empty() {
            return presented.into();
        }
        let configured = self.intermediates.iter().map(|der| CertificateDer::from_slice(der));
        presented.iter().map(|der| CertificateDer::from_slice(der)).chain(configured).collect()
    }

    /// Verifies a directly trusted certificate by its own dates and uses. It may have CA:TRUE only if its key may not
    /// sign certificates: [`anchors`] treats others as authorities.
    fn verify_directly_trusted(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), VerifyError> {
        EndEntityCert::try_from(leaf).map_err(|_| VerifyError::Malformed)?;
        let parsed = signed_der::parse_certificate(leaf).ok_or(VerifyError::Malformed)?;
        let now = unix_seconds(now);
        if parsed.validity().not_after.timestamp() < now {
            return Err(VerifyError::Expired);
        }
        if parsed.validity().not_before.timestamp() > now {
            return Err(VerifyError::NotYetValid);
        }
        if !anchors::serves(&parsed, Purpose::Servers) {
            return Err(VerifyError::WrongUsage);
        }
        strict::check_chain(leaf, &[])?;
        if self.strict {
            strict::check_web_pki(leaf, &[])?;
        }
        let is_pinned = self.pins.is_empty() || self.is_pinned_key(parsed.public_key().raw);
        if is_pinned { Ok(()) } else { Err(VerifyError::PinMismatch) }
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), ChainError> {
        let leaf = EndEntityCert::try_from(leaf).map_err(ChainError::NoPath)?;
        // webpki tries other paths when this callback rejects one, and its error cannot carry this one.
        let violation = Cell::new(None);
        let path_rules = |path: &VerifiedPath<'_>| {
            self.verify_path(path, now).map_err(|error| {
                violation.set(violation.get().or(Some(error)));
                Error::CertDistrusted
            })
        };
        let (algorithms, usage) = (self.algorithms.all, KeyUsage::server_auth());
        match leaf.verify_for_usage(algorithms, &self.roots.roots, others, now, usage, None, Some(&path_rules)) {
            Ok(_) => Ok(()),
            Err(error) => Err(violation.get().map_or(ChainError::NoPath(error), ChainError::RuleViolation)),
        }
    }

    /// Checks the remaining rules on a path that webpki verified.
    fn verify_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), VerifyError> {
        self.check_revocation(path, now)?;
        let leaf = path.end_entity().der();
        let intermediates: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
        let intermediates: Vec<&[u8]> = intermediates.iter().map(|der| der.as_ref()).collect();
        strict::check_chain(&leaf, &intermediates)?;
        if self.strict {
            strict::check_web_pki(&leaf, &intermediates)?;
        }
        if self.pins.is_empty() || self.is_pinned(path) { Ok(()) } else { Err(VerifyError::PinMismatch) }
    }

    /// Checks the path against the revocation lists, if any are configured.
    fn check_revocation(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), VerifyError> {
        if self.crls.is_empty() {
            return Ok(());
        }
        let is_lenient = self.crl_policy == CrlPolicy::Lenient;
        let policy = RevocationPolicy { allow_unknown: is_lenient, allow_stale: is_lenient };
        let checked =
            revocation::check(&self.crls, path, &self.anchors, policy, self.algorithms.all, unix_seconds(now));
        checked.map_err(|error| match error {
            RevocationError::Revoked => VerifyError::Revoked,
            RevocationError::Unknown => VerifyError::RevocationUnknown,
            RevocationError::Stale => VerifyError::RevocationStale,
        })
    }

    /// Returns whether a key of the validated chain, including the root's, is pinned (RFC 7469 §2.6).
    fn is_pinned(&self, path: &VerifiedPath<'_>) -> bool {
        self.is_pinned_key(&path.end_entity().subject_public_key_info())
            || path
                .intermediate_certificates()
                .any(|certificate| self.is_pinned_key(&certificate.subject_public_key_info()))
            || self.is_pinned_key(&signed_der::wrap_sequence(&path.anchor().subject_public_key_info))
    }

    fn is_pinned_key(&self, key: &[u8]) -> bool {
        self.pins.iter().any(|pin| *pin == sha256(key))
    }

    /// Returns whether the operator configured this self-signed certificate as a root. If so, a refusal has another
    /// reason.
    fn is_root(&self, leaf: &CertificateDer<'_>) -> bool {
        self.anchors.directly_trusted().contains(leaf)
            || webpki::anchor_from_trusted_cert(leaf).is_ok_and(|leaf| {
                let is_same = |root: &rustls_pki_types::TrustAnchor<'_>| {
                    root.subject == leaf.subject && root.subject_public_key_info == leaf.subject_public_key_info
                };
                self.roots.roots.iter().any(is_same)
            })
    }

    fn to_rejection(&self, error: &Error, leaf: &[u8], others: &[CertificateDer<'_>]) -> CertificateRejection {
        let any = |predicate: fn(&X509Certificate<'_>) -> bool| {
            let certificates = std::iter::once(leaf).chain(others.iter().map(|der| der.as_ref()));
            certificates
                .into_iter()
                .any(|der| signed_der::parse_certificate(der).is_some_and(|parsed| predicate(&parsed)))
        };
        let error = match error {
            Error::CertExpired { .. } => VerifyError::Expired,
            Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
            Error::CaUsedAsEndEntity => VerifyError::CaAsLeaf,
            Error::EndEntityUsedAsCa
            | Error::PathLenConstraintViolated
            | Error::NameConstraintViolation
            | Error::EmptyEkuExtension
            | Error::RequiredEkuNotFoundContext(_) => VerifyError::WrongUsage,
            Error::InvalidSignatureForPublicKey => self.signature_error(leaf, others),
            Error::UnsupportedSignatureAlgorithmContext(_) if any(is_weakly_signed) => VerifyError::WeakSignature,
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => VerifyError::UnsupportedAlgorithm,
            // No trusted root is found, or the path exceeds the limits of the search.
            Error::UnknownIssuer
            | Error::CertDistrusted
            | Error::MaximumPathDepthExceeded
            | Error::MaximumPathBuildCallsExceeded
            | Error::MaximumSignatureChecksExceeded
            | Error::MaximumNameConstraintComparisonsExceeded => VerifyError::UnknownIssuer,
            _ => VerifyError::Malformed,
        };
        let issuer =
            if error == VerifyError::UnknownIssuer { self.describe_missing_issuer(leaf, others) } else { None };
        CertificateRejection { error, issuer }
    }
}

enum ChainError {
    /// No path to a root.
    NoPath(Error),
    /// A path that violates a rule beyond webpki's.
    RuleViolation(VerifyError),
}

fn unix_seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Returns whether subjectAltName has no server name. The subject's common name does not count (RFC 9525 §6.3).
fn has_no_server_name(leaf: &[u8]) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let is_of_a_server = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
    match leaf.subject_alternative_name() {
        Ok(Some(names)) => !names.value.general_names.iter().any(is_of_a_server),
        _ => true,
    }
}

fn is_weakly_signed(certificate: &X509Certificate<'_>) -> bool {
    let oid: &Oid<'_> = &certificate.signature_algorithm.algorithm;
    WEAK_SIGNATURES.contains(&oid.to_id_string().as_str())
}

#[cfg(test)]
mod tests;
