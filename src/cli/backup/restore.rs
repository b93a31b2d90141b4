//! `outgate restore`: opens a backup, checks all of it, and writes its files.
//! Is the backup whole, and what did the instance store?

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use age::{Decryptor, Identity, IdentityFile, ssh};
use clap::Args;
use flate2::read::MultiGzDecoder;

use super::manifest::{HashingReader, MANIFEST, Manifest};
use super::store::BackupStore;
use crate::capture_store::create_folder;
use crate::cli::archive::read_tar;
use crate::cli::local_runtime::{exit_with_error, new_tokio_runtime};
use crate::names::{pluralize, with_suffix};
use crate::sysexits;

/// Limits the size of a manifest, in bytes.
const MANIFEST_MAX: u64 = 256 << 20;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate restore --from /srv/backups --identity operator.txt --check
  outgate restore --from s3://backups/egress-1 --identity operator.txt --into restored

Stop outgate, and move `state` to server.state and the files of `audit` to the folder of audit.file, for the user outgate.
`outgate audit verify FILE...` verifies the audit log. `captures` lists the captures that the stores had.

Exit code 0: the backup is whole. 65: it is damaged, or not sealed to this key. 66: there is none. 73: DIR cannot be written.")]
pub(in crate::cli) struct Restore {
    /// The folder or bucket of the backups
    #[arg(long, value_name = "STORE")]
    from: PathBuf,
    /// The name of the backup. Default: the newest
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// The file with the age identity or the SSH key of the operator
    #[arg(short, long, value_name = "FILE")]
    identity: PathBuf,
    /// A new folder for the files
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    into: Option<PathBuf>,
    /// Check the whole backup, and write nothing
    #[arg(long, conflicts_with = "into")]
    check: bool,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(in crate::cli) fn run(self) -> ExitCode {
        self.restore().unwrap_or_else(|code| code)
    }

    fn restore(&self) -> Result<ExitCode, ExitCode> {
        let identities = read_identities(&self.identity).map_err(|error| {
            exit_with_error(sysexits::NO_INPUT, &format!("cannot use the key {}: {error}", self.identity.display()))
        })?;
        let runtime = Arc::new(new_tokio_runtime()?);
        let from = self.from.display();
        let unreadable =
            |error: io::Error| exit_with_error(sysexits::NO_INPUT, &format!("cannot read {from}: {error}"));
        let store = BackupStore::open(&self.from, false, runtime).map_err(unreadable)?;
        let newest = match &self.backup {
            Some(name) => Some(name.clone()),
            None => store.newest().map_err(unreadable)?,
        };
        let name =
            newest.ok_or_else(|| exit_with_error(sysexits::NO_INPUT, &format!("there is no backup in {from}")))?;
        let sealed = store.read(&name).map_err(unreadable)?;
        let folder = self.into.as_deref().map(NewFolder::create).transpose()?;
        let manifest = unpack(BufReader::new(sealed), &identities, folder.as_ref().map(|folder| &*folder.unfinished))
            .map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied => {
                exit_with_error(sysexits::CANNOT_CREATE, &format!("cannot restore {name}: {error}"))
            }
            _ => exit_with_error(sysexits::DATA, &format!("cannot restore {name}: {error}")),
        })?;
        if let Some(folder) = folder {
            folder.finish()?;
        }
        let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
        if self.json {
            println!("{:#}", serde_json::json!({ "backup": name, "manifest": manifest }));
        } else {
            let files = pluralize(manifest.files.len() as u64, "file");
            println!("{name} is whole: {files}, {bytes} bytes, of {} at {:.0}", manifest.host, manifest.at);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The new folder, which has its name once it is complete.
struct NewFolder {
    folder: PathBuf,
    unfinished: PathBuf,
}

impl NewFolder {
    fn create(folder: &Path) -> Result<Self, ExitCode> {
        let unfinished = with_suffix(folder, ".unfinished");
        if folder.exists() {
            return Err(exit_with_error(
                sysexits::CANNOT_CREATE,
                &format!("{} exists: name a new folder", folder.display()),
            ));
        }
        let created = DirBuilder::new().mode(0o700).create(&unfinished);
        created.map_err(|error| {
            exit_with_error(sysexits::CANNOT_CREATE, &format!("cannot create {}: {error}", unfinished.display()))
        })?;
        Ok(Self { folder: folder.to_owned(), unfinished })
    }

    fn finish(self) -> Result<(), ExitCode> {
        let renamed = fs::rename(&self.unfinished, &self.folder);
        renamed.map_err(|error| {
            exit_with_error(sysexits::CANNOT_CREATE, &format!("cannot create {}: {error}", self.folder.display()))
        })
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.unfinished);
    }
}

/// Opens the seal, compares each file with the manifest, and writes it below `folder`.
fn unpack(sealed: impl Read, identities: &[Box<dyn Identity>], folder: Option<&Path>) -> io::Result<Manifest> {
    let identities = identities.iter().map(|identity| &**identity);
    let decryptor = Decryptor::new(sealed).map_err(io::Error::other)?;
    let opened = decryptor.decrypt(identities).map_err(io::Error::other)?;
    let (mut found, mut manifest) = (Vec::new(), None::<Manifest>);
    read_tar(MultiGzDecoder::new(opened), |name, content| {
        if manifest.is_some() {
            return Err(damaged("files follow its manifest"));
        }
        if name == MANIFEST {
            manifest = Some(serde_json::from_reader(content.take(MANIFEST_MAX)).map_err(io::Error::other)?);
            return Ok(());
        }
        let mut content = HashingReader::new(content);
        match folder {
            Some(folder) => write(&folder.join(name), &mut content)?,
            None => drop(io::copy(&mut content, &mut io::sink())?),
        }
        found.push(content.finish(name));
        Ok(())
    })?;
    let manifest = manifest.ok_or_else(|| damaged("it has no manifest"))?;
    match manifest.files == found {
        true => Ok(manifest),
        false => Err(damaged("its files are not those of its manifest")),
    }
}

fn damaged(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the backup is damaged: {how}"))
}

fn write(path: &Path, content: &mut impl Read) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::copy(content, &mut file)?;
    file.sync_all()
}

/// Reads a file of age identities, or an SSH key without a passphrase.
fn read_identities(path: &Path) -> io::Result<Vec<Box<dyn Identity>>> {
    let text = fs::read_to_string(path)?;
    if !text.contains("-----BEGIN") {
        let identities = IdentityFile::from_buffer(text.as_bytes())?.into_identities().map_err(io::Error::other)?;
        return Ok(identities.into_iter().map(|identity| identity as Box<dyn Identity>).collect());
    }
    match ssh::Identity::from_buffer(text.as_bytes(), None)? {
        identity @ ssh::Identity::Unencrypted(_) => Ok(vec![Box::new(identity)]),
        ssh::Identity::Encrypted(_) => Err(io::Error::other("it has a passphrase: use `age -d -i KEY FILE | tar xz`")),
        ssh::Identity::Unsupported(_) => Err(io::Error::other("age supports no SSH key of this type")),
    }
}
