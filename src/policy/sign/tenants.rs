//! Keys of many tenants, each its own; those whose files have not changed are the same as in the plan before.
//! Which keys has this tenant?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::compile::{Start, twins};
use super::fault::BadKey;
use super::keyring::Keyring;
use super::scheme::{Key, Scheme};
use crate::config::{At, KeyDir, KeyFile, KeyFolder, Place, Problem, few};
use crate::names::{SignerName, TenantName};

pub(super) struct Tenants {
    signer: SignerName,
    path: PathBuf,
    folders: BTreeMap<TenantName, Arc<Folder>>,
}

/// The keys of a tenant, and the digest of the files that they were read from.
struct Folder {
    digest: [u8; 32],
    keys: Keyring,
}

impl Tenants {
    /// `before`: those of the same signer, if its keys were read in the same way.
    pub(super) fn compile(
        signer: &SignerName,
        known_as: &str,
        scheme: &dyn Scheme,
        written: &At<Arc<KeyDir>>,
        before: Option<&Tenants>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut wrong = Vec::new();
        let folder = |(tenant, read): (&TenantName, &Arc<KeyFolder>)| {
            let known =
                before.and_then(|before| before.folders.get(tenant)).filter(|known| known.digest == read.digest);
            let folder = known.cloned().unwrap_or_else(|| {
                let place = written.folder(tenant).display().to_string();
                let keys = read.keys.iter().filter_map(|file| key(scheme, file, &place, written.place, &mut wrong));
                let keys = Keyring::new(keys.collect());
                if scheme.carries_one() {
                    wrong.extend(same_time(known_as, &read.keys, &place, written.place));
                }
                Arc::new(Folder { digest: read.digest, keys })
            });
            (tenant.clone(), folder)
        };
        let folders = written.tenants.iter().map(folder).collect();
        let tenants = Self { signer: signer.clone(), path: written.path.clone(), folders };
        problems.extend(few(wrong.into_iter(), &tenants.place()));
        tenants
    }

    pub(super) fn keyring(&self, tenant: &TenantName) -> Option<&Keyring> {
        self.folders.get(tenant).map(|folder| &folder.keys)
    }

    pub(super) fn count(&self) -> usize {
        self.folders.len()
    }

    pub(super) fn place(&self) -> String {
        format!("below {}", self.path.display())
    }

    /// Of tenants that have no key, or soon will have none.
    pub(super) fn warnings(&self, place: Place, now: Timestamp) -> impl Iterator<Item = Problem> {
        self.folders.iter().filter_map(move |(tenant, folder)| {
            let gap = folder.keys.gap(&format!("the tenant {tenant} of the signer {}", self.signer), now)?;
            let help = format!(
                "put a key into {}; its webhooks are refused meanwhile",
                self.path.join(tenant.as_str()).display()
            );
            Some(Problem::warning(Some(place), gap.message).help(help))
        })
    }
}

fn key(scheme: &dyn Scheme, file: &KeyFile, folder: &str, place: Place, wrong: &mut Vec<Problem>) -> Option<Key> {
    match scheme.parse_key(file.secret.expose()) {
        Ok(secret) => {
            let public = secret.public();
            Some(Key { id: file.id.clone(), from: file.from, until: file.until, secret, public })
        }
        Err(BadKey { message, help }) => {
            let message = format!("the secret in {folder}/{} {message}", file.name());
            wrong.push(Problem::at(place, message).help(help));
            None
        }
    }
}

fn same_time(scheme: &str, files: &[KeyFile], folder: &str, place: Place) -> Vec<Problem> {
    let starts: Vec<Start<'_>> = files.iter().map(|file| (&file.id, file.from)).collect();
    let problem = |(first, second): (usize, usize)| {
        let (first, second) = (files[first].name(), files[second].name());
        let message = format!("the keys {first} and {second} in {folder} begin at the same time");
        let help = format!("{scheme} carries one signature: say in the newer one's name when it takes over, .from-…");
        Problem::at(place, message).help(help)
    };
    twins(&starts).map(problem).collect()
}
