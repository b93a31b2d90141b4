//! The target that a client asks for, in each form that a request may have.
//! Which scheme, host, port, path and tenant does this request name?

use std::borrow::Cow;

use http::{HeaderName, Method, header};
use http_body::Body;

use super::ProxyRequest;
use crate::config::PlaintextPolicy;
use crate::delivery::refusal::{Code, Refusal};
use crate::host;
use crate::http_message::{Fields, SharedText};
use crate::names::{Host, Scheme, TENANT_NAME_MAX, Target, TenantName, encode_path, invalid_target_character};
use crate::policy::authn::TunnelContext;
use crate::policy::route::Route;

static OUTGATE_TARGET: HeaderName = HeaderName::from_static("outgate-target");
static OUTGATE_TLS: HeaderName = HeaderName::from_static("outgate-tls");
static OUTGATE_TENANT: HeaderName = HeaderName::from_static("outgate-tenant");

#[derive(Clone, Debug)]
pub(in crate::delivery) struct RequestTarget {
    scheme: Scheme,
    pub(in crate::delivery) host: Host,
    port: Option<u16>,
    /// The bytes that the client sent, except for characters that [`encode_path`] encodes. `*`: an `OPTIONS` request
    /// about the server as a whole.
    pub(in crate::delivery) path_and_query: SharedText,
    pub(in crate::delivery) tenant: Option<TenantName>,
    /// The client sent `Outgate-TLS: 1`.
    wants_tls: bool,
}

/// A request target that is refused.
pub(in crate::delivery) struct InvalidTarget {
    pub(in crate::delivery) refusal: Refusal,
    /// The target and the path, if they can be read. The record of the refused request has them.
    pub(in crate::delivery) readable: Option<ReadableTarget>,
}

/// A target and its path, without the query. A CONNECT has no path.
pub(in crate::delivery) type ReadableTarget = (Target, Option<SharedText>);

impl From<Refusal> for InvalidTarget {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, readable: None }
    }
}

impl RequestTarget {
    /// Reads the target of a request.
    pub(in crate::delivery) fn read(request: &ProxyRequest) -> Result<Self, InvalidTarget> {
        if request.method == Method::CONNECT {
            return Self::read_connect(request);
        }
        let tunnel = request.caller.tunnel();
        let wants_tls = wants_tls(&request.fields);
        let url = url(request, tunnel)?;
        let parsed = parse_url(&url, &request.method)
            .map_err(|refusal| InvalidTarget { refusal, readable: readable_url(&url) })?;
        // Inside a tunnel, the CONNECT has chosen the scheme.
        let is_upgraded = tunnel.is_none() && matches!(wants_tls, Ok(true));
        let parsed = RequestTarget { wants_tls: is_upgraded, ..parsed };
        match parsed.check(request, wants_tls) {
            Ok(tenant) => Ok(RequestTarget { tenant, ..parsed }),
            Err(refusal) => {
                let readable = Some((parsed.requested(), Some(parsed.shared_path())));
                Err(InvalidTarget { refusal, readable })
            }
        }
    }

    /// Checks the rest of the request's head, and returns the tenant that it names.
    fn check(&self, request: &ProxyRequest, wants_tls: Result<bool, Refusal>) -> Result<Option<TenantName>, Refusal> {
        check_method(&request.method)?;
        wants_tls?;
        match request.caller.tunnel() {
            None => tenant(&request.fields),
            Some(tunnel) if self.requested() == *tunnel.target() => tenant_inside(&request.fields, tunnel.tenant()),
            Some(_) => Err(Refusal::malformed("the request is for another host than the tunnel")),
        }
    }

    /// Reads the authority-form of a CONNECT (RFC 9112 §3.2.3). Clients differ in the `Host` that they send with it.
    fn read_connect(request: &ProxyRequest) -> Result<Self, InvalidTarget> {
        match (check_connect(request), parse_connect_target(&request.target)) {
            (Ok(tenant), Ok(parsed)) => Ok(RequestTarget { tenant, ..parsed }),
            (Err(refusal), Ok(parsed)) => Err(InvalidTarget { refusal, readable: Some((parsed.requested(), None)) }),
            (Err(refusal), Err(_)) | (Ok(_), Err(refusal)) => Err(refusal.into()),
        }
    }

