//! `outgate backup`: stores what an instance keeps, sealed to the operator's key.
//! Can another host continue with the history and the audit log of this one?

mod contents;
mod manifest;
pub(super) mod restore;
mod store;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use super::archive::TarWriter;
use super::load_or_report;
use super::local_runtime::{exit_with_error, new_tokio_runtime};
use crate::config::Config;
use crate::history::DEFAULT_STATE;
use crate::host;
use crate::names::pluralize;
use crate::policy::capture::Recipients;
use crate::sysexits;
use contents::BackupFile;
use manifest::{HashingReader, MANIFEST, Manifest};
use store::{BackupStore, EXTENSION};

#[derive(Args)]
#[command(after_help = "Examples:
  age-keygen -o operator.txt && age-keygen -y operator.txt >/etc/outgate/backup-recipients
  sudo outgate backup --to /srv/backups --recipients /etc/outgate/backup-recipients
  sudo outgate backup --to s3://backups/egress-1 --recipients /etc/outgate/backup-recipients

A backup has the state folder (the history), the audit log, and the lists of captures. It has no configuration files, keys,
delivery logs and captures. The proxy may run meanwhile. Keep the identity (operator.txt) on another host. `outgate restore
--check` checks a backup.

A bucket takes its address and credentials from AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

Exit code 0: the backup is stored. 66: a file cannot be read. 73: it cannot be stored. 78: the configuration has problems.")]
pub(super) struct Backup {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder or bucket for the backup: a path, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "STORE")]
    to: PathBuf,
    /// The file of age recipients to whom the backup is sealed, as `age -R` reads it
    #[arg(short, long, value_name = "FILE")]
    recipients: PathBuf,
    /// The state folder. Default: server.state, else /var/lib/outgate
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl Backup {
    pub(super) fn run(self) -> ExitCode {
        self.store().unwrap_or_else(|code| code)
    }

    fn store(&self) -> Result<ExitCode, ExitCode> {
        let config = load_or_report(self.config.as_deref())?.config;
        let recipients = self.recipients()?;
        let runtime = Arc::new(new_tokio_runtime()?);
        let files = self.open_files(&config, &runtime)?;
        let (now, host) = (Timestamp::now(), host::own_name());
        // The instances of a fleet may share a bucket, and hosts may have equal names.
        let instance = config.fleet.as_ref().map_or(&host, |fleet| &fleet.instance);
        let name = format!("outgate-{instance}-{}{EXTENSION}", now.strftime("%Y%m%dT%H%M%SZ"));
        let (count, to) = (pluralize(files.len() as u64, "file"), self.to.display());
        let manifest = Manifest { host, at: now, version: env!("CARGO_PKG_VERSION").to_owned(), files: Vec::new() };
        BackupStore::open(&self.to, true, runtime)
            .and_then(|store| write(&store, &name, &recipients, manifest, files))
            .map_err(|error| {
                exit_with_error(sysexits::CANNOT_CREATE, &format!("cannot store the backup in {to}: {error}"))
            })?;
        println!("{name}: {count}, in {to}");
        Ok(ExitCode::SUCCESS)
    }

    fn recipients(&self) -> Result<Recipients, ExitCode> {
        let path = self.recipients.display();
        let text = std::fs::read_to_string(&self.recipients)
            .map_err(|error| exit_with_error(sysexits::NO_INPUT, &format!("cannot read {path}: {error}")))?;
        Recipients::parse(&text).map_err(|reason| exit_with_error(sysexits::DATA, &format!("{path} {reason}")))
    }

    /// Opens all files before the first is copied: those of one time.
    fn open_files(&self, config: &Config, runtime: &tokio::runtime::Runtime) -> Result<Vec<BackupFile>, ExitCode> {
        let mut files = Vec::new();
        let unreadable = |what: String| {
            move |error: io::Error| exit_with_error(sysexits::NO_INPUT, &format!("cannot read {what}: {error}"))
        };
        if let Some(log) = &config.audit.file {
            let what = format!("the audit log {}", log.display());
            contents::audit_files(log, &mut files).map_err(unreadable(what))?;
        }
        let state = self.state.as_deref().or(config.server.state.as_deref()).unwrap_or(DEFAULT_STATE.as_ref());
        let what = format!("the state folder {}", state.display());
        contents::state_files(state, &mut files).map_err(unreadable(what))?;
        let what = "the list of captures".to_owned();
        contents::capture_indexes(config, runtime, &mut files).map_err(unreadable(what))?;
        Ok(files)
    }
}

/// Writes the archive through compression and the seal into the store. An error leaves no backup.
fn write(
    store: &BackupStore,
    name: &str,
    recipients: &Recipients,
    mut manifest: Manifest,
    files: Vec<BackupFile>,
) -> io::Result<()> {
    let sealed = recipients.writer(store.create(name)?)?;
    let mut archive = TarWriter::new(GzEncoder::new(sealed, Compression::default()), manifest.at.as_second());
    for BackupFile { name, content, length, .. } in files {
        let mut content = HashingReader::new(content);
        archive.append(&name, length, &mut content)?;
        manifest.files.push(content.finish(&name));
    }
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
    archive.append(MANIFEST, manifest.len() as u64, &mut &*manifest)?;
    archive.finish()?.finish()?.finish()?.finish()
}
