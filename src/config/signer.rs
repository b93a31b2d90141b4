//! Reads `[signers.NAME]`: the scheme, the keys, and the settings of some schemes.
//! How is a webhook signed, and with which keys?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::WarningCode;
use super::key_dir::{KeyDirProblem, scan};
use super::named_sections::{read_period, read_word};
use super::problem::{Problem, truncate_similar};
use super::reader::{Reader, Table, Value};
use super::{KeyDir, Located, Secret, schema, secret, units};
use crate::names::{KeyId, SignerName};

/// A signer as written. `None`: the setting is not written. The scheme decides whether it takes a setting, and its
/// default.
#[derive(Clone, Debug)]
pub struct Signer {
    pub scheme: Located<String>,
    /// The keys of all tenants that have no keys of their own.
    pub keys: Vec<Located<SigningKey>>,
    /// The directory with the keys of single tenants.
    pub key_dir: Option<Located<Arc<KeyDir>>>,
    pub algorithm: Option<Located<HmacAlgorithm>>,
    /// The encoding of a secret in its file or variable.
    pub key_encoding: Option<Located<Encoding>>,
    /// The signed message, with `{placeholders}`.
    pub message: Option<Located<String>>,
    /// The encoding of the signature.
    pub encoding: Option<Located<Encoding>>,
    /// The header fields: `NAME: VALUE`, with `{placeholders}`.
    pub headers: Option<Vec<Located<String>>>,
    pub signature_params: SignatureParams,
}

/// The parameters of a message signature (RFC 9421) that the configuration sets.
#[derive(Clone, Debug, Default)]
pub struct SignatureParams {
    /// The purpose of the signature.
    pub tag: Option<Located<String>>,
    /// The name of the signature in `Signature` and `Signature-Input`.
    pub label: Option<Located<String>>,
    /// Component identifiers.
    pub components: Option<Vec<Located<String>>>,
    /// The time from `created` to `expires`.
    pub lifetime: Option<Located<Duration>>,
    /// The URL of the key directory.
    pub signature_agent: Option<Located<String>>,
}

