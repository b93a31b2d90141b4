//! The judgement of a target's chain: webpki's, with the rules that it leaves out held on the very path that it found.
//! Does this chain prove this name under this trust, and if not, what is the one thing to say about it?
//!
//! Where several things are wrong, one is told. First self_signed, because webpki does not know it (it sees an unknown
//! issuer, or the date first): an expired self-signed certificate is self-signed, a new date would not help it. Then
//! what keeps webpki from a path, in its own order: malformed; ca_as_leaf; expired or not_yet_valid; wrong_usage;
//! unknown_issuer, weak_signature or bad_signature; revocation. Then what is wrong with a path that it did find: a key,
//! a usage, the validity, the pins. Last the name.

use std::cell::Cell;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::fault::CertificateFault as Fault;
use super::{Trust, strict};
use crate::config::{CrlPolicy, Verify};

/// Signatures with hashes that no longer prove anything: MD2, MD5 and SHA-1 with RSA, SHA-1 with DSA and ECDSA.
const WEAK_SIGNATURES: [&str; 6] = [
    "1.2.840.113549.1.1.2",
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.3.14.3.2.29",
    "1.2.840.10040.4.3",
    "1.2.840.10045.4.1",
];

impl Trust {
    /// Under `verify = "none"` everything passes.
    pub fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Fault> {
        if self.verify == Verify::None {
            return Ok(());
        }
        self.judge_chain(leaf, intermediates, now).map_err(|found| match found {
            Found::Broken(fault) => fault,
            Found::NoPath(_) if is_self_signed(leaf) && !self.is_root(leaf) => Fault::SelfSigned,
            Found::NoPath(error) => told(&error, leaf, intermediates),
        })?;
        let parsed = EndEntityCert::try_from(leaf).map_err(|_| Fault::Malformed)?;
        parsed.verify_is_valid_for_subject_name(name).map_err(|error| match error {
            Error::CertNotValidForName(_) if has_no_name(leaf) => Fault::NoSubjectAltName,
            Error::CertNotValidForName(_) => Fault::NameMismatch,
            _ => Fault::Malformed,
        })
    }

    fn judge_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Found> {
        let leaf = EndEntityCert::try_from(leaf).map_err(Found::NoPath)?;
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let (status, expiration) = match self.crl_policy {
            CrlPolicy::Require => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
            CrlPolicy::Lenient => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
        };
        // Without lists nothing is asked of them.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let options = options.with_depth(RevocationCheckDepth::Chain);
            options.with_status_policy(status).with_expiration_policy(expiration).build()
        });
        // webpki goes on to other paths when ours refuse one, and its error has no room for our word.
        let broken = Cell::new(None);
        let rules = |path: &VerifiedPath<'_>| {
            self.judge_path(path).map_err(|fault| {
                broken.set(broken.get().or(Some(fault)));
                Error::CertDistrusted
            })
        };
        let found = leaf.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            KeyUsage::server_auth(),
            revocation,
            Some(&rules),
        );
        match found {
            Ok(_) => Ok(()),
            Err(error) => Err(broken.get().map_or(Found::NoPath(error), Found::Broken)),
        }
    }

    /// A path that webpki has verified up to a root.
    fn judge_path(&self, path: &VerifiedPath<'_>) -> Result<(), Fault> {
        let leaf = path.end_entity().der();
        let intermediates: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
        let intermediates: Vec<&[u8]> = intermediates.iter().map(|der| der.as_ref()).collect();
        strict::every_chain(&leaf, &intermediates)?;
        if self.strict {
            strict::web_pki(&leaf)?;
        }
        if self.pins.is_empty() || self.is_pinned(path) { Ok(()) } else { Err(Fault::PinMismatch) }
    }

    /// RFC 7469 §2.6: one key of the validated chain, the root's included, is a pinned one.
    fn is_pinned(&self, path: &VerifiedPath<'_>) -> bool {
        let is_pin = |key: &[u8]| self.pins.iter().any(|pin| pin == digest(&SHA256, key).as_ref());
        is_pin(&path.end_entity().subject_public_key_info())
            || path.intermediate_certificates().any(|certificate| is_pin(&certificate.subject_public_key_info()))
            || is_pin(&sequence(&path.anchor().subject_public_key_info))
    }

    /// A self-signed certificate that the operator has made a root is trusted; if it is refused, then for another
    /// reason.
    fn is_root(&self, leaf: &CertificateDer<'_>) -> bool {
        webpki::anchor_from_trusted_cert(leaf).is_ok_and(|leaf| {
            let is_same = |root: &rustls_pki_types::TrustAnchor<'_>| {
                root.subject == leaf.subject && root.subject_public_key_info == leaf.subject_public_key_info
            };
            self.roots.roots.iter().any(is_same)
        })
    }
}

