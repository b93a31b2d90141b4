//! The schemes there are, where their names become code.
//! Which scheme is meant, and what does it take?

use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::NewKeyError;
use super::scheme::{NewKey, SchemeSpec};
use super::{github, hmac, rfc9421, sendgrid, shopify, slack, standard_webhooks, stripe, twilio};
use crate::config::problem::closest_match;
use crate::config::{self, Located, Problem, SourceSpan};

static SCHEMES: [SchemeSpec; 9] = [
    standard_webhooks::KNOWN,
    rfc9421::KNOWN,
    twilio::KNOWN,
    sendgrid::KNOWN,
    stripe::KNOWN,
    github::KNOWN,
    slack::KNOWN,
    shopify::KNOWN,
    hmac::KNOWN,
];

pub(super) fn find(name: &str) -> Option<&'static SchemeSpec> {
    SCHEMES.iter().find(|known| known.name == name)
}

/// The schemes a signer may name.
pub fn schemes() -> impl Iterator<Item = &'static str> {
    SCHEMES.iter().map(|known| known.name)
}

/// Which scheme might be meant, and which there are.
pub(super) fn which(scheme: &str) -> String {
    let known: Vec<&str> = schemes().collect();
    let meant = closest_match(scheme, schemes()).map_or(String::new(), |near| format!("did you mean {near:?}? "));
    format!("{meant}there is: {}", known.join(", "))
}

/// A new secret for a key of this scheme, to be kept in a file or a credential.
pub fn new_key(scheme: &str, algorithm: Option<&str>) -> Result<Zeroizing<String>, NewKeyError> {
    let known = find(scheme).ok_or_else(|| NewKeyError::UnknownScheme(scheme.into(), which(scheme)))?;
    let asked = |(has, _): &&(Algorithm, NewKey)| algorithm.is_none_or(|asked| asked == has.name());
    match known.new_keys.iter().find(asked) {
        Some((_, new_key)) => new_key(),
        None => {
            let all: Vec<&str> = known.new_keys.iter().map(|(has, _)| has.name()).collect();
            Err(NewKeyError::UnknownAlgorithm(algorithm.unwrap_or_default().into(), all.join(", ")))
        }
    }
}

/// What is written and says nothing here.
pub(super) fn reject_unsupported_options(spec: &SchemeSpec, written: &config::Signer, problems: &mut Vec<Problem>) {
    fn place<T>(value: &Option<Located<T>>) -> Option<SourceSpan> {
        value.as_ref().map(|value| value.span)
    }
    let list = |list: &Option<Vec<Located<String>>>| {
        list.as_ref().map(|list| list.first().map_or(written.scheme.span, |first| first.span))
    };
    let profile = &written.signature_params;
    for (name, place, other) in [
        ("algorithm", place(&written.algorithm), hmac::KNOWN.name),
        ("key_encoding", place(&written.key_encoding), hmac::KNOWN.name),
        ("message", place(&written.message), hmac::KNOWN.name),
        ("encoding", place(&written.encoding), hmac::KNOWN.name),
        ("headers", list(&written.headers), hmac::KNOWN.name),
        ("tag", place(&profile.tag), rfc9421::KNOWN.name),
        ("label", place(&profile.label), rfc9421::KNOWN.name),
        ("components", list(&profile.components), rfc9421::KNOWN.name),
        ("lifetime", place(&profile.lifetime), rfc9421::KNOWN.name),
        ("signature_agent", place(&profile.signature_agent), rfc9421::KNOWN.name),
    ] {
        if let Some(place) = place.filter(|_| !spec.options.contains(&name)) {
            let message = format!("the scheme {} takes no `{name}`", spec.name);
            let help = format!("leave it out; the scheme {other:?} can be told it");
            problems.push(Problem::at(place, message).help(help));
        }
    }
}
