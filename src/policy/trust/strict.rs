//! Rules for a chain beyond webpki's: those of RFC 5280 for every chain, and those of the Web PKI for public
//! authorities.
//! Does this verified path keep the rules for its certificates?
//!
//! BR: the CA/Browser Forum's Baseline Requirements for TLS server certificates.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::addresses::{ip_from_octets, special_range};
use super::super::signed_der;
use super::error::VerifyError;

/// The minimum size of an RSA key (BR §6.1.5), which signature verifiers also require.
const RSA_BITS_MIN: usize = 2048;

/// Key types of RFC 3279 §2.3.1, RFC 5480 §2.1.1 and RFC 8410 §3.
const RSA_KEY: &str = "1.2.840.113549.1.1.1";
const EC_KEY: &str = "1.2.840.10045.2.1";
const ED25519_KEY: &str = "1.3.101.112";
/// P-256, P-384 and P-521.
const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];

const DAY: i64 = 86_400;

/// The maximum length of a serial number in octets (BR §7.1, RFC 5280 §4.1.2.2), without a leading zero for the sign.
const SERIAL_MAX: usize = 20;

/// BR §7.1.6.1: extended, domain, organisation and individual validation.
const RESERVED_POLICIES: [&str; 4] = ["2.23.140.1.1", "2.23.140.1.2.1", "2.23.140.1.2.2", "2.23.140.1.2.3"];

/// The end of an issuing period, and the maximum validity in days of certificates issued before it (BR §6.3.2, ballot
/// SC-081v3). Certificates issued under older rules have expired.
const VALIDITY_DAYS_BY_ISSUE_DATE: [(i64, i64); 3] = [
    (1_773_532_800, 398), // 2026-03-15
    (1_805_068_800, 200), // 2027-03-15
    (1_868_227_200, 100), // 2029-03-15
];
const VALIDITY_DAYS_FINAL: i64 = 47;

/// Checks the rules for every chain: RFC 5280 §6.1.4 (n), which webpki leaves out, and key types that can be verified.
pub(super) fn check_chain(leaf: &[u8], intermediates: &[&[u8]]) -> Result<(), VerifyError> {
    let leaf = parse(leaf)?;
    if has_weak_key(&leaf) {
        return Err(VerifyError::WeakKey);
    }
    if !is_supported(&leaf) {
        return Err(VerifyError::UnsupportedAlgorithm);
    }
    for der in intermediates {
        let intermediate = parse(der)?;
        if has_weak_key(&intermediate) {
            return Err(VerifyError::WeakKey);
        }
        if !signed_der::may_sign_certificates(&intermediate).map_err(|_| VerifyError::Malformed)? {
            return Err(VerifyError::WrongUsage);
        }
    }
    Ok(())
}

/// Checks the Baseline Requirements that concern the identity and use of the key and that a client can observe.
/// Revocation sources (BR §7.1.2.7.7, §7.1.2.11.2) are not checked, since outgate fetches nothing.
pub(super) fn check_web_pki(leaf: &[u8], intermediates: &[&[u8]]) -> Result<(), VerifyError> {
    let leaf = parse(leaf)?;
    // BR §7.1.2.7.8. webpki checks it on a path, but not for a directly trusted certificate.
    if leaf.is_ca() {
        return Err(VerifyError::CaAsLeaf);
    }
    check_leaf_extended_key_usage(&leaf)?;
    check_leaf_key_usage(&leaf)?;
    // RFC 5280 §4.1.2.5: both ends belong to the period. BR §6.3.2: a second more than a day counts as another day.
    let (from, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    if until - from + 1 > max_validity_days(from) * DAY {
        return Err(VerifyError::ValidityTooLong);
    }
    // BR §7.1.2.7.9: one of the policies states the rules by which the name was validated.
    let is_reserved = |extension: &X509Extension<'_>| match extension.parsed_extension() {
        ParsedExtension::CertificatePolicies(policies) => {
            policies.iter().any(|policy| RESERVED_POLICIES.contains(&policy.policy_id.to_id_string().as_str()))
        }
        _ => false,
    };
    if !leaf.extensions().iter().any(is_reserved) {
        return Err(VerifyError::NotBaseline);
    }
    // BR §7.1: a positive serial number of at most 20 octets.
    let serial = leaf.raw_serial();
    if serial.strip_prefix(&[0]).unwrap_or(serial).len() > SERIAL_MAX
        || serial.iter().all(|byte| *byte == 0)
        || serial.first().is_some_and(|byte| byte >> 7 == 1)
    {
        return Err(VerifyError::NotBaseline);
    }
    let intermediates = intermediates.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
    std::iter::once(&leaf).chain(&intermediates).try_for_each(check_public_key)?;
    intermediates.iter().try_for_each(check_ca)
}

/// Checks extKeyUsage (BR §7.1.2.7.10): it is present, has serverAuth, and has no forbidden purpose.
fn check_leaf_extended_key_usage(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let purposes = leaf.extended_key_usage().map_err(|_| VerifyError::Malformed)?.ok_or(VerifyError::WrongUsage)?.value;
    let ExtendedKeyUsage { any, server_auth, code_signing, email_protection, time_stamping, ocsp_signing, .. } =
        purposes;
    let forbidden = [any, code_signing, email_protection, time_stamping, ocsp_signing];
    if *server_auth && !forbidden.into_iter().any(|is| *is) { Ok(()) } else { Err(VerifyError::WrongUsage) }
}

