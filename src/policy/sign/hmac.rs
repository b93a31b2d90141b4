//! The scheme `hmac`: the configuration says which text is signed and which headers carry the signature.
//! Which text does a platform sign, and where do its receivers look for the signature?

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::generate_shared_secret;
use super::scheme::{Scheme, SchemeSpec};
use super::template::{Template, TemplatePart};
use crate::config::problem::closest_match;
use crate::config::{self, Encoding, HmacAlgorithm, Located, Problem};

/// The keys of `[signers.NAME]` that this scheme takes. Other schemes take few of them, or none.
const OPTIONS: &[&str] = &["algorithm", "key_encoding", "message", "encoding", "headers"];

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "hmac",
    options: OPTIONS,
    build,
    new_keys: &[
        (Algorithm::HmacSha256, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes))),
        (Algorithm::HmacSha512, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes))),
        (Algorithm::HmacSha1, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes))),
    ],
};

const MESSAGE_PLACEHOLDERS: &[(&str, TemplatePart)] = &[
    ("body", TemplatePart::Body),
    ("id", TemplatePart::Id),
    ("timestamp", TemplatePart::Timestamp),
    ("timestamp_ms", TemplatePart::TimestampMillis),
    ("timestamp_rfc3339", TemplatePart::TimestampRfc3339),
    ("method", TemplatePart::Method),
    ("url", TemplatePart::Url),
    ("path", TemplatePart::Path),
];

const HEADER_PLACEHOLDERS: &[(&str, TemplatePart)] = &[
    ("signature", TemplatePart::Signature),
    ("id", TemplatePart::Id),
    ("timestamp", TemplatePart::Timestamp),
    ("timestamp_ms", TemplatePart::TimestampMillis),
    ("timestamp_rfc3339", TemplatePart::TimestampRfc3339),
    ("key_id", TemplatePart::KeyId),
];

