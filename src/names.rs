//! Types that all modules share: the names that an operator gives in the configuration, and the target of a webhook.
//! Which types does every layer use?

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;

/// The severities of syslog (RFC 5424 §6.2.1) that outgate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyslogSeverity {
    Error = 3,
    Warning = 4,
    Informational = 6,
    Debug = 7,
}

impl SyslogSeverity {
    /// Returns the number as text, as systemd's journal takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "3",
            Self::Warning => "4",
            Self::Informational => "6",
            Self::Debug => "7",
        }
    }
}

/// Defines a type for a name from the configuration. It is cheap to clone, and is compared by its text.
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
    /// `[clients.NAME]`: a client of the proxy.
    ClientName;
    /// `Outgate-Tenant`: the tenant that a client acts for.
    TenantName;
    /// `[[routes]] name`.
    RouteName;
    /// `[egress.NAME]`: a pool of source addresses.
    PoolName;
    /// `[trust.NAME]`: the rules by which a target's certificate is verified.
    TrustName;
    /// `[signers.NAME]`.
    SignerName;
    /// `[credentials.NAME]`: a credential that outgate presents to a target.
    CredentialName;
    /// `[limits.NAME]`.
    LimitName;
    /// `[captures.NAME]`.
    CaptureName;
    /// The `id` of a signing key.
    KeyId;
}

/// The longest tenant name, in bytes. Keys, records and folders contain the name.
pub const TENANT_NAME_MAX: usize = 128;

impl TenantName {
    /// Returns the name of the tenant's file or folder: the name in the form of URLs, which leads to no other folder.
    pub fn file_name(&self) -> String {
        let encoded: String = form_urlencoded::byte_serialize(self.0.as_bytes()).collect();
        encoded.strip_prefix('.').map(|rest| format!("%2E{rest}")).unwrap_or(encoded)
    }

    /// Returns the tenant of a file or folder. `None`: the name is not the one that [`TenantName::file_name`] returns.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let tenant = Self::new(form_urlencoded::parse(name.as_bytes()).next()?.0);
        let is_valid = tenant.0.len() <= TENANT_NAME_MAX && tenant.0.bytes().all(|byte| byte.is_ascii_graphic());
        (is_valid && tenant.file_name() == name).then_some(tenant)
    }
}

/// The canonical host of a target or a pattern. Only [`crate::host`] makes one from text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Host {
    /// A name in lower case, without a trailing dot, with IDNA A-labels.
    Name(Arc<str>),
    Ip(IpAddr),
}

impl fmt::Display for Host {
    /// Writes the host as in a URI: an IPv6 address stands in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// The scheme of a target.
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

/// Returns whether a byte must be percent-encoded in a path or query (RFC 3986 §3.3, §3.4), although senders write it
/// unencoded.
pub fn needs_encoding(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'"' | b'{' | b'}' | b'|' | b'^' | b'`')
}

/// Percent-encodes the characters for which [`needs_encoding`] returns true, and no others.
pub fn encode_path(path_and_query: &str) -> Cow<'_, str> {
    if !path_and_query.bytes().any(needs_encoding) {
        return path_and_query.into();
    }
    let mut encoded = String::with_capacity(path_and_query.len() + 8);
    for character in path_and_query.chars() {
        match u8::try_from(character) {
            Ok(byte) if needs_encoding(byte) => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(character),
        }
    }
    encoded.into()
}

/// Returns a message about the first character that a request target must not contain; `None`: the target is valid. A
/// fragment is never sent (RFC 9112 §3.2). Some readers take a backslash for a slash, and others do not.
pub fn invalid_target_character(target: &str) -> Option<&'static str> {
    let invalid = target.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '#' | '\\'))?;
    Some(match invalid {
        '\\' => "the request target has a backslash: write it as %5C",
        '#' => "the request target has a fragment (#), which is never sent: write %23 for the character itself",
        ' ' => "the request target has a space: write it as %20",
        c if c.is_ascii() => "the request target has a control character",
        _ => "the request target has a character that is not ASCII: percent-encode its UTF-8",
    })
}

