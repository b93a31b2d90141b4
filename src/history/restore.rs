//! Files put back as they were, step by step, so that whoever is killed between two steps leaves one whole configuration.
//! Which files are written, in which order, and when does it count?
//!
//! The steps: the whole set into a folder without its name; the name, from which moment the set counts
//! ([`crate::config::pending_rollback`]); each file in its place; the name away, the folder after it. What stood in a
//! place and differs is kept beside it, under a name that nothing includes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use super::HistoryEntry;
use super::durable::{FolderLock, put_in_place, remove_folder, sync_folder};
pub use super::trusted::check_folder;
use super::trusted::resolve;
use crate::config::pending_rollback::{self, MANIFEST, Manifest, Overlay};
use crate::config::{self, KeyDirs, SourceSnapshot};

/// Files of former rollbacks that may stand beside one file.
const SAVED_MAX: usize = 100;

/// A rollback that counts, and is not finished.
pub struct PendingRollback {
    main: PathBuf,
    overlay: Overlay,
}

/// Writes the whole set. From when this returns it is the configuration, whatever happens.
pub fn begin(main: &Path, overlay: Overlay) -> io::Result<PendingRollback> {
    let main = pending_rollback::absolute(main);
    let unfinished = beside(&main, "rollback-unfinished");
    let begun = PendingRollback { main, overlay };
    remove_folder(&unfinished)?;
    fs::create_dir(&unfinished)?;
    let written = begun.write(&unfinished);
    if written.is_err() {
        let _ = remove_folder(&unfinished); // what is wrong with the disk was told
    }
    written.map(|()| begun)
}

/// A configuration that was adopted, in the place of what is on disk.
pub fn overlay(main: &Path, entry: &HistoryEntry, written: &SourceSnapshot) -> Overlay {
    let texts = written.texts.iter().map(|(path, text)| (pending_rollback::absolute(path), text.as_bytes().to_vec()));
    let modes = entry.files.iter().zip(&entry.modes).filter_map(|(path, mode)| Some((path.clone(), (*mode)?)));
    let mut overlay =
        Overlay { number: entry.number, texts: texts.collect(), modes: modes.collect(), removed: BTreeSet::new() };
    // Files that came later, and that its patterns would find.
    overlay.removed = read_by(main, &overlay).into_iter().filter(|path| !overlay.texts.contains_key(path)).collect();
    overlay
}

/// The main file, and what it includes.
fn read_by(main: &Path, overlay: &Overlay) -> BTreeSet<PathBuf> {
    match config::load_with_overlay(main, &KeyDirs::new(), overlay.clone()) {
        Ok(loaded) => loaded.config.sources.paths().map(pending_rollback::absolute).collect(),
        Err(rejected) => rejected.sources.paths().map(pending_rollback::absolute).collect(),
    }
}

/// Why a file must not be written.
pub enum Unwritable {
    /// It is not of the configuration, or stands elsewhere.
    Stranger(PathBuf),
    /// Another user may choose where its path leads, or its folders cannot be read.
    Folder(io::Error),
}

/// Fails for the first file that must not be written. What was kept is the proxy's to write, and root puts it back. So
/// each file must be one that the configuration reads as its text. Each must stand below the main file's folder, links
/// followed, or be of the configuration that is on disk. And no other user may choose where its path leads.
pub fn check(main: &Path, overlay: &Overlay) -> Result<(), Unwritable> {
    let home = main.parent().unwrap_or(Path::new("/"));
    let (read, mut on_disk) = (read_by(main, overlay), read_by(main, &Overlay::default()));
    let real_home = home.canonicalize().map_err(Unwritable::Folder)?;
    // A file that another user may write can name any other file in `include`.
    if on_disk.iter().any(|path| resolve(home, path).is_err()) {
        on_disk.clear();
    }
    if let Some(text) = overlay.texts.keys().find(|path| !read.contains(*path)) {
        return Err(Unwritable::Stranger(text.clone()));
    }
    for path in overlay.texts.keys().chain(&overlay.removed) {
        let is_plain = path.components().all(|part| part != Component::ParentDir) && path.starts_with(home);
        let is_subdomain_of = resolve(home, path).map_err(Unwritable::Folder)?.starts_with(&real_home);
        let is_at_home = is_plain && is_subdomain_of;
        if !is_at_home && !on_disk.contains(path) {
            return Err(Unwritable::Stranger(path.clone()));
        }
    }
    Ok(())
}

/// Keeps a second one from writing the same files, while it is held.
pub fn lock(main: &Path) -> io::Result<Option<FolderLock>> {
    FolderLock::try_acquire(main.parent().unwrap_or(Path::new("/")))
}

/// One that somebody else began.
pub fn begun(main: &Path) -> Result<Option<PendingRollback>, pending_rollback::UnreadableRollback> {
    let main = pending_rollback::absolute(main);
    Ok(pending_rollback::read(&main)?.map(|overlay| PendingRollback { main, overlay }))
}