/// Headers that a signature cannot be in: they describe the message, or belong to the connection or to another scheme.
const RESERVED_HEADERS: &[&str] = &[
    "authorization",
    "connection",
    "content-digest",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "signature",
    "signature-input",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

fn build(written: &config::Signer, problems: &mut Vec<Problem>) -> Option<Box<dyn Scheme>> {
    let message = match &written.message {
        None => Some(vec![TemplatePart::Body]),
        Some(text) => compile_message(text, problems),
    };
    let headers = match &written.headers {
        None => {
            let problem = Problem::at(written.scheme.span, "the scheme hmac requires `headers`");
            problems.push(problem.help("write headers = [\"X-Acme-Signature: {signature}\"]"));
            None
        }
        Some(lines) => compile_headers(lines, problems),
    };
    Some(Box::new(Template {
        algorithm: written.algorithm.as_ref().map_or(HmacAlgorithm::Sha256, |algorithm| algorithm.value),
        key_encoding: written.key_encoding.as_ref().map_or(Encoding::Text, |encoding| encoding.value),
        message: message?,
        encoding: written.encoding.as_ref().map_or(Encoding::Hex, |encoding| encoding.value),
        headers: headers?,
        additional: None,
    }))
}

fn compile_message(written: &Located<String>, problems: &mut Vec<Problem>) -> Option<Vec<TemplatePart>> {
    let parts = parse_template(written, &written.value, MESSAGE_PLACEHOLDERS, problems)?;
    if parts.contains(&TemplatePart::Body) {
        return Some(parts);
    }
    let problem = Problem::at(written.span, "`message` leaves the body unsigned: a third party could replace it");
    problems.push(problem.help("write, for example, \"{timestamp}.{body}\""));
    None
}

fn compile_headers(
    written: &[Located<String>],
    problems: &mut Vec<Problem>,
) -> Option<Vec<(HeaderName, Vec<TemplatePart>)>> {
    let mut headers: Vec<(HeaderName, Vec<TemplatePart>)> = Vec::new();
    for line in written {
        let mut report = |message: String, help: &str| problems.push(Problem::at(line.span, message).help(help));
        let Some((name, value)) = line.split_once(':').map(|(name, value)| (name, value.trim())) else {
            report("the header has no colon between name and value".into(), "write \"NAME: VALUE\", as in a request");
            return None;
        };
        let Ok(name) = HeaderName::try_from(name) else {
            report(format!("{name:?} cannot be the name of a header"), "write letters, digits and hyphens");
            return None;
        };
        let is_reserved = name.as_str().starts_with("outgate-") || name.as_str().starts_with("proxy-");
        if is_reserved || RESERVED_HEADERS.contains(&name.as_str()) {
            report(format!("the header {name} cannot carry a signature"), "write a header that has no other meaning");
            return None;
        }
        if headers.iter().any(|(other, _)| *other == name) {
            report(format!("the header {name} occurs twice"), "write one value for each header");
            return None;
        }
        if value.is_empty() || value.contains(|c: char| c.is_control() || !c.is_ascii()) {
            report(
                format!("the value of {name} is empty, or has characters other than visible ASCII"),
                "write, for example, \"X-Acme-Signature: {signature}\"",
            );
            return None;
        }
        headers.push((name, parse_template(line, value, HEADER_PLACEHOLDERS, problems)?));
    }
    if let Some(first) = written.first()
        && !headers.iter().any(|(_, parts)| parts.contains(&TemplatePart::Signature))
    {
        let problem = Problem::at(first.span, "no header has the placeholder {signature}");
        problems.push(problem.help("write, for example, \"X-Acme-Signature: {signature}\""));
        return None;
    }
    (!headers.is_empty()).then_some(headers)
}

/// Splits a template into its text and its placeholders.
fn parse_template(
    written: &Located<String>,
    text: &str,
    known: &[(&str, TemplatePart)],
    problems: &mut Vec<Problem>,
) -> Option<Vec<TemplatePart>> {
    let all = || {
        let names: Vec<_> = known.iter().map(|(name, _)| format!("{{{name}}}")).collect();
        format!("the placeholders are {}", names.join(" "))
    };
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            problems.push(Problem::at(written.span, "a brace is not closed").help(all()));
            return None;
        };
        let Some((_, part)) = known.iter().find(|(known, _)| *known == name) else {
            let suggestion = closest_match(name, known.iter().map(|(name, _)| *name));
            let help = suggestion.map_or_else(all, |suggestion| format!("did you mean {{{suggestion}}}? {}", all()));
            problems.push(Problem::at(written.span, format!("there is no placeholder {{{name}}}")).help(help));
            return None;
        };
        parts.extend([TemplatePart::Text(Cow::Owned(before.into())), part.clone()]);
        rest = after;
    }
    parts.push(TemplatePart::Text(Cow::Owned(rest.into())));
    parts.retain(|part| *part != TemplatePart::Text(Cow::Borrowed("")));
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixture::{at, messages};
    use crate::policy::sign::fixture::Sample;

    fn written(message: Option<&str>, headers: Option<&[&str]>) -> config::Signer {
        let headers = headers.map(|lines| lines.iter().map(|line| at(9, (*line).to_owned())).collect());
        let message = message.map(|message| at(8, message.to_owned()));
        config::Signer { message, headers, ..crate::policy::fixture::signer("hmac") }
    }

    fn sent(signer: &config::Signer) -> Vec<(String, String)> {
        let mut problems = vec![];
        let scheme = build(signer, &mut problems).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        Sample::body("{}").sign(scheme.as_ref(), &["secret"]).unwrap()
    }

    /// The expected values are those of `printf '%s' MESSAGE | openssl dgst -sha256 -hmac secret`.
    #[test]
    fn hmac_template_fills_every_placeholder() {
        let everything = "{method} {url} {path} {id} {timestamp} {timestamp_ms} {timestamp_rfc3339} {body}";
        let headers: &[&str] =
            &["X-A: v1={signature};k={key_id}", "X-B: {timestamp} {timestamp_ms} {timestamp_rfc3339} {id}"];
        let found = sent(&written(Some(everything), Some(headers)));
        let expected = [
            ("x-a", "v1=47fdbd1da820114a0fd408a15ccbdf08b831d59f56df628ca13a9226a8d1dc0d;k=k0"),
            ("x-b", "1614265330 1614265330000 2021-02-25T15:02:10Z msg_1"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn hmac_signs_the_body_in_each_encoding() {
        for (encoding, expected) in [
            (Encoding::Hex, "77325902caca812dc259733aacd046b73817372c777b8d95b402647474516e13"),
            (Encoding::Base64, "dzJZAsrKgS3CWXM6rNBGtzgXNyx3e42VtAJkdHRRbhM="),
            (Encoding::Base64Url, "dzJZAsrKgS3CWXM6rNBGtzgXNyx3e42VtAJkdHRRbhM"),
        ] {
            let signer =
                config::Signer { encoding: Some(at(7, encoding)), ..written(None, Some(&["X-A: {signature}"])) };
            assert_eq!(sent(&signer)[0].1, expected, "{encoding:?}");
        }
    }

    #[test]
    fn hmac_template_reports_each_problem() {
        let good: Option<&[&str]> = Some(&["X-A: {signature}"]);
        for (message, headers, expected) in [
            (None, None, "the scheme hmac requires `headers`"),
            (Some("{timestamp}"), good, "`message` leaves the body unsigned: a third party could replace it"),
            (Some("{time}{body}"), good, "there is no placeholder {time}"),
            (Some("{signature}{body}"), good, "there is no placeholder {signature}"),
            (Some("{body"), good, "a brace is not closed"),
            (None, Some(&["X-A"][..]), "the header has no colon between name and value"),
            (None, Some(&["X A: {signature}"]), "\"X A\" cannot be the name of a header"),
            (None, Some(&["Content-Type: {signature}"]), "the header content-type cannot carry a signature"),
            (None, Some(&["Outgate-A: {signature}"]), "the header outgate-a cannot carry a signature"),
            (None, Some(&["X-A: {signature}", "x-a: {id}"]), "the header x-a occurs twice"),
            (None, Some(&["X-A: "]), "the value of x-a is empty, or has characters other than visible ASCII"),
            (
                None,
                Some(&["X-A: {signature}\u{7f}"]),
                "the value of x-a is empty, or has characters other than visible ASCII",
            ),
            (
                None,
                Some(&["X-A: {signature}é"]),
                "the value of x-a is empty, or has characters other than visible ASCII",
            ),
            (None, Some(&["X-A: {body}"]), "there is no placeholder {body}"),
            (None, Some(&["X-A: {timestamp}"]), "no header has the placeholder {signature}"),
        ] {
            let mut problems = vec![];
            assert!(build(&written(message, headers), &mut problems).is_none());
            assert_eq!(messages(&problems), [expected]);
        }
    }
}
