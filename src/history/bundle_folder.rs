//! The bundles of a fleet on this host: the files of the current one and of the former one, and the state of the rollout.
//! Which bundle is active on this host, and which number may be next?

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::durable;
use crate::config::BUNDLE_DIR;
use crate::policy::rollout::RolloutStage;
use crate::policy::rollout::bundle::{DOCUMENT_MAX, SignedBundle};
use crate::policy::rollout::health::Outcomes;

const FORMER_DIR: &str = "former";
const NEXT_DIR: &str = "next";
const STATE_FILE: &str = "rollout.json";
/// The file with the digest of a bundle, beside its files. The loader does not read it.
const DIGEST_FILE: &str = "digest";

/// The memory of this instance about rollouts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RolloutState {
    /// The highest number of a bundle that this instance has verified.
    pub seen: u64,
    /// The highest number of a rollout that has failed or was aborted. None of them begins again.
    pub ended: u64,
    pub adopted: Option<AdoptedBundle>,
}

/// The last bundle that this instance has adopted. Its number may only ascend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdoptedBundle {
    pub number: u64,
    pub digest: String,
    pub author: String,
    pub approver: Option<String>,
    pub stage: RolloutStage,
    /// Why this instance went back.
    pub detail: String,
    pub pause_seconds: u64,
    /// The deliveries in as much time before the adoption.
    pub before: Outcomes,
    /// Whether all instances have kept it, so that nothing undoes it any more.
    pub is_final: bool,
    /// Whether the instance was in a wave of the rollout: one that joins later is in none.
    #[serde(default)]
    pub is_planned: bool,
    /// The configuration in the history that was active before the first bundle of this host. `None`: a bundle was.
    #[serde(default)]
    pub replaced: Option<u64>,
}

impl RolloutState {
    /// Returns whether this host has a bundle. Before the first one and after a return from it, it has none.
    pub fn has_bundle(&self) -> bool {
        let has_taken_effect =
            |own: &AdoptedBundle| !matches!(own.stage, RolloutStage::Checked | RolloutStage::RolledBack);
        self.adopted.as_ref().is_some_and(|own| own.replaced.is_none() || has_taken_effect(own))
    }
}

/// The folder `fleet` in the state folder.
#[derive(Clone, Debug)]
pub struct BundleFolder {
    current: PathBuf,
    folder: PathBuf,
}

impl BundleFolder {
    pub fn open(state: &Path) -> io::Result<Self> {
        let current = state.join(BUNDLE_DIR);
        let folder = current.parent().unwrap_or(state).to_owned();
        durable::create_dir(&current)?;
        durable::create_dir(&folder.join(FORMER_DIR))?;
        let opened = Self { current, folder };
        let next = opened.folder.join(NEXT_DIR);
        // A process that was killed after the exchange has left the former bundle under this name.
        if next.exists() && opened.has_adopted()? {
            opened.set_former(&next)?;
        }
        Ok(opened)
    }

    fn set_former(&self, next: &Path) -> io::Result<()> {
        let former = self.folder.join(FORMER_DIR);
        durable::remove_dir(&former)?;
        durable::rename_durably(next, &former)
    }

    /// Returns whether the last bundle that this instance has adopted is the current one.
    fn has_adopted(&self) -> io::Result<bool> {
        Ok(self.state()?.adopted.is_some_and(|adopted| self.has(&adopted.digest)))
    }

    /// Returns the folder that the loader reads.
    pub fn current(&self) -> &Path {
        &self.current
    }

    /// Returns the names of the current files.
    pub fn current_files(&self) -> io::Result<BTreeSet<String>> {
        fs::read_dir(&self.current)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Returns whether this bundle is the current one.
    pub fn has(&self, digest: &str) -> bool {
        durable::read(&self.current.join(DIGEST_FILE), DOCUMENT_MAX as u64).is_ok_and(|own| own == digest.as_bytes())
    }

    /// Makes a bundle the current one, completely or not at all.
    pub fn adopt(&self, bundle: &SignedBundle) -> io::Result<()> {
        let next = self.folder.join(NEXT_DIR);
        durable::remove_dir(&next)?;
        durable::create_dir(&next)?;
        for (name, text) in &bundle.files {
            durable::write_new(&next.join(name), text.as_bytes())?;
        }
        durable::write_new(&next.join(DIGEST_FILE), bundle.digest().as_bytes())?;
        durable::sync_dir(&next)?;
        self.exchange(&next)?;
        self.set_former(&next).inspect_err(|_| {
            // The caller reports that nothing has changed.
            let _ = self.exchange(&next);
        })
    }

    /// Makes the former bundle the current one again. A repeated call changes nothing.
    pub fn undo(&self) -> io::Result<()> {
        if self.has_adopted()? { self.exchange(&self.folder.join(FORMER_DIR)) } else { Ok(()) }
    }

    fn exchange(&self, other: &Path) -> io::Result<()> {
        renameat_with(CWD, other, CWD, &self.current, RenameFlags::EXCHANGE)?;
        durable::sync_dir(&self.folder)
    }

    /// Returns what the last process has stored. A file that cannot be read is an error: it could permit a bundle again.
    pub fn state(&self) -> io::Result<RolloutState> {
        let path = self.folder.join(STATE_FILE);
        let unreadable = |error: &dyn Display| io::Error::other(format!("{}: {error}", path.display()));
        match durable::read(&path, DOCUMENT_MAX as u64) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unreadable(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RolloutState::default()),
            Err(error) => Err(unreadable(&error)),
        }
    }

