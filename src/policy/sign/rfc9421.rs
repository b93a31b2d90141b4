//! HTTP Message Signatures (RFC 9421), with a `Content-Digest` (RFC 9530) for the body.
//! Which parts of a webhook does the signature cover, and how does it join the signatures that are there already?

mod component;
mod profile;

use std::borrow::Cow;

use aws_lc_rs::rand;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use http::HeaderName;
use smallvec::smallvec;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, SignError, key_parse_error};
use super::key::{SecretKey, base64, generate_shared_secret, is_pem, parse_shared_secret};
use super::pem;
use super::scheme::{Headers, Mutations, Scheme, SchemeSpec, SignerKey, SigningInput, header};
use crate::config::{Encoding, HmacAlgorithm};
use crate::digest::sha256;
use crate::http_message::Fields;
use crate::policy::message::digest::CONTENT_DIGEST;
use crate::policy::message::{self, members};
use profile::SignatureProfile;

static SIGNATURE: HeaderName = HeaderName::from_static("signature");
static SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
/// The header with the URL of the signer's key directory (draft-meunier-webbotauth-httpsig-protocol).
static SIGNATURE_AGENT: HeaderName = HeaderName::from_static("signature-agent");

/// SHA-256 of the shared secret of RFC 9421 §B.1.5.
const PUBLISHED_SECRET_SHA256: [u8; 32] = [
    0xdc, 0x52, 0x4b, 0x94, 0x6c, 0xca, 0xe6, 0x16, 0x16, 0x61, 0x8b, 0xae, 0xfc, 0x80, 0x73, 0x4d, 0x16, 0xf0, 0xa8,
    0xb8, 0x30, 0xcb, 0xcb, 0x15, 0x2c, 0x44, 0x80, 0xc1, 0x5c, 0x4d, 0xa2, 0xea,
];

const NEW_KEY_HELP: &str = "`outgate keys new --scheme rfc9421` makes a key";

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "rfc9421",
    options: profile::OPTIONS,
    build: |written, problems| Some(Box::new(MessageSignatures(SignatureProfile::compile(written, problems)?))),
    new_keys: &[
        (Algorithm::Ed25519, || pem::generate(Algorithm::Ed25519)),
        (Algorithm::EcdsaP256Sha256, || pem::generate(Algorithm::EcdsaP256Sha256)),
        (Algorithm::RsaPssSha512, || pem::generate(Algorithm::RsaPssSha512)),
        (Algorithm::HmacSha256, || generate_shared_secret("", base64)),
    ],
};

struct MessageSignatures(SignatureProfile);

impl Scheme for MessageSignatures {
    /// The members that a client sent stay in the headers that outgate sends.
    fn headers(&self) -> Vec<HeaderName> {
        let agent = self.0.agent.iter().map(|_| SIGNATURE_AGENT.clone());
        [SIGNATURE.clone(), SIGNATURE_INPUT.clone()].into_iter().chain(agent).collect()
    }

    fn is_single_signature(&self) -> bool {
        false
    }

