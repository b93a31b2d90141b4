//! Compiles signers from the configuration.
//! Can these keys sign by this scheme?

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::error::KeyParseError;
use super::keyring::{KeyStart, Keyring, same_start};
use super::registry::{find_scheme, reject_unsupported_options, suggest_schemes};
use super::scheme::{Scheme, SignerKey};
use super::signer::{KeyFormat, Signer, Signers};
use super::tenants::TenantKeyrings;
use crate::config::{self, Config, Located, Problem};
use crate::names::SignerName;

/// Compiles every signer. Keys of tenants whose files have not changed are taken from the `previous` plan's signers.
pub fn compile(config: &Config, previous: Option<&Signers>, problems: &mut Vec<Problem>) -> Signers {
    let mut signers = BTreeMap::new();
    for (name, written) in &config.signers {
        let previous = previous.and_then(|signers| signers.get(name)).map(|signer| &**signer);
        if let Some(signer) = compile_signer(name, written, previous, problems) {
            signers.insert(name.clone(), Arc::new(signer));
        }
    }
    signers
}

fn compile_signer(
    name: &SignerName,
    written: &Located<config::Signer>,
    previous: Option<&Signer>,
    problems: &mut Vec<Problem>,
) -> Option<Signer> {
    if written.keys.is_empty() && written.key_dir.is_none() {
        let help = "write keys = [{ id = \"…\", secret = \"file:…\" }]; `outgate keys new` makes a secret";
        problems.push(Problem::at(written.span, format!("the signer {name} has no key")).help(help));
    }
    let mut ids = HashMap::new();
    for key in &written.keys {
        if let Some(first) = ids.insert(&key.id, key.span) {
            let problem =
                Problem::at(key.span, format!("two keys have the id {}", key.id)).related(first, "first here");
            problems.push(problem.help("give one key another id: records identify keys by id"));
        }
        if let (Some(from), Some(until)) = (key.from, key.until)
            && from >= until
        {
            problems.push(Problem::at(key.span, format!("the key {} ends before it begins", key.id)));
        }
    }
    let Some(spec) = find_scheme(&written.scheme) else {
        let message = format!("no scheme is named {:?}", written.scheme.value);
        problems.push(Problem::at(written.scheme.span, message).help(suggest_schemes(&written.scheme)));
        return None;
    };
    reject_unsupported_options(spec, written, problems);
    let scheme = (spec.build)(written, problems)?;
    if scheme.is_single_signature() {
        check_distinct_starts(spec.name, &written.keys, problems);
    }
    let keys: Vec<SignerKey> =
        written.keys.iter().filter_map(|written| compile_key(scheme.as_ref(), written, problems)).collect();
    // A rejected key may be the one that would be in force: a gap cannot be judged.
    let is_complete = !written.keys.is_empty() && keys.len() == written.keys.len();
    let shared = Some(Keyring::new(keys)).filter(|_| !written.keys.is_empty() || written.key_dir.is_none());
    let key_format = KeyFormat {
        scheme: spec.name,
        algorithm: written.algorithm.as_ref().map(|algorithm| algorithm.value),
        key_encoding: written.key_encoding.as_ref().map(|encoding| encoding.value),
        tag: written.signature_params.tag.as_ref().map(|tag| tag.value.clone()),
    };
    let previous = previous.filter(|signer| signer.key_format == key_format).and_then(|signer| signer.tenants.as_ref());
    let tenants = written
        .key_dir
        .as_ref()
        .map(|key_dir| TenantKeyrings::compile(name, spec.name, scheme.as_ref(), key_dir, previous, problems));
    let name = name.clone();
    let headers = scheme.headers();
    Some(Signer {
        name,
        scheme_name: spec.name,
        scheme,
        headers,
        key_format,
        shared,
        is_complete,
        tenants,
        span: written.span,
    })
}

/// Reports keys that begin at the same time. A receiver that reads one signature gets that of the key that began last.
fn check_distinct_starts(scheme: &str, keys: &[Located<config::SigningKey>], problems: &mut Vec<Problem>) {
    let starts: Vec<KeyStart<'_>> = keys.iter().map(|key| (&key.id, key.from)).collect();
    for (first, second) in same_start(&starts) {
        let (first, second) = (&keys[first], &keys[second]);
        let message = format!("the keys {} and {} begin at the same time", first.id, second.id);
        let help =
            format!("{scheme} carries one signature: write `from` at the newer key, the time from which it signs");
        problems.push(Problem::at(second.span, message).related(first.span, "first here").help(help));
    }
}

fn compile_key(scheme: &dyn Scheme, written: &config::SigningKey, problems: &mut Vec<Problem>) -> Option<SignerKey> {
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
