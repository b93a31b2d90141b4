//! Reads the section `audit`: the audit log, the key of its checkpoints, and the log servers that get its records.
//! Where do records of changes and security events go, and for how long are they kept?

use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;

use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::units::ValueError;
use super::{Located, Secret, schema, secret, units};
use crate::host;
use crate::names::Host;

/// 64 MiB have about 80,000 records.
const FILE_SIZE_DEFAULT: u64 = 64 << 20;
/// The smallest file. Each file begins with the state of the chain, which takes up to 5 KiB.
const FILE_SIZE_MIN: u64 = 64 << 10;
const DAY: Duration = Duration::from_secs(86_400);
/// Security logs are kept for 180 days or more.
const KEEP_DAYS_MIN: u32 = 180;
/// Twilio keeps its events for 13 months.
const KEEP_DAYS_DEFAULT: u32 = 400;
const KEEP_DAYS_MAX: u32 = 36_500;

#[derive(Clone, Debug)]
pub struct Audit {
    /// `None`: there is no audit log.
    pub file: Option<Located<PathBuf>>,
    /// The name of the log in records and checkpoints.
    pub origin: String,
    pub checkpoint_key: Option<Located<Secret>>,
    /// The size in bytes at which the next file begins.
    pub file_size_max: u64,
    pub keep: Duration,
    pub syslog: Vec<Located<SyslogServer>>,
    /// Whether records also go to the journal.
    pub journald: bool,
}

/// There is no audit log.
impl Default for Audit {
    fn default() -> Self {
        Self {
            file: None,
            origin: default_origin("outgate"),
            checkpoint_key: None,
            file_size_max: FILE_SIZE_DEFAULT,
            keep: DAY * KEEP_DAYS_DEFAULT,
            syslog: Vec::new(),
            journald: false,
        }
    }
}

/// A server that receives records as RFC 5424 messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogServer {
    /// The URL as written.
    pub url: String,
    pub host: Host,
    pub port: u16,
    pub uses_tls: bool,
    /// `[trust.NAME]`; `None`: `public`.
    pub trust: Option<String>,
}

pub(super) fn read_audit(reader: &mut Reader<'_>, file: &Table<'_>) -> Audit {
    let table = file.section(reader, "audit", &schema::AUDIT);
    let path = table.read(reader, "file", |reader, value| {
        let text = reader.text(value)?;
        if text.is_empty() {
            let problem = Problem::at(value.span, "`audit.file` is empty");
            reader.problems.push(problem.help("write a path, \"/var/log/outgate/audit.jsonl\""));
            return None;
        }
        Some(value.located(reader.resolve_path(value.span, text)))
    });
    let origin = table.read(reader, "origin", |reader, value| reader.parse(value, parse_origin));
    let checkpoint_key = table.read(reader, "checkpoint_key", secret::read_key);
    let rotate = table.section(reader, "rotate", &schema::AUDIT_ROTATE);
    let size = rotate.read(reader, "size", |reader, value| reader.parse(value, parse_file_size));
    let keep = rotate.read(reader, "keep", |reader, value| reader.parse(value, parse_keep));
    let syslog = table.read_list(reader, "syslog", None, read_syslog_server).unwrap_or_default();
    let journald = table.read(reader, "journald", |reader, value| reader.boolean(value));
    for key in ["origin", "checkpoint_key", "syslog", "journald"] {
        if let (false, Some(value)) = (table.has("file"), table.get(key).filter(|value| !value.is_empty_or_false())) {
            let problem = Problem::at(value.span, format!("`audit.{key}` has no effect without `audit.file`"));
            reader.problems.push(problem.help("add file = \"/var/log/outgate/audit.jsonl\""));
        }
    }
    let default = Audit::default();
    Audit {
        file: path,
        origin: origin.map_or(default.origin, |origin| origin.value),
        checkpoint_key,
        file_size_max: size.map_or(default.file_size_max, |size| size.value),
        keep: keep.map_or(default.keep, |keep| keep.value),
        syslog,
        journald: journald.is_some_and(|journald| journald.value),
    }
}

/// Returns the name of the host, and a name on it.
pub(super) fn default_origin(name: &str) -> String {
    let origin = format!("{}/{name}", host::own_name());
    if parse_origin(&origin).is_ok() { origin } else { format!("localhost/{name}") }
}

/// Parses the name of a log, which is also the name of its key (c2sp.org/signed-note: no spaces and no plus sign).
pub(super) fn parse_origin(text: &str) -> Result<String, ValueError> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
        return Err(ValueError {
            expected: "the name of a log",
            reason: "empty, or with a space or a plus sign".to_owned(),
            help: "write a name that no other log has: \"egress-1.example.com/outgate\"".to_owned(),
        });
    }
    Ok(text.to_owned())
}

