//! The explanation of a chain that leads to no root: its certificates, linked by issuer name.
//! Where does the chain break, and what must the target's operator change?

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::certificate::X509Certificate;

use super::super::signed_der::{self, SignatureError, SignedDer};
use super::Trust;
use super::error::VerifyError;
use super::strict;

/// The maximum number of certificates to examine, from the leaf upwards. Valid chains have at most six.
const CHAIN_DEPTH_MAX: usize = 8;

/// The maximum number of signatures to verify for one explanation, equal to webpki's limit. The target chooses how many
/// issuers of one name it sends.
const SIGNATURES_MAX: usize = 100;

/// The maximum length of a name in a refusal, in characters. The target controls the name.
const NAME_CHARS_MAX: usize = 200;

/// A possible issuer of a certificate, with its key.
struct IssuerCandidate {
    key: SubjectPublicKeyInfoDer<'static>,
    key_id: Option<Vec<u8>>,
    is_weak: bool,
}

impl Trust {
    /// Returns the error behind a signature that does not verify. The signature is bad only if the certificate
    /// identifies the key. Otherwise the issuer is another authority of the same name.
    pub(super) fn signature_error(&self, leaf: &[u8], others: &[CertificateDer<'_>]) -> VerifyError {
        let (mut unsupported, mut budget) = (false, SIGNATURES_MAX);
        for certificate in walk_chain(leaf, others) {
            let candidates = self.issuer_candidates(&certificate, others);
            let Some(signed) = SignedDer::read(certificate.as_raw()) else { return VerifyError::Malformed };
            let tried = candidates.get(..budget).unwrap_or(&candidates);
            let results: Vec<_> = tried.iter().map(|issuer| signed.verify(&issuer.key, self.algorithms.all)).collect();
            budget -= results.len();
            if candidates.is_empty() || results.contains(&Ok(())) {
                continue;
            }
            // RSA verifiers reject short keys.
            if candidates.iter().any(|issuer| issuer.is_weak) {
                return VerifyError::WeakKey;
            }
            let key_id = signed_der::authority_key_id(&certificate);
            let is_named = |issuer: &IssuerCandidate| key_id.is_some() && issuer.key_id.as_deref() == key_id;
            let is_bad = |(issuer, result): (&IssuerCandidate, &Result<(), SignatureError>)| {
                is_named(issuer) && *result == Err(SignatureError::Invalid)
            };
            if candidates.iter().zip(&results).any(is_bad) {
                return VerifyError::BadSignature;
            }
            if results.len() < candidates.len() {
                return VerifyError::UnknownIssuer;
            }
            unsupported |= results.iter().all(|result| *result == Err(SignatureError::Unsupported));
        }
        if unsupported { VerifyError::UnsupportedAlgorithm } else { VerifyError::UnknownIssuer }
    }

    /// Describes the missing issuer of `unknown_issuer` for the target's operator.
    pub(super) fn describe_missing_issuer(&self, leaf: &[u8], others: &[CertificateDer<'_>]) -> Option<String> {
        let chain = walk_chain(leaf, others);
        let last = chain.last()?;
        let issuer = quote_name(&last.issuer().to_string());
        Some(if last.subject().as_raw() == last.issuer().as_raw() {
            format!("the chain that the server sent ends at {issuer}, which is not a trusted authority")
        } else if self.issuer_candidates(last, others).is_empty() {
            format!(
                "the server did not send the certificate of the issuer {issuer}. If the issuer is an intermediate \
                 authority, configure the server to send its full chain; if the issuer is a root, the route does not \
                 trust it"
            )
        } else {
            format!("the route trusts an authority called {issuer}, but another key signed the certificate")
        })
    }

    /// Returns the anchors and sent certificates whose name is the certificate's issuer.
    fn issuer_candidates(
        &self,
        certificate: &X509Certificate<'_>,
        others: &[CertificateDer<'_>],
    ) -> Vec<IssuerCandidate> {
        let name = certificate.issuer().as_raw();
        let anchors =
            self.roots.roots.iter().filter(|anchor| anchor.subject.as_ref() == signed_der::sequence_contents(name));
        let anchors = anchors.map(|anchor| {
            let key = signed_der::wrap_sequence(&anchor.subject_public_key_info);
            let key_id = self.anchors.info(anchor).and_then(|info| info.key_id.clone());
            IssuerCandidate { is_weak: strict::is_weak_key(&key), key: key.into(), key_id }
        });
        let parsed = others.iter().filter_map(|der| signed_der::parse_certificate(der));
        let presented = parsed.filter(|other| other.subject().as_raw() == name).map(|other| IssuerCandidate {
            is_weak: strict::has_weak_key(&other),
            key: other.public_key().raw.to_vec().into(),
            key_id: signed_der::subject_key_id(&other).map(<[u8]>::to_vec),
        });
        anchors.chain(presented).collect()
    }
}

/// Returns the certificates from the leaf upwards, each issued by the next according to its name, and each once.
fn walk_chain<'a>(leaf: &'a [u8], others: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
    let mut found: Vec<_> = signed_der::parse_certificate(leaf).into_iter().collect();
    while let Some(below) = found.last().filter(|_| found.len() < CHAIN_DEPTH_MAX) {
        if below.subject().as_raw() == below.issuer().as_raw() {
            break;
        }
        let is_next = |other: &X509Certificate<'_>| {
            other.subject().as_raw() == below.issuer().as_raw()
                && found.iter().all(|seen| seen.as_raw() != other.as_raw())
        };
        let Some(next) = others.iter().filter_map(|der| signed_der::parse_certificate(der)).find(is_next) else {
            break;
        };
        found.push(next);
    }
    found
}

/// Returns whether a certificate is issued by its own subject and signed with its own key. An issuer that only shares
/// the leaf's name does not count.
pub(super) fn is_self_signed(trust: &Trust, leaf: &[u8]) -> bool {
    let Some((parsed, signed)) = signed_der::parse_certificate(leaf).zip(SignedDer::read(leaf)) else { return false };
    let key = parsed.public_key().raw.to_vec().into();
    parsed.subject().as_raw() == parsed.issuer().as_raw() && signed.verify(&key, trust.algorithms.all).is_ok()
}

fn quote_name(name: &str) -> String {
    format!("{:?}", name.chars().take(NAME_CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests;
