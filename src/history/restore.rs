//! Files put back as they were, step by step, so that whoever is killed between two steps leaves one whole configuration.
//! Which files are written, in which order, and when does it count?
//!
//! The steps: the whole set into a folder without its name; the name, from which moment the set counts
//! ([`crate::config::journal`]); each file in its place; the name away, the folder after it. What stood in a
//! place and differs is kept beside it, under a name that nothing includes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use super::durable::{put_in_place, remove_folder, sync_folder};
use crate::config::journal::{self, MANIFEST, Manifest, Overlay};
use crate::config::{self, KeyDirs, Written};

/// A rollback that counts, and is not finished.
pub struct Begun {
    main: PathBuf,
    overlay: Overlay,
}

/// Writes the whole set. From when this returns it is the configuration, whatever happens.
pub fn begin(main: &Path, overlay: Overlay) -> io::Result<Begun> {
    let main = journal::absolute(main);
    let (place, unfinished) = (journal::place(&main), beside(&main, "rollback-unfinished"));
    remove_folder(&unfinished)?;
    fs::create_dir(&unfinished)?;
    let like = fs::metadata(&main)?;
    let files = [main.clone()].into_iter().chain(overlay.texts.keys().filter(|path| **path != main).cloned());
    let manifest = Manifest { number: overlay.number, files: files.collect(), removed: overlay.removed.clone() };
    for (number, path) in manifest.files.iter().enumerate() {
        let text = overlay.texts.get(path).ok_or_else(|| io::Error::other("no main file"))?;
        write_like(&unfinished.join(number.to_string()), text, &like)?;
    }
    let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
    write_like(&unfinished.join(MANIFEST), &json, &like)?;
    // Whoever may read the configuration may read it here.
    let folder = fs::metadata(main.parent().unwrap_or(Path::new("/")))?;
    let opened = File::open(&unfinished)?;
    give(&opened, &folder)?;
    opened.set_permissions(fs::Permissions::from_mode(folder.mode() & 0o7777))?;
    put_in_place(&unfinished, &place)?;
    Ok(Begun { main, overlay })
}

/// A configuration that was adopted, in the place of what is on disk.
pub fn overlay(main: &Path, number: u64, written: &Written) -> Overlay {
    let texts = written.texts.iter().map(|(path, text)| (journal::absolute(path), text.as_bytes().to_vec()));
    let mut overlay = Overlay { number, texts: texts.collect(), removed: BTreeSet::new() };
    // Files that came later, and that its patterns would find.
    let found: Vec<PathBuf> = match config::load_over(main, &KeyDirs::new(), overlay.clone()) {
        Ok(loaded) => loaded.config.sources.paths().map(journal::absolute).collect(),
        Err(rejected) => rejected.sources.paths().map(journal::absolute).collect(),
    };
    overlay.removed = found.into_iter().filter(|path| !overlay.texts.contains_key(path)).collect();
    overlay
}

/// The files that must not be written for a configuration that was kept: those that neither stand below the main file's
/// folder nor are of the configuration that is on disk. What was kept is the proxy's to write, and root puts it back.
pub fn strangers(main: &Path, overlay: &Overlay) -> Vec<PathBuf> {
    let home = main.parent().unwrap_or(Path::new("/"));
    let on_disk: BTreeSet<PathBuf> = match config::load(main) {
        Ok(loaded) => loaded.config.sources.paths().map(journal::absolute).collect(),
        Err(rejected) => rejected.sources.paths().map(journal::absolute).collect(),
    };
    let is_below = |path: &Path| {
        let is_plain = path.components().all(|part| part != Component::ParentDir);
        // Where the folder is there, it must not lead elsewhere by a link.
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let leads_home = folder.is_none_or(|folder| home.canonicalize().is_ok_and(|home| folder.starts_with(home)));
        is_plain && path.starts_with(home) && leads_home
    };
    let all = overlay.texts.keys().chain(&overlay.removed);
    all.filter(|path| !is_below(path) && !on_disk.contains(*path)).cloned().collect()
}

/// One that somebody else began.
pub fn begun(main: &Path) -> Result<Option<Begun>, journal::Unreadable> {
    let main = journal::absolute(main);
    Ok(journal::read(&main)?.map(|overlay| Begun { main, overlay }))
}

impl Begun {
    pub fn number(&self) -> u64 {
        self.overlay.number
    }

    /// As if it had never begun; for one whose files are not in their places yet.
    pub fn give_up(self) -> io::Result<()> {
        self.clear()
    }

    /// Puts each file in its place. To do it again, from wherever it was broken off, does what is left.
    pub fn finish(self) -> io::Result<()> {
        for (path, text) in &self.overlay.texts {
            replace(path, text)?;
        }
        for path in &self.overlay.removed {
            match fs::rename(path, beside(path, "before-rollback")) {
                Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
                _ => sync_folder(path.parent().unwrap_or(Path::new("/")))?,
            }
        }
        self.clear()
    }

    /// The name first: half of the set must not count.
    fn clear(&self) -> io::Result<()> {
        let unfinished = beside(&self.main, "rollback-unfinished");
        remove_folder(&unfinished)?;
        put_in_place(&journal::place(&self.main), &unfinished)?;
        remove_folder(&unfinished)
    }
}

/// `.NAME.WHAT`: an editor's scratch file, for patterns that `include` has.
fn beside(path: &Path, what: &str) -> PathBuf {
    path.with_file_name(format!(".{}.{what}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Where a link leads to, the file is replaced, not the link.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let like = match fs::metadata(path) {
        Ok(like) => {
            let before = fs::read(path)?;
            if before == text {
                return Ok(());
            }
            write_anew(&beside(path, "before-rollback"), &before, &like)?;
            like
        }
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            // As the folder is readable, without what makes a folder one.
            fs::metadata(folder)?
        }
        Err(fault) => return Err(fault),
    };
    let next = beside(path, "rollback-next");
    write_anew(&next, text, &like)?;
    put_in_place(&next, path)
}

fn write_anew(path: &Path, bytes: &[u8], like: &fs::Metadata) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(fault),
        _ => write_like(path, bytes, like),
    }
}

/// A new file, on the disk, with the owner and the mode of another.
fn write_like(path: &Path, bytes: &[u8], like: &fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    give(&file, like)?;
    file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o666))?;
    file.sync_all()
}

/// To its owner and group, where they are others' than ours.
fn give(file: &File, like: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    fchown(file, Some(like.uid()), Some(like.gid()))
}
