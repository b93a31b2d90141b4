//! The keys of tenants that have keys of their own. Unchanged keys are taken from the previous plan.
//! Which keys does this tenant have?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::error::KeyParseError;
use super::keyring::{KeyStart, Keyring, same_start};
use super::scheme::{Scheme, SignerKey};
use crate::config::WarningCode;
use crate::config::{KeyDir, KeyFolder, Located, Problem, SourceSpan, truncate_similar};
use crate::names::{SignerName, TenantName};

/// The keyrings of the tenants of one signer.
pub(super) struct TenantKeyrings {
    signer: SignerName,
    path: PathBuf,
    folders: BTreeMap<TenantName, Arc<TenantFolder>>,
}

/// The keys of a tenant, and the digest of its folder.
struct TenantFolder {
    digest: [u8; 32],
    keys: Arc<Keyring>,
    /// Whether the folder has a problem. Then the keys are those of the previous plan, or none.
    is_broken: bool,
}

impl TenantKeyrings {
    /// Compiles the keys of each tenant. `previous` has those of the same signer, if it read keys in the same format.
    pub(super) fn compile(
        signer: &SignerName,
        scheme_name: &str,
        scheme: &dyn Scheme,
        written: &Located<Arc<KeyDir>>,
        previous: Option<&TenantKeyrings>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let (mut folders, mut contained) = (BTreeMap::new(), Vec::new());
        for (tenant, read) in &written.tenants {
            let previous = previous.and_then(|tenants| tenants.folders.get(tenant));
            if let Some(unchanged) = previous.filter(|folder| folder.digest == read.digest && !folder.is_broken) {
                folders.insert(tenant.clone(), Arc::clone(unchanged));
                continue;
            }
            let path = written.folder_path(tenant);
            let mut report = |problem: KeyFileProblem| {
                let message = format!("{} {} {}", problem.prefix, path.join(problem.file).display(), problem.message);
                contained.push(Problem::contained(written.span, message).help(problem.help));
            };
            let keys = if read.is_broken() { None } else { compile_keyring(scheme_name, scheme, read, &mut report) };
            let is_broken = keys.is_none();
            // A tenant with a folder never signs with the shared keys.
            let keys =
                keys.map(Arc::new).or_else(|| previous.map(|folder| Arc::clone(&folder.keys))).unwrap_or_default();
            folders.insert(tenant.clone(), Arc::new(TenantFolder { digest: read.digest, keys, is_broken }));
        }
        let tenants = Self { signer: signer.clone(), path: written.path.clone(), folders };
        problems.extend(truncate_similar(contained.into_iter(), &tenants.location()));
        tenants
    }

    pub(super) fn keyring(&self, tenant: &TenantName) -> Option<&Keyring> {
        self.folders.get(tenant).map(|folder| &*folder.keys)
    }

    pub(super) fn count(&self) -> usize {
        self.folders.len()
    }

    /// Returns the tenants whose folder has a problem.
    pub(super) fn broken(&self) -> impl Iterator<Item = &TenantName> {
        self.folders.iter().filter(|(_, folder)| folder.is_broken).map(|(tenant, _)| tenant)
    }

    pub(super) fn keyrings(&self) -> impl Iterator<Item = &Keyring> {
        self.folders.values().map(|folder| &*folder.keys)
    }

    pub(super) fn location(&self) -> String {
        format!("below {}", self.path.display())
    }

    /// Returns a warning for each tenant that has no key, or soon will have none.
    pub(super) fn warnings(&self, span: SourceSpan, now: Timestamp) -> impl Iterator<Item = Problem> {
        let readable = self.folders.iter().filter(|(_, folder)| !folder.is_broken);
        readable.filter_map(move |(tenant, folder)| {
            let gap =
                folder.keys.upcoming_gap(format_args!("the tenant {tenant} of the signer {}", self.signer), now)?;
            let help = format!(
                "put a key into {}: without a key, outgate refuses the tenant's webhooks",
                self.path.join(tenant.as_str()).display()
            );
            Some(Problem::warning(WarningCode::NoKeyInForce, Some(span), gap.message).help(help))
        })
    }
}

/// A problem of the file of a key.
struct KeyFileProblem<'a> {
    prefix: &'static str,
    file: &'a str,
    message: String,
    help: String,
}

/// Compiles the keys of a folder. Returns `None` after a problem: without the rejected key, the tenant would have fewer
/// keys than it has files.
fn compile_keyring<'a>(
    scheme_name: &str,
    scheme: &dyn Scheme,
    read: &'a KeyFolder,
    report: &mut impl FnMut(KeyFileProblem<'a>),
) -> Option<Keyring> {
    let mut keys = Vec::with_capacity(read.keys.len());
    for file in &read.keys {
        match scheme.parse_key(file.secret.expose()) {
            Ok(secret) => {
                let public = secret.public();
                keys.push(SignerKey { id: file.id.clone(), from: file.from, until: file.until, secret, public });
            }
            Err(KeyParseError { message, help }) => {
                report(KeyFileProblem { prefix: "the secret in", file: file.file_name(), message, help })
            }
        }
    }
    let starts: Vec<KeyStart<'_>> = read.keys.iter().map(|file| (&file.id, file.from)).collect();
    let conflicts: Vec<_> = same_start(&starts).filter(|_| scheme.is_single_signature()).collect();
    for (first, second) in &conflicts {
        let message = format!("begins at the same time as {}", read.keys[*first].file_name());
        let help = format!(
            "{scheme_name} carries one signature: add .from-… to the name of the newer key, the time from which it \
             signs"
        );
        report(KeyFileProblem { prefix: "the key", file: read.keys[*second].file_name(), message, help });
    }
    let is_complete = keys.len() == read.keys.len() && conflicts.is_empty();
    is_complete.then(|| Keyring::new(keys))
}

#[cfg(test)]
mod tests;
