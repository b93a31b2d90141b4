//! Parses strings: durations, sizes, rates, times, networks, sockets.
//! Which value does this text mean?

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER_PERMISSIVE;
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;

use super::{Listen, Rate};

/// The reason why a text is invalid. It never repeats the text, which may be a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValueError {
    /// The expected value, such as "a duration".
    pub(super) expected: &'static str,
    /// The label of the underlined text.
    pub(super) reason: String,
    /// The advice: what to write instead.
    pub(super) help: String,
}

fn invalid(expected: &'static str, reason: impl Into<String>, help: impl Into<String>) -> ValueError {
    ValueError { expected, reason: reason.into(), help: help.into() }
}

/// The longest duration; a longer one is a mistake and could overflow the clock.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Splits `250ms` or `1 MiB` into number and unit.
fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    duration_up_to(DURATION_MAX, "longer than a year: write at most \"366d\"", text)
}

/// Parses the time for which files are kept: longer than zero, and ten years at most.
pub(super) fn retention(text: &str) -> Result<Duration, ValueError> {
    duration_up_to(10 * DURATION_MAX, "longer than ten years: write at most \"3660d\"", text).and_then(positive)
}

/// Parses a duration. `too_long` has the reason and the advice for one that is longer than `longest`.
fn duration_up_to(longest: Duration, too_long: &str, text: &str) -> Result<Duration, ValueError> {
    const EXPECTED: &str = "a duration";
    const HELP: &str = "write one whole number and one unit, ms, s, m, h or d: \"250ms\", \"30s\", \"5m\"";
    let (number, unit) = number_and_unit(text);
    let unit = match unit {
        _ if number.is_empty() => return Err(invalid(EXPECTED, "does not start with a number", HELP)),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => Duration::from_secs(24 * 3600),
        "" => return Err(invalid(EXPECTED, "the unit is missing", HELP)),
        _ => return Err(invalid(EXPECTED, "unknown unit", HELP)),
    };
    let duration = number.parse().ok().and_then(|number| unit.checked_mul(number));
    let (reason, help) = too_long.split_once(": ").unwrap_or((too_long, HELP));
    duration.filter(|duration| *duration <= longest).ok_or_else(|| invalid(EXPECTED, reason, help))
}

/// Parses a duration longer than zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, ValueError> {
    duration(text).and_then(positive)
}

fn positive(duration: Duration) -> Result<Duration, ValueError> {
    match duration.is_zero() {
        true => Err(invalid("a positive duration", "this is zero", "write \"1ms\" or more")),
        false => Ok(duration),
    }
}

/// Parses a duration longer than zero as an argument of a command.
pub fn duration_argument(text: &str) -> Result<Duration, String> {
    positive_duration(text).map_err(|error| format!("{}: {}", error.reason, error.help))
}

/// Parses a duration that may be zero as a parameter of the admin API.
pub fn duration_parameter(text: &str) -> Option<Duration> {
    duration(text).ok()
}

/// Parses a size in bytes; `KB` is 1000 bytes and `KiB` 1024 (IEC 80000-13).
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    const EXPECTED: &str = "a size";
    const HELP: &str = "write one whole number and one unit, B, KB, MB, GB, KiB, MiB or GiB: \"512 B\", \"64 KiB\"";
    let (number, unit) = number_and_unit(text);
    let unit = match unit.strip_prefix(' ').unwrap_or(unit) {
        _ if number.is_empty() => return Err(invalid(EXPECTED, "does not start with a number", HELP)),
        "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" => return Err(invalid(EXPECTED, "the unit is missing", HELP)),
        _ => return Err(invalid(EXPECTED, "unknown unit", HELP)),
    };
    let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    bytes.ok_or_else(|| invalid(EXPECTED, "too large", "write a size below 16 EiB"))
}

/// Parses a bandwidth in bytes per second.
pub(super) fn bandwidth(text: &str) -> Result<u64, ValueError> {
    const EXPECTED: &str = "a bandwidth";
    const HELP: &str = "write a size and /s: \"10 MiB/s\", \"500 KB/s\"";
    let Some(bytes) = text.strip_suffix("/s") else { return Err(invalid(EXPECTED, "does not end in /s", HELP)) };
    size(bytes).map_err(|ValueError { reason, .. }| invalid(EXPECTED, reason, HELP))
}

