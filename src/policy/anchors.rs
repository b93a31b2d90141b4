//! Trust anchors that an operator configures: certificate authorities, and other certificates that are trusted
//! directly.
//! Is a certificate in `roots` or `client_ca` an authority, or is only the certificate itself trusted?

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::X509Version;

use super::signed_der;
use crate::config::WarningCode;
use crate::config::{Problem, SourceSpan};

/// The purpose of the certificates that an anchor issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Servers,
    Clients,
}

#[derive(Default)]
pub(super) struct Anchors {
    /// Sorted, so that the strictest of several with one name and key comes first, wherever it was configured.
    anchors: Vec<AnchorInfo>,
    /// Certificates that are no authorities. Each is trusted for its own names only.
    directly_trusted: Vec<CertificateDer<'static>>,
}

/// Fields of a certificate that a trust anchor made from it lacks (RFC 5280 §6.1.1 (d)).
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AnchorInfo {
    subject: Vec<u8>,
    key: Vec<u8>,
    /// `false` is the stricter value and comes first.
    pub(super) may_sign_crls: bool,
    pub(super) key_id: Option<Vec<u8>>,
}

impl AnchorInfo {
    fn parts(&self) -> [Option<&[u8]>; 4] {
        let may_sign_crls: &[u8] = if self.may_sign_crls { &[1] } else { &[0] };
        [Some(&self.subject), Some(&self.key), Some(may_sign_crls), self.key_id.as_deref()]
    }
}

/// The reason why a certificate may not issue others.
enum CaViolation {
    /// RFC 5280 §4.2.1.9.
    CaFalse,
    MissingBasicConstraints,
    /// RFC 5280 §4.2.1.3.
    MissingCertSign,
    /// RFC 5280 §4.2.1.12. OpenSSL and others apply it to roots as well.
    MissingPurpose,
}

impl Anchors {
    /// Adds a certificate: an authority to `store`, any other to the directly trusted ones. Returns a warning if the
    /// certificate is unusual. The error is text for the operator.
    pub(super) fn add(
        &mut self,
        der: &[u8],
        purpose: Purpose,
        store: &mut RootCertStore,
    ) -> Result<Option<String>, String> {
        let parsed = signed_der::parse_certificate(der).ok_or("it cannot be read as a certificate (RFC 5280 §4.1)")?;
        if let Some(reason) = ca_violation(&parsed, purpose)? {
            if !serves(&parsed, purpose) {
                let meaning = reason.meaning(purpose);
                let auth = purpose.extended_key_usage();
                return Err(format!(
                    "it {meaning}. Its extended key usage lacks {auth}: it cannot be trusted directly, either"
                ));
            }
            webpki::EndEntityCert::try_from(&CertificateDer::from_slice(der)).map_err(|error| error.to_string())?;
            self.directly_trusted.push(CertificateDer::from(der.to_vec()));
            return Ok(Some(reason.consequence(purpose)));
        }
        store.add(CertificateDer::from_slice(der)).map_err(|error| error.to_string())?;
        self.anchors.push(AnchorInfo {
            subject: signed_der::sequence_contents(parsed.subject().as_raw()).to_vec(),
            key: signed_der::sequence_contents(parsed.public_key().raw).to_vec(),
            key_id: signed_der::subject_key_id(&parsed).map(<[u8]>::to_vec),
            may_sign_crls: signed_der::may_sign_crls(&parsed),
        });
        self.anchors.sort_unstable();
        self.anchors.dedup();
        // A certificate older than version 3 cannot state its purpose, so the operator's configuration decides.
        let is_old = parsed.version() != X509Version::V3;
        Ok(is_old.then(|| {
            "is older than version 3 and does not state whether it is an authority: it is treated as one, for every name"
                .to_owned()
        }))
    }

    /// Adds a certificate as [`Self::add`] does and reports a warning or problem at `place`. `label` names the
    /// certificate.
    pub(super) fn add_at(
        &mut self,
        der: &[u8],
        purpose: Purpose,
        store: &mut RootCertStore,
        (label, place): (&str, SourceSpan),
        problems: &mut Vec<Problem>,
    ) {
        match self.add(der, purpose, store) {
            Ok(None) => {}
            Ok(Some(consequence)) => {
                let subject = signed_der::parse_certificate(der).map(|parsed| parsed.subject().to_string());
                let message = format!("{label} ({}) {consequence}", subject.unwrap_or_default());
                let help =
                    "replace it by the certificate of the authority, unless only this certificate is to be trusted";
                problems.push(Problem::warning(WarningCode::UnusualRoot, Some(place), message).help(help));
            }
            Err(error) => {
                let role = if purpose == Purpose::Servers { "a root" } else { "an authority" };
                let problem = Problem::at(place, format!("{label} is not usable as {role}: {error}"));
                problems.push(problem.help("write the path of X.509 certificates of certification authorities"));
            }
        }
    }

