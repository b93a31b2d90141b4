//! Signers from what is written.
//! Can these keys sign by this scheme?

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::Signer;
use super::fault::KeyParseError;
use super::keyring::Keyring;
use super::listing::Signers;
use super::registry::{self, which};
use super::scheme::{Scheme, SignerKey};
use super::tenants::TenantKeyrings;
use crate::config::{self, Config, Encoding, HmacAlgorithm, Located, Problem};
use crate::names::{KeyId, SignerName};

/// `before`: those of the plan before, whose tenants' keys are kept where their files are the same.
pub fn compile(config: &Config, before: Option<&Signers>, problems: &mut Vec<Problem>) -> Signers {
    let mut signers = BTreeMap::new();
    for (name, written) in &config.signers {
        let before = before.and_then(|before| before.get(name)).map(|before| &**before);
        if let Some(signer) = signer(name, written, before, problems) {
            signers.insert(name.clone(), Arc::new(signer));
        }
    }
    signers
}

/// All that says how a secret is read.
#[derive(PartialEq, Eq)]
pub(super) struct KeyFormat {
    scheme: &'static str,
    algorithm: Option<HmacAlgorithm>,
    key_encoding: Option<Encoding>,
    /// Some tags allow key pairs alone.
    tag: Option<String>,
}

fn signer(
    name: &SignerName,
    written: &Located<config::Signer>,
    before: Option<&Signer>,
    problems: &mut Vec<Problem>,
) -> Option<Signer> {
    if written.keys.is_empty() && written.key_dir.is_none() {
        let help = "keys = [{ id = \"…\", secret = \"file:…\" }]; `outgate keys new` makes a secret";
        problems.push(Problem::at(written.span, format!("the signer {name} has no key")).help(help));
    }
    let mut ids = HashMap::new();
    for key in &written.keys {
        if let Some(first) = ids.insert(&key.id, key.span) {
            let problem = Problem::at(key.span, format!("two keys have the id {}", key.id)).also(first, "first here");
            problems.push(problem.help("records tell keys apart by their id"));
        }
        if let (Some(from), Some(until)) = (key.from, key.until)
            && from >= until
        {
            problems.push(Problem::at(key.span, format!("the key {} ends before it begins", key.id)));
        }
    }
    let Some(known) = registry::find(&written.scheme) else {
        let message = format!("no scheme is named {:?}", written.scheme.value);
        problems.push(Problem::at(written.scheme.span, message).help(which(&written.scheme)));
        return None;
    };
    known.refuse_the_rest(written, problems);
    let scheme = (known.build)(written, problems)?;
    if scheme.carries_one() {
        one_after_the_other(known.name, &written.keys, problems);
    }
    let keys: Vec<SignerKey> =
        written.keys.iter().filter_map(|written| key(scheme.as_ref(), written, problems)).collect();
    // Whether a key is missing cannot be judged: the rejected one may be it.
    let is_complete = !written.keys.is_empty() && keys.len() == written.keys.len();
    let shared = Some(Keyring::new(keys)).filter(|_| !written.keys.is_empty() || written.key_dir.is_none());
    let told = KeyFormat {
        scheme: known.name,
        algorithm: written.algorithm.as_ref().map(|algorithm| algorithm.value),
        key_encoding: written.key_encoding.as_ref().map(|encoding| encoding.value),
        tag: written.profile.tag.as_ref().map(|tag| tag.value.clone()),
    };
    let before = before.filter(|before| before.key_format == told).and_then(|before| before.tenants.as_ref());
    let tenants = written
        .key_dir
        .as_ref()
        .map(|key_dir| TenantKeyrings::compile(name, known.name, scheme.as_ref(), key_dir, before, problems));
    let name = name.clone();
    Some(Signer {
        name,
        known_as: known.name,
        scheme,
        key_format: told,
        shared,
        is_complete,
        tenants,
        place: written.span,
    })
}

/// Where receivers read one signature, it must be clear which key signs: the one that began last.
fn one_after_the_other(scheme: &str, keys: &[Located<config::SigningKey>], problems: &mut Vec<Problem>) {
    let starts: Vec<KeyStart<'_>> = keys.iter().map(|key| (&key.id, key.from)).collect();
    for (first, second) in same_start(&starts) {
        let (first, second) = (&keys[first], &keys[second]);
        let message = format!("the keys {} and {} begin at the same time", first.id, second.id);
        let help = format!("{scheme} carries one signature: write `from` where the newer key takes over");
        problems.push(Problem::at(second.span, message).also(first.span, "first here").help(help));
    }
}

/// A key, and when it begins.
pub(super) type KeyStart<'a> = (&'a KeyId, Option<Timestamp>);

/// Those that begin together with one before them.
pub(super) fn same_start<'a>(keys: &'a [KeyStart<'a>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    keys.iter().enumerate().filter_map(|(i, (id, from))| {
        let first = keys[..i].iter().position(|(other, begins)| begins == from && other != id)?;
        Some((first, i))
    })
}

fn key(scheme: &dyn Scheme, written: &config::SigningKey, problems: &mut Vec<Problem>) -> Option<SignerKey> {
    match scheme.parse_key(written.secret.expose()) {
        Ok(secret) => {
            let public = secret.public();
            Some(SignerKey { id: written.id.clone(), from: written.from, until: written.until, secret, public })
        }
        Err(KeyParseError { message, help }) => {
            let message = format!("the secret of the key {} {message}", written.id);
            problems.push(Problem::at(written.secret.span, message).help(help));
            None
        }
    }
}

#[cfg(test)]
mod tests;
