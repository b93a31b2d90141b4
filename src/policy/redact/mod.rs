//! Removes private data from text before outgate writes it anywhere.
//! Which parts of a path, a name, a header value or a message may an output have?
//!
//! docs/redaction.md has the rules and their sources. [`Redacted`] is the evidence that a text has passed.

mod compile;
mod decode;
mod phone;
mod segment;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use http::HeaderName;
use serde::Serialize;

use crate::config::PathForm;
use crate::http_message::FieldName;
use crate::names::{Host, TenantName};
use decode::Decoded;

/// The text in place of a secret if no key is configured.
const MASK: &str = "***";
/// Bytes of a keyed hash: 64 bits distinguish the values of one log.
const HASH_BYTES: usize = 8;
/// Fields whose values are always secret, besides those with a word of [`SECRET_WORDS`].
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
/// Words in the name of a field that make its value secret.
const SECRET_WORDS: [&str; 6] = ["signature", "secret", "token", "password", "api-key", "apikey"];

/// Text that may be written: a redactor has passed it, or it is part of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
#[must_use]
pub struct Redacted<'a>(Cow<'a, str>);

impl<'a> Redacted<'a> {
    /// Returns a text of the program.
    pub fn fixed(text: &'static str) -> Redacted<'static> {
        Redacted(Cow::Borrowed(text))
    }

    /// Returns a name that the operator has written into the configuration.
    pub fn configured(name: &'a str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// Returns a sentence of the program that quotes the text, up to this number of characters.
    pub fn quoted(&self, chars_max: usize, before: &str, after: &str) -> Redacted<'static> {
        let shown: String = self.0.chars().take(chars_max).collect();
        Redacted(Cow::Owned(format!("{before}{shown:?}{after}")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_owned(self) -> Redacted<'static> {
        Redacted(Cow::Owned(self.0.into_owned()))
    }
}

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The settings of a route for the paths of its requests.
#[derive(Clone, Default)]
pub struct RoutePaths {
    /// The form in which paths are written; `None`: that of `[redact]`.
    pub form: Option<PathForm>,
    /// The route's conditions on paths; empty, or one empty condition, matches all.
    pub conditions: Arc<[Arc<str>]>,
}

impl RoutePaths {
    /// Returns the longest condition that a path meets, as a pattern. It contains nothing else of the path.
    fn template(&self, path: &str) -> String {
        let is_met = |condition: &&Arc<str>| {
            let rest = path.strip_prefix(&***condition);
            rest.is_some_and(|rest| rest.is_empty() || condition.ends_with('/') || rest.starts_with('/'))
        };
        let met = self.conditions.iter().filter(is_met);
        match met.max_by_key(|condition| condition.len()).map_or("", |condition| condition) {
            condition if condition == path && !path.is_empty() => condition.to_owned(),
            condition if condition.ends_with('/') => format!("{condition}*"),
            condition => format!("{condition}/*"),
        }
    }
}

/// The compiled section `redact`.
pub struct Redactor {
    path: PathForm,
    masks_phone_numbers: bool,
    /// Fields whose values are secret, besides those that always are.
    headers: Vec<HeaderName>,
    /// The key of the hashes that join records; `None`: secrets become [`MASK`].
    key: Option<hmac::Key>,
}

impl Default for Redactor {
    fn default() -> Self {
        Self { path: PathForm::default(), masks_phone_numbers: true, headers: Vec::new(), key: None }
    }
}

impl Redactor {
    /// Returns whether the path of a request without a route is written, at least in part.
    pub fn shows_paths(&self) -> bool {
        matches!(self.path, PathForm::Full | PathForm::Masked)
    }

    /// Returns the path of a request; `None`: the path is not written.
    pub fn path<'a>(&self, route: &RoutePaths, host: &Host, path: &'a str) -> Option<Redacted<'a>> {
        let written = match route.form.unwrap_or(self.path) {
            PathForm::None => return None,
            PathForm::Template => Cow::Owned(route.template(path)),
            PathForm::Full => self.segments(path, |_, _| false),
            PathForm::Masked => {
                let secrets = segment::first_secret(host, path).unwrap_or(usize::MAX);
                self.segments(path, |index, bytes| index >= secrets || segment::is_random(bytes))
            }
        };
        Some(Redacted(written))
    }

    /// Returns the host of a target.
    pub fn host<'a>(&self, host: &'a Host) -> Redacted<'a> {
        match host {
            Host::Name(name) => self.name(name),
            Host::Ip(_) => Redacted(Cow::Owned(host.to_string())),
        }
    }

    /// Returns a name that identifies a party or an object. A random name is no secret.
    pub fn name<'a>(&self, name: &'a str) -> Redacted<'a> {
        if is_plain(name) {
            return Redacted(Cow::Borrowed(name));
        }
        Redacted(self.mask_numbers(&Decoded::new(name)))
    }

    /// Returns a word that a client has chosen without proof. It may be a token in the wrong place.
    pub fn claim<'a>(&self, word: &'a str) -> Redacted<'a> {
        Redacted(self.segment(word, segment::is_random))
    }

    /// Returns the tenant that a request names. `is_proven`: the client may act for it.
    pub fn tenant<'a>(&self, tenant: &'a TenantName, is_proven: bool) -> Redacted<'a> {
        match tenant.as_str() {
            tenant if self.hides("outgate-tenant") => self.secret(tenant),
            tenant if is_proven => self.name(tenant),
            tenant => self.claim(tenant),
        }
    }

    /// Returns the id of a webhook. The digits of one that outgate has generated are not a phone number.
    pub fn webhook_id<'a>(&self, id: &'a str, is_generated: bool) -> Redacted<'a> {
        match (is_generated, self.hides("webhook-id")) {
            (true, _) => Redacted(Cow::Borrowed(id)),
            (false, true) => self.secret(id),
            (false, false) => self.name(id),
        }
    }

    /// Returns the value of a header field.
    pub fn header<'a>(&self, name: FieldName<'_>, value: &'a str) -> Redacted<'a> {
        let name = &*name.to_lowercase();
        let is_secret = SECRET_HEADERS.contains(&name) || SECRET_WORDS.iter().any(|word| name.contains(word));
        if is_secret || self.hides(name) { self.secret(value) } else { self.text(value) }
    }

    /// Returns whether the values of a header field are credentials. A signature is none: its receiver has the key.
    pub fn is_credential(&self, name: FieldName<'_>) -> bool {
        let name = &*name.to_lowercase();
        let has_word = || SECRET_WORDS.iter().any(|word| *word != "signature" && name.contains(word));
        SECRET_HEADERS.contains(&name) || has_word() || self.hides(name)
    }

    /// Returns whether the operator has named a header field whose values are secret.
    fn hides(&self, name: &str) -> bool {
        self.headers.iter().any(|secret| secret.as_str() == name)
    }

    fn secret(&self, value: &str) -> Redacted<'static> {
        Redacted(Cow::Owned(self.replacement(value.as_bytes())))
    }

    /// Returns text without phone numbers.
    pub fn text<'a>(&self, text: &'a str) -> Redacted<'a> {
        self.words(text, |_| false)
    }

    /// Returns a message that may quote a request: without phone numbers, random words and queries.
    pub fn message<'a>(&self, text: &'a str) -> Redacted<'a> {
        match without_queries(text) {
            Cow::Borrowed(text) => self.words(text, segment::is_random),
            Cow::Owned(text) => self.words(&text, segment::is_random).into_owned(),
        }
    }

    /// Replaces the words that must not be written at all, and then the phone numbers, whose spaces separate words.
    fn words<'a>(&self, text: &'a str, is_secret: impl Fn(&[u8]) -> bool) -> Redacted<'a> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '%' | '+' | '~');
        let (mut edit, mut at) = (Edit::new(text), 0);
        while let Some(start) = text[at..].find(is_part).map(|start| at + start) {
            let end = text[start..].find(|c| !is_part(c)).map_or(text.len(), |length| start + length);
            if let Some(secret) = self.secret_in(&Decoded::new(&text[start..end]), &is_secret) {
                let kept = self.mask_numbers(&Decoded::new(&text[edit.kept_to..start]));
                edit.replace(edit.kept_to..start, &kept);
                edit.replace(start..end, &self.replacement(&secret));
            }
            at = end;
        }
        let rest = self.mask_numbers(&Decoded::new(&text[edit.kept_to..]));
        if edit.kept_to > 0 {
            edit.replace(edit.kept_to..text.len(), &rest);
            return Redacted(edit.finish());
        }
        Redacted(rest)
    }

    /// Redacts each segment of a path. `is_secret` gets the index of a segment and its decoded bytes.
    fn segments<'a>(&self, path: &'a str, is_secret: impl Fn(usize, &[u8]) -> bool) -> Cow<'a, str> {
        let mut segments = path.as_bytes().split(|byte| *byte == b'/').enumerate();
        if is_plain(path) && !segments.any(|(index, raw)| is_secret(index, raw)) {
            return Cow::Borrowed(path);
        }
        let (mut edit, mut at) = (Edit::new(path), 0);
        for (index, raw) in path.split('/').enumerate() {
            if let Cow::Owned(redacted) = self.segment(raw, |bytes| is_secret(index, bytes)) {
                edit.replace(at..at + raw.len(), &redacted);
            }
            at += raw.len() + 1;
        }
        edit.finish()
    }

    fn segment<'a>(&self, raw: &'a str, is_secret: impl Fn(&[u8]) -> bool) -> Cow<'a, str> {
        if is_plain(raw) && !is_secret(raw.as_bytes()) {
            return Cow::Borrowed(raw);
        }
        let decoded = Decoded::new(raw);
        match self.secret_in(&decoded, is_secret) {
            Some(secret) if !raw.is_empty() => Cow::Owned(self.replacement(&secret)),
            _ => self.mask_numbers(&decoded),
        }
    }

    /// Returns the bytes of a text that must be replaced as a whole. Digits that are encoded more than once cannot be
    /// replaced one by one.
    fn secret_in(&self, decoded: &Decoded<'_>, is_secret: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let layers = if decoded.is_encoded() { decoded.layers() } else { Vec::new() };
        let hides_number = |layer: &Vec<u8>| self.masks_phone_numbers && phone::is_in(layer);
        let is_hidden =
            Decoded::is_too_deep(&layers) || layers.iter().any(|layer| is_secret(layer) || hides_number(layer));
        // The innermost bytes are hashed: other encodings of the same secret have the same hash.
        (is_hidden || is_secret(decoded.bytes()))
            .then(|| layers.into_iter().next_back().unwrap_or_else(|| decoded.bytes().to_vec()))
    }

    /// Replaces the last four digits of each phone number.
    fn mask_numbers<'a>(&self, decoded: &Decoded<'a>) -> Cow<'a, str> {
        let (raw, bytes) = (decoded.raw(), decoded.bytes());
        let mut edit = Edit::new(raw);
        for number in phone::numbers(bytes).take_while(|_| self.masks_phone_numbers) {
            number.masked().for_each(|place| edit.replace(decoded.span(place), "X"));
            if self.key.is_some() {
                edit.replace(edit.kept_to..edit.kept_to, &format!("~{}", self.replacement(&number.digits(bytes))));
            }
        }
        edit.finish()
    }

    /// Returns the text in place of a secret.
    fn replacement(&self, secret: &[u8]) -> String {
        match &self.key {
            Some(key) => format!("hmac:{}", HEXLOWER.encode(&hmac::sign(key, secret).as_ref()[..HASH_BYTES])),
            None => MASK.to_owned(),
        }
    }
}

