//! Certificate revocation lists from files, and the check of a path against them (RFC 5280 §6.3).
//! Does a list revoke a certificate of this path?

use std::cmp::Reverse;
use std::collections::HashSet;

use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{Error, OwnedCertRevocationList, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, IssuingDistributionPoint, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::anchors::Anchors;
use super::signed_der::{self, SignedDer};
use crate::config::{Located, PemFile, Problem};

/// A complete revocation list of one issuer.
pub(super) struct Crl {
    der: Vec<u8>,
    /// The issuer's name as a SEQUENCE.
    issuer: Vec<u8>,
    /// The identifier of the issuer's key that signed the list (§5.2.1).
    key_id: Option<Vec<u8>>,
    /// Seconds since 1970.
    this_update: i64,
    next_update: i64,
    /// crlNumber (§5.2.3) without leading zeros, so that the longer of two is the greater.
    number: Vec<u8>,
    scope: CrlScope,
    /// Serial numbers without leading zeros.
    revoked: HashSet<Box<[u8]>>,
}

/// The tag of `distributionPoint` in an issuingDistributionPoint (§5.2.5).
const DISTRIBUTION_POINT: u8 = 0xA0;

/// The bits of a tag that number it (X.690 §8.1.2.2).
const TAG_NUMBER: u8 = 0x1F;

/// The certificates of its issuer that a list covers (§5.2.5).
#[derive(Default)]
struct CrlScope {
    only_end_entities: bool,
    only_cas: bool,
    /// `None` covers every distribution point.
    points: Option<Vec<PointName>>,
}

#[derive(PartialEq, Eq)]
enum PointName {
    Uri(String),
    /// The name in DER.
    Directory(Vec<u8>),
}

/// The reason why a path fails the revocation check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RevocationError {
    Revoked,
    /// No usable list covers a certificate.
    Unknown,
    /// The list that covers it is past its nextUpdate.
    Stale,
}

/// The failures that the check tolerates.
#[derive(Clone, Copy)]
pub(super) struct RevocationPolicy {
    pub(super) allow_unknown: bool,
    pub(super) allow_stale: bool,
}

/// The issuer of a certificate of the path.
struct IssuerKey<'a> {
    key: SubjectPublicKeyInfoDer<'a>,
    key_id: Option<Vec<u8>>,
    may_sign_crls: bool,
}

/// Reads the lists of all files, the newest first. The first list that covers a certificate counts.
pub(super) fn compile(files: &[Located<PemFile>], problems: &mut Vec<Problem>) -> Vec<Crl> {
    let mut found = Vec::new();
    for file in files {
        for (index, der) in file.parts.iter().enumerate() {
            match Crl::read(der) {
                Ok(list) => found.push(list),
                Err(reason) => {
                    let (number, path) = (index + 1, file.path.display());
                    let message = format!("revocation list {number} of {path} is not usable: {reason}");
                    problems
                        .push(Problem::at(file.span, message).help("use a complete CRL of version 2 (RFC 5280 §5)"));
                }
            }
        }
    }
    found.sort_by_cached_key(|list| Reverse((list.this_update, list.number.len(), list.number.clone())));
    found
}

/// Checks every certificate below the anchor.
pub(super) fn check(
    crls: &[Crl],
    path: &VerifiedPath<'_>,
    anchors: &Anchors,
    policy: RevocationPolicy,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: i64,
) -> Result<(), RevocationError> {
    let leaf = path.end_entity().der();
    let intermediates: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
    let ders: Vec<&[u8]> = std::iter::once(&leaf).chain(&intermediates).map(|der| der.as_ref()).collect();
    for (at, der) in ders.iter().enumerate() {
        let certificate = signed_der::parse_certificate(der).ok_or(RevocationError::Unknown)?;
        let issuer = match ders.get(at + 1).map(|der| signed_der::parse_certificate(der)) {
            Some(issuer) => IssuerKey::of(&issuer.ok_or(RevocationError::Unknown)?),
            None => {
                let info = anchors.info(path.anchor());
                IssuerKey {
                    key: signed_der::wrap_sequence(&path.anchor().subject_public_key_info).into(),
                    key_id: info.and_then(|known| known.key_id.clone()),
                    may_sign_crls: info.is_none_or(|known| known.may_sign_crls),
                }
            }
        };
        match check_certificate(crls, &certificate, &issuer, policy, algorithms, now) {
            Err(RevocationError::Unknown) if policy.allow_unknown => {}
            result => result?,
        }
    }
    Ok(())
}