    /// Reads a URL, or the host and port of a CONNECT, without the fields of a request.
    pub(in crate::delivery) fn parse(
        method: &Method,
        target: &str,
        tenant: Option<TenantName>,
    ) -> Result<Self, Refusal> {
        let parsed = if method == Method::CONNECT { parse_connect_target(target)? } else { parse_url(target, method)? };
        check_method(method)?;
        Ok(RequestTarget { tenant: tenant.map(check_tenant_length).transpose()?, ..parsed })
    }

    /// Returns the target as the client asks for it. A route may upgrade it to https.
    pub(in crate::delivery) fn requested(&self) -> Target {
        let scheme = if self.wants_tls { Scheme::Https } else { self.scheme };
        Target { scheme, host: self.host.clone(), port: self.port.unwrap_or(scheme.default_port()) }
    }

    /// Returns the host and port of a CONNECT.
    pub(in crate::delivery) fn authority(&self) -> (&Host, u16) {
        (&self.host, self.port.unwrap_or(Scheme::Https.default_port()))
    }

    /// Returns the target of the upstream request under the route's policy for plaintext. An upgraded request goes to
    /// port 443 unless the client named a port.
    pub(in crate::delivery) fn upstream_target(&self, route: &Route) -> Result<Target, Refusal> {
        let upgraded = self.wants_tls || route.plaintext == PlaintextPolicy::Upgrade;
        let scheme = if upgraded { Scheme::Https } else { self.scheme };
        if scheme == Scheme::Http && route.plaintext != PlaintextPolicy::Allow {
            return Err(Refusal::new(
                Code::PlaintextForbidden,
                "the route does not allow plaintext http: use an https URL, or send Outgate-TLS: 1",
            ));
        }
        Ok(Target { scheme, host: self.host.clone(), port: self.port.unwrap_or(scheme.default_port()) })
    }

    pub(in crate::delivery) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }

    /// Returns the path in the memory of the path and query.
    pub(in crate::delivery) fn shared_path(&self) -> SharedText {
        self.path_and_query.before('?')
    }
}

/// Returns the target and the path of a request that is refused before its fields are read.
pub(in crate::delivery) fn readable(method: &Method, target: &str) -> Option<ReadableTarget> {
    match RequestTarget::parse(method, target, None) {
        Ok(parsed) => {
            let path = (*method != Method::CONNECT).then(|| parsed.shared_path());
            Some((parsed.requested(), path))
        }
        Err(_) => readable_url(target),
    }
}

/// Returns the target and the path of a URL that is refused. They never contain a query or a fragment.
fn readable_url(url: &str) -> Option<ReadableTarget> {
    let (scheme, host, port, path) = split_url(url).ok()?;
    let target = Target { scheme, host, port: port.unwrap_or(scheme.default_port()) };
    Some((target, path.split(['?', '#']).next().map(SharedText::from)))
}

/// Checks the head of a CONNECT, and returns the tenant that it names.
fn check_connect(request: &ProxyRequest) -> Result<Option<TenantName>, Refusal> {
    if !request.body.is_end_stream() {
        return Err(Refusal::malformed("a CONNECT must not have a body"));
    }
    if request.caller.tunnel().is_some() {
        return Err(Refusal::new(Code::TunnelForbidden, "a tunnel must not contain another CONNECT"));
    }
    tenant(&request.fields)
}