/// Replaces the query of each URL or path in a message. In a literal of bytes, as the HTTP/2 library logs a malformed
/// path, a query or fragment reaches to the end of the literal.
fn without_queries(text: &str) -> Cow<'_, str> {
    let ends_query = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ')' | '>');
    let (mut edit, mut at, mut is_literal) = (Edit::new(text), 0, false);
    while let Some(mark) = text[at..].find(['?', '#', '"']).map(|mark| at + mark) {
        let start = mark + 1;
        at = match text.as_bytes()[mark] {
            b'"' => {
                is_literal = !is_literal && text[..mark].ends_with('b');
                start
            }
            b'#' if !is_literal => start,
            _ => {
                let end = if is_literal { text[start..].find('"') } else { text[start..].find(ends_query) };
                let end = end.map_or(text.len(), |length| start + length);
                if end > start {
                    edit.replace(start..end, MASK);
                }
                end
            }
        };
    }
    edit.finish()
}

/// Returns whether a text has no escape, and fewer digits than a phone number. Most texts are so: only a random word of
/// them is replaced. There is no early return, so that the compiler compares many bytes at once.
fn is_plain(text: &str) -> bool {
    let (mut digits, mut has_escape) = (0, false);
    for byte in text.as_bytes() {
        digits += usize::from(byte.is_ascii_digit());
        has_escape |= *byte == b'%';
    }
    !has_escape && digits < phone::DIGITS_MIN
}

/// A text in which parts are replaced, from its start to its end. A text without such parts is not copied.
struct Edit<'a> {
    text: &'a str,
    written: String,
    /// The end of the last part.
    kept_to: usize,
}

impl<'a> Edit<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, written: String::new(), kept_to: 0 }
    }

    fn replace(&mut self, part: Range<usize>, with: &str) {
        self.written.push_str(&self.text[self.kept_to..part.start]);
        self.written.push_str(with);
        self.kept_to = part.end;
    }

    fn finish(self) -> Cow<'a, str> {
        if self.kept_to == 0 {
            return Cow::Borrowed(self.text);
        }
        Cow::Owned(self.written + &self.text[self.kept_to..])
    }
}
