//! The operators of a fleet, who sign bundles, approvals and aborts with Ed25519 keys.
//! Which operator has signed this text?

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::super::authn::{SignatureAlgorithm, VerifyingKey};
use super::super::sign::parse_ed25519_key;
use crate::config::{Config, Problem};

/// The operators, by name.
#[derive(Default)]
pub struct Operators {
    keys: BTreeMap<String, OperatorPublicKey>,
    /// A change of more entries needs a second operator.
    pub approve_above: usize,
}

struct OperatorPublicKey {
    der: Vec<u8>,
    key: VerifyingKey,
}

impl Operators {
    /// Compiles `[fleet.operators]`. Two operators cannot have one key, because one person could approve alone then.
    pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Self {
        let Some(fleet) = &config.fleet else { return Self::default() };
        let mut operators = Self { keys: BTreeMap::new(), approve_above: fleet.approve_above };
        for (name, written) in &fleet.operators {
            let mut refuse =
                |reason: &str| {
                    let problem = Problem::at(written.span, format!("the key of the operator {name} {reason}"));
                    problems.push(problem.help(
                        "write the public half of a key of `outgate keys new --scheme rfc9421 --algorithm ed25519`",
                    ));
                };
            match VerifyingKey::parse(&written.der) {
                Ok(key) if key.is_for(SignatureAlgorithm::Ed25519) => {
                    if let Some((other, _)) = operators.keys.iter().find(|(_, other)| other.der == written.der) {
                        refuse(&format!("is that of the operator {other}, too"));
                    }
                    let key = OperatorPublicKey { der: written.der.clone(), key };
                    operators.keys.insert(name.clone(), key);
                }
                Ok(_) => refuse("is not an Ed25519 key"),
                Err(error) => refuse(&error.to_string()),
            }
        }
        operators
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the operator whose signature this is.
    pub fn verify(&self, text: &str, signature: &str) -> Option<&str> {
        let signature = BASE64_STANDARD.decode(signature).ok()?;
        let has_signed = |public: &&OperatorPublicKey| {
            public.key.verify(&[SignatureAlgorithm::Ed25519], text.as_bytes(), &signature).is_some()
        };
        self.keys.iter().find(|(_, public)| has_signed(public)).map(|(name, _)| name.as_str())
    }

    /// Returns the public keys by name, DER in base64.
    pub fn public_keys(&self) -> BTreeMap<&str, String> {
        self.keys.iter().map(|(name, public)| (name.as_str(), BASE64_STANDARD.encode(&public.der))).collect()
    }
}

/// The private key of an operator, which no instance has.
pub struct OperatorKey(Ed25519KeyPair);

impl OperatorKey {
    /// Parses a PEM file. The error is a message.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        parse_ed25519_key(pem).map(Self).map_err(|(message, help)| format!("the key {message}: {help}"))
    }

    pub fn sign(&self, text: &str) -> String {
        BASE64_STANDARD.encode(self.0.sign(text.as_bytes()))
    }

    /// Returns the public half as [`Operators::public_keys`] does.
    pub fn public_key(&self) -> String {
        let der: Option<PublicKeyX509Der<'_>> = self.0.public_key().as_der().ok();
        der.map(|der| BASE64_STANDARD.encode(der.as_ref())).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config;
    use std::path::Path;

    /// Returns the operators alice and bob with these keys, and the problems.
    pub(in super::super) fn operators(name: &str, keys: [&[u8]; 2]) -> (Operators, Vec<String>) {
        let folder = std::env::temp_dir().join(format!("outgate-operators-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut text = String::from("[server]\nstate = \"state\"\n[fleet]\nstore = \"redis://h\"\n");
        for (name, der) in ["alice", "bob"].into_iter().zip(keys) {
            let pem =
                format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der));
            std::fs::write(folder.join(name), pem).unwrap();
            text += &format!("[fleet.operators.{name}]\nkey = \"{name}\"\n");
        }
        let config = match config::parse(&text, &folder.join("config.toml")) {
            Ok(loaded) => loaded.config,
            Err(error) => *error.partial.unwrap(),
        };
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(Path::new("state").file_name(), config.server.state.as_ref().and_then(|state| state.file_name()));
        let mut problems = Vec::new();
        let operators = Operators::compile(&config, &mut problems);
        (operators, problems.into_iter().map(|problem| problem.message).collect())
    }

    pub(in super::super) fn new_key() -> (OperatorKey, Vec<u8>) {
        let key = OperatorKey(Ed25519KeyPair::generate().unwrap());
        let der = BASE64_STANDARD.decode(key.public_key()).unwrap();
        (key, der)
    }

    #[test]
    fn operators_are_known_by_their_keys_and_no_two_have_one() {
        let ((alice, of_alice), (bob, of_bob), (mallory, _)) = (new_key(), new_key(), new_key());
        let (known, problems) = operators("known", [&of_alice, &of_bob]);
        assert_eq!(problems, [""; 0]);
        assert!(!known.is_empty());
        assert!(Operators::compile(&crate::policy::fixture::config(), &mut Vec::new()).is_empty());
        let signer = |key: &OperatorKey| known.verify("text", &key.sign("text"));
        assert_eq!([&alice, &bob, &mallory].map(signer), [Some("alice"), Some("bob"), None]);
        assert_eq!(known.verify("other", &alice.sign("text")), None);
        assert_eq!(known.verify("text", "not base64!"), None);
        assert_eq!(known.public_keys()["bob"], bob.public_key());
        let (_, problems) = operators("same", [&of_alice, &of_alice]);
        assert_eq!(problems, ["the key of the operator bob is that of the operator alice, too"]);
        let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (_, problems) = operators("kinds", [&of_alice, &rcgen::PublicKeyData::subject_public_key_info(&p256)]);
        assert_eq!(problems, ["the key of the operator bob is not an Ed25519 key"]);
    }
}