    pub(super) fn info(&self, anchor: &TrustAnchor<'_>) -> Option<&AnchorInfo> {
        self.anchors
            .iter()
            .find(|info| info.subject == anchor.subject.as_ref() && info.key == anchor.subject_public_key_info.as_ref())
    }

    /// Returns the fields of all anchors in order, as input of a trust fingerprint.
    pub(super) fn terms(&self) -> Vec<[Option<&[u8]>; 4]> {
        self.anchors.iter().map(AnchorInfo::parts).collect()
    }

    /// Returns the certificates that are trusted directly, each for its own names only.
    pub(super) fn directly_trusted(&self) -> &[CertificateDer<'static>] {
        &self.directly_trusted
    }
}

/// Returns whether a certificate may issue others. An unreadable certificate counts as an authority; `add` reports it.
pub(super) fn is_ca(der: &[u8], purpose: Purpose) -> bool {
    signed_der::parse_certificate(der).is_none_or(|parsed| matches!(ca_violation(&parsed, purpose), Ok(None) | Err(_)))
}

/// Returns the reason why a certificate may not issue others. The error names a duplicate or unreadable extension,
/// which may hold the restriction in question.
fn ca_violation(parsed: &X509Certificate<'_>, purpose: Purpose) -> Result<Option<CaViolation>, String> {
    if parsed.version() != X509Version::V3 {
        return Ok(None);
    }
    let unreadable = |extension: &'static str| move |_| format!("its {extension} cannot be read or occurs twice");
    match parsed.basic_constraints().map_err(unreadable("basicConstraints"))? {
        None => return Ok(Some(CaViolation::MissingBasicConstraints)),
        Some(constraints) if !constraints.value.ca => return Ok(Some(CaViolation::CaFalse)),
        Some(_) => {}
    }
    if !signed_der::may_sign_certificates(parsed).map_err(unreadable("keyUsage"))? {
        return Ok(Some(CaViolation::MissingCertSign));
    }
    let purposes = parsed.extended_key_usage().map_err(unreadable("extended key usage"))?;
    let fits = purposes.is_none_or(|purposes| {
        let has_purpose =
            if purpose == Purpose::Servers { purposes.value.server_auth } else { purposes.value.client_auth };
        has_purpose || purposes.value.any
    });
    Ok((!fits).then_some(CaViolation::MissingPurpose))
}

/// Returns whether a peer may present the certificate itself for this purpose (RFC 5280 §4.2.1.12). webpki does not
/// accept anyExtendedKeyUsage for a server.
pub(super) fn serves(parsed: &X509Certificate<'_>, purpose: Purpose) -> bool {
    parsed.extended_key_usage().is_ok_and(|purposes| {
        purposes.is_none_or(|purposes| match purpose {
            Purpose::Servers => purposes.value.server_auth,
            Purpose::Clients => purposes.value.client_auth || purposes.value.any,
        })
    })
}

impl Purpose {
    fn extended_key_usage(self) -> &'static str {
        match self {
            Self::Servers => "serverAuth",
            Self::Clients => "clientAuth",
        }
    }
}

impl CaViolation {
    fn meaning(&self, purpose: Purpose) -> String {
        match self {
            Self::CaFalse => "is not an authority (basicConstraints: CA:FALSE)".to_owned(),
            Self::MissingBasicConstraints => "does not state that it is an authority (no basicConstraints)".to_owned(),
            Self::MissingCertSign => "may not sign certificates (keyUsage without keyCertSign)".to_owned(),
            Self::MissingPurpose => {
                let auth = purpose.extended_key_usage();
                format!("may not issue certificates for this purpose (extended key usage without {auth})")
            }
        }
    }

    fn consequence(&self, purpose: Purpose) -> String {
        let meaning = self.meaning(purpose);
        format!(
            "{meaning}: only the certificate itself is trusted, for its own names; certificates that it issued are refused"
        )
    }
}

#[cfg(test)]
mod tests;
