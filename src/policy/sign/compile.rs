//! Signers from what is written.
//! Can these keys sign by this scheme?

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::Signer;
use super::fault::BadKey;
use super::keyring::Keyring;
use super::listing::Signers;
use super::registry::{self, which};
use super::scheme::{Key, Scheme};
use super::tenants::Tenants;
use crate::config::{self, At, Config, Encoding, Hmac, Problem};
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
pub(super) struct Told {
    scheme: &'static str,
    algorithm: Option<Hmac>,
    key_encoding: Option<Encoding>,
    /// Some tags allow key pairs alone.
    tag: Option<String>,
}

fn signer(
    name: &SignerName,
    written: &At<config::Signer>,
    before: Option<&Signer>,
    problems: &mut Vec<Problem>,
) -> Option<Signer> {
    if written.keys.is_empty() && written.key_dir.is_none() {
        let help = "keys = [{ id = \"…\", secret = \"file:…\" }]; `outgate keys new` makes a secret";
        problems.push(Problem::at(written.place, format!("the signer {name} has no key")).help(help));
    }
    let mut ids = HashMap::new();
    for key in &written.keys {
        if let Some(first) = ids.insert(&key.id, key.place) {
            let problem = Problem::at(key.place, format!("two keys have the id {}", key.id)).also(first, "first here");
            problems.push(problem.help("records tell keys apart by their id"));
        }
        if let (Some(from), Some(until)) = (key.from, key.until)
            && from >= until
        {
            problems.push(Problem::at(key.place, format!("the key {} ends before it begins", key.id)));
        }
    }
    let Some(known) = registry::find(&written.scheme) else {
        let message = format!("no scheme is named {:?}", written.scheme.value);
        problems.push(Problem::at(written.scheme.place, message).help(which(&written.scheme)));
        return None;
    };
    known.refuse_the_rest(written, problems);
    let scheme = (known.build)(written, problems)?;
    if scheme.carries_one() {
        one_after_the_other(known.name, &written.keys, problems);
    }
    let keys: Vec<Key> = written.keys.iter().filter_map(|written| key(scheme.as_ref(), written, problems)).collect();
    // Whether a key is missing cannot be judged: the rejected one may be it.
    let is_complete = !written.keys.is_empty() && keys.len() == written.keys.len();
    let shared = Some(Keyring::new(keys)).filter(|_| !written.keys.is_empty() || written.key_dir.is_none());
    let told = Told {
        scheme: known.name,
        algorithm: written.algorithm.as_ref().map(|algorithm| algorithm.value),
        key_encoding: written.key_encoding.as_ref().map(|encoding| encoding.value),
        tag: written.profile.tag.as_ref().map(|tag| tag.value.clone()),
    };
    let before = before.filter(|before| before.told == told).and_then(|before| before.tenants.as_ref());
    let tenants = written
        .key_dir
        .as_ref()
        .map(|key_dir| Tenants::compile(name, known.name, scheme.as_ref(), key_dir, before, problems));
    let name = name.clone();
    Some(Signer { name, known_as: known.name, scheme, told, shared, is_complete, tenants, place: written.place })
}

/// Where receivers read one signature, it must be clear which key signs: the one that began last.
fn one_after_the_other(scheme: &str, keys: &[At<config::SigningKey>], problems: &mut Vec<Problem>) {
    let starts: Vec<Start<'_>> = keys.iter().map(|key| (&key.id, key.from)).collect();
    for (first, second) in twins(&starts) {
        let (first, second) = (&keys[first], &keys[second]);
        let message = format!("the keys {} and {} begin at the same time", first.id, second.id);
        let help = format!("{scheme} carries one signature: write `from` where the newer key takes over");
        problems.push(Problem::at(second.place, message).also(first.place, "first here").help(help));
    }
}

/// A key, and when it begins.
pub(super) type Start<'a> = (&'a KeyId, Option<Timestamp>);

/// Those that begin together with one before them.
pub(super) fn twins<'a>(keys: &'a [Start<'a>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    keys.iter().enumerate().filter_map(|(i, (id, from))| {
        let first = keys[..i].iter().position(|(other, begins)| begins == from && other != id)?;
        Some((first, i))
    })
}

fn key(scheme: &dyn Scheme, written: &config::SigningKey, problems: &mut Vec<Problem>) -> Option<Key> {
    match scheme.parse_key(written.secret.expose()) {
        Ok(secret) => {
            let public = secret.public();
            Some(Key { id: written.id.clone(), from: written.from, until: written.until, secret, public })
        }
        Err(BadKey { message, help }) => {
            let message = format!("the secret of the key {} {message}", written.id);
            problems.push(Problem::at(written.secret.place, message).help(help));
            None
        }
    }
}

#[cfg(test)]
mod tests;
