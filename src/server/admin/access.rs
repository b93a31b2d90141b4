//! The caller of the admin listener: a user of this host on a unix socket, or a user of `[admin.users]` over TCP.
//! Who calls, and may this caller read or change the proxy?

use std::net::SocketAddr;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::super::auxiliary::{Remote, ServiceConnection};
use super::problem::AdminProblem;
use crate::audit::{Actor, Source};
use crate::config::AdminRole;
use crate::net::peer::Peer;
use crate::policy::Plan;
use crate::state::config::status::ReloadSource;

/// An identified caller.
pub(super) enum AdminCaller {
    /// A process of this host. The permissions of the socket admitted it.
    Local(Peer),
    Remote {
        name: String,
        role: AdminRole,
        address: SocketAddr,
    },
}

impl AdminCaller {
    pub(super) fn role(&self) -> AdminRole {
        match self {
            Self::Local(_) => AdminRole::Operator,
            Self::Remote { role, .. } => *role,
        }
    }

    pub(super) fn reload_source(&self) -> ReloadSource {
        match self {
            Self::Local(Peer { name, uid, pid }) => ReloadSource::User { name: name.clone(), uid: *uid, pid: *pid },
            Self::Remote { name, address, .. } => {
                ReloadSource::RemoteUser { name: name.clone(), address: address.ip() }
            }
        }
    }

    pub(super) fn actor(&self) -> Actor {
        let (name, address) = match self {
            Self::Local(peer) => (peer.name.clone().unwrap_or_else(|| format!("uid {}", peer.uid)), None),
            Self::Remote { name, address, .. } => (name.clone(), Some(address.ip())),
        };
        Actor { source: Source::Admin, name: Some(name), address }
    }
}

impl ServiceConnection {
    /// Returns the caller of a request with these fields.
    pub(super) fn identify(
        &self,
        plan: &Plan,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<AdminCaller, AdminProblem> {
        let unauthorized = |detail: String| AdminProblem::new(StatusCode::UNAUTHORIZED, detail);
        let (address, certificate) = match &self.remote {
            Remote::Unix(Some(peer)) => return Ok(AdminCaller::Local(peer.clone())),
            Remote::Unix(None) => return Err(unauthorized("the kernel does not name the process that calls".into())),
            Remote::Tcp { address, certificate } => (*address, certificate),
        };
        let mut fields = headers.get_all(header::AUTHORIZATION).iter();
        let credential = fields.next();
        if fields.next().is_some() {
            return Err(unauthorized("the request has more than one Authorization".into()));
        }
        if credential.is_some() && certificate.is_none() && !address.ip().to_canonical().is_loopback() {
            let detail = "the token crossed a network in plaintext: replace it, and call a listener with TLS";
            return Err(AdminProblem::new(StatusCode::FORBIDDEN, detail));
        }
        let certificate = certificate.clone().unwrap_or_default();
        plan.listener
            .recheck_certificate(&certificate, Some(&self.listen), now)
            .map_err(|error| unauthorized(error.to_string()))?;
        let found = plan.admin_users.authenticate(credential.map(|value| value.as_bytes()), &certificate);
        match found.map_err(|error| unauthorized(error.to_string()))? {
            Some(user) => Ok(AdminCaller::Remote { name: user.name.clone(), role: user.role, address }),
            None if plan.admin_users.is_empty() => Err(unauthorized(
                "the configuration has no [admin.users.NAME]: call a unix socket of admin.listen".into(),
            )),
            None => Err(unauthorized("a token or a client certificate of [admin.users.NAME] is required".into())),
        }
    }
}
