//! A request whose components are signed, as the client sent it or as outgate forwards it.
//! Which value has each component?

use std::borrow::Cow;

use http::{HeaderName, Method, header};

use crate::http_message::Fields;

/// Request fields that a proxy removes or changes in any case (RFC 9110 §7.6.1, §7.6.2, §10.1.1). `Proxy-Authorization`
/// is not among them: like every `Outgate-` field, it is for this proxy.
const OF_THIS_HOP: [&str; 10] = [
    "connection",
    "expect",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Returns whether a field, in lower case, belongs to one hop: the target receives another field of this name or none.
pub(crate) fn is_of_one_hop(name: &str) -> bool {
    OF_THIS_HOP.contains(&name)
}

/// The parts of a request that signatures cover, byte for byte.
#[derive(Clone, Copy)]
pub struct SignableRequest<'a> {
    pub method: &'a Method,
    /// The request target, in absolute-form or origin-form.
    pub target: &'a str,
    pub fields: &'a Fields,
    /// Whether a body follows; it may be empty.
    pub has_body: bool,
}

impl<'a> SignableRequest<'a> {
    /// Returns the scheme of the target. `None` in origin-form, where a field names the target.
    pub(crate) fn scheme(&self) -> Option<&'a str> {
        self.split_absolute().map(|(scheme, _)| scheme)
    }

    /// Returns the authority of an absolute-form target, else of `Host`, in lower case without the default port (RFC
    /// 9421 §2.2.3). The authority of a CONNECT is its target, since clients differ in its `Host`.
    pub(crate) fn authority(&self) -> Option<String> {
        if *self.method == Method::CONNECT {
            return Some(self.target.to_ascii_lowercase());
        }
        let Some((scheme, rest)) = self.split_absolute() else { return self.host() };
        let authority = rest.split(['/', '?']).next().unwrap_or_default().to_ascii_lowercase();
        let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        let short = authority.strip_suffix(default).or_else(|| authority.strip_suffix(':'));
        Some(short.map(str::to_owned).unwrap_or(authority))
    }

    /// Returns whether `Host` matches an absolute-form target, as RFC 9112 §3.2.2 requires.
    pub(crate) fn host_matches_target(&self) -> bool {
        let Some(scheme) = self.scheme() else { return true };
        let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        let host = self.host();
        let host = host.as_deref().map(|host| host.strip_suffix(default).unwrap_or(host));
        host == self.authority().as_deref()
    }

    /// Returns whether `Connection` lists the field, in lower case (RFC 9110 §7.6.1), so that it is not forwarded.
    /// Signatures rarely cover `Connection`, so anyone on the path could add it.
    pub(crate) fn is_removed_by_connection(&self, name: &str) -> bool {
        has_connection_option(self.fields, &header::CONNECTION, name)
    }

    fn host(&self) -> Option<String> {
        self.fields.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_ascii_lowercase)
    }

    /// Returns the path; an empty path is `/` (RFC 9421 §2.2.6).
    pub(crate) fn path(&self) -> &'a str {
        let path = self.path_and_query().split('?').next().unwrap_or_default();
        if path.is_empty() { "/" } else { path }
    }

    pub(crate) fn query(&self) -> Option<&'a str> {
        self.path_and_query().split_once('?').map(|(_, query)| query)
    }

    fn path_and_query(&self) -> &'a str {
        let Some((_, rest)) = self.split_absolute() else { return self.target };
        &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
    }

    fn split_absolute(&self) -> Option<(&'a str, &'a str)> {
        if self.target.starts_with('/') { None } else { self.target.split_once("://") }
    }

    /// Returns the value of a derived component or a field (RFC 9421 §2).
    pub(crate) fn component(&self, name: &str) -> Result<Cow<'a, str>, &'static str> {
        const OWN_SCHEME: &str =
            "a request to this proxy itself has no scheme to cover: cover @authority, @path, @query";
        Ok(match name {
            "@method" => self.method.as_str().into(),
            "@target-uri" if self.scheme().is_none() => return Err(OWN_SCHEME),
            "@target-uri" | "@request-target" => self.target.into(),
            "@scheme" => self.scheme().ok_or(OWN_SCHEME)?.to_ascii_lowercase().into(),
            "@authority" => self.authority().ok_or("it covers @authority, and the request has no Host")?.into(),
            "@path" => self.path().into(),
            "@query" => format!("?{}", self.query().unwrap_or_default()).into(),
            derived if derived.starts_with('@') => return Err("it covers a component that is not supported"),
            field => self.field(field)?.into(),
        })
    }

    /// Returns all values of a field, in order (RFC 9421 §2.1).
    fn field(&self, name: &str) -> Result<String, &'static str> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err("it covers a field by a name that is not in lower case");
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "it covers a name that is not a field name")?;
        let values = self.fields.get_all(&name).map(|value| value.to_str().map(str::trim_ascii));
        let values: Vec<&str> = values.collect::<Result<_, _>>().map_err(|_| "it covers a field that is not ASCII")?;
        if values.is_empty() {
            return Err("it covers a field that the request does not have");
        }
        Ok(values.join(", "))
    }
}

