//! Redacts secrets that were written into the configuration itself, before any of its text is shown.
//! Which parts of a file may be secrets?

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{secret, units};

/// Keys of sensitive sections whose values are not secret.
const NON_SECRET_KEYS: [&str; 20] = [
    "id",
    "scheme",
    "from",
    "until",
    "key_dir",
    "algorithm",
    "key_encoding",
    "message",
    "encoding",
    "headers",
    "tag",
    "label",
    "components",
    "lifetime",
    "signature_agent",
    "networks",
    "tenants",
    "certificates",
    "public_keys",
    "require",
];
/// Keys of a credential whose values are not secret, although `token_url` contains a secret word.
const NON_SECRET_CREDENTIAL_KEYS: [&str; 8] =
    ["type", "name", "token_url", "client_id", "client_auth", "scopes", "audience", "plaintext"];
/// Words in a key that mark its value as a secret, in any section.
const SECRET_KEY_WORDS: [&str; 5] = ["secret", "token", "passw", "passphrase", "hmac_key"];

/// Returns the text with asterisks for every value that may be a secret; its length in bytes stays the same. These
/// are all values in the sections of clients, signers and credentials and below keys with a secret word, except
/// references and hashes. `errors` are the spans of syntax errors, where `table` is incomplete.
pub(super) fn redact(text: &str, table: &DeTable<'_>, errors: &[Range<usize>]) -> String {
    let mut spans = secret_spans(table);
    if !errors.is_empty() {
        spans.extend(broken_line_spans(text, errors));
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in spans {
        for byte in bytes.get_mut(span).into_iter().flatten() {
            // Quotes stay, so that the value is still a string.
            if !b"\n\"'".contains(byte) {
                *byte = b'*';
            }
        }
    }
    // Spans cover whole values or lines, so the text is still UTF-8. If not, all of it is redacted.
    String::from_utf8(bytes).unwrap_or_else(|_| "*".repeat(text.len()))
}

/// Returns the spans of values that may be secrets.
pub(super) fn secret_spans(table: &DeTable<'_>) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    for (key, value) in table {
        let section = key.get_ref();
        let is_sensitive = is_secret_key(section);
        if let (true, DeValue::Table(members)) = (section == "alerts", value.get_ref()) {
            // The path of a webhook may be a secret, as those of chat services are.
            spans.extend(members.get("webhook").map(toml::Spanned::span));
        }
        if let (true, DeValue::Table(members)) = (section == "notices", value.get_ref()) {
            spans.extend(members.get("webhooks").map(toml::Spanned::span));
        }
        match value.get_ref() {
            DeValue::Table(members) if is_sensitive_section(section) => {
                let non_secret =
                    if is_credentials_section(section) { &NON_SECRET_CREDENTIAL_KEYS[..] } else { &NON_SECRET_KEYS };
                // The first level has names; the values are below them.
                for (_, member) in members {
                    collect_secret_spans(member, true, non_secret, &mut spans);
                }
            }
            DeValue::Table(members) if section == "traces" => {
                for (key, member) in members {
                    collect_secret_spans(member, key.get_ref() == "headers", &[], &mut spans);
                }
            }
            _ => collect_secret_spans(value, is_sensitive, &NON_SECRET_KEYS, &mut spans),
        }
    }
    spans
}

fn is_credentials_section(section: &str) -> bool {
    ["cred", "auth", "oauth"].iter().any(|start| section.starts_with(start))
}

fn is_sensitive_section(section: &str) -> bool {
    section.starts_with("client") || section.starts_with("sign") || is_credentials_section(section)
}

fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET_KEY_WORDS.iter().any(|word| key.contains(word))
}

/// Collects the spans of secrets in a value. `is_sensitive`: the value is in a section or below a key that may have
/// secrets.
fn collect_secret_spans(
    value: &toml::Spanned<DeValue<'_>>,
    is_sensitive: bool,
    non_secret: &[&str],
    spans: &mut Vec<Range<usize>>,
) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                let is_open = non_secret.contains(&key.get_ref().as_ref());
                collect_secret_spans(
                    value,
                    (is_sensitive || is_secret_key(key.get_ref())) && !is_open,
                    non_secret,
                    spans,
                );
            }
        }
        DeValue::Array(array) => {
            array.iter().for_each(|element| collect_secret_spans(element, is_sensitive, non_secret, spans))
        }
        DeValue::String(text) => {
            // The prefixes of Standard Webhooks and the labels of PEM identify a secret anywhere.
            let is_secret = text.starts_with("whsec_") || text.starts_with("whsk_") || text.contains("PRIVATE KEY");
            // A URL may contain a password.
            let is_secret = is_secret || text.contains("://") && text.contains('@');
            if is_secret || is_sensitive && !secret::is_reference(text) && units::token_hash(text).is_err() {
                spans.push(value.span());
            }
        }
        _ if is_sensitive => spans.push(value.span()),
        _ => {}
    }
}

