//! Host names in one canonical form, so that no later step can be told two stories about one host.
//! When are two spellings the same host?

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use crate::names::Host;

/// RFC 1035 §2.3.4: 255 octets on the wire, which is 253 characters of text.
const NAME_MAX: usize = 253;
/// RFC 1035 §2.3.4.
const LABEL_MAX: usize = 63;
/// No name of 253 characters is longer in UTF-8; what is longer is not worth mapping.
const TEXT_MAX: usize = 4 * (NAME_MAX + 1);

/// All of ASCII but letters, digits, hyphen and dot (RFC 1123 §2.1), and the underscore, which names in the DNS do have.
const NOT_IN_NAMES: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

/// Why a text is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    Empty,
    TooLong,
    EmptyLabel,
    LongLabel,
    /// A label starts or ends with a hyphen.
    Hyphen,
    Character(char),
    /// UTS 46 has no A-label for it, or an A-label decodes to nothing valid.
    Idna,
    /// Numeric, but not four decimal octets: `127.1`, `0x7f.1`, `2130706433`, `127.0.0.1.`, `①②⑦.⓪.⓪.①`.
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

/// The host of a URI or of an authority (RFC 3986 §3.2.2), in its one form.
///
/// A name is mapped by UTS 46 and loses one trailing dot. An IPv6 address stands in brackets. An IPv4 address has only
/// its dotted-decimal form: the others, which `inet_aton` and browsers read, are how filters are walked around.
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
    let mapped = if is_plain(text) { Cow::Borrowed(text) } else { idna(text)? };
    // After the mapping, since an ideographic full stop becomes a dot, too.
    let name = mapped.strip_suffix('.').unwrap_or(&mapped);
    let last = check_labels(name)?;
    if is_number(last) {
        // Of the text as it came: no dot at the end, nothing that was mapped.
        return text.parse::<Ipv4Addr>().map(|ip| Host::Ip(ip.into())).map_err(|_| HostError::InvalidIpv4);
    }
    Ok(Host::Name(Arc::from(name)))
}

fn ipv6(text: &str) -> Result<Ipv6Addr, HostError> {
    if text.contains('%') {
        // RFC 6874: a zone means something on one machine only.
        return Err(HostError::ZoneId);
    }
    text.parse().map_err(|_| HostError::InvalidIpv6)
}

/// Whether UTS 46 would give the text back as it is: the usual case, decided without asking it.
fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
        // An A-label has to decode to something valid.
        && !bytes.windows(4).any(|four| four == b"xn--")
}

fn idna(text: &str) -> Result<Cow<'_, str>, HostError> {
    let refused = |c: &char| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_') && c.is_ascii();
    if let Some(c) = text.chars().find(refused) {
        return Err(HostError::Character(c));
    }
    Uts46::new()
        .to_ascii(text.as_bytes(), NOT_IN_NAMES, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| HostError::Idna)
}

/// The last label of a name whose labels are all well formed.
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

/// Whether a name that ends in this label is an IPv4 address or nothing (WHATWG URL, "ends in a number").
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Which hosts an entry of `hosts` means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Exact(Host),
    /// `*.acme.example`, kept as `acme.example`: everything below it, at any depth, but not itself.
    Subdomains(Arc<str>),
    /// `*`
    Any,
}

impl HostPattern {
    /// Reads a pattern; an IPv6 address may go without its brackets here, where no port can follow.
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
            (Self::Subdomains(parent), Host::Name(name)) => is_below(name, parent),
            (Self::Subdomains(_), Host::Ip(_)) => false,
        }
    }
}

/// Whether canonical `name` is a subdomain of canonical `parent`.
pub fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// The host of a URL, or of a host with a port.
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

    /// Every spelling, with what it is: the canonical text, or why it is refused.
    #[test]
    fn spellings() {
        use HostError::*;
        let long = |n: usize| "a".repeat(n);
        let table: &[(&str, Result<&str, HostError>)] = &[
            // Ways to write 127.0.0.1, 0.0.0.0 and 169.254.169.254 that got past filters.
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
    fn patterns() {
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
        fn canonical_is_a_fixed_point(text in "[a-zA-Z0-9üßΣ日。.x_\\-①Å\u{ad}\u{200d}]{1,20}|\\[[0-9a-f:.]{2,20}\\]|\\PC{1,30}") {
            if let Ok(host) = canonical(&text) {
                prop_assert_eq!(canonical(&host.to_string()), Ok(host.clone()));
                prop_assert_eq!(canonical(&host.to_string().to_uppercase()), Ok(host));
            }
        }

        /// The short way gives what the long way would.
        #[test]
        fn plain_names_need_no_idna(text in "[a-z0-9_.-]{1,30}") {
            if is_plain(&text) && check_labels(text.strip_suffix('.').unwrap_or(&text)).is_ok() {
                prop_assert_eq!(idna(&text), Ok(Cow::Borrowed(text.as_str())));
            }
        }

        #[test]
        fn addresses_keep_their_text(bits in any::<u128>(), short in any::<u32>()) {
            for ip in [IpAddr::V6(bits.into()), IpAddr::V4(short.into())] {
                prop_assert_eq!(canonical(&Host::Ip(ip).to_string()), Ok(Host::Ip(ip)));
            }
        }
    }
}
