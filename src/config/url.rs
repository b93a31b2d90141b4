//! Parses the URL of a server that outgate itself calls.
//! Which server does a URL name, and which path on it?

use http::Uri;
use http::uri::PathAndQuery;

use crate::host;
use crate::names::{Scheme, Target};

/// Parses an absolute URL of http or https. The error is the reason why a text is none.
pub fn parse_url(text: &str) -> Result<(Target, PathAndQuery), &'static str> {
    if text.contains('#') {
        return Err("the URL has a fragment, which is never sent");
    }
    let uri: Uri = text.parse().map_err(|_| "the text is not a URL")?;
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err("the URL begins with neither https:// nor http://"),
    };
    let authority = uri.authority().ok_or("the URL has no host")?;
    if authority.as_str().contains('@') {
        return Err("the URL has a user name or password");
    }
    let port = match authority.as_str().strip_prefix(authority.host()) {
        None | Some("" | ":") => scheme.default_port(),
        Some(_) => authority.port_u16().filter(|port| *port != 0).ok_or("the port is not a number from 1 to 65535")?,
    };
    let host = host::canonical(authority.host()).map_err(|_| "the host is not a host name")?;
    let path_and_query = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Ok((Target { scheme, host, port }, path_and_query))
}