    /// The kind of the key says which algorithm it is for: PEM holds key pairs, and base64 a shared secret.
    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        if is_pem(secret) {
            return pem::parse_private_key(secret, &ECDSA_P256_SHA256_FIXED_SIGNING);
        }
        if self.0.is_web_bot_auth() {
            return Err(key_parse_error("is a shared secret, and web-bot-auth allows only key pairs", NEW_KEY_HELP));
        }
        if sha256(secret) == PUBLISHED_SECRET_SHA256 {
            return Err(key_parse_error("is published in RFC 9421, so it is no secret", NEW_KEY_HELP));
        }
        parse_shared_secret(HmacAlgorithm::Sha256, Encoding::Base64, secret)
    }

    /// Adds a `Content-Digest` unless the client sent a right one, which its own signature may cover.
    fn mutations(&self, input: &SigningInput<'_>) -> Result<Mutations, SignError> {
        if !self.0.covers_body() {
            return Ok(Mutations::default());
        }
        let digests = message::digest::parse(input.headers).unwrap_or_default();
        if !digests.is_empty() && digests.iter().all(|digest| digest.matches(input.body)) {
            return Ok(Mutations::default());
        }
        let digest = header(CONTENT_DIGEST.clone(), message::digest::sha256_field(input.body))?;
        Ok(Mutations { headers: smallvec![digest], path_and_query: None })
    }

    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let (mut inputs, mut signatures) = (
            DictionaryField::parse(input.headers, &SIGNATURE_INPUT)?,
            DictionaryField::parse(input.headers, &SIGNATURE)?,
        );
        let labels: Vec<String> =
            self.0.free_labels(|label| inputs.contains(label) || signatures.contains(label), keys.len());
        let (mut fields, mut added) = (Cow::Borrowed(input.headers), Headers::new());
        if let Some(agent) = &self.0.agent {
            let mut agents = DictionaryField::parse(input.headers, &SIGNATURE_AGENT)?;
            agents.0.retain(|(label, _)| !labels.contains(label));
            agents.0.extend(labels.iter().map(|label| (label.clone(), format!("{label}=\"{agent}\""))));
            let (name, value) = header(SIGNATURE_AGENT.clone(), agents.to_line())?;
            fields.to_mut().insert(&name, &value);
            added.push((name, value));
        }
        for (key, label) in keys.iter().zip(labels) {
            let (mut base, mut covered) = (String::new(), Vec::new());
            let agent = self.0.agent_component(&label);
            for component in self.0.components.iter().chain(&agent) {
                if let Some(value) = component.value(input, &fields)? {
                    base.push_str(&format!("{}: {value}\n", component.identifier));
                    covered.push(component.identifier.as_str());
                }
            }
            let params = self.signature_params(&covered, input.now.as_second(), key)?;
            base.push_str(&format!("\"@signature-params\": {params}"));
            let signature = base64(&key.secret.sign([base.as_bytes()])?);
            inputs.0.push((label.clone(), format!("{label}={params}")));
            signatures.0.push((label.clone(), format!("{label}=:{signature}:")));
        }
        added.push(header(SIGNATURE_INPUT.clone(), inputs.to_line())?);
        added.push(header(SIGNATURE.clone(), signatures.to_line())?);
        Ok(added)
    }
}

impl MessageSignatures {
    /// Returns the value of `@signature-params`, as RFC 9651 §4.1 serializes it. Neither the id of a key nor the tag has a
    /// character that would be escaped.
    ///
    /// The id of a key pair is its thumbprint, as in `/keys` and in the key directory: two signers may have keys with the
    /// same operator-given id.
    fn signature_params(&self, covered: &[&str], now: i64, key: &SignerKey) -> Result<String, SignError> {
        // Equal webhooks get different signatures, so that a receiver can accept each signature once.
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| SignError::BackendFailed)?;
        Ok(format!(
            "({});created={now};expires={};keyid=\"{}\";alg=\"{}\";nonce=\"{}\";tag=\"{}\"",
            covered.join(" "),
            now + self.0.lifetime,
            key.public.as_ref().map_or(key.id.as_str(), |public| public.thumbprint()),
            key.secret.algorithm().name(),
            base64(&nonce),
            self.0.tag,
        ))
    }
}

/// The members of a dictionary field, each by its label and as it was written.
struct DictionaryField(Vec<(String, String)>);

impl DictionaryField {
    /// Parses the field that the client sent, which may have signatures of its own.
    fn parse(fields: &Fields, name: &HeaderName) -> Result<Self, SignError> {
        const FOREIGN: &str = "Signature, Signature-Input or Signature-Agent is not a dictionary in which each label \
                               occurs once, so outgate cannot add a member (RFC 9651 §3.2)";
        let members = members::parse_all(fields, name).ok_or(SignError::Unsignable(FOREIGN))?;
        Ok(Self(members.iter().map(|member| (member.label.to_owned(), member.text.to_owned())).collect()))
    }

    fn contains(&self, label: &str) -> bool {
        self.0.iter().any(|(other, _)| other == label)
    }

    /// Joins the members in one line, because some receivers read only the first line of a field.
    fn to_line(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests;
