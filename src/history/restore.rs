//! Restores the files of a configuration in steps, so that an interruption leaves one complete configuration.
//! Which files are written, in which order, and when does the restored configuration become valid?
//!
//! The steps: the complete set is written into a temporary folder; a rename of the folder makes the set valid
//! ([`crate::config::pending_rollback`]); each file is put in its place; the folder is renamed again, and removed. A
//! file that is replaced by a different one is saved beside it, under a name that no `include` matches.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use super::HistoryEntry;
use super::durable::{FolderLock, remove_dir, rename_durably, sync_dir};
pub use super::trusted::check_folder;
use super::trusted::resolve;
use crate::config::pending_rollback::{self, MANIFEST, Manifest, Overlay};
use crate::config::{self, KeyDirs, SourceSnapshot};

/// Limits the files of former rollbacks beside one file.
const SAVED_MAX: usize = 100;

/// A rollback that is valid, but not finished.
pub struct PendingRollback {
    main: PathBuf,
    overlay: Overlay,
}

/// Writes the complete set. Once the function has returned, the set is the configuration, whatever happens.
pub fn begin(main: &Path, overlay: Overlay) -> io::Result<PendingRollback> {
    let main = pending_rollback::absolute(main);
    let unfinished = sibling(&main, "rollback-unfinished");
    let pending = PendingRollback { main, overlay };
    remove_dir(&unfinished)?;
    fs::create_dir(&unfinished)?;
    let written = pending.write(&unfinished);
    if written.is_err() {
        let _ = remove_dir(&unfinished); // the error of the write is returned
    }
    written.map(|()| pending)
}

/// Returns the overlay that replaces the files on disk by those of a history entry.
pub fn overlay(main: &Path, entry: &HistoryEntry, snapshot: &SourceSnapshot) -> Overlay {
    let texts = snapshot.texts.iter().map(|(path, text)| (pending_rollback::absolute(path), text.as_bytes().to_vec()));
    let modes = entry.files.iter().zip(&entry.modes).filter_map(|(path, mode)| Some((path.clone(), (*mode)?)));
    let mut overlay =
        Overlay { number: entry.number, texts: texts.collect(), modes: modes.collect(), removed: BTreeSet::new() };
    // Later files that the patterns of the entry's configuration would include.
    overlay.removed =
        files_read_by(main, &overlay).into_iter().filter(|path| !overlay.texts.contains_key(path)).collect();
    overlay
}

/// Returns the main file and the files that it includes.
fn files_read_by(main: &Path, overlay: &Overlay) -> BTreeSet<PathBuf> {
    match config::load_with_overlay(main, &KeyDirs::new(), overlay.clone()) {
        Ok(loaded) => loaded.config.sources.paths().map(pending_rollback::absolute).collect(),
        Err(rejected) => rejected.sources.paths().map(pending_rollback::absolute).collect(),
    }
}

/// The reason why a file must not be written.
pub enum Unwritable {
    /// The file does not belong to the configuration, or is outside of its folder.
    Foreign(PathBuf),
    /// Another user can redirect its path, or a folder on the path cannot be read.
    Folder(io::Error),
}

/// Fails for the first file that must not be written. The proxy's user can write the history, and root restores from
/// it. So each file must be one that the configuration reads. With all links followed, it must be below the main file's
/// folder, or belong to the configuration on disk. No other user may be able to redirect its path.
pub fn check(main: &Path, overlay: &Overlay) -> Result<(), Unwritable> {
    let config_dir = main.parent().unwrap_or(Path::new("/"));
    let (read_files, mut on_disk) = (files_read_by(main, overlay), files_read_by(main, &Overlay::default()));
    let canonical_dir = config_dir.canonicalize().map_err(Unwritable::Folder)?;
    // A file that another user can write could name any other file in `include`.
    if on_disk.iter().any(|path| resolve(config_dir, path).is_err()) {
        on_disk.clear();
    }
    if let Some(text) = overlay.texts.keys().find(|path| !read_files.contains(*path)) {
        return Err(Unwritable::Foreign(text.clone()));
    }
    for path in overlay.texts.keys().chain(&overlay.removed) {
        let is_plain = path.components().all(|part| part != Component::ParentDir) && path.starts_with(config_dir);
        let is_below = resolve(config_dir, path).map_err(Unwritable::Folder)?.starts_with(&canonical_dir);
        let is_in_config_dir = is_plain && is_below;
        if !is_in_config_dir && !on_disk.contains(path) {
            return Err(Unwritable::Foreign(path.clone()));
        }
    }
    Ok(())
}

/// Locks the configuration against a second rollback. Returns `None` if another process holds the lock.
pub fn lock(main: &Path) -> io::Result<Option<FolderLock>> {
    FolderLock::try_acquire(main.parent().unwrap_or(Path::new("/")))
}

/// Returns the rollback that another process has begun, if there is one.
pub fn find_pending(main: &Path) -> Result<Option<PendingRollback>, pending_rollback::UnreadableRollback> {
    let main = pending_rollback::absolute(main);
    Ok(pending_rollback::read(&main)?.map(|overlay| PendingRollback { main, overlay }))
}

