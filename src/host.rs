//! Parses host names and addresses into one canonical form, so that all later steps compare the same text.
//! When do two spellings denote the same host?

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use crate::names::Host;

/// The longest host name, in characters: 255 octets on the wire (RFC 1035 §2.3.4).
const NAME_MAX: usize = 253;
/// The longest label, in octets (RFC 1035 §2.3.4).
const LABEL_MAX: usize = 63;
/// The longest text that is mapped by UTS 46, in bytes. A valid name of 253 characters takes at most as many in UTF-8.
const TEXT_MAX: usize = 4 * (NAME_MAX + 1);

/// ASCII characters that a host name must not contain: all but letters, digits, hyphen and dot (RFC 1123 §2.1), and the
/// underscore. Names in the DNS do contain underscores.
const FORBIDDEN_IN_NAMES: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

/// Returns the name of this host, as the kernel has it.
pub fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The reason that a text is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    Empty,
    TooLong,
    EmptyLabel,
    LongLabel,
    /// A label starts or ends with a hyphen.
    Hyphen,
    Character(char),
    /// UTS 46 has no A-label for the name, or an A-label decodes to an invalid label.
    Idna,
    /// The text is numeric, but not four decimal octets: `127.1`, `0x7f.1`, `2130706433`, `127.0.0.1.`, `①②⑦.⓪.⓪.①`.
    InvalidIpv4,
    InvalidIpv6,
    ZoneId,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "host is empty",
            Self::TooLong => "host name is longer than 253 characters",
            Self::EmptyLabel => "host name has an empty label",
            Self::LongLabel => "host name has a label longer than 63 characters",
            Self::Hyphen => "host name has a label that starts or ends with a hyphen",
            Self::Character(c) => return write!(f, "host name has the character {c:?}"),
            Self::Idna => "host name is not valid in IDNA",
            Self::InvalidIpv4 => "IPv4 address is not written as four decimal octets",
            Self::InvalidIpv6 => "IPv6 address is not valid",
            Self::ZoneId => "IPv6 address has a zone",
        })
    }
}

impl std::error::Error for HostError {}

/// Parses the host of a URI or of an authority (RFC 3986 §3.2.2) into its canonical form.
///
/// A name is mapped by UTS 46 and loses one trailing dot. An IPv6 address stands in brackets. An IPv4 address is
/// accepted in dotted-decimal form only: attackers use the other forms that `inet_aton` and browsers read to bypass
/// filters.
pub fn canonical(text: &str) -> Result<Host, HostError> {
    if let Some(rest) = text.strip_prefix('[') {
        let address = rest.strip_suffix(']').ok_or(HostError::InvalidIpv6)?;
        return ipv6(address).map(|ip| Host::Ip(ip.into()));
    }
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    if text.len() > TEXT_MAX {
        return Err(HostError::TooLong);
    }
    let mapped = if is_plain_ascii(text) { Cow::Borrowed(text) } else { idna_to_ascii(text)? };
    // The mapping comes first, because it turns an ideographic full stop into a dot.
    let name = mapped.strip_suffix('.').unwrap_or(&mapped);
    let last = check_labels(name)?;
    if is_numeric_label(last) {
        // The original text is parsed: a trailing dot and mapped characters are not part of an address.
        return text.parse::<Ipv4Addr>().map(|ip| Host::Ip(ip.into())).map_err(|_| HostError::InvalidIpv4);
    }
    Ok(Host::Name(Arc::from(name)))
}

fn ipv6(text: &str) -> Result<Ipv6Addr, HostError> {
    if text.contains('%') {
        // A zone has a meaning on one machine only (RFC 6874).
        return Err(HostError::ZoneId);
    }
    text.parse().map_err(|_| HostError::InvalidIpv6)
}

/// Returns whether UTS 46 maps the text to itself. This is the usual case, and the check is cheaper than the mapping.
fn is_plain_ascii(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
        // An A-label must be decoded to be validated.
        && !bytes.windows(4).any(|four| four == b"xn--")
}

fn idna_to_ascii(text: &str) -> Result<Cow<'_, str>, HostError> {
    let is_forbidden = |c: &char| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_') && c.is_ascii();
    if let Some(c) = text.chars().find(is_forbidden) {
        return Err(HostError::Character(c));
    }
    Uts46::new()
        .to_ascii(text.as_bytes(), FORBIDDEN_IN_NAMES, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| HostError::Idna)
}

/// Checks each label of a name, and returns the last label.
fn check_labels(name: &str) -> Result<&str, HostError> {
    if name.len() > NAME_MAX {
        return Err(HostError::TooLong);
    }
    let mut last = name;
    for label in name.split('.') {
        match label.as_bytes() {
            [] => return Err(HostError::EmptyLabel),
            bytes if bytes.len() > LABEL_MAX => return Err(HostError::LongLabel),
            [b'-', ..] | [.., b'-'] => return Err(HostError::Hyphen),
            _ => last = label,
        }
    }
    Ok(last)
}

