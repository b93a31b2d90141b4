//! A bundle: configuration files with the plan of their rollout, as one document that an operator signs.
//! Is this document a bundle of this fleet, and which text does a signature cover?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::operators::Operators;
use crate::config::pending_rollback::Overlay;
use crate::digest::sha256;

/// The largest document, in bytes. It crosses the network within `fleet.timeout`.
pub const DOCUMENT_MAX: usize = 4 << 20;
/// The longest pause of a wave.
pub const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The time after its signature for which instances that lack a bundle adopt it. It ends the use of a bundle whose failure an
/// instance has not seen.
const LIFETIME: SignedDuration = SignedDuration::from_hours(90 * 24);
/// The time before its end in which an operator has to repeat a rollout.
const RENEWAL_NOTICE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// The difference between the clocks of an operator's machine and of a host. A rollout begins within this time.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);
/// The highest number: the numbers of an operator and of a store are exact up to 2^53.
const NUMBER_MAX: u64 = 1 << 53;
const FILES_MAX: usize = 10_000;
const FILE_NAME_MAX: usize = 200;
/// The extension of the files, which the loader reads.
const EXTENSION: &str = ".toml";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The prefix of the fleet's keys: a bundle of another fleet is not adopted.
    pub fleet: String,
    /// It only ascends.
    pub number: u64,
    pub created_at: Timestamp,
    /// The operator whose signature the document has.
    pub author: String,
    /// The names of the instances in each wave.
    pub waves: Vec<BTreeSet<String>>,
    pub pause_seconds: u64,
    /// The texts by name.
    pub files: BTreeMap<String, String>,
}

/// The reason why a document is no bundle of this fleet.
#[derive(Debug, PartialEq, Eq)]
pub enum BundleError {
    TooLarge(usize),
    Malformed(String),
    OtherFleet(String),
    /// No operator of this instance has made the signature.
    Unsigned,
    /// Another operator than the author has made it.
    OtherAuthor(String),
    /// An operator signed it too long ago, or in the future, by the clock of this host.
    Untimely(Timestamp),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(bytes) => write!(f, "the bundle has {bytes} bytes, and {DOCUMENT_MAX} are the limit"),
            Self::Malformed(reason) => write!(f, "the bundle is malformed: {reason}"),
            Self::Unsigned => f.write_str("the signature of the bundle is that of no operator in [fleet.operators]"),
            Self::OtherAuthor(author) => write!(f, "the signature of the bundle is not that of its author, {author}"),
            Self::Untimely(time) => write!(
                f,
                "the bundle was signed at {time:.0}, by the clock of this host too long ago or in the future: repeat the rollout, \
                 or correct the clock"
            ),
            Self::OtherFleet(fleet) => write!(f, "the bundle belongs to the fleet {fleet}"),
        }
    }
}

impl std::error::Error for BundleError {}

impl Bundle {
    /// Parses a document. It has exactly one form: the one that [`Bundle::document`] returns.
    pub fn parse(document: &str, fleet: &str) -> Result<Self, BundleError> {
        if document.len() > DOCUMENT_MAX {
            return Err(BundleError::TooLarge(document.len()));
        }
        let malformed = |reason: &str| BundleError::Malformed(reason.to_owned());
        let bundle: Self = serde_json::from_str(document).map_err(|error| BundleError::Malformed(error.to_string()))?;
        let planned: usize = bundle.waves.iter().map(BTreeSet::len).sum();
        let names: BTreeSet<_> = bundle.waves.iter().flatten().collect();
        match () {
            () if bundle.number > NUMBER_MAX => Err(malformed("its number is too large")),
            () if bundle.document() != document => Err(malformed("it is not in the canonical form")),
            () if bundle.fleet != fleet => Err(BundleError::OtherFleet(bundle.fleet)),
            () if names.is_empty() || bundle.waves.iter().any(BTreeSet::is_empty) => Err(malformed("a wave is empty")),
            () if names.len() < planned => Err(malformed("an instance is in two waves")),
            () if bundle.pause() > PAUSE_MAX => Err(malformed("the pause is longer than an hour")),
            () if bundle.files.is_empty() || bundle.files.len() > FILES_MAX => Err(malformed("the number of files")),
            () => match bundle.files.keys().find(|name| !is_file_name(name)) {
                Some(name) => Err(BundleError::Malformed(format!("{name:?} is not the name of a file"))),
                None => Ok(bundle),
            },
        }
    }

