//! The public halves of signing keys, for receivers to verify with: JWK (RFC 7517), PEM, thumbprints (RFC 7638).
//! Which part of a key is public, and in which encodings?

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::signature::{EcdsaPublicKey, Ed25519KeyPair, Ed25519PublicKey, KeyPair, RsaSubjectPublicKey};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::pem_encoding::encode;
use crate::digest::sha256;

/// The public half of a signing key.
pub struct PublicKey {
    /// The SubjectPublicKeyInfo (RFC 5280 §4.1).
    der: Vec<u8>,
    /// The required members of the JWK, in the order of the thumbprint (RFC 7638 §3.2).
    members: BTreeMap<&'static str, String>,
    /// The name of the algorithm in JWA (RFC 7518 §3.1, RFC 8037 §3.1).
    algorithm: &'static str,
    /// The bytes alone, for schemes that know the kind of the key. Only Ed25519 keys have them.
    raw: Option<[u8; 32]>,
    thumbprint: String,
}

type EncodedKey = Result<PublicKeyX509Der<'static>, Unspecified>;

fn url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl PublicKey {
    /// Returns the public half of a pair.
    pub fn of_pair(pair: &Ed25519KeyPair) -> Option<Self> {
        Self::ed25519(pair.public_key())
    }

    /// The key as an OKP (RFC 8037 §2).
    pub(super) fn ed25519(key: &Ed25519PublicKey) -> Option<Self> {
        let members = BTreeMap::from([("crv", "Ed25519".into()), ("kty", "OKP".into()), ("x", url(key.as_ref()))]);
        Self::of(key.as_der(), members, "EdDSA", key.as_ref().try_into().ok())
    }

    /// The key as an EC key (RFC 7518 §6.2.1). The library has the uncompressed point (SEC 1 §2.3.3).
    pub(super) fn p256(key: &EcdsaPublicKey) -> Option<Self> {
        let (x, y) = key.as_ref().strip_prefix(&[4])?.split_at_checked(32)?;
        let members = [("crv", "P-256".into()), ("kty", "EC".into()), ("x", url(x)), ("y", url(y))];
        Self::of(key.as_der(), members.into(), "ES256", None)
    }

    /// The key as an RSA key (RFC 7518 §6.3.1), whose numbers have no leading zeros.
    pub(super) fn rsa(key: &RsaSubjectPublicKey) -> Option<Self> {
        let der: EncodedKey = key.as_der();
        let info = SubjectPublicKeyInfo::from_der(der.as_ref().ok()?.as_ref()).ok()?.1;
        let Ok(Parsed::RSA(rsa)) = info.parsed() else { return None };
        let number = |bytes: &[u8]| url(&bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]);
        let members = [("e", number(rsa.exponent)), ("kty", "RSA".into()), ("n", number(rsa.modulus))].into();
        Self::of(key.as_der(), members, "PS512", None)
    }

    fn of(
        der: EncodedKey,
        members: BTreeMap<&'static str, String>,
        algorithm: &'static str,
        raw: Option<[u8; 32]>,
    ) -> Option<Self> {
        // RFC 7638 §3: the hash of the members in order, without white space.
        let thumbprint = url(&sha256(json!(members).to_string().as_bytes()));
        Some(Self { der: der.ok()?.as_ref().to_vec(), members, algorithm, raw, thumbprint })
    }

    /// Returns the thumbprint (RFC 7638), which no other key has.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    pub fn pem(&self) -> String {
        encode("PUBLIC KEY", &self.der).to_string()
    }

    pub(super) fn raw(&self) -> Option<&[u8]> {
        self.raw.as_ref().map(<[u8; 32]>::as_slice)
    }

    pub(super) fn jwk(&self) -> Value {
        let mut jwk = json!(self.members);
        jwk["kid"] = self.thumbprint().into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.into();
        jwk
    }

    /// Returns the JWK for a key directory (draft-meunier-webbotauth-httpsig-protocol). Its id is the thumbprint.
    pub(super) fn directory_entry(&self, from: Option<Timestamp>, until: Option<Timestamp>) -> Value {
        let mut jwk = json!(self.members);
        jwk["kid"] = self.thumbprint().into();
        jwk["use"] = "sig".into();
        for (name, time) in [("nbf", from), ("exp", until)] {
            if let Some(time) = time {
                jwk[name] = time.as_second().into();
            }
        }
        jwk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    /// RFC 8037 Appendix A.
    #[test]
    fn public_key_matches_the_published_jwk() {
        let seed = BASE64_URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let key = PublicKey::ed25519(pair.public_key()).unwrap();
        assert_eq!(key.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let kid = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig", "alg": "EdDSA" });
        assert_eq!(key.jwk(), jwk);
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        let entry = json!({
            "kty": "OKP", "crv": "Ed25519", "x": x, "kid": key.thumbprint(), "use": "sig", "nbf": 1_700_000_000,
        });
        assert_eq!(key.directory_entry(Some(time), None), entry);
        assert_eq!(PublicKey::of_pair(&pair).unwrap().thumbprint(), key.thumbprint());
        // RFC 8410 §4: the identifier of the algorithm precedes the 32 bytes of the key.
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----";
        assert_eq!(key.pem(), pem);
    }
}
