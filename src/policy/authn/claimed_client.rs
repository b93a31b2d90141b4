//! The client that a request claims to come from without a proof.
//! Which client's credential is invalid?

use super::{Clients, PresentedCredentials, client_validation, message_signature, token};

/// The label for a name of no client. The name itself may be a token that its sender put in the wrong place.
const UNKNOWN: &str = "unknown";

impl Clients {
    /// Returns the client that a token or signature names, or that has the token. `None` if the request names none.
    pub fn claimed_client(&self, credentials: &PresentedCredentials<'_>) -> Option<&str> {
        let names = [
            credentials.proxy_authorization.and_then(token::basic_user),
            credentials.client_validation.and_then(client_validation::unverified_issuer),
            message_signature::unverified_keyid(credentials.request.fields),
        ];
        let configured = names.iter().flatten().find_map(|name| self.by_name.get(name.as_str()));
        let holder = credentials.proxy_authorization.and_then(|credential| token::authenticate(self, credential));
        let unknown = names.iter().flatten().next().map(|_| UNKNOWN);
        configured.or(holder).map(|client| client.name.as_str()).or(unknown)
    }
}
