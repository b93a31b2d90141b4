//! The client that a request claims to be from, where the request does not prove it.
//! Whose credential is it that does not work?

use super::{Clients, PresentedCredentials, client_validation, message_signature, token};

/// Stands for a name that no client has. The name itself may be a token that its sender put in the wrong place.
const UNKNOWN: &str = "unknown";

impl Clients {
    /// Returns the configured client that a token or signature names, or that has the token. `None` if nothing is named.
    pub fn claimed_client(&self, credentials: &PresentedCredentials<'_>) -> Option<&str> {
        let names = [
            credentials.proxy_authorization.and_then(token::basic_user),
            credentials.client_validation.and_then(client_validation::unverified_issuer),
            message_signature::unverified_keyid(credentials.request.fields),
        ];
        let known = names.iter().flatten().find_map(|name| self.by_name.get(name.as_str()));
        let holder = credentials.proxy_authorization.and_then(|credential| token::authenticate(self, credential));
        let unknown = names.iter().flatten().next().map(|_| UNKNOWN);
        known.or(holder).map(|client| client.name.as_str()).or(unknown)
    }
}