impl PendingRollback {
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// All of it into a folder, and that to where it counts.
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
            let like = like(path, overlay.modes.get(path).copied())?;
            write_like(&unfinished.join(number.to_string()), text, &like)?;
        }
        let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        // Whoever may look into the folder may know what is there.
        let folder = fs::metadata(main.parent().unwrap_or(Path::new("/")))?;
        write_like(&unfinished.join(MANIFEST), &json, &FileAttributes::of(&folder))?;
        let opened = File::open(unfinished)?;
        give(&opened, &FileAttributes::of(&folder))?;
        opened.set_permissions(fs::Permissions::from_mode(folder.mode() & 0o7777))?;
        put_in_place(unfinished, &pending_rollback::path(main))
    }

    /// As if it had never begun; for one whose files are not in their places yet.
    pub fn give_up(self) -> io::Result<()> {
        self.clear()
    }

    /// Puts each file in its place, and returns the files that keep what stood there. To do it again, from wherever it was
    /// broken off, does what is left.
    pub fn finish(self) -> io::Result<Vec<PathBuf>> {
        let mut saved = Vec::new();
        for (path, text) in &self.overlay.texts {
            saved.extend(self.replace(path, text)?);
        }
        for path in &self.overlay.removed {
            // The link is moved away, not the file that it leads to.
            let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            resolve(self.home(), path)?;
            let path = &resolve(self.home(), folder)?.join(name);
            match fs::read(path) {
                Ok(before) => {
                    let keeps = saved_name(path, &before)?;
                    fs::rename(path, &keeps)?;
                    saved.push(keeps);
                }
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => return Err(fault),
            }
            sync_folder(path.parent().unwrap_or(Path::new("/")))?;
        }
        self.clear().map(|()| saved)
    }

    fn home(&self) -> &Path {
        self.main.parent().unwrap_or(Path::new("/"))
    }

    /// Where a link leads to, the file is replaced, not the link. The link is followed once, by the check of its folders.
    fn replace(&self, path: &Path, text: &[u8]) -> io::Result<Option<PathBuf>> {
        let mode = self.overlay.modes.get(path).copied();
        let path = &resolve(self.home(), path)?;
        let like = like(path, mode)?;
        let saved = match fs::read(path) {
            Ok(before) if before == text => return Ok(None),
            Ok(before) => {
                let keeps = saved_name(path, &before)?;
                let next = beside(path, "rollback-next");
                write_anew(&next, &before, &like)?;
                put_in_place(&next, &keeps)?;
                Some(keeps)
            }
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                None
            }
            Err(fault) => return Err(fault),
        };
        let next = beside(path, "rollback-next");
        write_anew(&next, text, &like)?;
        put_in_place(&next, path).map(|()| saved)
    }

    /// The name first: half of the set must not count.
    fn clear(&self) -> io::Result<()> {
        let unfinished = beside(&self.main, "rollback-unfinished");
        remove_folder(&unfinished)?;
        put_in_place(&pending_rollback::path(&self.main), &unfinished)?;
        remove_folder(&unfinished)
    }
}

/// Returns the name under which what stands at `path` is kept: one that is free, or that keeps the same `content` already.
fn saved_name(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    for number in 1..=SAVED_MAX {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let name = beside(path, &format!("before-rollback{suffix}"));
        match fs::read(&name) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(name),
            Ok(kept) if content == kept => return Ok(name),
            Ok(_) => {}
            Err(fault) => return Err(fault),
        }
    }
    let folder = path.parent().unwrap_or(Path::new("/")).display();
    Err(io::Error::other(format!("{folder} has {SAVED_MAX} files of former rollbacks (.before-rollback): remove some")))
}

/// `.NAME.WHAT`: an editor's scratch file, for patterns that `include` has.
fn beside(path: &Path, what: &str) -> PathBuf {
    path.with_file_name(format!(".{}.{what}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Whose a file is to be, and who may read it: as it is now, else by the mode that it had, in a folder of those whose
/// folder it is.
fn like(path: &Path, mode: Option<u32>) -> io::Result<FileAttributes> {
    match fs::metadata(path) {
        Ok(found) => Ok(FileAttributes::of(&found)),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
            let folder = path.ancestors().skip(1).find_map(|folder| fs::metadata(folder).ok());
            let folder = folder.ok_or(io::ErrorKind::NotFound)?;
            let mode = mode.map_or(0o640, |mode| mode & 0o644);
            Ok(FileAttributes { mode, ..FileAttributes::of(&folder) })
        }
        Err(fault) => Err(fault),
    }
}

/// Whose a file is, and who may read it.
#[derive(Clone, Copy)]
struct FileAttributes {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl FileAttributes {
    /// Of a folder: without what makes it one.
    fn of(found: &fs::Metadata) -> Self {
        Self { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o666 }
    }
}

fn write_anew(path: &Path, bytes: &[u8], like: &FileAttributes) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(fault),
        _ => write_like(path, bytes, like),
    }
}

/// A new file, on the disk.
fn write_like(path: &Path, bytes: &[u8], like: &FileAttributes) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    give(&file, like)?;
    file.set_permissions(fs::Permissions::from_mode(like.mode))?;
    file.sync_all()
}

/// To its owner and group, where they are others' than ours.
fn give(file: &File, like: &FileAttributes) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (like.uid, like.gid) {
        return Ok(());
    }
    fchown(file, Some(like.uid), Some(like.gid))
}
