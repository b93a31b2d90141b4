//! Signatures of webhooks: signers, the schemes that they sign by, and the keys that they sign with.
//! Which headers prove to the receiver that a webhook came from the platform?

mod algorithm;
mod compile;
mod error;
#[cfg(test)]
mod fixture;
mod github;
mod hmac;
mod key;
mod keyring;
mod listing;
mod pem;
mod pem_encoding;
mod public;
mod registry;
mod rfc9421;
mod scheme;
mod sendgrid;
mod shopify;
mod signer;
mod slack;
mod standard_webhooks;
mod stripe;
mod template;
mod tenants;
mod twilio;

pub use algorithm::Algorithm;
pub use compile::compile;
pub use error::{NewKeyError, SignError};
pub use keyring::Keyring;
pub use listing::{KeyState, ListedKey, directory, jwks, published};
pub(super) use pem::parse_ed25519_key;
pub use public::PublicKey;
pub use registry::{new_key, schemes};
pub use scheme::{Mutations, SigningInput};
pub use signer::{KeyIds, Signature, Signer, Signers, valid_id};