fn parse_file_size(text: &str) -> Result<u64, ValueError> {
    let size = units::size(text)?;
    if size < FILE_SIZE_MIN {
        let help = "write \"64 KiB\" or more".to_owned();
        return Err(ValueError { expected: "the size of a file", reason: "too small".to_owned(), help });
    }
    Ok(size)
}

/// Parses a number of days.
fn parse_keep(text: &str) -> Result<Duration, ValueError> {
    let days = text.strip_suffix('d').filter(|days| days.bytes().all(|digit| digit.is_ascii_digit()));
    let days = days.and_then(|days| days.parse().ok());
    let range = KEEP_DAYS_MIN..=KEEP_DAYS_MAX;
    days.filter(|days| range.contains(days)).map(|days| DAY * days).ok_or_else(|| ValueError {
        expected: "a number of days",
        reason: format!("not a whole number from {KEEP_DAYS_MIN} to {KEEP_DAYS_MAX} and d"),
        help: format!("write \"{KEEP_DAYS_DEFAULT}d\"; an audit log is kept for {KEEP_DAYS_MIN} days or more"),
    })
}

/// Reads an entry of `audit.syslog`: a URL, or a table with `url` and `trust`.
pub(super) fn read_syslog_server(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<SyslogServer>> {
    if !value.is_table() {
        return reader.parse(value, parse_syslog_url);
    }
    let table = Table::open(reader, value, &schema::AUDIT_SYSLOG)?;
    table.require(reader, "url", "write url = \"tcp+tls://siem.example:6514\"");
    let server = table.read(reader, "url", |reader, value| reader.parse(value, parse_syslog_url))?;
    let trust =
        table.read(reader, "trust", |reader, value| reader.text(value).map(|text| value.located(text.to_owned())));
    if let (Some(trust), false) = (&trust, server.uses_tls) {
        let problem = Problem::at(trust.span, "`trust` has no effect without TLS");
        reader.problems.push(problem.help("write a URL that begins with tcp+tls://, or leave trust out"));
    }
    Some(Located { span: value.span, value: SyslogServer { trust: trust.map(|trust| trust.value), ..server.value } })
}

fn parse_syslog_url(text: &str) -> Result<SyslogServer, ValueError> {
    let invalid = |reason: &str| ValueError {
        expected: "the URL of a syslog server",
        reason: reason.to_owned(),
        help: "write \"tcp+tls://siem.example:6514\", or \"tcp://127.0.0.1:601\" on a trusted network".to_owned(),
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("no scheme"))?;
    let uses_tls = match scheme {
        "tcp+tls" => true,
        "tcp" => false,
        _ => return Err(invalid("the scheme is neither tcp+tls nor tcp")),
    };
    let authority: Authority = rest.parse().map_err(|_| invalid("not a host and a port"))?;
    let port = authority.port_u16().filter(|port| *port > 0).ok_or_else(|| invalid("no port"))?;
    let host = host::canonical(authority.host()).map_err(|error| invalid(&error.to_string()))?;
    if authority.as_str().contains('@') {
        return Err(invalid("a user name, which syslog has not"));
    }
    Ok(SyslogServer { url: text.to_owned(), host, port, uses_tls, trust: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_urls_have_a_scheme_a_host_and_a_port() {
        let server = parse_syslog_url("tcp+tls://SIEM.example:6514").unwrap();
        assert_eq!((server.host.to_string(), server.port, server.uses_tls), ("siem.example".to_owned(), 6514, true));
        assert!(!parse_syslog_url("tcp://[::1]:601").unwrap().uses_tls);
        for (text, reason) in [
            ("siem.example:6514", "no scheme"),
            ("udp://siem.example:514", "the scheme is neither tcp+tls nor tcp"),
            ("tcp://siem.example", "no port"),
            ("tcp://siem.example:0", "no port"),
            ("tcp://a:b@siem.example:601", "a user name, which syslog has not"),
            ("tcp://siem.example:601/x", "not a host and a port"),
        ] {
            assert_eq!(parse_syslog_url(text).unwrap_err().reason, reason, "{text}");
        }
    }

    #[test]
    fn audit_logs_are_kept_for_180_days_or_more() {
        assert_eq!(parse_keep("180d"), Ok(DAY * 180));
        for text in ["179d", "400", "36501d", "d", "+400d", "400 d", "99999999999d"] {
            assert!(parse_keep(text).is_err(), "{text}");
        }
    }
}