/// Returns the text after the first `=` of each line with a secret word, and of each line of a sensitive section with
/// a syntax error.
fn broken_line_spans(text: &str, errors: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let (mut start, mut section) = (0, "");
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        let header = line.trim_start().starts_with('[') && !line.contains('=');
        if header {
            section = line.trim_matches(|c: char| c == '[' || c.is_whitespace());
        }
        let has_error = errors.iter().any(|error| error.start < end && start <= error.end);
        let is_sensitive = is_sensitive_section(section);
        if !header
            && (is_secret_key(line)
                || line.contains("whsec_")
                || line.contains("PRIVATE KEY")
                || has_error && is_sensitive)
        {
            spans.push(line.find('=').map_or(start, |equals| start + equals + 1)..end);
        }
        start = end;
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(text: &str) -> String {
        let (table, errors) = DeTable::parse_recoverable(text);
        let errors: Vec<_> = errors.iter().filter_map(toml::de::Error::span).collect();
        let redacted = redact(text, table.get_ref(), &errors);
        assert_eq!(redacted.len(), text.len());
        redacted
    }

    #[test]
    fn redact_hides_secret_values() {
        for text in [
            "[signers.a]\nkeys = [{ id = \"1\", secret = \"hunter2\" }]",
            "[signers.a]\nkeys = [\"hunter2\", \"file:x\"]",
            "[signers.a]\nsecret = 'hunter2'",
            "[signers]\na.keys = [{ secret = \"\"\"hunter2\nhunter2\"\"\" }]",
            "[sign.a]\nk = \"hunter2\"",
            "[clients.a]\ntokens = [\"hunter2\", \"sha256:hunter2\"]",
            "[clients.a]\ntoken = { value = \"hunter2\" }",
            "api_token = \"hunter2\"",
            "[[routes]]\nid = \"whsec_hunter2\"",
            "[signers.a]\nsecret = hunter2",
            "[signers.a]\nkeys = [{ id = \"1\", secret = hunter2 }]\n[server]\n",
            "[clients.a]\ntokens = [\n  hunter2,\n]\n",
            "[clients.a]\ntokens = [\"hunter2]\n",
            "secret = \"hunter2",
            "[signers.a]\nsecret = éhunter2",
            "[credentials.a]\npassword = \"hunter2\"\nusername = \"hunter2\"\nvalue = 'hunter2'",
            "[credentials.a]\nparameters = { resource = \"hunter2\" }",
            "[credentials.a]\nclient_secret = \"hunter2\"\ntoken_url = \"https://a:hunter2@login.example\"",
            "[auth.a]\nvalue = \"hunter2\"",
            "[credentials.a]\nvalue = hunter2",
            "[redact]\nhmac_key = \"hunter2\"",
            "[traces]\nheaders = { Authorization = \"hunter2\" }",
            "[server]\ntls = { key = \"\"\"-----BEGIN PRIVATE KEY-----\nhunter2\n\"\"\" }",
        ] {
            assert!(!redacted(text).contains("hunter2"), "{text}\n{}", redacted(text));
        }
    }

    #[test]
    fn redact_keeps_values_that_are_not_secret() {
        let hash = "sha256:".to_owned() + &"0a".repeat(32);
        for text in [
            "[signers.a]\nscheme = \"standard-webhooks\"\nkeys = [{ id = \"1\", secret = \"env:KEY\", from = \"soon\" }]",
            "[clients.a]\nnetworks = [\"192.0.2.0/28\"]\ntenants = [\"a\"]",
            "[[routes]]\nname = \"secret\"\nsign = [\"a\"]",
            "[credentials.a]\ntype = \"oauth2\"\ntoken_url = \"https://login.example/\"\nclient_secret = \"env:KEY\"",
            "[redact]\nhmac_key = \"credential:redact\"\nheaders = [\"x-number\"]",
            "[server\nlisten = [\"[::1]:1\"]",
        ] {
            assert_eq!(redacted(text), text);
        }
        let text = format!("[clients.a]\ntokens = [\"{hash}\"]");
        assert_eq!(redacted(&text), text);
    }
}
