//! Private keys in PEM: PKCS #8, SEC 1 and PKCS #1.
//! Which key pair is this, and may it sign?

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::encoding::Pkcs8V1Der;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, RsaKeyPair,
};
use rustls_pki_types::pem::{PemObject, SectionKind};
use x509_parser::asn1_rs::{Any, Integer};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, NewKeyError, key_parse_error};
use super::key::SecretKey;
use super::pem_encoding::encode;

/// The shortest RSA modulus, in bits. The cryptographic library has the same limits.
const RSA_MIN: usize = 2048;
const RSA_MAX: usize = 8192;

/// The thumbprints of the key pairs in RFC 9421 Appendix B.1, whose private halves are public.
const PUBLISHED_THUMBPRINTS: [&str; 4] = [
    "BHj8s0GPnMEQtkaULIM-PLgEhLBbuGUQ1vMxmBWZzEo",
    "oD0HwocPBSfpNy5W3bpJeyFGY_IQ_YpqxSjQ3Yd-CLA",
    "ydQXMtvbsOsZyFir-Y7A8t7fKEM1gbKPvyFkdpu4fvI",
    "poqkLGiymh_W0uP6PZFw-dvez3QJT5SolqXBCW38r0U",
];

/// Parses a PEM file with one private key. `algorithm` says how a P-256 key encodes its signatures.
pub(super) fn parse_private_key(
    secret: &[u8],
    algorithm: &'static EcdsaSigningAlgorithm,
) -> Result<SecretKey, KeyParseError> {
    let key = parse_any_private_key(secret, algorithm)?;
    if key.public().is_some_and(|public| PUBLISHED_THUMBPRINTS.contains(&public.thumbprint())) {
        return Err(key_parse_error("is published in RFC 9421, so it is no secret", NEW_KEY_HELP));
    }
    Ok(key)
}

/// Parses a PEM file with an Ed25519 key, for a signature that is not a webhook's. The error is a message and an advice.
pub(in crate::policy) fn parse_ed25519_key(secret: &[u8]) -> Result<Ed25519KeyPair, (String, String)> {
    const HELP: &str = "`outgate keys new --scheme rfc9421 --algorithm ed25519` makes a key";
    match parse_private_key(secret, &ECDSA_P256_SHA256_FIXED_SIGNING) {
        Ok(SecretKey::Ed25519(pair)) => Ok(pair),
        Ok(other) => Err((format!("is of the algorithm {}, not ed25519", other.algorithm().name()), HELP.to_owned())),
        Err(KeyParseError { message, .. }) => Err((message, HELP.to_owned())),
    }
}

const NEW_KEY_HELP: &str = "`outgate keys new` makes a key";

fn parse_any_private_key(secret: &[u8], algorithm: &'static EcdsaSigningAlgorithm) -> Result<SecretKey, KeyParseError> {
    const HELP: &str =
        "write the path of a PEM file with one private key, without a passphrase; `outgate keys new` makes one";
    let sections: Result<Vec<_>, _> = <(SectionKind, Vec<u8>)>::pem_slice_iter(secret)
        .map(|section| section.map(|(kind, der)| (kind, Zeroizing::new(der))))
        .collect();
    let sections = sections.map_err(|_| key_parse_error("is not PEM", HELP))?;
    let is_private =
        |kind| matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey);
    let mut keys = sections.iter().filter(|(kind, _)| is_private(*kind));
    match (keys.next(), keys.next()) {
        (Some((kind, der)), None) => match kind {
            SectionKind::PrivateKey => parse_pkcs8(der, algorithm),
            SectionKind::EcPrivateKey => parse_ec(der, algorithm),
            _ => parse_rsa(der),
        },
        (Some(_), Some(_)) => {
            Err(key_parse_error("has more than one private key", "give each key a file and an id of its own"))
        }
        (None, _) if memchr::memmem::find(secret, b"ENCRYPTED").is_some() => Err(key_parse_error(
            "is encrypted",
            "outgate cannot ask for a passphrase; decrypt the key: `openssl pkey -in FILE -out FILE.plain`",
        )),
        (None, _) if memchr::memmem::find(secret, b"BEGIN OPENSSH PRIVATE KEY").is_some() => {
            Err(key_parse_error("is in the format of OpenSSH, and outgate reads PKCS #8", NEW_KEY_HELP))
        }
        (None, _) => Err(key_parse_error("has no private key", HELP)),
    }
}