/// Checks keyUsage: if present, it has digitalSignature (RFC 8446 §4.4.2.2) and no usage of authorities (BR
/// §7.1.2.7.11).
fn check_leaf_key_usage(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let usage = leaf.key_usage().map_err(|_| VerifyError::Malformed)?;
    let fits = usage
        .is_none_or(|usage| usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign());
    if fits { Ok(()) } else { Err(VerifyError::WrongUsage) }
}

/// Checks the names (BR §7.1.2.7.12, §4.2.2, §7.1.4.3): only public DNS names and addresses, and the common name is one
/// of them. It runs after the check of the target's name, whose error is more helpful.
pub(super) fn check_web_pki_names(leaf: &[u8]) -> Result<(), VerifyError> {
    let leaf = parse(leaf)?;
    let names = leaf.subject_alternative_name().map_err(|_| VerifyError::Malformed)?;
    // The check of the target's name reports a missing subjectAltName.
    let Some(names) = names else { return Ok(()) };
    let fits = names.value.general_names.iter().all(|name| match name {
        GeneralName::DNSName(name) => is_public_name(name),
        GeneralName::IPAddress(bytes) => ip_from_octets(bytes).is_some_and(|ip| special_range(ip).is_none()),
        _ => false,
    });
    let is_named = |common: &str| {
        names.value.general_names.iter().any(|name| match name {
            GeneralName::DNSName(name) => name.eq_ignore_ascii_case(common),
            GeneralName::IPAddress(bytes) => ip_from_octets(bytes).is_some_and(|ip| common.parse() == Ok(ip)),
            _ => false,
        })
    };
    let mut commons = leaf.subject().iter_common_name();
    let fits = fits && commons.all(|common| common.as_str().is_ok_and(is_named));
    if fits { Ok(()) } else { Err(VerifyError::NotBaseline) }
}

/// Returns whether a DNS name is public: letters, digits and hyphens, at most one leading wildcard label, and more than
/// one label. A single label is an internal name (BR §1.6.1, §3.2.2.6, §4.2.2).
fn is_public_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    rest.contains('.') && rest.split('.').all(is_label)
}

/// Checks the key (BR §6.1.5, §6.1.6): RSA of whole bytes with an odd exponent of 3 or more, or P-256, P-384 or P-521.
fn check_public_key(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let is_whole = rsa_bits(&key).is_multiple_of(8);
            let exponent = key.try_exponent().unwrap_or(0);
            if is_whole && exponent >= 3 && exponent % 2 == 1 { Ok(()) } else { Err(VerifyError::NotBaseline) }
        }
        Ok(PublicKey::EC(_)) => Ok(()),
        _ => Err(VerifyError::UnsupportedAlgorithm),
    }
}

/// Checks an authority (BR §7.1.2.10): basicConstraints and keyUsage are present and critical. extKeyUsage, if present,
/// has serverAuth without anyExtendedKeyUsage.
fn check_ca(certificate: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let constraints = certificate.basic_constraints().map_err(|_| VerifyError::Malformed)?;
    let usage = certificate.key_usage().map_err(|_| VerifyError::Malformed)?;
    if !constraints.is_some_and(|constraints| constraints.critical) || !usage.is_some_and(|usage| usage.critical) {
        return Err(VerifyError::NotBaseline);
    }
    let purposes = certificate.extended_key_usage().map_err(|_| VerifyError::Malformed)?;
    let fits = purposes.is_none_or(|purposes| purposes.value.server_auth && !purposes.value.any);
    if fits { Ok(()) } else { Err(VerifyError::WrongUsage) }
}

fn max_validity_days(issued: i64) -> i64 {
    VALIDITY_DAYS_BY_ISSUE_DATE.iter().find(|(end, _)| issued < *end).map_or(VALIDITY_DAYS_FINAL, |(_, days)| *days)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, VerifyError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|_| VerifyError::Malformed)
}

/// Returns whether the key is too short. Only RSA keys can be, since every supported curve has at least 256 bits.
pub(super) fn has_weak_key(certificate: &X509Certificate<'_>) -> bool {
    is_short_rsa_key(certificate.public_key())
}

/// Returns whether a SubjectPublicKeyInfo holds a key that is too short.
pub(super) fn is_weak_key(der: &[u8]) -> bool {
    SubjectPublicKeyInfo::from_der(der).is_ok_and(|(_, key)| is_short_rsa_key(&key))
}

/// Returns whether a handshake with this key can be verified: RSA, Ed25519, or a supported curve.
fn is_supported(certificate: &X509Certificate<'_>) -> bool {
    let key = certificate.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    match key.algorithm.algorithm.to_id_string().as_str() {
        EC_KEY => curve.is_some_and(|curve| CURVES.contains(&curve.to_id_string().as_str())),
        RSA_KEY | ED25519_KEY => true,
        _ => false,
    }
}

fn is_short_rsa_key(key: &SubjectPublicKeyInfo<'_>) -> bool {
    matches!(key.parsed(), Ok(PublicKey::RSA(key)) if rsa_bits(&key) < RSA_BITS_MIN)
}

/// Returns the size of the modulus in bits; x509-parser counts whole bytes. A negative modulus has 0 bits.
fn rsa_bits(key: &RSAPublicKey<'_>) -> usize {
    let is_negative = key.modulus.first().is_some_and(|byte| byte >> 7 == 1);
    if is_negative { 0 } else { signed_der::bits(key.modulus) }
}

#[cfg(test)]
mod tests;
