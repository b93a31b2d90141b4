//! The list of the signature schemes.
//! Which scheme has this name, and which options does it take?

use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::NewKeyError;
use super::scheme::{NewKey, SchemeSpec};
use super::{github, hmac, rfc9421, sendgrid, shopify, slack, standard_webhooks, stripe, twilio};
use crate::config::problem::closest_match;
use crate::config::{self, Located, Problem, SourceSpan};

static SCHEMES: [SchemeSpec; 9] = [
    standard_webhooks::SPEC,
    rfc9421::SPEC,
    twilio::SPEC,
    sendgrid::SPEC,
    stripe::SPEC,
    github::SPEC,
    slack::SPEC,
    shopify::SPEC,
    hmac::SPEC,
];

pub(super) fn find_scheme(name: &str) -> Option<&'static SchemeSpec> {
    SCHEMES.iter().find(|spec| spec.name == name)
}

/// Returns the names of the schemes that a signer may have.
pub fn schemes() -> impl Iterator<Item = &'static str> {
    SCHEMES.iter().map(|spec| spec.name)
}

/// Returns a hint: the scheme with the most similar name, and all that exist.
pub(super) fn suggest_schemes(scheme: &str) -> String {
    let names: Vec<&str> = schemes().collect();
    let suggestion = closest_match(scheme, schemes()).map_or(String::new(), |near| format!("did you mean {near:?}? "));
    format!("{suggestion}the schemes are {}", names.join(", "))
}

/// Generates the secret of a key for this scheme, which the operator keeps in a file or a credential.
pub fn new_key(scheme: &str, algorithm: Option<&str>) -> Result<Zeroizing<String>, NewKeyError> {
    let spec = find_scheme(scheme).ok_or_else(|| NewKeyError::UnknownScheme(scheme.into(), suggest_schemes(scheme)))?;
    let matches = |(candidate, _): &&(Algorithm, NewKey)| algorithm.is_none_or(|name| name == candidate.name());
    match spec.new_keys.iter().find(matches) {
        Some((_, new_key)) => new_key(),
        None => {
            let all: Vec<&str> = spec.new_keys.iter().map(|(algorithm, _)| algorithm.name()).collect();
            Err(NewKeyError::UnknownAlgorithm(algorithm.unwrap_or_default().into(), all.join(", ")))
        }
    }
}

/// Reports the options that are written and that the scheme does not take.
pub(super) fn reject_unsupported_options(spec: &SchemeSpec, written: &config::Signer, problems: &mut Vec<Problem>) {
    fn span_of<T>(value: &Option<Located<T>>) -> Option<SourceSpan> {
        value.as_ref().map(|value| value.span)
    }
    let list = |list: &Option<Vec<Located<String>>>| {
        list.as_ref().map(|list| list.first().map_or(written.scheme.span, |first| first.span))
    };
    let profile = &written.signature_params;
    for (name, span, other) in [
        ("algorithm", span_of(&written.algorithm), hmac::SPEC.name),
        ("key_encoding", span_of(&written.key_encoding), hmac::SPEC.name),
        ("message", span_of(&written.message), hmac::SPEC.name),
        ("encoding", span_of(&written.encoding), hmac::SPEC.name),
        ("headers", list(&written.headers), hmac::SPEC.name),
        ("tag", span_of(&profile.tag), rfc9421::SPEC.name),
        ("label", span_of(&profile.label), rfc9421::SPEC.name),
        ("components", list(&profile.components), rfc9421::SPEC.name),
        ("lifetime", span_of(&profile.lifetime), rfc9421::SPEC.name),
        ("signature_agent", span_of(&profile.signature_agent), rfc9421::SPEC.name),
    ] {
        if let Some(span) = span.filter(|_| !spec.options.contains(&name)) {
            let message = format!("the scheme {} does not support `{name}`", spec.name);
            let help = format!("remove the key; the scheme {other:?} supports it");
            problems.push(Problem::at(span, message).help(help));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixture::{at, signer};
    use crate::policy::sign::fixture::Sample;

    /// Outgate removes the headers of a scheme that the client sent. A client could forge a header that the scheme did
    /// not own.
    #[test]
    fn every_scheme_owns_the_headers_that_it_writes() {
        for spec in &SCHEMES {
            let mut written = signer(spec.name);
            if spec.name == hmac::SPEC.name {
                let lines = ["X-Acme-Time: {timestamp}", "X-Acme-Signature: {signature}"];
                written.headers = Some(lines.map(|line| at(1, line.to_owned())).into());
            }
            let mut problems = Vec::new();
            let scheme = (spec.build)(&written, &mut problems).expect("a scheme");
            let key = scheme.parse_key(new_key(spec.name, None).unwrap().as_bytes()).ok().unwrap();
            let sample = Sample::body("{}");
            let early = sample.mutations(scheme.as_ref()).unwrap().headers;
            let early: Vec<&str> = early.iter().map(|(name, _)| name.as_str()).collect();
            let signed = sample.sign_with(scheme.as_ref(), vec![key]).unwrap();
            let owned = scheme.headers();
            // The rfc9421 scheme writes `Content-Digest` and does not own it: outgate removes the fields that a scheme owns
            // from the client's request, but it keeps a right `Content-Digest`, and two signers may cover the same one.
            let unsigned = early.iter().copied().filter(|name| *name != "content-digest");
            for name in unsigned.chain(signed.iter().map(|(name, _)| name.as_str())) {
                assert!(owned.iter().any(|own| own == name), "{}: {name}", spec.name);
            }
            assert!(!signed.is_empty(), "{}", spec.name);
            // Signers that come later cover these.
            let expected: &[&str] = match spec.name {
                "standard-webhooks" => &["webhook-id"],
                "rfc9421" => &["content-digest"],
                "slack" => &["x-slack-request-timestamp"],
                "hmac" => &["x-acme-time"],
                _ => &[],
            };
            assert_eq!(early, expected, "{}", spec.name);
        }
    }
}