/// Parses a PrivateKeyInfo (RFC 5958 §2).
fn parse_pkcs8(der: &[u8], algorithm: &'static EcdsaSigningAlgorithm) -> Result<SecretKey, KeyParseError> {
    let (identifier, key) = private_key_info(der).ok_or_else(|| key_parse_error("is malformed", NEW_KEY_HELP))?;
    let kind = &identifier.algorithm;
    if *kind == OID_SIG_ED25519 {
        Ed25519KeyPair::from_pkcs8(der)
            .map(SecretKey::Ed25519)
            .map_err(|_| key_parse_error("is malformed", NEW_KEY_HELP))
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = identifier.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if curve == Some(OID_EC_P256) {
            parse_ec(der, algorithm)
        } else {
            Err(key_parse_error("is of another curve than P-256", NEW_KEY_HELP))
        }
    } else if *kind == OID_PKCS1_RSAENCRYPTION || *kind == OID_PKCS1_RSASSAPSS {
        parse_rsa(key)
    } else {
        Err(key_parse_error("is of a kind that is not supported", "use Ed25519, ECDSA P-256 or RSA"))
    }
}

/// Returns the algorithm and the octets of a PrivateKeyInfo.
fn private_key_info(der: &[u8]) -> Option<(AlgorithmIdentifier<'_>, &[u8])> {
    let (_, sequence) = Any::from_der(der).ok()?;
    let (rest, _version) = Integer::from_der(sequence.data).ok()?;
    let (rest, algorithm) = AlgorithmIdentifier::from_der(rest).ok()?;
    let (_, key) = <&[u8]>::from_der(rest).ok()?;
    Some((algorithm, key))
}

fn parse_ec(der: &[u8], algorithm: &'static EcdsaSigningAlgorithm) -> Result<SecretKey, KeyParseError> {
    let pair = EcdsaKeyPair::from_private_key_der(algorithm, der);
    pair.map(SecretKey::EcdsaP256)
        .map_err(|_| key_parse_error("is malformed, or of another curve than P-256", NEW_KEY_HELP))
}

/// Parses an RSAPrivateKey (RFC 8017 §A.1.2).
fn parse_rsa(der: &[u8]) -> Result<SecretKey, KeyParseError> {
    let malformed = || key_parse_error("is malformed", NEW_KEY_HELP);
    let bits = modulus_bits(der).ok_or_else(malformed)?;
    if !(RSA_MIN..=RSA_MAX).contains(&bits) {
        return Err(key_parse_error(format!("is RSA of {bits} bits, not {RSA_MIN} to {RSA_MAX}"), NEW_KEY_HELP));
    }
    RsaKeyPair::from_der(der).map(|pair| SecretKey::RsaPss(Box::new(pair))).map_err(|_| malformed())
}

fn modulus_bits(der: &[u8]) -> Option<usize> {
    let (_, sequence) = Any::from_der(der).ok()?;
    let (rest, _version) = Integer::from_der(sequence.data).ok()?;
    let (_, modulus) = Integer::from_der(rest).ok()?;
    let modulus = modulus.as_ref();
    let first = modulus.iter().position(|byte| *byte != 0)?;
    Some(8 * (modulus.len() - first) - modulus[first].leading_zeros() as usize)
}

