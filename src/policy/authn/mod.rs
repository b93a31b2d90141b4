//! Who is calling, by what proof: a token, a certificate, a signature or the network it calls from.
//! Which client is this?

mod body_check;
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
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::config::{AuthMethod, Listen};
use crate::names::{ClientName, Target, TenantName};
pub use crate::policy::message::SignableRequest;
pub use body_check::BodyCheck;
use public_key::VerifyingKey;

/// What strangers are called where `allow_anonymous` lets them in.
pub const ANONYMOUS: &str = "anonymous";

/// How a client is known that a command on this host sends for.
const ASSERTED: &str = "stated";

/// Twilio's public key client validation.
pub static TWILIO_CLIENT_VALIDATION: HeaderName = HeaderName::from_static("twilio-client-validation");

/// A signature made further in the future than this was made by no clock that is right.
const CLOCK_SKEW: i64 = 60;

/// Seconds that a signature may be good for. What was used is remembered as long: see `live::replay`.
const SIGNATURE_LIFETIME_MAX: i64 = 300;

/// All who may call.
pub struct Clients {
    by_name: HashMap<ClientName, Arc<Client>>,
    /// A lookup by hash may take the time it likes: whoever learns from it something of the SHA-256 of a token is no
    /// nearer to the token, which is drawn at random.
    by_token: HashMap<[u8; 32], Arc<Client>>,
    by_certificate: HashMap<String, Arc<Client>>,
    /// Of the clients that nothing but their network proves; the longest prefix first.
    by_network: Vec<(IpNet, Arc<Client>)>,
    anonymous: Option<Arc<Client>>,
}

/// One caller, known.
pub struct Client {
    name: ClientName,
    tokens: Vec<[u8; 32]>,
    public_keys: Vec<VerifyingKey>,
    networks: Vec<IpNet>,
    /// All of these; none: any one.
    require: Vec<AuthMethod>,
    /// What it has material for, the weakest first.
    proofs: Vec<AuthMethod>,
    tenants: AllowedTenants,
}

enum AllowedTenants {
    All,
    Only(Vec<TenantName>),
}

/// What a client's connection shows of who is at its other end.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// `None` behind a unix socket: such a caller has no network.
    pub address: Option<IpAddr>,
    /// The socket that it connected to.
    pub listen: Option<Arc<Listen>>,
    pub peer_certificate: PeerCertificate,
    /// The tunnel that the connection is the inside of.
    pub tunnel: Option<TunnelContext>,
    /// No connection: somebody on this host runs a command.
    pub asserted: Option<AssertedClient>,
    /// Whether a request on the connection has been identified. All clones share it.
    pub is_authenticated: Arc<AtomicBool>,
}

/// A client by the word of whoever can read the configuration, and needs no proxy to do what it may do.
#[derive(Clone, Debug)]
pub struct AssertedClient(ClientName);

impl AssertedClient {
    /// A door that the network does not have: see `tests/it/architecture/rules.rs`.
    pub fn by_operator(client: ClientName) -> Self {
        Self(client)
    }
}

impl Caller {
    /// Records that a client was identified on this connection.
    pub fn set_authenticated(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }

    pub fn is_authenticated(&self) -> bool {
        self.is_authenticated.load(Ordering::Relaxed)
    }

    /// What stands in a record where nothing was proven.
    pub fn unauthenticated_label(&self) -> &'static str {
        if self.asserted.is_some() { ASSERTED } else { ANONYMOUS }
    }
}

/// The certificate that a caller has proven to hold; empty without one.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificate {
    pub names: Vec<String>,
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the listener believed when it was shown: its fingerprint.
    pub listener_fingerprint: [u8; 32],
    /// The last second, since 1970, that the whole chain is valid in. After it the chain is judged again.
    pub valid_until: i64,
}

/// What a CONNECT has settled for all that is asked inside of its tunnel.
#[derive(Clone, Debug)]
pub struct TunnelContext {
    pub client: ClientName,
    pub proof: Option<AuthMethod>,
    pub tenant: Option<TenantName>,
    pub target: Target,
}

/// All that a request brings to say who calls.
pub struct PresentedCredentials<'a> {
    pub caller: &'a Caller,
    /// `Proxy-Authorization`.
    pub proxy_authorization: Option<&'a [u8]>,
    /// `Twilio-Client-Validation`.
    pub client_validation: Option<&'a [u8]>,
    pub request: SignableRequest<'a>,
}

/// A client, and how it is known.
pub struct Authenticated<'p> {
    pub client: &'p Arc<Client>,
    /// The strongest that it gave; `None`: nothing proves a stranger.
    pub proof: Option<AuthMethod>,
    pub signature: Option<VerifiedSignature>,
}

/// A request's signature, verified, and what is left to do about it.
pub struct VerifiedSignature {
    pub replay_token: ReplayToken,
    /// What it says of a body that has not been read yet.
    pub body_check: Option<BodyCheck>,
}

/// A signature is good for one request.
pub struct ReplayToken {
    /// The same for every way of writing the same signature.
    pub key: [u8; 32],
    /// The last second, since 1970, that it could be accepted in.
    pub valid_until: i64,
}