fn check_certificate(
    crls: &[Crl],
    certificate: &X509Certificate<'_>,
    issuer: &IssuerKey<'_>,
    policy: RevocationPolicy,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: i64,
) -> Result<(), RevocationError> {
    if !issuer.may_sign_crls {
        return Err(RevocationError::Unknown);
    }
    // The issuer's own key identifier, else the one in the certificate.
    let key_id = issuer.key_id.as_deref().or(signed_der::authority_key_id(certificate));
    let applies = |list: &&Crl| {
        let is_of_this_key = list.key_id.as_deref().zip(key_id).is_none_or(|(list, issuer)| list == issuer);
        // §6.3.3 does not cover a list with a future thisUpdate. A wrong clock made it, or it is for later use.
        list.this_update <= now && is_of_this_key && list.covers(certificate)
    };
    let is_signed =
        |list: &&Crl| SignedDer::read(&list.der).is_some_and(|list| list.verify(&issuer.key, algorithms).is_ok());
    let list = crls.iter().filter(applies).find(is_signed).ok_or(RevocationError::Unknown)?;
    if list.next_update <= now && !policy.allow_stale {
        return Err(RevocationError::Stale);
    }
    if list.revoked.contains(trim_leading_zeros(certificate.raw_serial())) {
        Err(RevocationError::Revoked)
    } else {
        Ok(())
    }
}

impl<'a> IssuerKey<'a> {
    fn of(issuer: &X509Certificate<'_>) -> Self {
        Self {
            key: issuer.public_key().raw.to_vec().into(),
            key_id: signed_der::subject_key_id(issuer).map(<[u8]>::to_vec),
            may_sign_crls: signed_der::may_sign_crls(issuer),
        }
    }
}

impl Crl {
    /// Returns thisUpdate and nextUpdate, in seconds since 1970.
    pub(super) fn validity(&self) -> [i64; 2] {
        [self.this_update, self.next_update]
    }

    fn read(der: &[u8]) -> Result<Self, &'static str> {
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| "it cannot be read")?;
        let (mut key_id, mut scope) = (None, CrlScope::default());
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::IssuingDistributionPoint(point) => scope = CrlScope::read(point, extension.value)?,
                // Without its scope, a list would cover every certificate of its issuer.
                ParsedExtension::ParseError { .. } | ParsedExtension::UnsupportedExtension { .. }
                    if extension.critical || extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT =>
                {
                    return Err("it has a critical extension that cannot be read or that outgate does not support");
                }
                _ => {}
            }
        }
        match OwnedCertRevocationList::from_der(der) {
            // webpki requires a distribution point there; §5.2.5 does not.
            Ok(_) | Err(Error::UnsupportedCrlIssuingDistributionPoint) => {}
            Err(error) => return Err(describe(&error)),
        }
        let mut revoked = HashSet::new();
        for entry in parsed.iter_revoked_certificates() {
            let is_known = |extension: &ParsedExtension<'_>| {
                matches!(extension, ParsedExtension::ReasonCode(_) | ParsedExtension::InvalidityDate(_))
            };
            // The critical extension certificateIssuer (§5.3.3) assigns the entry to another issuer.
            if entry.extensions().iter().any(|found| found.critical && !is_known(found.parsed_extension())) {
                return Err("an entry has a critical extension that outgate does not support");
            }
            revoked.insert(trim_leading_zeros(entry.raw_serial()).into());
        }
        Ok(Self {
            issuer: parsed.issuer().as_raw().to_vec(),
            key_id,
            this_update: parsed.last_update().timestamp(),
            next_update: parsed.next_update().ok_or("it has no nextUpdate")?.timestamp(),
            number: parsed.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default(),
            scope,
            revoked,
            der: der.to_vec(),
        })
    }

    /// Returns the issuer's name without its SEQUENCE header.
    pub(super) fn issuer(&self) -> &[u8] {
        signed_der::sequence_contents(&self.issuer)
    }

    /// Returns whether the list covers a certificate (§6.3.3 (b)).
    fn covers(&self, certificate: &X509Certificate<'_>) -> bool {
        if certificate.issuer().as_raw() != self.issuer {
            return false;
        }
        let is_ca = certificate.is_ca();
        if (self.scope.only_end_entities && is_ca) || (self.scope.only_cas && !is_ca) {
            return false;
        }
        let Some(points) = &self.scope.points else { return true };
        // A certificate without distribution points has its issuer's name as the implied one.
        points.contains(&PointName::Directory(self.issuer.clone()))
            || distribution_points(certificate).iter().any(|name| points.contains(name))
    }
}