    pub fn set_state(&self, state: &RolloutState) -> io::Result<()> {
        let bytes = serde_json::to_vec(state).map_err(io::Error::other)?;
        durable::replace(&self.folder.join(STATE_FILE), &bytes, DOCUMENT_MAX as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rollout::bundle::Bundle;
    use jiff::Timestamp;

    fn bundle(number: u64) -> SignedBundle {
        SignedBundle::unverified(Bundle {
            fleet: "outgate".to_owned(),
            number,
            created_at: Timestamp::UNIX_EPOCH,
            author: "alice".to_owned(),
            waves: vec![[String::from("egress-1")].into()],
            pause_seconds: 1,
            files: [(format!("{number}.toml"), format!("# {number}"))].into(),
        })
    }

    fn adopted(bundle: &SignedBundle) -> RolloutState {
        let adopted = AdoptedBundle {
            number: bundle.number,
            digest: bundle.digest().to_owned(),
            author: bundle.author.clone(),
            approver: None,
            stage: RolloutStage::Adopted,
            detail: String::new(),
            pause_seconds: 1,
            before: Outcomes::default(),
            is_final: false,
            is_planned: true,
            replaced: None,
        };
        RolloutState { seen: 4, ended: 3, adopted: Some(adopted) }
    }

    /// A process is killed before the exchange of the folders, or after it.
    #[test]
    fn bundle_folder_has_the_current_and_the_former_bundle_after_a_crash() {
        let state = std::env::temp_dir().join(format!("outgate-bundles-{}", std::process::id()));
        let folder = BundleFolder::open(&state).unwrap();
        let bundles = [1, 2, 3].map(bundle);
        let text = |number: u64| fs::read_to_string(folder.current().join(format!("{number}.toml"))).ok();
        for bundle in &bundles[..2] {
            folder.set_state(&adopted(bundle)).unwrap();
            folder.adopt(bundle).unwrap();
        }
        assert_eq!((text(1), text(2)), (None, Some("# 2".to_owned())));
        folder.undo().unwrap();
        assert!(folder.has(bundles[0].digest()) && text(1).is_some());
        folder.undo().unwrap();
        assert!(folder.has(bundles[0].digest()), "a repeated return does not restore the bundle");
        folder.adopt(&bundles[1]).unwrap();
        // Before the exchange: the next bundle is unfinished, and goes.
        let (next, former) = (folder.folder.join(NEXT_DIR), folder.folder.join(FORMER_DIR));
        folder.set_state(&adopted(&bundles[2])).unwrap();
        fs::create_dir(&next).unwrap();
        let opened = BundleFolder::open(&state).unwrap();
        assert!(opened.has(bundles[1].digest()));
        opened.adopt(&bundles[2]).unwrap();
        // After the exchange: the folder of the next bundle has the former one.
        fs::remove_dir_all(&former).unwrap();
        fs::create_dir(&next).unwrap();
        fs::write(next.join("2.toml"), "# 2").unwrap();
        let opened = BundleFolder::open(&state).unwrap();
        assert!(!next.exists() && opened.has(bundles[2].digest()));
        opened.undo().unwrap();
        assert_eq!((text(2), text(3)), (Some("# 2".to_owned()), None));
        let RolloutState { seen, ended, adopted } = opened.state().unwrap();
        assert_eq!((seen, ended, adopted.map(|own| own.number)), (4, 3, Some(3)));
        std::fs::write(opened.folder.join(STATE_FILE), "x").unwrap();
        assert!(opened.state().is_err(), "an unreadable number permits nothing");
        fs::remove_file(opened.folder.join(STATE_FILE)).unwrap();
        assert_eq!(opened.state().unwrap().ended, 0);
        fs::remove_dir_all(&state).unwrap();
    }
}
