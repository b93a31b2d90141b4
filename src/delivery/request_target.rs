//! What a client asks for, in any of the forms a request may take.
//! Where should this webhook go?

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::Body;

use super::ProxyRequest;
use super::record::Record;
use super::refusal::{Code, Refusal};
use crate::config::PlaintextPolicy;
use crate::host;
use crate::names::{Host, Scheme, TENANT_NAME_MAX, Target, TenantName, encode_path, invalid_target_character};
use crate::policy::authn::TunnelContext;
use crate::policy::route::Route;

pub(super) static OUTGATE_TARGET: HeaderName = HeaderName::from_static("outgate-target");
pub(super) static OUTGATE_TLS: HeaderName = HeaderName::from_static("outgate-tls");
pub(super) static OUTGATE_TENANT: HeaderName = HeaderName::from_static("outgate-tenant");

#[derive(Clone, Debug)]
pub(super) struct RequestTarget {
    scheme: Scheme,
    pub(super) host: Host,
    port: Option<u16>,
    /// As sent, byte for byte, but for characters that are percent-encoded ([`encode_path`]); `*` for an `OPTIONS` about the server as a whole.
    pub(super) path_and_query: String,
    pub(super) tenant: Option<TenantName>,
    /// `Outgate-TLS: 1`.
    wants_tls: bool,
}

impl RequestTarget {
    /// Records the host and the path as soon as they are read, whatever is wrong with the rest.
    pub(super) fn read(arrival: &ProxyRequest, record: &mut Record) -> Result<RequestTarget, Refusal> {
        if arrival.method == Method::CONNECT {
            return Self::connect(arrival, record);
        }
        let ProxyRequest { method, fields, caller, .. } = arrival;
        let inside = caller.inside.as_ref();
        let wants_tls = wants_tls(fields);
        let ask =
            url(arrival, inside).and_then(|url| parse_url(&url, method).inspect_err(|_| record_readable(&url, record)));
        // Inside of a tunnel the CONNECT has chosen the scheme.
        let is_upgraded = inside.is_none() && matches!(wants_tls, Ok(true));
        let ask = ask.map(|ask| RequestTarget { wants_tls: is_upgraded, ..ask });
        ask.iter().for_each(|ask| record.target(&ask.as_written(), Some(ask.path())));
        let ask = ask?;
        is_forwarded(method)?;
        wants_tls?;
        match inside {
            None => Ok(RequestTarget { tenant: tenant(fields)?, ..ask }),
            Some(inside) if ask.as_written() == inside.target => {
                Ok(RequestTarget { tenant: tenant_inside(fields, inside.tenant.as_ref())?, ..ask })
            }
            Some(_) => Err(Refusal::malformed("the request is for another host than the tunnel")),
        }
    }

    /// A CONNECT has a host and a port, and nothing else (RFC 9112 §3.2.3); what its `Host` says differs from client to
    /// client.
    fn connect(arrival: &ProxyRequest, record: &mut Record) -> Result<RequestTarget, Refusal> {
        let ask = parse_tunnel(&arrival.target);
        ask.iter().for_each(|ask| record.target(&ask.as_written(), None));
        if !arrival.body.is_end_stream() {
            return Err(Refusal::malformed("a CONNECT has no body"));
        }
        if arrival.caller.inside.is_some() {
            return Err(Refusal::new(Code::TunnelForbidden, "no tunnel inside of a tunnel"));
        }
        Ok(RequestTarget { tenant: tenant(&arrival.fields)?, ..ask? })
    }

    /// Records where a request is for that is refused before its fields are read.
    pub(super) fn record(method: &Method, target: &str, record: &mut Record) {
        if let Ok(ask) = Self::of(method, target, None) {
            let path = (*method != Method::CONNECT).then(|| ask.path());
            record.target(&ask.as_written(), path);
        } else {
            record_readable(target, record);
        }
    }

    /// Returns the target as the client has it, before a route says more.
    fn as_written(&self) -> Target {
        let scheme = if self.wants_tls { Scheme::Https } else { self.scheme };
        Target { scheme, host: self.host.clone(), port: self.port.unwrap_or(scheme.default_port()) }
    }

    /// Of a CONNECT.
    pub(super) fn authority(&self) -> (&Host, u16) {
        (&self.host, self.port.unwrap_or(Scheme::Https.default_port()))
    }