pub(super) fn rate(text: &str) -> Result<Rate, ValueError> {
    const EXPECTED: &str = "a rate";
    const HELP: &str = "write a whole number, a slash and s, m or h: \"50/s\", \"10/m\"";
    let Some((count, period)) = text.split_once('/') else {
        return Err(invalid(EXPECTED, "the period is missing", HELP));
    };
    let period = match period {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(invalid(EXPECTED, "unknown period", HELP)),
    };
    if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(EXPECTED, "does not start with a whole number", HELP));
    }
    let count = count.parse().map_err(|_| invalid(EXPECTED, "too large", HELP))?;
    Ok(Rate { count, period })
}

pub(super) fn timestamp(text: &str) -> Result<Timestamp, ValueError> {
    text.parse().map_err(|_| {
        let date = text.parse::<jiff::civil::Date>().ok().filter(|_| !text.contains(['T', 't', ' ']));
        let help = match date {
            Some(date) => format!("write \"{date}T00:00:00Z\""),
            None => "write date, time and offset as in RFC 3339: \"2027-01-01T00:00:00Z\"".into(),
        };
        let reason = if text.parse::<jiff::civil::DateTime>().is_ok() {
            "the offset from UTC is missing"
        } else {
            "not RFC 3339"
        };
        invalid("a point in time", reason, help)
    })
}

fn address(text: &str) -> Result<IpAddr, ValueError> {
    text.parse()
        .map_err(|_| invalid("an IP address", "not an IPv4 or IPv6 address", "write \"192.0.2.1\" or \"2001:db8::1\""))
}

/// Parses a network; an address without a prefix length is a network of one address.
pub(super) fn network(text: &str) -> Result<IpNet, ValueError> {
    const EXPECTED: &str = "a network";
    let parsed = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(network) = parsed else {
        let help = "write an address and a prefix length, \"192.0.2.0/28\", or an address";
        return Err(invalid(EXPECTED, "not in CIDR notation", help));
    };
    // Nothing on the wire is in an IPv4-mapped network: to sockets these are IPv4 (RFC 4291 §2.5.5.2).
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, prefix)
    {
        return Err(invalid(EXPECTED, "an IPv4-mapped network", format!("write \"{}\"", v4.trunc())));
    }
    if network.trunc() != network {
        let (host, network_address) = (network.addr(), network.trunc());
        let reason = format!("has bits set beyond /{}", network.prefix_len());
        return Err(invalid(
            EXPECTED,
            reason,
            format!("write the network, \"{network_address}\", or the one address, \"{host}\""),
        ));
    }
    Ok(network)
}

/// The longest path that fits into `sockaddr_un` with its final zero.
const UNIX_PATH_MAX: usize = 107;

pub(super) fn listen(text: &str) -> Result<Listen, ValueError> {
    const EXPECTED: &str = "an address to listen on";
    if text == "systemd" {
        return Ok(Listen::Systemd);
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return match Path::new(path) {
            relative if relative.is_relative() => {
                let name = relative.file_name().unwrap_or("proxy.sock".as_ref()).display();
                Err(invalid(EXPECTED, "not an absolute path", format!("write \"unix:/run/outgate/{name}\"")))
            }
            _ if path.len() > UNIX_PATH_MAX => {
                Err(invalid(EXPECTED, "too long for a unix socket", format!("write at most {UNIX_PATH_MAX} bytes")))
            }
            path => Ok(Listen::Unix(PathBuf::from(path))),
        };
    }
    if let Ok(address) = text.parse() {
        return Ok(Listen::Tcp(address));
    }
    let help = match text.rsplit_once(':') {
        _ if text.parse::<IpAddr>().is_ok() => "add a port: \"192.0.2.1:4750\", \"[2001:db8::1]:4750\"".into(),
        Some(("localhost", port)) => format!("write \"127.0.0.1:{port}\" or \"[::1]:{port}\""),
        Some(("" | "*", port)) => format!("write \"0.0.0.0:{port}\" or \"[::]:{port}\" for all addresses of this host"),
        _ => "write \"127.0.0.1:4750\", \"[::1]:4750\", \"unix:/path\" or \"systemd\"".to_owned(),
    };
    Err(invalid(EXPECTED, "not an address and a port", help))
}

