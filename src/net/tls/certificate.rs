//! A summary of a target's certificate, with which an operator diagnoses a failed handshake.
//! Which names, issuer and validity does the certificate have?

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::digest::sha256;
use crate::policy::addresses::ip_from_octets;
use crate::policy::expiry::certificate_timestamp;

/// The number of subject alternative names that are kept.
const NAMES_MAX: usize = 5;
/// The largest number of characters of a text, because the target controls it.
const TEXT_MAX: usize = 200;
/// The largest number of octets of a serial number; RFC 5280 §4.1.2.2 allows 20.
const SERIAL_MAX: usize = 32;
/// The ASN.1 tag of a `dNSName` (RFC 5280 §4.2.1.6).
const DNS_NAME_TAG: Tag = Tag(2);

/// The contents of a certificate. All texts are bounded and free of control characters. An unreadable certificate has
/// only its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateSummary {
    pub common_name: Option<String>,
    /// The first DNS names and addresses, at most [`NAMES_MAX`].
    pub names: Vec<String>,
    /// The number of names that are left out.
    pub more_names: usize,
    pub issuer: Option<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    /// The serial number in hexadecimal.
    pub serial: Option<String>,
    /// The SHA-256 digest of the DER in hexadecimal.
    pub sha256: String,
}

impl CertificateSummary {
    pub(super) fn read(der: &[u8]) -> Self {
        let sha256 = HEXLOWER.encode(&sha256(der));
        let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Self { sha256, ..Self::default() } };
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let alternative = alternative.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let mut names = alternative.iter().filter_map(san_to_string);
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let serial = parsed.raw_serial();
        Self {
            common_name: common_name.map(sanitized),
            names: names.by_ref().take(NAMES_MAX).collect(),
            more_names: names.count(),
            issuer: Some(sanitized(&parsed.issuer().to_string())),
            not_before: Some(certificate_timestamp(parsed.validity().not_before.timestamp())),
            not_after: Some(certificate_timestamp(parsed.validity().not_after.timestamp())),
            serial: Some(HEXLOWER.encode(&serial[..serial.len().min(SERIAL_MAX)])),
            sha256,
        }
    }
}

fn san_to_string(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(sanitized(name)),
        GeneralName::IPAddress(octets) => ip_from_octets(octets).map(|ip| ip.to_string()),
        // Bytes that are not UTF-8 become replacement characters.
        GeneralName::Invalid(DNS_NAME_TAG, bytes) => Some(sanitized(&String::from_utf8_lossy(bytes))),
        _ => None,
    }
}

/// Truncates a text, and replaces characters that a terminal would interpret or hide.
fn sanitized(text: &str) -> String {
    let is_hidden = |c: char| {
        let is_format = matches!(
            c,
            '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}'
        );
        c.is_control() || is_format
    };
    text.chars().take(TEXT_MAX).map(|c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    #[test]
    fn certificate_texts_are_bounded_and_without_control_characters() {
        let names: Vec<String> = (0..9).map(|n| format!("n{n}.example")).chain(["192.0.2.1".to_owned()]).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("\u{1b}[31m\u{202e}{}", "a".repeat(1000)));
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let certificate = CertificateSummary::read(&der);
        assert_eq!((certificate.names.len(), certificate.names[4].as_str()), (NAMES_MAX, "n4.example"));
        assert_eq!(certificate.more_names, 5);
        let common_name = certificate.common_name.unwrap();
        assert_eq!(common_name, format!("\u{fffd}[31m\u{fffd}{}", "a".repeat(TEXT_MAX - 6)));
        assert!(certificate.issuer.unwrap().chars().count() <= TEXT_MAX);
        assert_eq!(certificate.not_after.unwrap().to_string(), "2030-01-01T00:00:00Z");
        assert_eq!((certificate.sha256.len(), certificate.serial.is_some()), (64, true));
        let hidden = "\u{ad}\u{61c}\u{180e}\u{200b}\u{202e}\u{2060}\u{feff}\u{fff9}\u{fffb}\u{e0001}\u{e007f}";
        assert!(sanitized(hidden).chars().all(|c| c == char::REPLACEMENT_CHARACTER), "{:?}", sanitized(hidden));
        // A DNS name that is not UTF-8 is kept.
        let invalid: Vec<u8> = memchr::memmem::find(&der, b"n4.example")
            .map_or(der.clone(), |at| [&der[..at], b"\xff4.example", &der[at + 10..]].concat());
        let certificate = CertificateSummary::read(&invalid);
        assert_eq!((certificate.names[4].as_str(), certificate.more_names), ("\u{fffd}4.example", 5));
        let unreadable = CertificateSummary::read(b"none");
        assert_eq!((unreadable.issuer, unreadable.sha256.len()), (None, 64));
    }
}