/// What a signature covers must reach the target.
const REMOVED_BY_CONNECTION: &str =
    "Connection names a field that it covers, so the target would not receive the field";
const OF_ONE_HOP: &str =
    "it covers a field that each hop has for itself (TE, Via and the like), so the target would not receive it";

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthnError {
    /// No credential, and no network that proves a client.
    NoCredential,
    /// A credential that no client has, or none that can be read.
    Invalid,
    /// Credentials of different clients.
    Conflicting,
    /// A signature that cannot be accepted, whoever made it.
    Signature(&'static str),
    /// Known, but not by all that its client requires.
    MissingProof(AuthMethod),
    /// The right credential from a network that its client may not call from.
    ForbiddenNetwork,
    /// The certificate or one of its issuers has expired on the open connection: the last second that all were valid in,
    /// since 1970.
    CertificateExpired(i64),
    /// A list that has come since names it.
    CertificateRevoked,
    /// The listener's authorities have changed since.
    CertificateUntrusted,
}

impl fmt::Display for AuthnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCredential => f.write_str("no credential"),
            Self::Invalid => f.write_str("wrong credential"),
            Self::Conflicting => f.write_str("credentials of different clients"),
            Self::Signature(why) => write!(f, "signature: {why}"),
            Self::MissingProof(proof) => write!(f, "no proof by {}", proof.as_str()),
            Self::ForbiddenNetwork => f.write_str("client calls from a network it may not call from"),
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

    /// The proofs that it has material for, and whether it must give more than one of them.
    pub fn proofs(&self) -> (&[AuthMethod], &[AuthMethod]) {
        (&self.proofs, &self.require)
    }

    fn may_call_from(&self, peer: Option<IpAddr>) -> bool {
        self.networks.is_empty() || peer.is_some_and(|ip| self.networks.iter().any(|network| network.contains(&ip)))
    }
}

impl Clients {
    /// A credential that is wrong stays wrong, even where the network or nothing at all would have been proof enough:
    /// whoever sends one believes to be somebody else. Several must prove the same client.
    ///
    /// A certificate that no client has does no harm beside a credential: whoever issues them to all that is on a
    /// network may let us tell callers apart by tokens.
    pub fn authenticate(
        &self,
        credentials: &PresentedCredentials<'_>,
        now: Timestamp,
    ) -> Result<Authenticated<'_>, AuthnError> {
        if let Some(AssertedClient(name)) = &credentials.caller.asserted {
            let client = self.get(name).ok_or(AuthnError::NoCredential)?;
            return Ok(Authenticated { client, proof: None, signature: None });
        }
        if let Some(tunnel) = &credentials.caller.tunnel {
            // A reload may have taken the client away meanwhile.
            let client = self.get(&tunnel.client).ok_or(AuthnError::NoCredential)?;
            if !client.may_call_from(credentials.caller.address.map(|ip| ip.to_canonical())) {
                return Err(AuthnError::ForbiddenNetwork);
            }
            return Ok(Authenticated { client, proof: tunnel.proof, signature: None });
        }
        // On a dual-stack listener an IPv4 peer looks like ::ffff:192.0.2.1.
        let peer = credentials.caller.address.map(|ip| ip.to_canonical());
        let token = credentials
            .proxy_authorization
            .map(|credential| token::authenticate(self, credential).ok_or(AuthnError::Invalid));
        let token = token.transpose()?;
        let certificate = certificate::authenticate(self, &credentials.caller.peer_certificate.names)?;
        let (signer, signed) = self.authenticate_by_signature(credentials, now)?.unzip();

        let proven =
            [(AuthMethod::Token, token), (AuthMethod::Certificate, certificate), (AuthMethod::Signature, signer)];
        let strongest = proven.iter().rev().find_map(|(proof, client)| Some((*proof, (*client)?)));
        let Some((strongest, client)) = strongest else {
            return match credentials.caller.peer_certificate.names.is_empty() {
                true => self.authenticate_by_network(peer),
                false => Err(AuthnError::Invalid),
            };
        };
        if proven.iter().filter_map(|(_, proven)| *proven).any(|other| !Arc::ptr_eq(other, client)) {
            return Err(AuthnError::Conflicting);
        }
        // Whoever may not call from here learns no more than that.
        if !client.may_call_from(peer) {
            return Err(AuthnError::ForbiddenNetwork);
        }
        let is_given = |proof: AuthMethod| {
            proof == AuthMethod::Network || proven.iter().any(|(given, by)| *given == proof && by.is_some())
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
            (Some(_), Some(_)) => Err(AuthnError::Signature("Twilio-Client-Validation beside a Signature for us")),
        }
    }

    /// A client by its name, proof aside; `anonymous` where strangers are let in.
    pub fn get(&self, name: &ClientName) -> Option<&Arc<Client>> {
        self.by_name.get(name).or(self.anonymous.as_ref().filter(|anonymous| anonymous.name == *name))
    }
}

/// Takes out of a request what proves its client to us: the target could use it against us, or against the client.
pub fn strip_credentials(fields: &mut HeaderMap) {
    fields.remove(header::PROXY_AUTHORIZATION);
    fields.remove(&TWILIO_CLIENT_VALIDATION);
    message_signature::remove_outgate_signature(fields);
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests;
