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
