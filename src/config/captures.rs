//! Reads the sections `captures`, and the recipients of each tenant.
//! Which webhooks does outgate capture, for whom, and where does it store them?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;

use super::files::FileError;
use super::named_sections::read_word;
use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::redaction::header_name;
use super::units::{self, ValueError};
use super::{Located, schema};
use crate::names::{CaptureName, TenantName};

/// The largest file of recipients, in bytes.
const RECIPIENTS_MAX: u64 = 64 << 10;
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const BODY_MAX: usize = 64 << 10;
/// The largest `body_max`. Each delivery in flight may hold two bodies in memory.
const BODY_MAX_MAX: usize = 1 << 20;
const TOTAL_MAX: u64 = 1 << 30;

type Recipients = BTreeMap<TenantName, (PathBuf, Result<String, String>)>;

/// The section `captures.NAME`.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Empty: every route.
    pub routes: Vec<Located<String>>,
    /// Empty: every tenant with recipients.
    pub tenants: Vec<Located<String>>,
    /// Empty: every webhook.
    pub webhook_ids: Vec<Located<String>>,
    /// The file of each tenant, and its text or why it cannot be read.
    pub recipients: Recipients,
    /// `None`: it has a problem.
    ///
    /// A folder, or the URL of a bucket: `s3://BUCKET/PREFIX`, where the prefix may be empty.
    pub store: Option<Located<PathBuf>>,
    /// The time after which outgate deletes a capture.
    pub keep: Duration,
    /// `None`: it has a problem.
    pub until: Option<Located<Timestamp>>,
    /// Bytes of each body.
    pub body_max: usize,
    /// Bytes of all captures in the store.
    pub total_max: u64,
    /// Header fields whose values are removed before sealing, besides those that always are.
    pub headers: Vec<HeaderName>,
    /// Values that are removed from JSON bodies before sealing (RFC 6901).
    pub pointers: Vec<String>,
}

pub(super) fn read_all(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<CaptureName, Located<Capture>> {
    let tables = reader.named_tables(files, "captures", &schema::CAPTURE);
    let located = |reader: &mut Reader<'_>, table: &Table<'_>| Located { value: read(reader, table), span: table.span };
    tables.into_iter().map(|(name, table)| (CaptureName::new(name), located(reader, &table))).collect()
}

fn read(reader: &mut Reader<'_>, table: &Table<'_>) -> Capture {
    for (key, help) in [
        ("recipients_dir", "write the folder with one file of age recipients per tenant: \"/etc/outgate/recipients\""),
        ("store", "write the folder of the sealed captures: store = \"/var/lib/outgate/captures\""),
        ("until", "write the time at which the capture ends: until = \"2027-01-01T00:00:00Z\""),
    ] {
        table.require(reader, key, help);
    }
    let mut words = |key, if_empty| table.read_list(reader, key, Some(if_empty), read_word).unwrap_or_default();
    let routes = words("routes", "leave the key out to capture every route");
    let tenants = words("tenants", "leave the key out to capture every tenant that has recipients");
    let webhook_ids = words("webhook_ids", "leave the key out to capture every webhook");
    let keep = table.read(reader, "keep", |reader, value| reader.parse(value, units::retention));
    let body_max = table.read(reader, "body_max", |reader, value| reader.parse(value, body_size));
    let total_max = table.read(reader, "total_max", |reader, value| reader.parse(value, units::size));
    let headers = table.read_list(reader, "headers", None, |reader, value| reader.parse(value, header_name));
    let pointers = table.read_list(reader, "pointers", None, |reader, value| reader.parse(value, json_pointer));
    Capture {
        routes,
        tenants,
        webhook_ids,
        recipients: table.read(reader, "recipients_dir", read_recipients).unwrap_or_default(),
        store: table.read(reader, "store", read_store),
        keep: keep.map_or(KEEP, |keep| keep.value),
        until: table.read(reader, "until", |reader, value| reader.parse(value, units::timestamp)),
        body_max: body_max.map_or(BODY_MAX, |size| size.value),
        total_max: total_max.map_or(TOTAL_MAX, |size| size.value),
        headers: headers.unwrap_or_default().into_iter().map(|header| header.value).collect(),
        pointers: pointers.unwrap_or_default().into_iter().map(|pointer| pointer.value).collect(),
    }
}

/// Reads the URL of a bucket.
pub(super) fn read_bucket(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathBuf>> {
    let text = reader.text(value)?;
    if text.strip_prefix("s3://").is_some_and(is_bucket) {
        return Some(value.located(text.into()));
    }
    reader.report_unknown_value(value, "write a bucket, \"s3://bucket/prefix\"");
    None
}

fn read_store(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathBuf>> {
    let text = reader.text(value)?;
    match text.strip_prefix("s3://") {
        Some(bucket) if is_bucket(bucket) => return Some(value.located(text.into())),
        None if !text.is_empty() && !text.contains("://") => {
            return Some(value.located(reader.resolve_path(value.span, text)));
        }
        _ => {}
    }
    let help = "write the path of a folder, \"/var/lib/outgate/captures\", or a bucket, \"s3://bucket/prefix\"";
    reader.report_unknown_value(value, help);
    None
}

/// Checks `BUCKET/PREFIX`. Letters, digits and `-_.=` need no encoding in a URL.
fn is_bucket(text: &str) -> bool {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=/".contains(&byte);
    let is_bucket_char = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(is_bucket_char)
        && prefix.bytes().all(is_char)
        && !prefix.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Reads the file of each tenant. A file that cannot be read affects only its tenant.
fn read_recipients(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Recipients> {
    let text = reader.text(value)?;
    let folder = reader.resolve_path(value.span, text);
    let mut files = BTreeMap::new();
    match reader.files.glob(&folder, "*") {
        Err(error) => {
            let problem = Problem::at(value.span, format!("cannot read the recipients in {}", folder.display()));
            let help = "create the folder, with one file of age recipients per tenant: its name is the tenant's";
            reader.problems.push(problem.label(error.to_string()).help(help));
        }
        Ok(paths) => {
            for path in paths {
                let tenant = path.file_name().and_then(|name| TenantName::from_file_name(name.to_str()?));
                let content = match reader.files.read(&path, RECIPIENTS_MAX) {
                    Err(FileError::Missing) => continue, // removed since the folder was listed
                    Err(error) => Err(error.to_string()),
                    Ok(content) => String::from_utf8(content.bytes).map_err(|_| "is not UTF-8 text".to_owned()),
                };
                files.extend(tenant.map(|tenant| (tenant, (path, content))));
            }
        }
    }
    Some(files)
}

fn body_size(text: &str) -> Result<usize, ValueError> {
    let error = || ValueError {
        expected: "a size of 1 MiB at most",
        reason: "more than 1 MiB".to_owned(),
        help: "write at most \"1 MiB\": outgate holds each captured body in memory".to_owned(),
    };
    let size = usize::try_from(units::size(text)?).ok();
    size.filter(|size| *size <= BODY_MAX_MAX).ok_or_else(error)
}

/// Checks the form of a JSON pointer (RFC 6901 §3).
fn json_pointer(text: &str) -> Result<String, ValueError> {
    let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if text.starts_with('/') && is_escaped {
        return Ok(text.to_owned());
    }
    let reason = if is_escaped { "does not begin with /" } else { "has a ~ without 0 or 1 after it" };
    Err(ValueError {
        expected: "a JSON pointer",
        reason: reason.to_owned(),
        help: "write the path of the value, RFC 6901: \"/customer/phone\", \"/items/0/name\"".to_owned(),
    })
}