    /// Returns the canonical form.
    pub fn document(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn pause(&self) -> Duration {
        Duration::from_secs(self.pause_seconds)
    }

    /// Returns an error if an operator signed the bundle too long ago to start its rollout.
    pub fn may_start(&self, now: Timestamp) -> Result<(), BundleError> {
        self.is_younger_than(CLOCK_TOLERANCE, now)
    }

    /// Returns an error if an instance that lacks the bundle must not adopt it any more.
    pub fn may_be_adopted(&self, now: Timestamp) -> Result<(), BundleError> {
        self.is_younger_than(LIFETIME, now)
    }

    fn is_younger_than(&self, age_max: SignedDuration, now: Timestamp) -> Result<(), BundleError> {
        let is_timely = (-CLOCK_TOLERANCE..=age_max).contains(&now.duration_since(self.created_at));
        if is_timely { Ok(()) } else { Err(BundleError::Untimely(self.created_at)) }
    }

    /// Returns what the fleet waits for if the bundle soon is too old for hosts that join.
    pub fn renewal(&self, now: Timestamp) -> Option<String> {
        let left = LIFETIME - now.duration_since(self.created_at);
        let days = left.as_hours().max(0) / 24;
        (left < RENEWAL_NOTICE)
            .then(|| format!("its repetition: in {days} days, hosts that join adopt the bundle no longer"))
    }

    /// Returns the files as they will be in `folder`, in place of those of the bundle `former`.
    pub fn overlay(&self, folder: &Path, former: BTreeSet<String>) -> Overlay {
        let texts = self.files.iter().map(|(name, text)| (folder.join(name), text.clone().into_bytes())).collect();
        let removed = former.into_iter().filter(|name| !self.files.contains_key(name));
        Overlay { texts, removed: removed.map(|name| folder.join(name)).collect(), ..Overlay::default() }
    }
}

/// A bundle that its author has signed. Only [`SignedBundle::verify`] makes one.
#[derive(Clone, Debug)]
pub struct SignedBundle {
    bundle: Arc<Bundle>,
    digest: String,
}

impl SignedBundle {
    /// Verifies the signature over the bytes, and parses only what an operator has signed.
    pub fn verify(document: &str, signature: &str, fleet: &str, operators: &Operators) -> Result<Self, BundleError> {
        if document.len() > DOCUMENT_MAX {
            return Err(BundleError::TooLarge(document.len()));
        }
        let digest = digest(document);
        let signer = operators.verify(&Statement::Start.text(&digest), signature).ok_or(BundleError::Unsigned)?;
        let bundle = Bundle::parse(document, fleet)?;
        if bundle.author == signer {
            Ok(Self { bundle: bundle.into(), digest })
        } else {
            Err(BundleError::OtherAuthor(bundle.author))
        }
    }

    /// Returns a bundle without a signature, for tests of what happens to one afterwards.
    #[cfg(test)]
    pub(crate) fn unverified(bundle: Bundle) -> Self {
        let digest = digest(&bundle.document());
        Self { bundle: bundle.into(), digest }
    }

    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.bundle)
    }

    /// Returns the operator who has made a statement about this bundle. An author cannot approve the own bundle.
    pub fn signer<'o>(&self, statement: Statement, signature: &str, operators: &'o Operators) -> Option<&'o str> {
        let signer = operators.verify(&statement.text(&self.digest), signature)?;
        (statement != Statement::Approve || signer != self.author).then_some(signer)
    }
}

impl Deref for SignedBundle {
    type Target = Bundle;
    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

/// Returns the name of a file in a bundle. The loader reads the files in the order of their names.
pub fn file_name(position: usize, path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    let stem: String =
        stem.chars().take(FILE_NAME_MAX / 2).map(|char| if is_allowed(char) { char } else { '_' }).collect();
    format!("{position:05}-{stem}{EXTENSION}")
}

fn is_file_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.ends_with(EXTENSION) && !name.starts_with('.') && name.len() <= FILE_NAME_MAX && name.bytes().all(is_allowed)
}

/// The statement about a bundle that an operator signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statement {
    Start,
    Approve,
    Abort,
}

impl Statement {
    /// Returns the text that is signed. Its first line keeps it apart from every other signature of the same key. The digest
    /// stands for the whole document, its fleet and its number included.
    pub fn text(self, digest: &str) -> String {
        let statement = match self {
            Self::Start => "start",
            Self::Approve => "approve",
            Self::Abort => "abort",
        };
        format!("outgate fleet rollout v1\n{statement}\n{digest}\n")
    }
}

/// Returns the digest of a document: SHA-256 in hexadecimal digits.
pub fn digest(document: &str) -> String {
    HEXLOWER.encode(&sha256(document.as_bytes()))
}

#[cfg(test)]
mod tests;
