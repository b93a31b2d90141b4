//! Authentication of clients: by a token, a certificate, a signature or the client's network.
//! Which client sent this request?

mod admin;
mod body_check;
mod caller;
mod canonical;
mod certificate;
mod claimed_client;
mod client_validation;
mod compile;
mod message_signature;
mod public_key;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, header};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::config::AuthMethod;
use crate::http_message::Fields;
use crate::names::{ClientName, TenantName};
pub use crate::policy::message::SignableRequest;
pub use admin::{AdminUser, AdminUsers};
pub use body_check::BodyCheck;
pub use caller::{Caller, PeerCertificate, TunnelContext};
pub(in crate::policy) use public_key::{SignatureAlgorithm, VerifyingKey};

/// The client name of unauthenticated requests that `allow_anonymous` admits.
pub const ANONYMOUS: &str = "anonymous";

/// The recorded proof of a client that an operator's command asserts.
const ASSERTED: &str = "stated";

/// The request field of Twilio's public key client validation.
pub static TWILIO_CLIENT_VALIDATION: HeaderName = HeaderName::from_static("twilio-client-validation");

/// Seconds by which the creation time of a signature may lie in the future, since clocks differ.
const CLOCK_SKEW: i64 = 60;

/// The maximum age of a signature in seconds. The replay cache remembers each signature as long.
const SIGNATURE_LIFETIME_MAX: i64 = 300;

/// All clients, with the tables that find a client by its credential.
pub struct Clients {
    by_name: HashMap<ClientName, Arc<Client>>,
    /// A hash lookup need not be constant-time. Its timing reveals at most a part of the token's SHA-256, which does
    /// not help to find the random token.
    by_token: HashMap<[u8; 32], Arc<Client>>,
    by_certificate: HashMap<String, Arc<Client>>,
    /// The networks of clients that authenticate by network only, the longest prefix first.
    by_network: Vec<(IpNet, Arc<Client>)>,
    anonymous: Option<Arc<Client>>,
}

/// One configured client.
pub struct Client {
    name: ClientName,
    tokens: Vec<[u8; 32]>,
    public_keys: Vec<VerifyingKey>,
    networks: Vec<IpNet>,
    /// The required proofs, all of them; if empty, any one is enough.
    require: Vec<AuthMethod>,
    /// The proofs that the client is configured for, the weakest first.
    proofs: Vec<AuthMethod>,
    tenants: AllowedTenants,
}

enum AllowedTenants {
    All,
    Only(Vec<TenantName>),
}

/// The credentials of one request.
pub struct PresentedCredentials<'a> {
    pub caller: &'a Caller,
    /// `Proxy-Authorization`.
    pub proxy_authorization: Option<&'a [u8]>,
    /// `Twilio-Client-Validation`.
    pub client_validation: Option<&'a [u8]>,
    pub request: SignableRequest<'a>,
}

/// An authenticated client. Only [`Clients::authenticate`] creates it for a request.
pub struct Authenticated<'p> {
    client: &'p Arc<Client>,
    proof: Option<AuthMethod>,
    signature: Option<VerifiedSignature>,
}

impl<'p> Authenticated<'p> {
    /// Creates the result for a client without a proof, to explain a request that is not sent. `tests/it/architecture/rules.rs` limits
    /// the uses.
    pub fn without_proof(client: &'p Arc<Client>) -> Self {
        Self { client, proof: None, signature: None }
    }

    pub fn client(&self) -> &'p Arc<Client> {
        self.client
    }

    /// Returns the strongest proof that the request presented; `None` for anonymous and asserted clients.
    pub fn proof(&self) -> Option<AuthMethod> {
        self.proof
    }

    /// Returns the identity of the request's signature, if it is signed.
    pub fn replay_token(&self) -> Option<&ReplayToken> {
        self.signature.as_ref().map(|signature| &signature.replay_token)
    }

    /// Returns what remains to check: the identity of the signature, which the fleet may have seen, and the check of a body
    /// that has not been read yet.
    pub fn into_checks(self) -> (Option<ReplayToken>, Option<BodyCheck>) {
        self.signature.map_or((None, None), |signature| (Some(signature.replay_token), signature.body_check))
    }
}

/// A verified request signature, with the check that remains.
struct VerifiedSignature {
    replay_token: ReplayToken,
    body_check: Option<BodyCheck>,
}

/// The identity of a verified signature, which may be used once.
pub struct ReplayToken {
    key: [u8; 32],
    valid_until: i64,
}