/// Returns the URL that a request asks for. Inside a tunnel, every request is for the tunnel's host.
fn url<'a>(request: &'a ProxyRequest, tunnel: Option<&TunnelContext>) -> Result<Cow<'a, str>, Refusal> {
    let (target, outgate_target) = (request.target.as_str(), single_value(&request.fields, &OUTGATE_TARGET)?);
    let Some(tunnel) = tunnel else {
        return match (target.starts_with('/'), outgate_target) {
            (false, None) => Ok(target.into()),
            (true, Some(url)) => Ok(url.into()),
            (true, None) => Err(Refusal::malformed(
                "the request target is not absolute: use absolute-form, or write the URL in Outgate-Target",
            )),
            (false, Some(_)) => Err(Refusal::malformed("Outgate-Target requires a request target that starts with /")),
        };
    };
    if outgate_target.is_some() {
        return Err(Refusal::malformed("Outgate-Target is not allowed inside a tunnel"));
    }
    let origin_form = |path: &str| {
        let host = single_value(&request.fields, &header::HOST)?.unwrap_or_default();
        Ok(format!("{}://{host}{path}", tunnel.target().scheme.as_str()).into())
    };
    match target {
        "*" if request.method == Method::OPTIONS => origin_form(""),
        path if path.starts_with('/') => origin_form(path),
        url => Ok(url.into()),
    }
}

/// Returns the only value of a field, as text.
pub(super) fn single_value<'a>(fields: &'a Fields, name: &'a HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = fields.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| Refusal::malformed(format!("{name} has a character other than visible ASCII"))),
        (Some(_), Some(_)) => Err(Refusal::malformed(format!("the request has more than one {name}"))),
    }
}

fn wants_tls(fields: &Fields) -> Result<bool, Refusal> {
    match single_value(fields, &OUTGATE_TLS)? {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(Refusal::malformed("Outgate-TLS must be 1 or 0")),
    }
}

fn tenant(fields: &Fields) -> Result<Option<TenantName>, Refusal> {
    single_value(fields, &OUTGATE_TENANT)?.map(|name| check_tenant_length(TenantName::new(name))).transpose()
}

/// Returns the tenant of a request inside a tunnel: the one that its CONNECT or the request itself names. Some clients,
/// such as undici, open a tunnel for every URL and send the field in the inner request only.
fn tenant_inside(fields: &Fields, of_tunnel: Option<&TenantName>) -> Result<Option<TenantName>, Refusal> {
    match (tenant(fields)?, of_tunnel) {
        (Some(own), Some(of_tunnel)) if own != *of_tunnel => {
            Err(Refusal::malformed("Outgate-Tenant differs from that of the tunnel's CONNECT"))
        }
        (own, of_tunnel) => Ok(own.or_else(|| of_tunnel.cloned())),
    }
}

fn check_tenant_length(tenant: TenantName) -> Result<TenantName, Refusal> {
    match tenant.as_str().len() {
        1..=TENANT_NAME_MAX => Ok(tenant),
        _ => Err(Refusal::malformed(format!("Outgate-Tenant must have 1 to {TENANT_NAME_MAX} characters"))),
    }
}

fn check_method(method: &Method) -> Result<(), Refusal> {
    // Methods are case-sensitive (RFC 9110 §9.1), but some servers compare them without case.
    if method.as_str().eq_ignore_ascii_case(Method::TRACE.as_str()) {
        // A target would echo the request, credentials included (RFC 9110 §9.3.8).
        return Err(Refusal::new(Code::ClientForbidden, "TRACE is not forwarded"));
    }
    Ok(())
}

/// Reads the authority-form (RFC 9112 §3.2.3).
fn parse_connect_target(authority: &str) -> Result<RequestTarget, Refusal> {
    let (host, port) = parse_authority(authority)?;
    if port.is_none() {
        return Err(Refusal::malformed("a CONNECT must name a host and a port"));
    }
    let path_and_query = "".into();
    Ok(RequestTarget { scheme: Scheme::Https, host, port, path_and_query, tenant: None, wants_tls: false })
}

/// Reads an http or https URL. Its path and query stay as they are (RFC 9110 §7.7), except for characters that may not
/// occur in them: these are percent-encoded, because libraries differ in which of them they accept.
fn parse_url(url: &str, method: &Method) -> Result<RequestTarget, Refusal> {
    if let Some(reason) = invalid_target_character(url) {
        return Err(Refusal::malformed(reason));
    }
    let (scheme, host, port, path) = split_url(url)?;
    // RFC 9110 §4.2.3: the default port equals no port, and the upgraded request of either goes to port 443.
    let port = port.filter(|port| *port != scheme.default_port());
    let path = &*encode_path(path);
    let path_and_query = match path {
        // RFC 9112 §3.2.4: the last proxy turns this into the asterisk-form.
        "" if method == Method::OPTIONS => "*".into(),
        path if path.starts_with('/') => path.into(),
        path => format!("/{path}").into(),
    };
    Ok(RequestTarget { scheme, host, port, path_and_query, tenant: None, wants_tls: false })
}