/// Parses the mode of a file, in octal.
pub(super) fn mode(text: &str) -> Result<u32, ValueError> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = if is_octal { u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777) } else { None };
    mode.ok_or_else(|| invalid("the mode of a file", "not three octal digits", "write \"0660\""))
}

/// Parses the address of a DNS server; the default port is 53.
pub(super) fn server(text: &str) -> Result<SocketAddr, ValueError> {
    let bare = || text.parse().ok().map(|address: IpAddr| SocketAddr::new(address, 53));
    text.parse().ok().or_else(bare).filter(|server: &SocketAddr| server.port() != 0).ok_or_else(|| {
        let help = "write an IP address, with a port if it is not 53: \"192.0.2.53\", \"[2001:db8::53]:5353\"";
        invalid("the address of a DNS server", "not an IP address", help)
    })
}

/// Parses `sha256:` and 64 hexadecimal digits.
pub(super) fn token_hash(text: &str) -> Result<[u8; 32], ValueError> {
    const EXPECTED: &str = "the hash of a token";
    const HELP: &str = "write \"sha256:\" and 64 hexadecimal digits; `outgate token new` makes a token and its hash";
    let Some(hex) = text.strip_prefix("sha256:") else {
        return Err(invalid(EXPECTED, "does not start with sha256:", HELP));
    };
    let hash = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
    hash.ok_or_else(|| invalid(EXPECTED, "not 64 hexadecimal digits", HELP))
}

/// Parses `sha256/` and the hash of a SubjectPublicKeyInfo in base64, as RFC 7469 §2.4 computes it.
pub(super) fn pin(text: &str) -> Result<[u8; 32], ValueError> {
    const EXPECTED: &str = "a pin";
    const HELP: &str = "write \"sha256/…=\": `openssl x509 -in FILE -pubkey -noout | openssl pkey -pubin -outform der | \
                        openssl dgst -sha256 -binary | base64` prints the part after the slash";
    let Some(hash) = text.strip_prefix("sha256/") else {
        return Err(invalid(EXPECTED, "does not begin with sha256/", HELP));
    };
    let Ok(bytes) = STANDARD.decode(hash) else { return Err(invalid(EXPECTED, "is not base64", HELP)) };
    bytes.try_into().map_err(|_| invalid(EXPECTED, "does not have the 32 bytes of SHA-256", HELP))
}

/// Checks a name that an operator chooses. Names become metric labels, user names (which end at a colon, RFC 7617 §2)
/// and keys of structured fields, so only plain characters are allowed.
pub(super) fn name(text: &str) -> Result<&str, ValueError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        let help = "write 1 to 64 letters, digits, hyphens, underscores and dots";
        return Err(invalid("a name", "not a plain name", help));
    }
    Ok(text)
}

/// Parses the pseudonym of outgate: a token in `Via` (RFC 9110 §7.6.3) and in `Proxy-Status` (RFC 9209 §2, RFC 9651
/// §3.3.4).
pub(super) fn pseudonym(text: &str) -> Result<String, ValueError> {
    match name(text) {
        Ok(name) if name.starts_with(|c: char| c.is_ascii_alphabetic()) => Ok(name.to_owned()),
        Ok(_) => Err(invalid(
            "a name",
            "does not start with a letter",
            "write a name that starts with a letter, such as \"outgate\"",
        )),
        Err(error) => Err(error),
    }
}

/// Parses a text that is not empty and has no white space or control characters.
pub(super) fn word(text: &str) -> Result<String, ValueError> {
    match text {
        "" => Err(invalid("one word", "empty", "write a word, or remove the entry")),
        _ if text.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Err(invalid("one word", "has white space", "write one word without spaces"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// Parses the address of a host. The unspecified address is invalid, because the kernel takes it for this host.
pub(super) fn host_address(text: &str) -> Result<IpAddr, ValueError> {
    let address = address(text)?.to_canonical();
    if address.is_unspecified() {
        return Err(invalid(
            "the address of a host",
            "this is the unspecified address",
            "write the address of the host",
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests;