    /// The same for a URL alone, or what a CONNECT names, as `explain` has it.
    pub(super) fn of(method: &Method, target: &str, tenant: Option<TenantName>) -> Result<RequestTarget, Refusal> {
        let ask = if method == Method::CONNECT { parse_tunnel(target)? } else { parse_url(target, method)? };
        is_forwarded(method)?;
        Ok(RequestTarget { tenant: tenant.map(sized).transpose()?, ..ask })
    }

    /// Where the onward hop goes, under the route's stance on plaintext. An upgraded hop goes to port 443 unless a
    /// port was named.
    pub(super) fn target(&self, route: &Route) -> Result<Target, Refusal> {
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

    pub(super) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

/// Returns the URL that a request asks for. Inside of a tunnel every request is for the tunnel's host.
fn url<'a>(arrival: &'a ProxyRequest, inside: Option<&TunnelContext>) -> Result<Cow<'a, str>, Refusal> {
    let (target, named) = (arrival.target.as_str(), single(&arrival.fields, &OUTGATE_TARGET)?);
    let Some(inside) = inside else {
        return match (target.starts_with('/'), named) {
            (false, None) => Ok(target.into()),
            (true, Some(url)) => Ok(url.into()),
            (true, None) => Err(Refusal::malformed(
                "a proxy needs an absolute target: use absolute-form, or name it in Outgate-Target",
            )),
            (false, Some(_)) => Err(Refusal::malformed("Outgate-Target goes with a request target that starts with /")),
        };
    };
    if named.is_some() {
        return Err(Refusal::malformed("Outgate-Target has no place inside of a tunnel"));
    }
    let own = |path: &str| {
        let host = single(&arrival.fields, &header::HOST)?.unwrap_or_default();
        Ok(format!("{}://{host}{path}", inside.target.scheme.as_str()).into())
    };
    match target {
        "*" if arrival.method == Method::OPTIONS => own(""),
        path if path.starts_with('/') => own(path),
        url => Ok(url.into()),
    }
}

/// The only value of a field, as text.
fn single<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = fields.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(Some).map_err(|_| Refusal::malformed(format!("{name} is not plain text")))
        }
        (Some(_), Some(_)) => Err(Refusal::malformed(format!("{name} is given more than once"))),
    }
}

fn wants_tls(fields: &HeaderMap) -> Result<bool, Refusal> {
    match single(fields, &OUTGATE_TLS)? {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(Refusal::malformed("Outgate-TLS is 1 or 0")),
    }
}

fn tenant(fields: &HeaderMap) -> Result<Option<TenantName>, Refusal> {
    single(fields, &OUTGATE_TENANT)?.map(|name| sized(TenantName::new(name))).transpose()
}

/// Returns the tenant of a request inside of a tunnel: the one that its CONNECT named, or the request itself does. Senders
/// that open the tunnel unasked, as undici does for every URL, put the field on the request alone.
fn tenant_inside(fields: &HeaderMap, of_tunnel: Option<&TenantName>) -> Result<Option<TenantName>, Refusal> {
    match (tenant(fields)?, of_tunnel) {
        (Some(own), Some(of_tunnel)) if own != *of_tunnel => {
            Err(Refusal::malformed("Outgate-Tenant differs from that of the tunnel's CONNECT"))
        }
        (own, of_tunnel) => Ok(own.or_else(|| of_tunnel.cloned())),
    }
}

fn sized(tenant: TenantName) -> Result<TenantName, Refusal> {
    match tenant.as_str().len() {
        1..=TENANT_NAME_MAX => Ok(tenant),
        _ => Err(Refusal::malformed(format!("Outgate-Tenant is a name of at most {TENANT_NAME_MAX} characters"))),
    }
}

fn is_forwarded(method: &Method) -> Result<(), Refusal> {
    // Methods are case-sensitive (RFC 9110 §9.1), but not to every server.
    if method.as_str().eq_ignore_ascii_case(Method::TRACE.as_str()) {
        // It would echo what the client sent to us, credentials included (RFC 9110 §9.3.8).
        return Err(Refusal::new(Code::ClientForbidden, "TRACE is not forwarded"));
    }
    Ok(())
}

/// The authority-form (RFC 9112 §3.2.3).
fn parse_tunnel(authority: &str) -> Result<RequestTarget, Refusal> {
    let (host, port) = parse_authority(authority)?;
    if port.is_none() {
        return Err(Refusal::malformed("a CONNECT names a host and a port"));
    }
    let path_and_query = String::new();
    Ok(RequestTarget { scheme: Scheme::Https, host, port, path_and_query, tenant: None, wants_tls: false })
}