/// Splits a URL into its scheme, host, port, and the rest.
fn split_url(url: &str) -> Result<(Scheme, Host, Option<u16>, &str), Refusal> {
    let (scheme, rest) =
        url.split_once("://").ok_or_else(|| Refusal::malformed("the target is not an absolute URL"))?;
    let scheme = if scheme.eq_ignore_ascii_case("https") {
        Scheme::Https
    } else if scheme.eq_ignore_ascii_case("http") {
        Scheme::Http
    } else {
        return Err(Refusal::malformed("the target's scheme is neither https nor http"));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = parse_authority(authority)?;
    Ok((scheme, host, port, path))
}

fn parse_authority(authority: &str) -> Result<(Host, Option<u16>), Refusal> {
    if authority.contains('@') {
        // RFC 9110 §4.2.4: userinfo can make one host look like another.
        return Err(Refusal::malformed("the target must not have a user name or password"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None | Some("") => None,
        Some(text) => Some(
            text.parse()
                .ok()
                .filter(|port| *port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| Refusal::malformed("the target's port is not a number from 1 to 65535"))?,
        ),
    };
    let host =
        host::canonical(host).map_err(|error| Refusal::malformed(format!("the target's host is refused: {error}")))?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> Option<(Scheme, String, Option<u16>, String)> {
        let target = parse_url(url, &Method::POST).ok()?;
        Some((target.scheme, target.host.to_string(), target.port, target.path_and_query.to_string()))
    }

    #[test]
    fn request_target_keeps_the_path_of_a_url() {
        let https = |host: &str, port, path: &str| Some((Scheme::Https, host.to_owned(), port, path.to_owned()));
        assert_eq!(parts("https://Hooks.Example/in?a=b%2F//../c"), https("hooks.example", None, "/in?a=b%2F//../c"));
        assert_eq!(parts("HTTPS://hooks.example:8443"), https("hooks.example", Some(8443), "/"));
        assert_eq!(parts("https://hooks.example?x"), https("hooks.example", None, "/?x"));
        assert_eq!(parts("https://[2001:db8::1]:8443/"), https("[2001:db8::1]", Some(8443), "/"));
        assert_eq!(parts("https://hooks.example:/"), https("hooks.example", None, "/"));
        assert_eq!(parts("https://hooks.example:443/"), https("hooks.example", None, "/"));
        assert_eq!(parts("https://hooks.example:80/"), https("hooks.example", Some(80), "/"));
        let encoded = "/%3C%3E%22%7B%7D%7C%5E%60?%3C%3E%22%7B%7D%7C%5E%60%7b";
        assert_eq!(parts("https://hooks.example/<>\"{}|^`?<>\"{}|^`%7b"), https("hooks.example", None, encoded));
    }

    /// HTTP/2 needs the path as a part of a URI.
    #[test]
    fn path_of_every_accepted_character_is_one_of_a_uri() {
        for character in (0..=0x7f).map(char::from) {
            for url in [format!("https://h/{character}x"), format!("https://h/?{character}x")] {
                if let Some((.., path)) = parts(&url) {
                    assert!(path.parse::<http::uri::PathAndQuery>().is_ok(), "{url:?}");
                }
            }
        }
    }

    #[test]
    fn request_target_refuses_malformed_urls() {
        for url in [
            "http:/x",
            "http://",
            "https://",
            "https:///x",
            "ftp://h/",
            "h:443",
            "*",
            "https://u:p@h/",
            "https://u@h/",
            "https://h:0/",
            "https://h:99999/",
            "https://h:+1/",
            "https://h:a/",
            "https://h/#f",
            "https://h\\@x/",
            "https://127.1/",
            "https://[::1%25lo]/",
            "https://h /",
            "https://h{}/",
            "https://h|/",
        ] {
            assert!(parts(url).is_none(), "{url}");
        }
    }
}