enum Found {
    /// No path to a root.
    NoPath(Error),
    /// A path that breaks a rule of ours.
    Broken(Fault),
}

/// Issued by its own subject. Whether it is also signed by its own key says nothing more: nobody vouches for it.
fn is_self_signed(leaf: &[u8]) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| leaf.subject().as_raw() == leaf.issuer().as_raw())
}

/// RFC 9525 §6.3: a name in the subject's common name is no name of a server.
fn has_no_name(leaf: &[u8]) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let is_of_a_server = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
    match leaf.subject_alternative_name() {
        Ok(Some(names)) => !names.value.general_names.iter().any(is_of_a_server),
        _ => true,
    }
}

fn told(error: &Error, leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Fault {
    let any = |is: fn(&X509Certificate<'_>) -> bool| {
        let certificates = std::iter::once(leaf).chain(intermediates.iter().map(|der| der.as_ref()));
        certificates.into_iter().any(|der| X509Certificate::from_der(der).is_ok_and(|(_, parsed)| is(&parsed)))
    };
    match error {
        Error::CertExpired { .. } => Fault::Expired,
        Error::CertNotValidYet { .. } => Fault::NotYetValid,
        Error::CertRevoked => Fault::Revoked,
        Error::CrlExpired { .. } => Fault::RevocationStale,
        Error::UnknownRevocationStatus
        | Error::IssuerNotCrlSigner
        | Error::InvalidCrlSignatureForPublicKey
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => Fault::RevocationUnknown,
        Error::CaUsedAsEndEntity => Fault::CaAsLeaf,
        Error::EndEntityUsedAsCa
        | Error::PathLenConstraintViolated
        | Error::NameConstraintViolation
        | Error::EmptyEkuExtension
        | Error::RequiredEkuNotFoundContext(_) => Fault::WrongUsage,
        // The verifiers of RSA signatures take no shorter keys: that says more than that a signature does not verify.
        Error::InvalidSignatureForPublicKey if any(strict::is_weak) => Fault::WeakKey,
        Error::UnsupportedSignatureAlgorithmContext(_) if any(is_weakly_signed) => Fault::WeakSignature,
        Error::InvalidSignatureForPublicKey
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Fault::BadSignature,
        // Nobody whom we know vouches for it, or the way to them is longer than anybody should look for.
        Error::UnknownIssuer
        | Error::CertDistrusted
        | Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => Fault::UnknownIssuer,
        _ => Fault::Malformed,
    }
}

fn is_weakly_signed(certificate: &X509Certificate<'_>) -> bool {
    let oid: &Oid<'_> = &certificate.signature_algorithm.algorithm;
    WEAK_SIGNATURES.contains(&oid.to_id_string().as_str())
}

/// An anchor's key comes without the SEQUENCE around it that a pin is computed over (X.690 §8.1.3).
fn sequence(contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut der = vec![0x30];
    match length.as_slice() {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            der.extend_from_slice(long);
        }
    }
    der.extend_from_slice(contents);
    der
}
