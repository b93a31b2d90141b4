//! Certificates that an operator trusts as they stand: authorities, and others that vouch for nobody but themselves.
//! What does a certificate in `roots` or `client_ca` make its owner?

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::X509Version;

use super::signed_der;
use crate::config::WarningCode;
use crate::config::{Problem, SourceSpan};

/// What the certificates below an anchor are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Servers,
    Clients,
}

#[derive(Default)]
pub(super) struct Anchors {
    /// In order, so that of several with one name and key the strictest comes first, wherever it was configured.
    anchors: Vec<AnchorInfo>,
    /// Each is trusted alone, with its own names.
    directly_trusted: Vec<CertificateDer<'static>>,
}

/// What a trust anchor (RFC 5280 §6.1.1 (d)) leaves out of the certificate that it was made of.
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
        let may_sign_lists: &[u8] = if self.may_sign_crls { &[1] } else { &[0] };
        [Some(&self.subject), Some(&self.key), Some(may_sign_lists), self.key_id.as_deref()]
    }
}

/// Why a certificate may not issue others.
enum CaViolation {
    /// RFC 5280 §4.2.1.9.
    CaFalse,
    MissingBasicConstraints,
    /// RFC 5280 §4.2.1.3.
    MissingCertSign,
    /// RFC 5280 §4.2.1.12, as OpenSSL and others hold it against roots, too.
    MissingPurpose,
}

impl Anchors {
    /// Takes one certificate up: into `store`, or as trusted for itself alone. The error is for people.
    pub(super) fn add(
        &mut self,
        der: &[u8],
        purpose: Purpose,
        store: &mut RootCertStore,
    ) -> Result<Option<String>, String> {
        let parsed = signed_der::parse_certificate(der).ok_or("it cannot be read as a certificate (RFC 5280 §4.1)")?;
        if let Some(reason) = ca_violation(&parsed, purpose)? {
            if !serves(&parsed, purpose) {
                let why = reason.meaning(purpose);
                let auth = purpose.extended_key_usage();
                return Err(format!("it {why}. Its extended key usage lacks {auth}: it is of no use itself, either"));
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
            may_sign_crls: signed_der::may_sign_lists(&parsed),
        });
        self.anchors.sort_unstable();
        self.anchors.dedup();
        // Before version 3 a certificate could not say what it is for: the operator's word stands.
        let is_old = parsed.version() != X509Version::V3;
        Ok(is_old.then(|| {
            "is older than version 3 and does not say whether it is an authority: it counts as one, for every name"
                .to_owned()
        }))
    }

    /// The same with a warning or a problem at `place`; `what` names the certificate.
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
                let help = "put the authority's certificate in its place, unless that is what you want";
                problems.push(Problem::warning(WarningCode::UnusualRoot, Some(place), message).help(help));
            }
            Err(error) => {
                let role = if purpose == Purpose::Servers { "a root" } else { "an authority" };
                let problem = Problem::at(place, format!("{label} is not usable as {role}: {error}"));
                problems.push(problem.help("an X.509 certificate of a certification authority"));
            }
        }
    }

    pub(super) fn info(&self, anchor: &TrustAnchor<'_>) -> Option<&AnchorInfo> {
        self.anchors.iter().find(|facts| {
            facts.subject == anchor.subject.as_ref() && facts.key == anchor.subject_public_key_info.as_ref()
        })
    }

    /// Returns all facts in order, each as its parts: the terms of a trust.
    pub(super) fn terms(&self) -> Vec<[Option<&[u8]>; 4]> {
        self.anchors.iter().map(AnchorInfo::parts).collect()
    }

    /// Trusted for themselves alone.
    pub(super) fn directly_trusted(&self) -> &[CertificateDer<'static>] {
        &self.directly_trusted
    }
}

/// Whether a certificate may issue others; one that cannot be read is a problem elsewhere.
pub(super) fn is_ca(der: &[u8], purpose: Purpose) -> bool {
    signed_der::parse_certificate(der).is_none_or(|parsed| matches!(ca_violation(&parsed, purpose), Ok(None) | Err(_)))
}

/// Returns why a certificate may not issue others. The error is an extension that is there twice or cannot be read: it
/// may hold the restriction that is asked for.
fn ca_violation(parsed: &X509Certificate<'_>, purpose: Purpose) -> Result<Option<CaViolation>, String> {
    if parsed.version() != X509Version::V3 {
        return Ok(None);
    }
    let unreadable = |what: &'static str| move |_| format!("its {what} cannot be read or is there twice");
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

/// Returns whether a certificate may be shown itself for this purpose (RFC 5280 §4.2.1.12). webpki does not take
/// anyExtendedKeyUsage of a server.
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
            Self::CaFalse => "is no authority (basicConstraints: CA:FALSE)".to_owned(),
            Self::MissingBasicConstraints => "does not say that it is an authority (no basicConstraints)".to_owned(),
            Self::MissingCertSign => "may not sign certificates (keyUsage without keyCertSign)".to_owned(),
            Self::MissingPurpose => {
                let auth = purpose.extended_key_usage();
                format!("may not issue for this use (extended key usage without {auth})")
            }
        }
    }

    fn consequence(&self, purpose: Purpose) -> String {
        let why = self.meaning(purpose);
        format!("{why}: it is trusted for itself alone, with its own names, and what it issued is refused")
    }
}