/// Returns whether the field (`Connection`, or `Proxy-Connection`) has the option (RFC 9110 §7.6.1).
pub fn has_connection_option(fields: &Fields, name: &HeaderName, option: &str) -> bool {
    let mut options = fields.get_all(name).flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    options.any(|written| written.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn fields(host: &'static str) -> Fields {
        Fields::from_iter([(header::HOST, HeaderValue::from_static(host))])
    }

    #[test]
    fn signature_components_are_taken_from_the_request() {
        let mut fields = fields("ignored.example");
        let two = HeaderName::from_static("x-two");
        fields.append(&two, &HeaderValue::from_static("a "));
        fields.append(&two, &HeaderValue::from_static("b, c"));
        fields.append(HeaderName::from_static("x-latin"), &HeaderValue::from_bytes(b"\xe9").unwrap());
        let absolute = SignableRequest {
            method: &Method::POST,
            target: "HTTPS://Hook.Example:443/a%2f?b=1",
            fields: &fields,
            has_body: true,
        };
        let (bare, own) =
            (SignableRequest { target: "http://h?x", ..absolute }, SignableRequest { target: "/in?", ..absolute });
        for (sent, name, expected) in [
            (absolute, "@method", Some("POST")),
            (absolute, "@target-uri", Some("HTTPS://Hook.Example:443/a%2f?b=1")),
            (absolute, "@request-target", Some("HTTPS://Hook.Example:443/a%2f?b=1")),
            (absolute, "@scheme", Some("https")),
            (absolute, "@authority", Some("hook.example")),
            (absolute, "@path", Some("/a%2f")),
            (absolute, "@query", Some("?b=1")),
            (absolute, "x-two", Some("a, b, c")),
            (absolute, "host", Some("ignored.example")),
            (absolute, "X-Two", None),
            (absolute, "x-none", None),
            (absolute, "x-latin", None),
            (absolute, "x two", None),
            (absolute, "@status", None),
            (absolute, "@query-param", None),
            (absolute, "", None),
            (bare, "@authority", Some("h")),
            (bare, "@path", Some("/")),
            (bare, "@query", Some("?x")),
            (own, "@target-uri", None),
            (own, "@scheme", None),
            (own, "@request-target", Some("/in?")),
            (own, "@authority", Some("ignored.example")),
            (own, "@path", Some("/in")),
            (own, "@query", Some("?")),
        ] {
            assert_eq!(sent.component(name).ok().as_deref(), expected, "{} {name}", sent.target);
        }
    }

    #[test]
    fn host_matches_target_up_to_case_and_default_port() {
        for (target, host, expected) in [
            ("http://hook.example/in", "hook.example", true),
            ("http://hook.example/in", "HOOK.example:80", true),
            ("http://hook.example:80/in", "hook.example", true),
            ("https://hook.example:8443/", "hook.example:8443", true),
            ("http://hook.example/in", "else.example", false),
            ("http://hook.example/in", "hook.example:443", false),
            ("http://hook.example/in", "", false),
            ("/in", "anything", true),
        ] {
            let fields = fields(host);
            let sent = SignableRequest { method: &Method::GET, target, fields: &fields, has_body: false };
            assert_eq!(sent.host_matches_target(), expected, "{target} {host}");
        }
    }
}