impl PendingRollback {
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Writes the set into a temporary folder, and renames the folder.
    fn write(&self, unfinished: &Path) -> io::Result<()> {
        let Self { main, overlay } = self;
        let files = [main.clone()].into_iter().chain(overlay.texts.keys().filter(|path| *path != main).cloned());
        let manifest = Manifest {
            number: overlay.number,
            files: files.collect(),
            removed: overlay.removed.clone(),
            modes: overlay.modes.clone(),
        };
        for (number, path) in manifest.files.iter().enumerate() {
            let text = overlay.texts.get(path).ok_or_else(|| io::Error::other("no main file"))?;
            let attributes = attributes_for(path, overlay.modes.get(path).copied())?;
            write_with_attributes(&unfinished.join(number.to_string()), text, &attributes)?;
        }
        let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        // The manifest is as readable as the folder of the main file.
        let folder = fs::metadata(main.parent().unwrap_or(Path::new("/")))?;
        write_with_attributes(&unfinished.join(MANIFEST), &json, &FileAttributes::of(&folder))?;
        let opened = File::open(unfinished)?;
        set_owner(&opened, &FileAttributes::of(&folder))?;
        opened.set_permissions(fs::Permissions::from_mode(folder.mode() & 0o7777))?;
        rename_durably(unfinished, &pending_rollback::path(main))
    }

    /// Cancels the rollback. No file may be in its place yet.
    pub fn abort(self) -> io::Result<()> {
        self.remove_pending()
    }

    /// Puts each file in its place, and returns the files that save the replaced ones. After an interruption, another
    /// call performs the remaining steps.
    pub fn finish(self) -> io::Result<Vec<PathBuf>> {
        let mut saved = Vec::new();
        for (path, text) in &self.overlay.texts {
            saved.extend(self.replace(path, text)?);
        }
        for path in &self.overlay.removed {
            // The link is renamed, not the file that it leads to.
            let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            resolve(self.config_dir(), path)?;
            let path = &resolve(self.config_dir(), folder)?.join(name);
            match fs::read(path) {
                Ok(before) => {
                    let saved_path = saved_name(path, &before)?;
                    fs::rename(path, &saved_path)?;
                    saved.push(saved_path);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            sync_dir(path.parent().unwrap_or(Path::new("/")))?;
        }
        self.remove_pending().map(|()| saved)
    }

    fn config_dir(&self) -> &Path {
        self.main.parent().unwrap_or(Path::new("/"))
    }

    /// Replaces the file that a link leads to, not the link. The link is resolved once, by the check of its folders.
    fn replace(&self, path: &Path, text: &[u8]) -> io::Result<Option<PathBuf>> {
        let mode = self.overlay.modes.get(path).copied();
        let path = &resolve(self.config_dir(), path)?;
        let attributes = attributes_for(path, mode)?;
        let saved = match fs::read(path) {
            Ok(before) if before == text => return Ok(None),
            Ok(before) => {
                let saved_path = saved_name(path, &before)?;
                let next = sibling(path, "rollback-next");
                overwrite_with_attributes(&next, &before, &attributes)?;
                rename_durably(&next, &saved_path)?;
                Some(saved_path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                None
            }
            Err(error) => return Err(error),
        };
        let next = sibling(path, "rollback-next");
        overwrite_with_attributes(&next, text, &attributes)?;
        rename_durably(&next, path).map(|()| saved)
    }

    /// Removes the pending rollback. The rename comes first: a partly removed set must not be valid.
    fn remove_pending(&self) -> io::Result<()> {
        let unfinished = sibling(&self.main, "rollback-unfinished");
        remove_dir(&unfinished)?;
        rename_durably(&pending_rollback::path(&self.main), &unfinished)?;
        remove_dir(&unfinished)
    }
}

/// Returns the name under which the file at `path` is saved: a free one, or one that has the same `content` already.
fn saved_name(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    for number in 1..=SAVED_MAX {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let name = sibling(path, &format!("before-rollback{suffix}"));
        match fs::read(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
            Ok(kept) if content == kept => return Ok(name),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    let folder = path.parent().unwrap_or(Path::new("/")).display();
    Err(io::Error::other(format!(
        "{folder} has {SAVED_MAX} files of former rollbacks (.before-rollback): remove some, then run the rollback again"
    )))
}

/// Returns `.NAME.SUFFIX` beside `path`. The patterns of `include` ignore it like an editor's temporary file.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!(".{}.{suffix}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Returns the attributes for a file: those of the existing file, or else `mode` with the owner and group of the
/// folder.
fn attributes_for(path: &Path, mode: Option<u32>) -> io::Result<FileAttributes> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(FileAttributes::of(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.ancestors().skip(1).find_map(|folder| fs::metadata(folder).ok());
            let folder = folder.ok_or(io::ErrorKind::NotFound)?;
            let mode = mode.map_or(0o640, |mode| mode & 0o644);
            Ok(FileAttributes { mode, ..FileAttributes::of(&folder) })
        }
        Err(error) => Err(error),
    }
}

/// The owner, group and mode of a file.
#[derive(Clone, Copy)]
struct FileAttributes {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl FileAttributes {
    /// Takes the attributes from a file or a folder. The bits that only folders need are removed.
    fn of(metadata: &fs::Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o666 }
    }
}

fn overwrite_with_attributes(path: &Path, bytes: &[u8], attributes: &FileAttributes) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => write_with_attributes(path, bytes, attributes),
    }
}

/// Writes a new file with these attributes, and syncs it to the disk.
fn write_with_attributes(path: &Path, bytes: &[u8], attributes: &FileAttributes) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    set_owner(&file, attributes)?;
    file.set_permissions(fs::Permissions::from_mode(attributes.mode))?;
    file.sync_all()
}

/// Sets the owner and the group, if they differ.
fn set_owner(file: &File, attributes: &FileAttributes) -> io::Result<()> {
    let current = file.metadata()?;
    if (current.uid(), current.gid()) == (attributes.uid, attributes.gid) {
        return Ok(());
    }
    fchown(file, Some(attributes.uid), Some(attributes.gid))
}