impl ReplayToken {
    /// Returns a hash that is equal for every encoding of the same signature.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Returns the time for which the other instances of a fleet must know that the signature was used. Their clocks may be
    /// behind.
    pub fn lifetime(&self, now: i64) -> Duration {
        let seconds = self.valid_until.saturating_sub(now).saturating_add(2 * CLOCK_SKEW);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(1).max(1))
    }

    /// Returns the last second, since 1970, in which the signature is acceptable.
    pub fn valid_until(&self) -> i64 {
        self.valid_until
    }

    #[cfg(test)]
    pub(crate) fn for_test(key: [u8; 32], valid_until: i64) -> Self {
        Self { key, valid_until }
    }
}

/// A signature must not cover what the target does not receive.
const REMOVED_BY_CONNECTION: &str =
    "Connection names a field that it covers, so the target would not receive the field";
const OF_ONE_HOP: &str =
    "it covers a hop-by-hop field (TE, Via and the like), so the target would not receive the field";

/// The reason why a request is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthnError {
    /// The request has no credential, and its network belongs to no client.
    NoCredential,
    /// A credential belongs to no client, or is malformed.
    Invalid,
    /// The credentials belong to different clients.
    Conflicting,
    /// The signature is unacceptable, whichever client made it.
    Signature(&'static str),
    /// The client requires a proof that the request lacks.
    MissingProof(AuthMethod),
    /// The credential is valid, but the client may not use it from this network.
    ForbiddenNetwork,
    /// A certificate of the chain has expired since the handshake. Carries the last second, since 1970, in which all
    /// were valid.
    CertificateExpired(i64),
    /// A revocation list that was added since the handshake revokes the certificate.
    CertificateRevoked,
    /// The listener no longer trusts the certificate's issuer.
    CertificateUntrusted,
}

impl fmt::Display for AuthnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCredential => f.write_str("no credential"),
            Self::Invalid => f.write_str("wrong credential"),
            Self::Conflicting => f.write_str("credentials of different clients"),
            Self::Signature(reason) => write!(f, "signature: {reason}"),
            Self::MissingProof(proof) => write!(f, "no proof by {}", proof.as_str()),
            Self::ForbiddenNetwork => {
                f.write_str("the client connected from a network that its `networks` do not list")
            }
            Self::CertificateExpired(until) => match Timestamp::from_second(*until) {
                Ok(until) => write!(f, "the client certificate expired at {until}"),
                Err(_) => f.write_str("the client certificate expired"),
            },
            Self::CertificateRevoked => f.write_str("the client certificate was revoked"),
            Self::CertificateUntrusted => f.write_str("the listener no longer trusts the client certificate"),
        }
    }
}

impl std::error::Error for AuthnError {}

impl Client {
    pub fn name(&self) -> &ClientName {
        &self.name
    }

    pub fn may_act_for(&self, tenant: &TenantName) -> bool {
        match &self.tenants {
            AllowedTenants::All => true,
            AllowedTenants::Only(names) => names.contains(tenant),
        }
    }

    /// Returns the proofs that the client is configured for, and those that it requires.
    pub fn proofs(&self) -> (&[AuthMethod], &[AuthMethod]) {
        (&self.proofs, &self.require)
    }

    fn may_call_from(&self, peer: Option<IpAddr>) -> bool {
        self.networks.is_empty() || peer.is_some_and(|ip| self.networks.iter().any(|network| network.contains(&ip)))
    }
}

impl Clients {
    /// Authenticates a request. All its credentials must belong to the same client.
    ///
    /// An invalid credential is an error even if the network alone would authenticate the request, since its sender
    /// expects to be another client. A certificate of no client is ignored beside another credential. A network may
    /// issue certificates to all its hosts and leave it to tokens to tell clients apart.
    pub fn authenticate(
        &self,
        credentials: &PresentedCredentials<'_>,
        now: Timestamp,
    ) -> Result<Authenticated<'_>, AuthnError> {
        if let Some(name) = &credentials.caller.asserted {
            let client = self.get(name).ok_or(AuthnError::NoCredential)?;
            return Ok(Authenticated { client, proof: None, signature: None });
        }
        if let Some(tunnel) = &credentials.caller.tunnel {
            // A reload may have removed the client since the CONNECT.
            let client = self.get(&tunnel.client).ok_or(AuthnError::NoCredential)?;
            if !client.may_call_from(credentials.caller.address.map(|ip| ip.to_canonical())) {
                return Err(AuthnError::ForbiddenNetwork);
            }
            return Ok(Authenticated { client, proof: tunnel.proof, signature: None });
        }
        // A dual-stack listener shows an IPv4 peer as ::ffff:192.0.2.1.
        let peer = credentials.caller.address.map(|ip| ip.to_canonical());
        let token = credentials
            .proxy_authorization
            .map(|credential| token::authenticate(self, credential).ok_or(AuthnError::Invalid));
        let token = token.transpose()?;
        let certificate = certificate::authenticate(self, &credentials.caller.peer_certificate.names)?;
        let (signer, signed) = self.authenticate_by_signature(credentials, now)?.unzip();

