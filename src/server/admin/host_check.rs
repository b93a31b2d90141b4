//! The names of the admin listener in `Host`, over TCP.
//! How is the admin port protected from DNS rebinding?

use std::collections::BTreeSet;

use http::uri::Authority;
use http::{Request, StatusCode, Version, header};

use super::problem::AdminProblem;
use crate::host;
use crate::names::Host;

/// Accepts a request only if its `Host` is an address, `localhost` or a name of `admin.hosts`. After DNS rebinding, a
/// browser sends the name of the attacker's page, which resolves to this host.
pub(super) fn check_host<B>(request: &Request<B>, allowed: &BTreeSet<Host>) -> Result<(), AdminProblem> {
    let mut host_fields = request.headers().get_all(header::HOST).iter();
    let field = match (host_fields.next(), host_fields.next()) {
        (Some(host), None) => Some(host.as_bytes()),
        // RFC 9112 §3.2. No browser speaks HTTP/1.0.
        (None, None) if request.version() == Version::HTTP_10 => None,
        _ => return Err(AdminProblem::new(StatusCode::BAD_REQUEST, "exactly one Host is required")),
    };
    // The request target in absolute form takes precedence over the field (RFC 9112 §3.2.2).
    let mut authorities =
        field.into_iter().chain(request.uri().authority().map(|authority| authority.as_str().as_bytes()));
    authorities.try_for_each(|name| check_authority(name, allowed))
}

fn check_authority(name: &[u8], allowed: &BTreeSet<Host>) -> Result<(), AdminProblem> {
    let authority = Authority::try_from(name).ok();
    let host = authority.as_ref().and_then(|authority| host::canonical(authority.host()).ok());
    match host {
        Some(Host::Ip(_)) => Ok(()),
        Some(host) if host.to_string() == "localhost" || allowed.contains(&host) => Ok(()),
        _ => {
            let name = String::from_utf8_lossy(name);
            let message = format!(
                "{name:?} is not a name of this admin listener: use its address, or add the name to admin.hosts"
            );
            Err(AdminProblem::new(StatusCode::MISDIRECTED_REQUEST, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_host_check_takes_addresses_localhost_and_names_of_admin_hosts() {
        let allowed = BTreeSet::from([host::canonical("outgate.internal").unwrap()]);
        let status = |host: &str| {
            let request = Request::get("/metrics").header(header::HOST, host).body(()).unwrap();
            check_host(&request, &allowed).err().map(|problem| problem.status().as_u16())
        };
        for host in ["127.0.0.1", "127.0.0.1:4751", "[::1]:4751", "localhost:1", "LOCALHOST", "outgate.internal:4751"] {
            assert_eq!(status(host), None, "{host}");
        }
        for host in ["rebound.example", "rebound.example:4751", "127.0.0.1.example", "localhost.example", "", "a b"] {
            assert_eq!(status(host), Some(421), "{host}");
        }
        let absolute = Request::get("http://rebound.example/").header(header::HOST, "localhost").body(()).unwrap();
        assert!(check_host(&absolute, &allowed).is_err());
        assert_eq!(check_host(&Request::get("/").body(()).unwrap(), &allowed).unwrap_err().status().as_u16(), 400);
        let old = Request::get("/").version(Version::HTTP_10).body(()).unwrap();
        assert!(check_host(&old, &allowed).is_ok());
    }
}
