//! The common structure of certificates and revocation lists: a signed part, an algorithm and a signature (RFC 5280
//! §4.1.1).
//! Does this key verify the signature?

use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{Error, RawPublicKeyEntity};
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The three parts in DER.
pub(super) struct SignedDer<'a> {
    /// The signed part with its tag and length.
    tbs: &'a [u8],
    /// The contents of the AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

/// The reason why a signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureError {
    /// No verifier supports the algorithm with this key.
    Unsupported,
    /// Another key made the signature, the signed part was changed, or the key is too short.
    Invalid,
}

impl<'a> SignedDer<'a> {
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let whole = DerElement::read(der)?;
        let tbs = DerElement::read(whole.contents)?;
        let algorithm = DerElement::read(tbs.rest)?;
        let signature = DerElement::read(algorithm.rest)?;
        // The first byte of a BIT STRING counts the bits that its last byte leaves unused.
        let signature = signature.contents.strip_prefix(&[0])?;
        Some(Self { tbs: tbs.whole, algorithm: algorithm.contents, signature })
    }

    pub(super) fn verify(
        &self,
        key: &SubjectPublicKeyInfoDer<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), SignatureError> {
        let key = RawPublicKeyEntity::try_from(key).map_err(|_| SignatureError::Unsupported)?;
        let mut error = SignatureError::Unsupported;
        for algorithm in algorithms.iter().filter(|algorithm| algorithm.signature_alg_id().as_ref() == self.algorithm) {
            match key.verify_signature(*algorithm, self.tbs, self.signature) {
                Ok(()) => return Ok(()),
                // One identifier covers several verifiers: ECDSA with SHA-256 has one for each curve.
                Err(Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(_) => error = SignatureError::Invalid,
            }
        }
        Err(error)
    }
}

/// A DER element of definite length, and the bytes after it.
struct DerElement<'a> {
    whole: &'a [u8],
    contents: &'a [u8],
    rest: &'a [u8],
}

impl<'a> DerElement<'a> {
    fn read(input: &'a [u8]) -> Option<Self> {
        let (length, header) = match *input.get(1)? {
            short @ 0..=0x7F => (usize::from(short), 2),
            long @ 0x81..=0x84 => {
                let header = 2 + usize::from(long & 0x7F);
                let bytes = input.get(2..header)?;
                (bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)), header)
            }
            _ => return None,
        };
        let end = header.checked_add(length)?;
        Some(Self { whole: input.get(..end)?, contents: input.get(header..end)?, rest: input.get(end..)? })
    }
}

/// Wraps contents in a SEQUENCE (X.690 §8.1.3). Trust anchors hold names and keys without it.
pub(super) fn wrap_sequence(contents: &[u8]) -> Vec<u8> {
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

/// Returns the tag of each element; `None` if the bytes are no sequence of elements.
pub(super) fn tags(mut elements: &[u8]) -> Option<Vec<u8>> {
    let mut tags = Vec::new();
    while let Some(tag) = elements.first() {
        tags.push(*tag);
        elements = DerElement::read(elements)?.rest;
    }
    Some(tags)
}

/// Returns the contents of a SEQUENCE, as the reverse of [`wrap_sequence`].
pub(super) fn sequence_contents(der: &[u8]) -> &[u8] {
    DerElement::read(der).map_or(&[], |element| element.contents)
}

pub(super) fn parse_certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Returns whether an authority's key may sign certificates: its keyUsage, if any, has keyCertSign (RFC 5280 §6.1.4
/// (n)). webpki does not check that.
pub(super) fn may_sign_certificates(authority: &X509Certificate<'_>) -> Result<bool, X509Error> {
    authority.key_usage().map(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// Returns whether an authority's key may sign revocation lists (RFC 5280 §6.3.3 (f)). An unreadable keyUsage permits
/// nothing.
pub(super) fn may_sign_crls(authority: &X509Certificate<'_>) -> bool {
    authority.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}

/// Returns the length of an unsigned integer in bits. A DER integer may begin with zeros.
pub(super) fn bits(number: &[u8]) -> usize {
    match number.iter().position(|byte| *byte != 0) {
        Some(first) => 8 * (number.len() - first) - number[first].leading_zeros() as usize,
        None => 0,
    }
}

/// Returns the subjectKeyIdentifier (RFC 5280 §4.2.1.2).
pub(super) fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// Returns the authorityKeyIdentifier (RFC 5280 §4.2.1.1).
pub(super) fn authority_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

    #[test]
    fn signed_der_verifies_with_its_key_only() {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let der = CertificateParams::new([]).unwrap().self_signed(&key).unwrap().der().to_vec();
        let verify = |der: &[u8], key: &KeyPair| {
            let key = rcgen::PublicKeyData::subject_public_key_info(key);
            SignedDer::read(der).unwrap().verify(&key.into(), algorithms)
        };
        assert_eq!(verify(&der, &key), Ok(()));
        assert_eq!(verify(&der, &other), Err(SignatureError::Invalid));
        let mut tampered = der.clone();
        *tampered.last_mut().unwrap() ^= 1;
        assert_eq!(verify(&tampered, &key), Err(SignatureError::Invalid));
        assert_eq!(wrap_sequence(sequence_contents(&der)), der);
    }

    #[test]
    fn sequence_has_the_short_form_of_a_length_below_128() {
        // X.690 §8.1.3.4 and §8.1.3.5
        let head = |length: usize| {
            let der = wrap_sequence(&vec![7; length]);
            der[..der.len() - length].to_vec()
        };
        assert_eq!([0, 127].map(head), [[0x30, 0], [0x30, 127]]);
        assert_eq!(head(128), [0x30, 0x81, 128]);
        assert_eq!(head(256), [0x30, 0x82, 1, 0]);
    }

    #[test]
    fn authority_signs_what_its_key_usage_permits() {
        let signs = |usages: &[KeyUsagePurpose]| {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = usages.to_vec();
            params.use_authority_key_identifier_extension = true;
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            let authority = parse_certificate(&der).unwrap();
            let (own, issuer) = (subject_key_id(&authority), authority_key_id(&authority));
            assert!(own.is_some_and(|id| id.len() > 1) && own == issuer, "{own:?} {issuer:?}");
            (may_sign_certificates(&authority).unwrap(), may_sign_crls(&authority))
        };
        assert_eq!(signs(&[]), (true, true));
        assert_eq!(signs(&[KeyUsagePurpose::KeyCertSign]), (true, false));
        assert_eq!(signs(&[KeyUsagePurpose::CrlSign]), (false, true));
    }

    #[test]
    fn bits_are_counted_from_the_first_that_is_set() {
        for (number, expected) in [(&[0x80, 0][..], 16), (&[0, 0x80, 0], 16), (&[1], 1), (&[0], 0), (&[], 0)] {
            assert_eq!(bits(number), expected, "{number:?}");
        }
    }

    #[test]
    fn tags_are_those_of_whole_elements() {
        assert_eq!(tags(&[]), Some(vec![]));
        assert_eq!(tags(&[0xA0, 1, 7, 0x81, 0]), Some(vec![0xA0, 0x81]));
        assert_eq!(tags(&[0xA0, 1, 7, 0x81]), None);
        assert_eq!(tags(&[0xA0, 2, 7]), None);
    }

    proptest! {
        #[test]
        fn signed_der_refuses_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let key = SubjectPublicKeyInfoDer::from(bytes.as_slice());
            let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
            if let Some(signed) = SignedDer::read(&bytes) {
                prop_assert!(signed.verify(&key, algorithms).is_err());
            }
            prop_assert!(sequence_contents(&bytes).len() <= bytes.len());
        }
    }
}
