//! Signers from what is written.
//! Can these keys sign by this scheme?

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Signer;
use super::fault::BadKey;
use super::registry::{self, which};
use super::scheme::{Key, Scheme};
use crate::config::{self, At, Config, Problem};
use crate::names::SignerName;

pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<SignerName, Arc<Signer>> {
    let signer = |(name, written): (&SignerName, _)| Some((name.clone(), Arc::new(signer(name, written, problems)?)));
    config.signers.iter().filter_map(signer).collect()
}

fn signer(name: &SignerName, written: &At<config::Signer>, problems: &mut Vec<Problem>) -> Option<Signer> {
    if written.keys.is_empty() {
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
    let mut keys: Vec<Key> =
        written.keys.iter().filter_map(|written| key(scheme.as_ref(), written, problems)).collect();
    // A key without a beginning is the oldest; equals stay as written.
    keys.sort_by_key(|key| Reverse(key.from));
    Some(Signer { name: name.clone(), known_as: known.name, scheme, keys, place: written.place })
}

/// Where receivers read one signature, it must be clear which key signs: the one that began last.
fn one_after_the_other(scheme: &str, keys: &[At<config::SigningKey>], problems: &mut Vec<Problem>) {
    for (i, key) in keys.iter().enumerate() {
        if let Some(first) = keys[..i].iter().find(|first| first.from == key.from && first.id != key.id) {
            let message = format!("the keys {} and {} begin at the same time", first.id, key.id);
            let help = format!("{scheme} carries one signature: write `from` where the newer key takes over");
            problems.push(Problem::at(key.place, message).also(first.place, "first here").help(help));
        }
    }
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
