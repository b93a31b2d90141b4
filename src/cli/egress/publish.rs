//! `outgate egress publish`: writes the publication as the files of a web site, all at once.
//! How does a web server see the old files or the new ones, and never a mixture?

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::list_version;
use crate::cli::load_or_report;
use crate::names::{folder_of, pluralize};
use crate::policy::publication::{MANIFEST, Publication};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress publish --out /var/www/ranges
  outgate egress publish --out site && rsync -a --delete site/ cdn.example:ranges/

The files are those of the publish listener ([publish]): the lists in every format, a page, feeds, the keys, and a
manifest that publish.sign signs. The new folder replaces the former one at once. Run the command after each reload and
at the dates of the ranges, for example every minute: the same ranges give the same files.")]
pub(in crate::cli) struct Publish {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder to write: a new one, an empty one, or a former publication
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Publish {
    pub(super) fn run(self) -> ExitCode {
        let valid = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid,
            Err(code) => return code,
        };
        let now = Timestamp::now();
        let publication = Publication::render(&valid.plan, &list_version(&valid, now), now);
        match write(&publication, &self.out) {
            Ok(()) => {
                let files = pluralize(publication.files.len() as u128, "file");
                println!("{}: {files}, serial {}", self.out.display(), publication.serial);
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("outgate: cannot write the publication to {}: {error}", self.out.display());
                ExitCode::from(sysexits::CANNOT_CREATE)
            }
        }
    }
}

/// Writes the files to a new folder beside `out`, and exchanges the two.
fn write(publication: &Publication, out: &Path) -> io::Result<()> {
    let exists = fs::exists(out)?;
    // The folder itself is exchanged, not a link to it.
    let out = if exists { out.canonicalize()? } else { std::path::absolute(out)? };
    if exists && !out.join(MANIFEST).is_file() && fs::read_dir(&out)?.next().is_some() {
        let message = "it has other files, and this command would delete them: name a new or an empty folder";
        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, message));
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = out.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write_files(publication, &unfinished).and_then(|()| replace(&unfinished, &out, exists));
    // After the exchange, this is the former publication.
    if fs::exists(&unfinished)? {
        fs::remove_dir_all(&unfinished)?;
    }
    written
}

fn write_files(publication: &Publication, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (path, file) in &publication.files {
        let path = folder.join(path);
        fs::create_dir_all(folder_of(&path))?;
        File::create_new(path)?.write_all(&file.body)?;
    }
    // One wait for the disk in place of one for each file.
    Ok(syncfs(File::open(folder)?)?)
}

fn replace(unfinished: &Path, out: &Path, exists: bool) -> io::Result<()> {
    let flags = if exists { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, unfinished, CWD, out, flags)?;
    File::open(folder_of(out))?.sync_all()
}
