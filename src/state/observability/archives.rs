//! The finished files of the delivery log: their names, their compression, and their deletion.
//! Which files does a log have, and what is left of them after a crash?
//!
//! A finished file is called `deliveries-20261126T141610.123Z.jsonl`: the time of its end stands between the parts of the
//! log's own name. Compression writes `….zst.tmp`, syncs it, renames it to `….zst`, and then deletes the file. So a file
//! without `.tmp` is always whole.

#![expect(clippy::disallowed_methods, reason = "compresses, deletes and reads the files of the delivery log")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tracing::info;

use crate::config::{Compression, Rotate};
use crate::names::{folder_of, pluralize, with_suffix};

/// The time in a name, to the millisecond.
const TIME_FORMAT: &str = "%Y%m%dT%H%M%S%.3fZ";
const TIME_LENGTH: usize = "20261126T141610.123Z".len();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveForm {
    Plain,
    Zstd,
    Gzip,
}

impl ArchiveForm {
    const ALL: [Self; 3] = [Self::Plain, Self::Zstd, Self::Gzip];

    fn ending(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// A finished file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    pub path: PathBuf,
    /// No record of the file arrived later.
    pub ended: Timestamp,
    pub form: ArchiveForm,
}

impl Archive {
    fn open(&self) -> io::Result<Box<dyn Read>> {
        let file = File::open(&self.path)?;
        Ok(match self.form {
            ArchiveForm::Plain => Box::new(file),
            ArchiveForm::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
            ArchiveForm::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        })
    }
}

/// The names of the finished files of one log.
#[derive(Clone, Debug)]
pub struct ArchiveNames {
    /// The file that outgate writes to, behind a symbolic link if there is one.
    pub(super) log: PathBuf,
    folder: PathBuf,
    /// The parts of a name before and after the time.
    start: String,
    end: String,
}

impl ArchiveNames {
    pub fn of(log: &Path) -> Self {
        let log = &fs::canonicalize(log).unwrap_or_else(|_| log.to_owned());
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let end = log.extension().map_or(String::new(), |_| format!(".{}", text(log.extension())));
        Self { log: log.clone(), folder: folder_of(log).to_owned(), start: format!("{}-", text(log.file_stem())), end }
    }

    fn path(&self, ended: Timestamp, form: ArchiveForm) -> PathBuf {
        let time = ended.strftime(TIME_FORMAT);
        self.folder.join(format!("{}{time}{}{}", self.start, self.end, form.ending()))
    }

    fn parse(&self, name: &str) -> Option<(Timestamp, ArchiveForm)> {
        let (time, rest) = name.strip_prefix(&self.start)?.split_at_checked(TIME_LENGTH)?;
        let ending = rest.strip_prefix(&self.end)?;
        let form = ArchiveForm::ALL.into_iter().find(|form| form.ending() == ending)?;
        let ended = DateTime::strptime(TIME_FORMAT, time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Some((ended, form))
    }

    /// Returns the finished files, the oldest first. Of a file that is also there in compressed form, the compressed one.
    pub fn list(&self) -> io::Result<Vec<Archive>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some((ended, form)) = entry.file_name().to_str().and_then(|name| self.parse(name)) {
                found.push(Archive { path: entry.path(), ended, form });
            }
        }
        found.sort_by_key(|archive| (archive.ended, archive.form == ArchiveForm::Plain));
        found.dedup_by_key(|archive| archive.ended);
        Ok(found)
    }

    /// Opens a finished file, and decompresses it. The file may have been compressed since it was listed.
    pub fn open(&self, archive: &Archive) -> io::Result<Box<dyn Read>> {
        archive.open().or_else(|error| {
            let listed = self.list()?.into_iter().find(|other| other.ended == archive.ended);
            listed.filter(|other| other != archive).ok_or(error)?.open()
        })
    }

    /// Returns the name of a file that ends now. Names stay in order if the clock was set back.
    pub(super) fn next(&self, now: Timestamp) -> io::Result<PathBuf> {
        let after = self.list()?.last().map(|last| last.ended + SignedDuration::from_millis(1));
        Ok(self.path(after.map_or(now, |after| after.max(now)), ArchiveForm::Plain))
    }

    /// Compresses finished files, and deletes those that are too old or too many.
    pub(super) fn tidy(&self, rotate: &Rotate, now: Timestamp) -> io::Result<()> {
        self.delete_leftovers()?;
        let form = match rotate.compress {
            Compression::Zstd => ArchiveForm::Zstd,
            Compression::Gzip => ArchiveForm::Gzip,
            Compression::Off => ArchiveForm::Plain,
        };
        // First, since a full disk has no room for compression.
        self.delete_old(rotate, now)?;
        if form != ArchiveForm::Plain {
            for archive in self.list()?.iter().filter(|archive| archive.form == ArchiveForm::Plain) {
                self.compress(archive, form)?;
            }
            self.delete_old(rotate, now)?;
        }
        Ok(())
    }

