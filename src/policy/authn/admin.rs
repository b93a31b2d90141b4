//! Authentication of the users of the admin listener over TCP: by a token or a client certificate.
//! Which user calls, and what may the user do?

use std::collections::BTreeMap;

use super::compile::{claim_proof, not_a_san};
use super::token::TokenCredential;
use super::{AuthnError, PeerCertificate, certificate};
use crate::config::{self, AdminRole, BindTls, Config, Listen, Problem, WarningCode};

/// The users of `[admin.users]`. They are few, so that each of them is compared.
#[derive(Default)]
pub struct AdminUsers(Vec<AdminUser>);

/// One user of `[admin.users]`.
pub struct AdminUser {
    pub name: String,
    pub role: AdminRole,
    tokens: Vec<[u8; 32]>,
    /// Subject alternative names, as connections report them.
    certificates: Vec<String>,
}

impl AdminUsers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the user of a credential (`Authorization`) and of a verified certificate; `None` without either. A
    /// certificate of no user counts as none: a network may issue certificates to all its hosts.
    ///
    /// # Errors
    ///
    /// The credential belongs to no user, or the proofs belong to different users.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        peer: &PeerCertificate,
    ) -> Result<Option<&AdminUser>, AuthnError> {
        let by_token = match authorization {
            Some(credential) => Some(self.by_token(credential).ok_or(AuthnError::Invalid)?),
            None => None,
        };
        let has_name = |user: &&AdminUser| user.certificates.iter().any(|name| peer.names.contains(name));
        let mut by_certificate = self.0.iter().filter(has_name);
        let found = by_token.or_else(|| by_certificate.clone().next());
        match by_certificate.all(|user| found.is_some_and(|found| found.name == user.name)) {
            true => Ok(found),
            false => Err(AuthnError::Conflicting),
        }
    }

    /// Compares with the tokens of every user, so that the duration does not depend on the user.
    fn by_token(&self, credential: &[u8]) -> Option<&AdminUser> {
        let credential = TokenCredential::parse(credential)?;
        let is_named = |user: &AdminUser| credential.user.as_ref().is_none_or(|name| *name == user.name);
        self.0.iter().fold(None, |found, user| match credential.is_one_of(&user.tokens) & is_named(user) {
            true => Some(user),
            false => found,
        })
    }

    pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Self {
        let (mut tokens, mut certificates, mut users) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (name, written) in &config.admin.users {
            for token in &written.tokens {
                let message = "two users of the admin listener have the same token";
                claim_proof(&mut tokens, token.value, (name, token.span), message, problems);
            }
            let mut names = Vec::new();
            for san in &written.certificates {
                match certificate::canonical_san(san) {
                    Ok(key) => {
                        let message = "two users of the admin listener have the same certificate name";
                        claim_proof(&mut certificates, key.clone(), (name, san.span), message, problems);
                        names.push(key);
                    }
                    Err(reason) => problems.push(not_a_san(san.span, reason)),
                }
            }
            if written.tokens.is_empty() && written.certificates.is_empty() {
                let help = "add tokens (`outgate token new` makes one) or certificates";
                let message = format!("the user {name} of the admin listener has no means of authentication");
                problems.push(Problem::at(written.span, message).help(help));
            }
            let tokens = written.tokens.iter().map(|token| token.value).collect();
            users.push(AdminUser { name: name.clone(), role: written.role, tokens, certificates: names });
        }
        check_listeners(config, problems);
        Self(users)
    }
}

/// Reports tokens that would cross a network in plaintext, and certificates that no listener asks for.
fn check_listeners(config: &Config, problems: &mut Vec<Problem>) {
    let has_token = config.admin.users.iter().find(|(_, user)| !user.tokens.is_empty());
    for bind in config.admin.listen.iter().filter(|bind| !matches!(bind.tls, BindTls::Own(_))) {
        // At run time, outgate takes a token over plaintext from loopback only, also on the sockets of systemd.
        let is_exposed = matches!(&bind.address, Listen::Tcp(address) if !address.ip().to_canonical().is_loopback());
        if is_exposed && let Some((name, user)) = has_token {
            let message = format!("users of the admin listener would send tokens in plaintext to {}", bind.address);
            let help =
                "write { address = …, tls = { certificate = …, key = … } }, or a loopback address or unix socket";
            let problem = Problem::at(bind.span, message).help(help);
            problems.push(problem.related(user.span, format!("{name} has a token")));
        }
    }
    let certificate = config.admin.users.values().find_map(|user| user.certificates.first());
    if let Some(name) = certificate
        && config::own_tls(&config.admin.listen).all(|tls| tls.client_ca.is_none())
    {
        let message = "client certificates have no effect: no admin listener has client_ca";
        let help = "add client_ca to the tls of an entry of admin.listen: the authority that issues the certificates";
        problems.push(Problem::warning(WarningCode::NoClientCa, Some(name.span), message).help(help));
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::*;
    use crate::digest::sha256;

    fn users() -> AdminUsers {
        let user = |name: &str, role, token: &[u8], certificate: &str| AdminUser {
            name: name.to_owned(),
            role,
            tokens: vec![sha256(token)],
            certificates: vec![certificate.to_owned()],
        };
        AdminUsers(vec![
            user("grafana", AdminRole::Viewer, b"one", "grafana.internal"),
            user("alice", AdminRole::Operator, b"two", "alice@acme.example"),
        ])
    }

    #[test]
    fn admin_users_are_empty_without_a_user() {
        assert!(AdminUsers::default().is_empty() && !users().is_empty());
    }

    #[test]
    fn admin_users_authenticate_by_token_certificate_or_both() {
        let basic = |text: &str| Some(format!("Basic {}", BASE64_STANDARD.encode(text)));
        let bearer = |text: &str| Some(format!("Bearer {text}"));
        for (credential, names, expected) in [
            (bearer("one"), &[][..], Ok(Some("grafana"))),
            (bearer("two"), &[], Ok(Some("alice"))),
            (basic("alice:two"), &[], Ok(Some("alice"))),
            (basic("alice:one"), &[], Err(AuthnError::Invalid)),
            (basic("grafana:two"), &[], Err(AuthnError::Invalid)),
            (basic(":two"), &[], Err(AuthnError::Invalid)),
            (bearer("three"), &[], Err(AuthnError::Invalid)),
            (bearer(""), &[], Err(AuthnError::Invalid)),
            (Some("Digest two".to_owned()), &[], Err(AuthnError::Invalid)),
            (None, &[], Ok(None)),
            (None, &["alice@acme.example"], Ok(Some("alice"))),
            (None, &["other.internal"], Ok(None)),
            (None, &["grafana.internal", "alice@acme.example"], Err(AuthnError::Conflicting)),
            (bearer("two"), &["alice@acme.example"], Ok(Some("alice"))),
            (bearer("two"), &["other.internal"], Ok(Some("alice"))),
            (bearer("two"), &["grafana.internal"], Err(AuthnError::Conflicting)),
            (bearer("three"), &["alice@acme.example"], Err(AuthnError::Invalid)),
        ] {
            let mut peer = PeerCertificate::default();
            peer.names = names.iter().map(|name| (*name).to_owned()).collect();
            let users = users();
            let found = users.authenticate(credential.as_deref().map(str::as_bytes), &peer);
            assert_eq!(found.map(|user| user.map(|user| user.name.as_str())), expected, "{credential:?}");
        }
    }
}