/// An http or https URL. Of its path and query nothing changes (RFC 9110 §7.7) but characters that may not stand there:
/// they are percent-encoded, for no receiver is to depend on which of them the libraries on the way let through.
fn parse_url(url: &str, method: &Method) -> Result<RequestTarget, Refusal> {
    if let Some(why) = invalid_target_character(url) {
        return Err(Refusal::malformed(why));
    }
    let (scheme, host, port, path) = split_url(url)?;
    // RFC 9110 §4.2.3: the default port and none are the same, and the upgraded hop of either goes to port 443.
    let port = port.filter(|port| *port != scheme.default_port());
    let path = &*encode_path(path);
    let path_and_query = match path {
        // RFC 9112 §3.2.4: the last proxy turns this into the asterisk-form.
        "" if method == Method::OPTIONS => "*".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    if path_and_query != "*" && path_and_query.parse::<PathAndQuery>().is_err() {
        return Err(Refusal::malformed("a character that may not stand in a path or query"));
    }
    Ok(RequestTarget { scheme, host, port, path_and_query, tenant: None, wants_tls: false })
}

/// The scheme, the host, the port, and what follows them.
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

/// Records the host and the path of a URL that is refused, where they can be read. A query or a fragment is never recorded.
fn record_readable(url: &str, record: &mut Record) {
    if let Ok((scheme, host, port, path)) = split_url(url) {
        let target = Target { scheme, host, port: port.unwrap_or(scheme.default_port()) };
        record.target(&target, path.split(['?', '#']).next());
    }
}

fn parse_authority(authority: &str) -> Result<(Host, Option<u16>), Refusal> {
    if authority.contains('@') {
        // RFC 9110 §4.2.4: userinfo in a target is how one host is made to look like another.
        return Err(Refusal::malformed("the target must not carry a user name or password"));
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
        host::canonical(host).map_err(|fault| Refusal::malformed(format!("the target's host is refused: {fault}")))?;
    Ok((host, port))
}

/// Returns how many proxies may still forward an `OPTIONS` request (RFC 9110 §7.6.2). With 0 left it is for outgate itself.
pub(super) fn max_forwards(method: &Method, fields: &HeaderMap) -> Result<Option<u64>, Refusal> {
    if method != Method::OPTIONS {
        return Ok(None);
    }
    let Some(value) = single(fields, &header::MAX_FORWARDS)? else { return Ok(None) };
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::malformed("Max-Forwards is not a number"));
    }
    // A number too large for this type is as good as its largest.
    Ok(Some(value.parse().unwrap_or(u64::MAX)))
}

/// Counts `Max-Forwards` down, as a proxy must that forwards the request.
pub(super) fn count_forward(method: &Method, fields: &mut HeaderMap) {
    if let Ok(Some(left)) = max_forwards(method, fields) {
        fields.insert(header::MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> Option<(Scheme, String, Option<u16>, String)> {
        let ask = parse_url(url, &Method::POST).ok()?;
        Some((ask.scheme, ask.host.to_string(), ask.port, ask.path_and_query))
    }

    #[test]
    fn urls_are_read_and_their_paths_left_alone() {
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

    #[test]
    fn what_is_not_a_target_is_refused() {
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

    #[test]
    fn max_forwards_is_read_and_counted_down() {
        let fields =
            |value: &'static str| HeaderMap::from_iter([(header::MAX_FORWARDS, HeaderValue::from_static(value))]);
        assert_eq!(max_forwards(&Method::OPTIONS, &fields("0")).unwrap(), Some(0));
        let mut two = fields("2");
        count_forward(&Method::OPTIONS, &mut two);
        assert_eq!(two[header::MAX_FORWARDS], "1");
        for wrong in ["x", "", "+5", "-1", "1 2"] {
            assert!(max_forwards(&Method::OPTIONS, &fields(wrong)).is_err(), "{wrong}");
        }
        let huge = fields("99999999999999999999999");
        assert_eq!(max_forwards(&Method::OPTIONS, &huge).unwrap(), Some(u64::MAX));
        assert_eq!(max_forwards(&Method::POST, &fields("0")).unwrap(), None);
    }
}