impl CrlScope {
    /// Reads the scope from the parsed extension and its value in DER.
    fn read(point: &IssuingDistributionPoint<'_>, der: &[u8]) -> Result<Self, &'static str> {
        // x509-parser skips a distribution point that it cannot read, and all fields behind it. It cannot read a name
        // relative to the issuer as RFC 5280 A.2 encodes it. It also skips fields that are out of order.
        let tags = signed_der::tags(signed_der::sequence_contents(der))
            .ok_or("its issuingDistributionPoint cannot be read")?;
        let is_point_skipped = tags.contains(&DISTRIBUTION_POINT) && point.distribution_point.is_none();
        if is_point_skipped || !tags.is_sorted_by(|a, b| a & TAG_NUMBER < b & TAG_NUMBER) {
            return Err("the name of its distribution point cannot be read, or is relative to its issuer");
        }
        if point.only_contains_attribute_certs {
            return Err("it lists attribute certificates only");
        }
        let points = match &point.distribution_point {
            None => None,
            Some(DistributionPointName::FullName(names)) => Some(names.iter().filter_map(PointName::read).collect()),
            Some(DistributionPointName::NameRelativeToCRLIssuer(_)) => {
                return Err("the name of its distribution point is relative to its issuer");
            }
        };
        let (only_users, only_authorities) = (point.only_contains_user_certs, point.only_contains_ca_certs);
        Ok(Self { only_end_entities: only_users, only_cas: only_authorities, points })
    }
}

impl PointName {
    fn read(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::URI(uri) => Some(Self::Uri((*uri).to_owned())),
            GeneralName::DirectoryName(name) => Some(Self::Directory(name.as_raw().to_vec())),
            _ => None,
        }
    }
}

/// Returns the distribution points of a certificate (§4.2.1.13) that name a complete list of its own issuer.
fn distribution_points(certificate: &X509Certificate<'_>) -> Vec<PointName> {
    let points = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::CRLDistributionPoints(points) => Some(points.iter()),
        _ => None,
    });
    let complete = points.flatten().filter(|point| point.reasons.is_none() && point.crl_issuer.is_none());
    let names = complete.filter_map(|point| match &point.distribution_point {
        Some(DistributionPointName::FullName(names)) => Some(names.iter().filter_map(PointName::read)),
        _ => None,
    });
    names.flatten().collect()
}

fn trim_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn describe(error: &Error) -> &'static str {
    match error {
        Error::UnsupportedDeltaCrl => "it is a delta CRL, which lists only the changes to another list",
        Error::UnsupportedIndirectCrl => "it is an indirect CRL, which covers certificates of other issuers",
        Error::UnsupportedRevocationReasonsPartitioning => "it covers only some reasons of revocation",
        Error::UnsupportedCrlVersion => "it is of version 1",
        Error::UnsupportedCriticalExtension => "it has a critical extension that outgate does not support",
        _ => "it violates RFC 5280",
    }
}

#[cfg(test)]
mod tests;