/// The id of a request: hexadecimal digits, without a buffer of their own.
#[derive(Clone, Copy)]
pub struct RequestId {
    digits: [u8; 32],
    length: usize,
}

impl RequestId {
    pub fn new(random: u64, count: u64) -> Self {
        let mut digits = [0; 32];
        let count = count.to_be_bytes();
        // Eight digits, and sixteen from 2^32 on: with those of the random number, the array has room.
        let shown = count.strip_prefix(&[0; 4]).unwrap_or(&count);
        let (first, rest) = digits.split_at_mut(16);
        let (second, _) = rest.split_at_mut(2 * shown.len());
        HEXLOWER.encode_mut(&random.to_be_bytes(), first);
        HEXLOWER.encode_mut(shown, second);
        Self { digits, length: 16 + 2 * shown.len() }
    }

    pub fn as_str(&self) -> &str {
        self.digits.get(..self.length).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The target of a webhook: scheme, host and port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

impl Target {
    /// Returns the authority in the form of the Host field: the default port is left out (RFC 9110 §7.2, RFC 3986
    /// §6.2.3).
    pub fn authority(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self.port == self.scheme.default_port() {
            true => fmt::Display::fmt(&self.host, f),
            false => write!(f, "{}:{}", self.host, self.port),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// The value of User-Agent in outgate's own requests.
pub const USER_AGENT: &str = concat!("outgate/", env!("CARGO_PKG_VERSION"));

/// Returns a count with its noun: `1 warning`, `2 warnings`, `2 addresses`, `2 deliveries`.
pub fn pluralize<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let is_vowel = |c: char| "aeiou".contains(c);
    match noun.strip_suffix('y') {
        _ if count == N::from(1) => format!("{count} {noun}"),
        Some(stem) if !stem.ends_with(is_vowel) => format!("{count} {stem}ies"),
        _ if noun.ends_with('s') => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// Joins the first items with commas, and counts the others: `a, b and 3 more`.
pub fn join_first(items: &[impl fmt::Display], most: usize) -> String {
    let first = items.iter().take(most).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Returns the folder of a file; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns a path with more at its end.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces control characters and those that reorder text (CVE-2021-42574), so that a terminal does not interpret text
/// from other sources.
pub fn escape_control_characters(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Escapes these characters in JSON, whose strings then have the same values.
pub fn escape_in_json(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, c| {
        match is_harmless(c) {
            true => text.push(c),
            false => text.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
        text
    })
}

fn is_harmless(c: char) -> bool {
    match c {
        '\n' | '\t' => true,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_other_sources_cannot_control_a_terminal() {
        let hostile = "a\u{1b}[2J\u{202e}b\u{2066}c\u{2028}d\te\nf\u{9b}g\u{200f}ü";
        let harmless = "a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}d\te\nf\u{fffd}g\u{fffd}ü";
        assert_eq!(escape_control_characters(hostile), harmless);
    }

    #[test]
    fn request_id_has_all_digits_of_its_random_number() {
        assert_eq!(RequestId::new(0xa, 0x1b).as_str(), "000000000000000a0000001b");
        assert_eq!(RequestId::new(u64::MAX, u64::MAX).as_str(), "f".repeat(32));
        assert_eq!(RequestId::new(0, 1 << 32).as_str(), "00000000000000000000000100000000");
    }

    #[test]
    fn count_has_the_plural_of_its_noun() {
        let counted =
            |count: u32| ["warning", "address", "delivery", "key", "record"].map(|noun| pluralize(count, noun));
        assert_eq!(counted(1), ["1 warning", "1 address", "1 delivery", "1 key", "1 record"]);
        assert_eq!(counted(2), ["2 warnings", "2 addresses", "2 deliveries", "2 keys", "2 records"]);
        assert_eq!(pluralize(0_u64, "delivery"), "0 deliveries");
    }
}
