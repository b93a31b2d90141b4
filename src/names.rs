//! Shared nouns without behaviour: the names an operator gives to things, and where a webhook is going.
//! Which types do all modules share?

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A name from the configuration: cheap to clone, compared by its text.
macro_rules! name {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

name! {
    /// `[clients.NAME]`: who calls.
    ClientName;
    /// `Outgate-Tenant`: for whom a client calls.
    TenantName;
    /// `[[routes]] name`.
    RouteName;
    /// `[egress.NAME]`: a pool of source addresses.
    PoolName;
    /// `[trust.NAME]`: what a target must prove.
    TrustName;
    /// `[signers.NAME]`.
    SignerName;
    /// `[credentials.NAME]`: what we show to a target.
    CredentialName;
    /// `[limits.NAME]`.
    LimitName;
    /// The `id` of a signing key.
    KeyId;
}

/// A tenant's name is written into keys, records and folders: it has an end.
pub const TENANT_MAX: usize = 128;

/// The host of a target or a pattern, canonical: see [`crate::host`], its only maker from text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Host {
    /// Lower case, no trailing dot, IDNA A-labels.
    Name(Arc<str>),
    Ip(IpAddr),
}

impl fmt::Display for Host {
    /// As in a URI: an IPv6 address stands in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// How the onward hop speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Https => 443,
            Scheme::Http => 80,
        }
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }
}

/// Characters that stand in no path or query (RFC 3986 §3.3, §3.4), but that senders write there as they are.
pub fn is_unencoded(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'"' | b'{' | b'}' | b'|' | b'^' | b'`')
}

/// Percent-encodes the characters of a path and query that [`is_unencoded`] names, and no other.
pub fn encode_path(path_and_query: &str) -> Cow<'_, str> {
    if !path_and_query.bytes().any(is_unencoded) {
        return path_and_query.into();
    }
    let mut encoded = String::with_capacity(path_and_query.len() + 8);
    for character in path_and_query.chars() {
        match u8::try_from(character) {
            Ok(byte) if is_unencoded(byte) => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(character),
        }
    }
    encoded.into()
}

/// Says which character a request target must not have; `None`: it has none. A fragment is never sent (RFC 9112 §3.2), and
/// a backslash is a slash to some readers and not to others.
pub fn refused_character(target: &str) -> Option<&'static str> {
    let refused = target.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '#' | '\\'))?;
    Some(match refused {
        '\\' => "the request target has a backslash: write it as %5C",
        '#' => "the request target has a fragment (#), which is never sent: write %23 for the character itself",
        ' ' => "the request target has a space: write it as %20",
        c if c.is_ascii() => "the request target has a control character",
        _ => "the request target has a character that is not ASCII: percent-encode its UTF-8",
    })
}

/// Where a webhook is going.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

impl Target {
    /// The authority as `Host` carries it: the default port is left out (RFC 9110 §7.2, RFC 3986 §6.2.3).
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// Returns a number with its noun: `1 warning`, `2 warnings`, `2 addresses`.
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let ending = match noun.ends_with('s') {
        _ if count == N::from(1) => "",
        true => "es",
        false => "s",
    };
    format!("{count} {noun}{ending}")
}