        let presented =
            [(AuthMethod::Token, token), (AuthMethod::Certificate, certificate), (AuthMethod::Signature, signer)];
        let strongest = presented.iter().rev().find_map(|(proof, client)| Some((*proof, (*client)?)));
        let Some((strongest, client)) = strongest else {
            return match credentials.caller.peer_certificate.names.is_empty() {
                true => self.authenticate_by_network(peer),
                false => Err(AuthnError::Invalid),
            };
        };
        if presented.iter().filter_map(|(_, presented)| *presented).any(|other| !Arc::ptr_eq(other, client)) {
            return Err(AuthnError::Conflicting);
        }
        // A client that may not call from here must not learn which proofs it lacks.
        if !client.may_call_from(peer) {
            return Err(AuthnError::ForbiddenNetwork);
        }
        let is_given = |proof: AuthMethod| {
            proof == AuthMethod::Network || presented.iter().any(|(given, by)| *given == proof && by.is_some())
        };
        match client.require.iter().find(|proof| !is_given(**proof)) {
            Some(missing) => Err(AuthnError::MissingProof(*missing)),
            None => Ok(Authenticated { client, proof: Some(strongest), signature: signed }),
        }
    }

    fn authenticate_by_network(&self, peer: Option<IpAddr>) -> Result<Authenticated<'_>, AuthnError> {
        let client_and_proof = peer.and_then(|ip| self.by_network.iter().find(|(network, _)| network.contains(&ip)));
        let client_and_proof = client_and_proof.map(|(_, client)| (client, Some(AuthMethod::Network)));
        let anonymous = || self.anonymous.as_ref().map(|client| (client, None));
        let (client, proof) = client_and_proof.or_else(anonymous).ok_or(AuthnError::NoCredential)?;
        Ok(Authenticated { client, proof, signature: None })
    }

    fn authenticate_by_signature(
        &self,
        credentials: &PresentedCredentials<'_>,
        now: Timestamp,
    ) -> Result<Option<(&Arc<Client>, VerifiedSignature)>, AuthnError> {
        let now = now.as_second();
        let member = message_signature::find_outgate_signature(credentials.request.fields)?;
        match (credentials.client_validation, member) {
            (None, None) => Ok(None),
            (Some(token), None) => client_validation::verify(self, token, &credentials.request, now).map(Some),
            (None, Some(member)) => message_signature::verify(self, &member, &credentials.request, now).map(Some),
            (Some(_), Some(_)) => Err(AuthnError::Signature(
                "the request has both Twilio-Client-Validation and a Signature with the tag outgate",
            )),
        }
    }

    /// Returns the networks from which a request needs no other proof, and which `former` did not have, one sentence each.
    pub fn newly_unproven(&self, former: &Self) -> Vec<String> {
        let is_new = |network: &IpNet| !former.by_network.iter().any(|(known, _)| known.contains(network));
        let networks = self.by_network.iter().filter(|(network, _)| is_new(network));
        let sentence = |(network, client): &(IpNet, Arc<Client>)| {
            format!("the client {} needs no proof but its network {network}", client.name.as_str())
        };
        networks.map(sentence).collect()
    }

    /// Returns the number of configured clients.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Returns a client by its name, without authentication. Finds `anonymous` if anonymous requests are allowed.
    pub fn get(&self, name: &ClientName) -> Option<&Arc<Client>> {
        self.by_name.get(name).or(self.anonymous.as_ref().filter(|anonymous| anonymous.name == *name))
    }
}

/// Removes the client's credentials from a request. The target could use them against outgate or the client.
pub fn strip_credentials(fields: &mut Fields) {
    fields.remove(header::PROXY_AUTHORIZATION);
    fields.remove(&TWILIO_CLIENT_VALIDATION);
    message_signature::remove_outgate_signature(fields);
}

#[cfg(test)]
mod tests;
