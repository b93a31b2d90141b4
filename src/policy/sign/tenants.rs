//! Keys of many tenants, each its own; those whose files have not changed are the same as in the plan before.
//! Which keys has this tenant?

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

pub(super) struct TenantKeyrings {
    signer: SignerName,
    path: PathBuf,
    folders: BTreeMap<TenantName, Arc<TenantFolder>>,
}

/// The keys of a tenant, and the digest of what stands in its folder.
struct TenantFolder {
    digest: [u8; 32],
    keys: Arc<Keyring>,
    /// Something is wrong there: the keys are those from before, or none.
    is_broken: bool,
}

impl TenantKeyrings {
    /// `before`: those of the same signer, if its keys were read in the same way.
    pub(super) fn compile(
        signer: &SignerName,
        known_as: &str,
        scheme: &dyn Scheme,
        written: &Located<Arc<KeyDir>>,
        before: Option<&TenantKeyrings>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let (mut folders, mut wrong) = (BTreeMap::new(), Vec::new());
        for (tenant, read) in &written.tenants {
            let known = before.and_then(|before| before.folders.get(tenant));
            if let Some(known) = known.filter(|known| known.digest == read.digest && !known.is_broken) {
                folders.insert(tenant.clone(), Arc::clone(known));
                continue;
            }
            let path = written.folder_path(tenant);
            let mut fault = |fault: KeyFileFault| {
                let message = format!("{} {} {}", fault.before, path.join(fault.file).display(), fault.message);
                wrong.push(Problem::contained(written.span, message).help(fault.help));
            };
            let keys = if read.is_broken() { None } else { keyring(known_as, scheme, read, &mut fault) };
            let is_broken = keys.is_none();
            // Never those that all share: whoever has a folder has keys of its own.
            let keys = keys.map(Arc::new).or_else(|| known.map(|known| Arc::clone(&known.keys))).unwrap_or_default();
            folders.insert(tenant.clone(), Arc::new(TenantFolder { digest: read.digest, keys, is_broken }));
        }
        let tenants = Self { signer: signer.clone(), path: written.path.clone(), folders };
        problems.extend(truncate_similar(wrong.into_iter(), &tenants.location()));
        tenants
    }

    pub(super) fn keyring(&self, tenant: &TenantName) -> Option<&Keyring> {
        self.folders.get(tenant).map(|folder| &*folder.keys)
    }

    pub(super) fn count(&self) -> usize {
        self.folders.len()
    }

    /// Those whose folder is broken.
    pub(super) fn broken(&self) -> impl Iterator<Item = &TenantName> {
        self.folders.iter().filter(|(_, folder)| folder.is_broken).map(|(tenant, _)| tenant)
    }

    pub(super) fn location(&self) -> String {
        format!("below {}", self.path.display())
    }

    /// Of tenants that have no key, or soon will have none.
    pub(super) fn warnings(&self, place: SourceSpan, now: Timestamp) -> impl Iterator<Item = Problem> {
        let whole = self.folders.iter().filter(|(_, folder)| !folder.is_broken);
        whole.filter_map(move |(tenant, folder)| {
            let gap = folder.keys.gap(format_args!("the tenant {tenant} of the signer {}", self.signer), now)?;
            let help = format!(
                "put a key into {}; its webhooks are refused meanwhile",
                self.path.join(tenant.as_str()).display()
            );
            Some(Problem::warning(WarningCode::NoKeyInForce, Some(place), gap.message).help(help))
        })
    }
}

/// What is wrong with a file.
struct KeyFileFault<'a> {
    before: &'static str,
    file: &'a str,
    message: String,
    help: String,
}

/// `None`: a fault was told. Without the keys at fault the tenant would have fewer than it thinks.
fn keyring<'a>(
    known_as: &str,
    scheme: &dyn Scheme,
    read: &'a KeyFolder,
    fault: &mut impl FnMut(KeyFileFault<'a>),
) -> Option<Keyring> {
    let mut keys = Vec::with_capacity(read.keys.len());
    for file in &read.keys {
        match scheme.parse_key(file.secret.expose()) {
            Ok(secret) => {
                let public = secret.public();
                keys.push(SignerKey { id: file.id.clone(), from: file.from, until: file.until, secret, public });
            }
            Err(KeyParseError { message, help }) => {
                fault(KeyFileFault { before: "the secret in", file: file.file_name(), message, help })
            }
        }
    }
    let starts: Vec<KeyStart<'_>> = read.keys.iter().map(|file| (&file.id, file.from)).collect();
    let twins: Vec<_> = same_start(&starts).filter(|_| scheme.carries_one()).collect();
    for (first, second) in &twins {
        let message = format!("begins at the same time as {}", read.keys[*first].file_name());
        let help = format!("{known_as} carries one signature: say in the newer key's name when it takes over, .from-…");
        fault(KeyFileFault { before: "the key", file: read.keys[*second].file_name(), message, help });
    }
    let is_whole = keys.len() == read.keys.len() && twins.is_empty();
    is_whole.then(|| Keyring::new(keys))
}