/// Returns whether a name that ends in this label can only be an IPv4 address (WHATWG URL, "ends in a number").
fn is_numeric_label(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// A pattern of `hosts`, which matches a set of hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Exact(Host),
    /// `*.acme.example`, stored as `acme.example`. The pattern matches all names below it, at any depth, but not the
    /// name itself.
    Subdomains(Arc<str>),
    /// `*`: all hosts.
    Any,
}

impl HostPattern {
    /// Parses a pattern. An IPv6 address may stand without brackets, because a pattern has no port.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(parent) = text.strip_prefix("*.") {
            return match canonical(parent)? {
                Host::Name(name) => Ok(Self::Subdomains(name)),
                Host::Ip(_) => Err(HostError::Character('*')),
            };
        }
        match text.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(Self::Exact(Host::Ip(IpAddr::V6(ip)))),
            Err(_) => canonical(text).map(Self::Exact),
        }
    }

    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Exact(exact), host) => exact == host,
            (Self::Subdomains(parent), Host::Name(name)) => is_subdomain_of(name, parent),
            (Self::Subdomains(_), Host::Ip(_)) => false,
        }
    }
}

/// Returns whether the canonical `name` is a subdomain of the canonical `parent`.
pub fn is_subdomain_of(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// Returns the host if the text is a URL or a host with a port; `None` otherwise.
pub fn of_url(text: &str) -> Option<&str> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    let host_port = authority.rsplit('@').next()?;
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match host_port.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => host_port,
    };
    (host != text && HostPattern::parse(host).is_ok()).then_some(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The table has a spelling, and either its canonical text or the error.
    #[test]
    fn host_spellings_are_canonicalised_or_rejected() {
        use HostError::*;
        let long = |n: usize| "a".repeat(n);
        let table: &[(&str, Result<&str, HostError>)] = &[
            // Spellings of 127.0.0.1, 0.0.0.0 and 169.254.169.254 that have bypassed filters.
            ("127.1", Err(InvalidIpv4)),
            ("0x7f.0.0.1", Err(InvalidIpv4)),
            ("0X7F.1", Err(InvalidIpv4)),
            ("0177.0.0.1", Err(InvalidIpv4)),
            ("127.0.0.01", Err(InvalidIpv4)),
            ("2130706433", Err(InvalidIpv4)),
            ("0x7f000001", Err(InvalidIpv4)),
            ("017700000001", Err(InvalidIpv4)),
            ("0", Err(InvalidIpv4)),
            ("0x", Err(InvalidIpv4)),
            ("127.0.0.1.", Err(InvalidIpv4)),
            ("[::ffff:7f00:1]", Ok("[::ffff:127.0.0.1]")),
            ("[::1%25lo]", Err(ZoneId)),
            ("①②⑦.⓪.⓪.①", Err(InvalidIpv4)),
            ("127。0。0。1", Err(InvalidIpv4)),
            ("\u{ff11}\u{ff12}\u{ff17}.0.0.1", Err(InvalidIpv4)),
            ("127.0.0.\u{ad}1", Err(InvalidIpv4)),
            ("localhost", Ok("localhost")),
            ("169.254.169.254.nip.io", Ok("169.254.169.254.nip.io")),
            ("0xa9fea9fe", Err(InvalidIpv4)),
            ("2852039166", Err(InvalidIpv4)),
            ("256.0.0.1", Err(InvalidIpv4)),
            ("1.2.3.4.5", Err(InvalidIpv4)),
            ("foo.0x1f", Err(InvalidIpv4)),
            ("foo.0xfg", Ok("foo.0xfg")),
            // Addresses.
            ("192.0.2.1", Ok("192.0.2.1")),
            ("[2001:DB8:0:0::1]", Ok("[2001:db8::1]")),
            ("[::ffff:192.0.2.1]", Ok("[::ffff:192.0.2.1]")),
            ("::1", Err(Character(':'))),
            ("[::1", Err(InvalidIpv6)),
            ("[]", Err(InvalidIpv6)),
            ("[fe80::1%eth0]", Err(ZoneId)),
            ("[192.0.2.1]", Err(InvalidIpv6)),
            ("[v1.x]", Err(InvalidIpv6)),
            ("[example.com]", Err(InvalidIpv6)),
            ("[::1].example.com", Err(InvalidIpv6)),
            // Names.
            ("Hooks.ACME.Example", Ok("hooks.acme.example")),
            ("example.com.", Ok("example.com")),
            ("example.com。", Ok("example.com")),
            ("example.com..", Err(EmptyLabel)),
            ("example.com。.", Err(EmptyLabel)),
            ("example..com", Err(EmptyLabel)),
            (".example.com", Err(EmptyLabel)),
            (".", Err(EmptyLabel)),
            ("", Err(Empty)),
            ("bücher.example", Ok("xn--bcher-kva.example")),
            ("XN--BCHER-KVA.example", Ok("xn--bcher-kva.example")),
            ("faß.de", Ok("xn--fa-hia.de")),
            ("\u{ff25}xample.com", Ok("example.com")),
            ("xn--a.example", Err(Idna)),
            ("xn--abc-.example", Err(Idna)),
            ("a\u{200b}b.example", Ok("ab.example")),
            ("_dmarc.example.com", Ok("_dmarc.example.com")),
            ("r3---sn-x.example", Ok("r3---sn-x.example")),
            ("-a.example", Err(Hyphen)),
            ("a-.example", Err(Hyphen)),
            ("exa%6dple.com", Err(Character('%'))),
            ("example.com%2e", Err(Character('%'))),
            ("a\u{ff05}.example", Err(Idna)),
            ("user@example.com", Err(Character('@'))),
            ("example.com:443", Err(Character(':'))),
            ("example.com\\.acme.example", Err(Character('\\'))),
            ("exam ple.com", Err(Character(' '))),
            ("example.com\0", Err(Character('\0'))),
            ("*.example.com", Err(Character('*'))),
        ];
        for (text, expected) in table {
            let got = canonical(text).map(|host| host.to_string());
            assert_eq!(got.as_deref().map_err(|e| *e), *expected, "{text:?}");
        }
        assert_eq!(canonical(&format!("{}.example", long(63))).map(|_| ()), Ok(()));
        assert_eq!(canonical(&format!("{}.example", long(64))), Err(LongLabel));
        let name = [long(63), long(63), long(63), long(61)].join(".");
        assert!(canonical(&name).is_ok() && canonical(&format!("{name}.")).is_ok());
        assert_eq!(canonical(&format!("{name}a")), Err(TooLong));
        assert_eq!(canonical(&"ü".repeat(100_000)), Err(TooLong));
    }

    #[test]
    fn host_patterns_match_exact_hosts_and_subdomains() {
        let table = [
            ("*", "anything.example", true),
            ("*", "192.0.2.1", true),
            ("hooks.Acme.example.", "hooks.acme.example", true),
            ("hooks.acme.example", "a.hooks.acme.example", false),
            ("*.acme.example", "hooks.acme.example", true),
            ("*.acme.example", "a.b.acme.example", true),
            ("*.acme.example", "acme.example", false),
            ("*.acme.example", "evilacme.example", false),
            ("*.bücher.example", "a.xn--bcher-kva.example", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("2001:db8::1", "[2001:db8:0::1]", true),
            ("[2001:db8::1]", "[2001:db8::1]", true),
            ("*.2.1", "192.0.2.1", false),
        ];
        for (pattern, host, expected) in table {
            let matches = HostPattern::parse(pattern).is_ok_and(|p| p.matches(&canonical(host).unwrap()));
            assert_eq!(matches, expected, "{pattern} {host}");
        }
        for bad in ["", "*.", "**", "a.*.example", "*example.com", "*.192.0.2.1", "*.*.example", "127.1"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn canonical_host_is_a_fixed_point(text in "[a-zA-Z0-9üßΣ日。.x_\\-①Å\u{ad}\u{200d}]{1,20}|\\[[0-9a-f:.]{2,20}\\]|\\PC{1,30}") {
            if let Ok(host) = canonical(&text) {
                prop_assert_eq!(canonical(&host.to_string()), Ok(host.clone()));
                prop_assert_eq!(canonical(&host.to_string().to_uppercase()), Ok(host));
            }
        }

        /// The fast path gives the same result as the mapping.
        #[test]
        fn plain_host_names_are_unchanged_by_idna(text in "[a-z0-9_.-]{1,30}") {
            if is_plain_ascii(&text) && check_labels(text.strip_suffix('.').unwrap_or(&text)).is_ok() {
                prop_assert_eq!(idna_to_ascii(&text), Ok(Cow::Borrowed(text.as_str())));
            }
        }

        #[test]
        fn ip_hosts_round_trip_through_text(bits in any::<u128>(), short in any::<u32>()) {
            for ip in [IpAddr::V6(bits.into()), IpAddr::V4(short.into())] {
                prop_assert_eq!(canonical(&Host::Ip(ip).to_string()), Ok(Host::Ip(ip)));
            }
        }
    }
}