    /// Deletes what a crash has left: a file whose compressed form is whole, and a compressed form that is not.
    fn delete_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let is_temporary = name.strip_suffix(".tmp").and_then(|name| self.parse(name)).is_some();
            let is_superseded = self.parse(&name).is_some_and(|(ended, form)| {
                let is_compressed = || ArchiveForm::ALL[1..].iter().any(|form| self.path(ended, *form).exists());
                form == ArchiveForm::Plain && is_compressed()
            });
            // The lock shows that no other outgate compresses the file at the moment.
            if (is_temporary || is_superseded) && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn compress(&self, archive: &Archive, form: ArchiveForm) -> io::Result<()> {
        let Some(mut source) = unless_missing(File::open(&archive.path))? else { return Ok(()) };
        // Another outgate, which this one replaces, still writes or compresses the file.
        if source.try_lock().is_err() || source.metadata()?.nlink() == 0 {
            return Ok(());
        }
        let done = self.path(archive.ended, form);
        let temporary = with_suffix(&done, ".tmp");
        let written = write_compressed(&mut source, &temporary, form);
        let renamed = written.and_then(|()| fs::rename(&temporary, &done));
        if renamed.is_err() {
            let _ = fs::remove_file(&temporary); // the first error counts
        }
        renamed?;
        File::open(&self.folder)?.sync_all()?;
        remove(&archive.path).map(drop)
    }

    fn delete_old(&self, rotate: &Rotate, now: Timestamp) -> io::Result<()> {
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        // Each size is read once: another process may compress or delete the file meanwhile.
        let archives: Vec<_> = self.list()?.into_iter().map(|archive| (size(&archive.path), archive)).collect();
        let mut total = size(&self.log) + archives.iter().map(|(size, _)| size).sum::<u64>();
        let (mut aged, mut surplus) = (0_usize, 0_usize);
        for (size, archive) in archives {
            let is_old = now.duration_since(archive.ended).unsigned_abs() > rotate.keep && archive.ended < now;
            if !is_old && total <= rotate.total {
                continue;
            }
            total -= size;
            *(if is_old { &mut aged } else { &mut surplus }) += usize::from(remove(&archive.path)?);
        }
        let shown = || self.folder.join(format!("{}*{}", self.start, self.end)).display().to_string();
        if aged > 0 {
            info!("deleted {} of the delivery log, {}: older than log.rotate.keep", pluralize(aged, "file"), shown());
        }
        if surplus > 0 {
            info!(
                "deleted {} of the delivery log, {}: more than log.rotate.total",
                pluralize(surplus, "file"),
                shown()
            );
        }
        Ok(())
    }
}

/// Removes a file. Returns `false` if another process has removed it.
fn remove(path: &Path) -> io::Result<bool> {
    Ok(unless_missing(fs::remove_file(path))?.is_some())
}

/// Returns `None` for a file that does not exist: another process, or an operator, may delete it at any time.
fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Half the time of the default level, and files that are a tenth larger.
const ZSTD_LEVEL: i32 = 1;

fn write_compressed(source: &mut File, path: &Path, form: ArchiveForm) -> io::Result<()> {
    let mut target = OpenOptions::new().create(true).truncate(true).write(true).mode(0o640).open(path)?;
    let _ = target.try_lock(); // see `delete_leftovers`
    match form {
        ArchiveForm::Plain => drop(io::copy(source, &mut target)?),
        ArchiveForm::Zstd => zstd::stream::copy_encode(source, &mut target, ZSTD_LEVEL)?,
        ArchiveForm::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut target, flate2::Compression::default());
            io::copy(source, &mut encoder)?;
            encoder.finish()?.flush()?;
        }
    }
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_that_other_processes_delete_do_not_end_the_tidying() {
        let folder = std::env::temp_dir().join(format!("outgate-archives-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let names = ArchiveNames::of(&folder.join("deliveries.jsonl"));
        for round in 0..5 {
            for old in 0..200 {
                let ended = Timestamp::from_millisecond(old).unwrap();
                fs::write(names.path(ended, ArchiveForm::Plain), "").unwrap();
            }
            let tidy = || names.tidy(&Rotate::default(), Timestamp::now());
            std::thread::scope(|scope| {
                let tidying = [(); 4].map(|()| scope.spawn(tidy));
                tidying.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
            });
            assert_eq!(names.list().unwrap(), [], "{round}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