/// Generates a private key, in PKCS #8.
pub(super) fn generate(algorithm: Algorithm) -> Result<Zeroizing<String>, NewKeyError> {
    let no_random = |_| NewKeyError::NoRandomness;
    let to_pem = |der: &[u8]| encode("PRIVATE KEY", der);
    Ok(match algorithm {
        Algorithm::EcdsaP256Sha256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(no_random)?;
            to_pem(pair.to_pkcs8v1().map_err(no_random)?.as_ref())
        }
        Algorithm::RsaPssSha512 => {
            let pair = rsa::KeyPair::generate(KeySize::Rsa3072).map_err(no_random)?;
            to_pem(AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(no_random)?.as_ref())
        }
        _ => {
            let pair = Ed25519KeyPair::generate().map_err(no_random)?;
            to_pem(AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(no_random)?.as_ref())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::EcPrivateKeyRfc5915Der;
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, KeyPair};
    use serde_json::Value;

    fn message(pem: &str) -> Result<Algorithm, String> {
        let key = parse_private_key(pem.as_bytes(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        key.map(|key| key.algorithm()).map_err(|error| error.message)
    }

    /// A version and a modulus, as `RSAPrivateKey` begins (RFC 8017 §A.1.2).
    #[test]
    fn modulus_has_the_bits_from_its_first_one() {
        for (modulus, bits) in [
            (&[0x00, 0xff, 0x01][..], Some(16)),
            (&[0x00, 0x80, 0x00], Some(16)),
            (&[0x7f, 0x01], Some(15)),
            (&[0x01, 0x00, 0x01], Some(17)),
            (&[0x00], None),
        ] {
            let length = u8::try_from(modulus.len()).unwrap();
            let der = [&[0x30, 5 + length, 0x02, 0x01, 0x00, 0x02, length], modulus].concat();
            assert_eq!(modulus_bits(&der), bits, "{modulus:x?}");
        }
    }

    #[test]
    fn pem_parses_generated_keys() {
        for algorithm in [Algorithm::Ed25519, Algorithm::EcdsaP256Sha256, Algorithm::RsaPssSha512] {
            let (one, other) = (generate(algorithm).unwrap(), generate(algorithm).unwrap());
            assert_ne!(one, other);
            assert_eq!(message(&one), Ok(algorithm));
            assert!(one.lines().all(|line| line.len() <= 64), "{algorithm:?}");
        }
    }

    /// The keys are in PKCS #8 (one with the identifier of RSASSA-PSS), in SEC 1 and in PKCS #1.
    #[test]
    fn pem_refuses_the_published_keys_of_rfc_9421() {
        let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/private_keys.json")).unwrap();
        let keys = vectors["keys"].as_object().unwrap();
        assert_eq!(keys.len(), 4);
        for (name, key) in keys {
            let pem = key["private_pem"].as_str().unwrap();
            let read = parse_any_private_key(pem.as_bytes(), &ECDSA_P256_SHA256_FIXED_SIGNING);
            let public = read.ok().and_then(|key| key.public()).unwrap();
            assert_eq!(public.thumbprint(), key["rfc7638_thumbprint"].as_str().unwrap(), "{name}");
            assert_eq!(message(pem), Err("is published in RFC 9421, so it is no secret".into()), "{name}");
        }
    }

    #[test]
    fn pem_refuses_unsupported_keys() {
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let sec1 = |pair: &EcdsaKeyPair| {
            let der: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
            encode("EC PRIVATE KEY", der.as_ref())
        };
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        // SEQUENCE { 0, modulus of 1024 bits }
        let mut short = vec![0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x02, 0x81, 0x81, 0x00];
        short.extend([0xff; 128]);
        let pkcs8_p384 = p384.to_pkcs8v1().unwrap();
        let ed25519 = generate(Algorithm::Ed25519).unwrap();
        let public = encode("PUBLIC KEY", Ed25519KeyPair::generate().unwrap().public_key().as_ref());
        for (pem, expected) in [
            (sec1(&p256).as_str(), Ok(Algorithm::EcdsaP256Sha256)),
            (sec1(&p384).as_str(), Err("is malformed, or of another curve than P-256")),
            (encode("PRIVATE KEY", pkcs8_p384.as_ref()).as_str(), Err("is of another curve than P-256")),
            (encode("RSA PRIVATE KEY", &short).as_str(), Err("is RSA of 1024 bits, not 2048 to 8192")),
            (encode("PRIVATE KEY", b"x").as_str(), Err("is malformed")),
            (&format!("{}\n{}", *ed25519, *ed25519), Err("has more than one private key")),
            (public.as_str(), Err("has no private key")),
            (
                encode("OPENSSH PRIVATE KEY", b"x").as_str(),
                Err("is in the format of OpenSSH, and outgate reads PKCS #8"),
            ),
            (encode("ENCRYPTED PRIVATE KEY", b"x").as_str(), Err("is encrypted")),
            ("-----BEGIN PRIVATE KEY-----\nA", Err("is not PEM")),
        ] {
            assert_eq!(message(pem), expected.map_err(str::to_owned), "{pem}");
        }
    }
}