#[derive(Clone, Debug)]
pub struct SigningKey {
    pub id: KeyId,
    pub secret: Located<Secret>,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HmacAlgorithm {
    Sha1,
    Sha256,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The bytes as they are.
    Text,
    /// Hexadecimal digits in lower case.
    Hex,
    Base64,
    /// The URL-safe alphabet of RFC 4648 §5, without padding.
    Base64Url,
}

const ALGORITHMS: [(&str, HmacAlgorithm); 3] = [
    ("hmac-sha1", HmacAlgorithm::Sha1),
    ("hmac-sha256", HmacAlgorithm::Sha256),
    ("hmac-sha512", HmacAlgorithm::Sha512),
];
const KEY_ENCODINGS: [(&str, Encoding); 3] =
    [("text", Encoding::Text), ("hex", Encoding::Hex), ("base64", Encoding::Base64)];
const ENCODINGS: [(&str, Encoding); 3] =
    [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];

pub(super) fn read_all(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<SignerName, Located<Signer>> {
    let tables = reader.named_tables(files, "signers", &schema::SIGNER);
    let signers = tables.into_iter().map(|(name, table)| {
        let value = read_signer(reader, &table)?;
        Some((SignerName::new(name), Located { value, span: table.span }))
    });
    signers.flatten().collect()
}

fn read_signer(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Signer> {
    let help = "write keys = [{ id = \"2026-11\", secret = \"file:PATH\" }]";
    table.require(reader, "scheme", "write scheme = \"standard-webhooks\"");
    if !table.has("key_dir") {
        table.require(reader, "keys", help);
    }
    let key_dir = table.read(reader, "key_dir", read_key_dir);
    let scheme = table.read(reader, "scheme", read_word);
    let keys = table.read_list(reader, "keys", Some(help), read_signing_key).unwrap_or_default();
    let mut first = BTreeMap::new();
    for (id, span) in keys.iter().map(|(id, _)| (id.value.as_str(), id.span)) {
        if let Some(first) = first.insert(id, span) {
            let problem = Problem::at(span, format!("two keys of `{}` are called {id:?}", table.key));
            let problem = problem.label("again here").related(first, "first here");
            reader.problems.push(problem.help("give each key its own id"));
        }
    }
    let algorithm = table.read(reader, "algorithm", |reader, value| reader.parse_choice(value, &ALGORITHMS));
    let key_encoding = table.read(reader, "key_encoding", |reader, value| reader.parse_choice(value, &KEY_ENCODINGS));
    let message = table.read(reader, "message", read_text);
    let encoding = table.read(reader, "encoding", |reader, value| reader.parse_choice(value, &ENCODINGS));
    let headers =
        table.read_list(reader, "headers", Some("write headers = [\"X-Acme-Signature: {signature}\"]"), read_text);
    let keys = keys.into_iter().filter_map(|(_, key)| key).collect();
    let signature_params = read_signature_params(reader, table);
    Some(Signer {
        scheme: scheme?,
        keys,
        key_dir,
        algorithm,
        key_encoding,
        message,
        encoding,
        headers,
        signature_params,
    })
}

fn read_signature_params(reader: &mut Reader<'_>, table: &Table<'_>) -> SignatureParams {
    let help = "write components = [\"@authority\", \"content-digest\"]";
    SignatureParams {
        tag: table.read(reader, "tag", read_text),
        label: table.read(reader, "label", read_text),
        components: table.read_list(reader, "components", Some(help), read_text),
        lifetime: table.read(reader, "lifetime", |reader, value| reader.parse(value, units::positive_duration)),
        signature_agent: table.read(reader, "signature_agent", read_text),
    }
}

fn read_text(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<String>> {
    reader.text(value).map(|text| value.located(text.to_owned()))
}

/// Reads a signing key and its id. The id is returned even without a secret, so that duplicate ids are found.
fn read_signing_key(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
) -> Option<(Located<String>, Option<Located<SigningKey>>)> {
    let table = Table::open(reader, value, &schema::SIGNING_KEY)?;
    table.require(reader, "id", "write id = \"2026-11\": records name the key by it");
    table.require(reader, "secret", "write secret = \"file:PATH\", \"credential:NAME\" or \"env:NAME\"");
    let id = table.read(reader, "id", |reader, value| reader.parse(value, |text| units::name(text).map(str::to_owned)));
    let secret = table.read(reader, "secret", secret::read);
    let (from, until) = read_period(reader, &table);
    let id = id?;
    let key = secret.map(|secret| value.located(SigningKey { id: KeyId::new(id.as_str()), secret, from, until }));
    Some((id, key))
}

/// Reads the folders that have changed since the previous load. A problem in one folder concerns only its tenant: it
/// must not keep thousands of others from a start or from new keys.
fn read_key_dir(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Arc<KeyDir>>> {
    let text = reader.text(value)?;
    if text.is_empty() {
        let problem = Problem::at(value.span, format!("`{}` is empty", value.key));
        reader.problems.push(problem.help("write the path of a directory with one folder per tenant"));
        return None;
    }
    let path = reader.resolve_path(value.span, text);
    if let Some(cached) = reader.key_dirs.get(&path) {
        return Some(value.located(Arc::clone(cached)));
    }
    reader.files.track(&path);
    let mut unattributed = Vec::new();
    let mut key_dir = KeyDir { path, tenants: BTreeMap::new() };
    let previous = reader.previous_key_dirs.get(&key_dir.path).map(Arc::as_ref);
    if let Err(error) = scan(&mut key_dir, previous, &mut unattributed) {
        let KeyDirProblem { message, help } = KeyDirProblem::unreadable(&key_dir.path, &error);
        reader.problems.push(Problem::at(value.span, message).help(help));
    }
    let problems = unattributed.iter().chain(key_dir.tenants.values().flat_map(|folder| &folder.problems));
    let problems = problems.map(|error| Problem::contained(value.span, &error.message).help(&error.help));
    let warnings = key_dir.warnings();
    let warnings = warnings
        .map(|error| Problem::warning(WarningCode::TenantKeys, Some(value.span), error.message).help(error.help));
    reader.problems.extend(truncate_similar(problems.chain(warnings), &format!("below {}", key_dir.path.display())));
    reader.files.update_digest(key_dir.path.as_os_str().as_encoded_bytes());
    for (tenant, folder) in &key_dir.tenants {
        reader.files.update_digest(tenant.as_str().as_bytes());
        reader.files.record_digest(key_dir.folder_path(tenant), folder.digest);
    }
    let key_dir = Arc::new(key_dir);
    reader.key_dirs.insert(key_dir.path.clone(), Arc::clone(&key_dir));
    Some(value.located(key_dir))
}
