//! Rules for a chain beyond those that webpki holds: what RFC 5280 asks of every chain, and what the Web PKI asks of its own.
//! Is this path, which verifies, one that should exist?
//!
//! BR: the CA/Browser Forum's Baseline Requirements for TLS server certificates.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::fault::CertificateFault as Fault;

/// BR §6.1.5, and the least that our verifier of signatures takes.
const RSA_BITS_MIN: usize = 2048;

const DAY: i64 = 86_400;

/// BR §6.3.2 as of ballot SC-081v3: the end of the time of issuing, and the days that what is issued until then may be
/// valid for. What was issued under older rules has expired.
const VALIDITY_MAX: [(i64, i64); 3] = [
    (1_773_532_800, 398), // 2026-03-15
    (1_805_068_800, 200), // 2027-03-15
    (1_868_227_200, 100), // 2029-03-15
];
const VALIDITY_MAX_IN_THE_END: i64 = 47;

/// RFC 5280 §6.1.4 (n), which webpki leaves out; and keys that nobody could verify a signature of.
pub(super) fn every_chain(leaf: &[u8], intermediates: &[&[u8]]) -> Result<(), Fault> {
    let leaf = read(leaf)?;
    if is_weak(&leaf) {
        return Err(Fault::WeakKey);
    }
    for der in intermediates {
        let intermediate = read(der)?;
        if is_weak(&intermediate) {
            return Err(Fault::WeakKey);
        }
        let usage = intermediate.key_usage().map_err(|_| Fault::Malformed)?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(Fault::WrongUsage);
        }
    }
    Ok(())
}

/// What public authorities have promised of every certificate that they issue.
pub(super) fn web_pki(leaf: &[u8]) -> Result<(), Fault> {
    let leaf = read(leaf)?;
    // BR §7.1.2.7.10: extKeyUsage is there, and says serverAuth.
    let purposes = leaf.extended_key_usage().map_err(|_| Fault::Malformed)?;
    if !purposes.is_some_and(|purposes| purposes.value.server_auth) {
        return Err(Fault::WrongUsage);
    }
    // RFC 8446 §4.4.2.2: where keyUsage is there, it says digitalSignature.
    let usage = leaf.key_usage().map_err(|_| Fault::Malformed)?;
    if usage.is_some_and(|usage| !usage.value.digital_signature()) {
        return Err(Fault::WrongUsage);
    }
    // RFC 5280 §4.1.2.5: both ends are part of the period. BR §6.3.2: a second more than a day is a day more.
    let (from, until) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    if until - from + 1 > validity_max(from) * DAY {
        return Err(Fault::ValidityTooLong);
    }
    Ok(())
}

fn validity_max(issued: i64) -> i64 {
    VALIDITY_MAX.iter().find(|(end, _)| issued < *end).map_or(VALIDITY_MAX_IN_THE_END, |(_, days)| *days)
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, Fault> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|_| Fault::Malformed)
}

/// Only RSA keys can be too short: of elliptic curves there are none below 256 bits that we take.
pub(super) fn is_weak(certificate: &X509Certificate<'_>) -> bool {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => key.key_size() < RSA_BITS_MIN,
        _ => false,
    }
}
