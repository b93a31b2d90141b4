//! `outgate captures`: lists, exports and erases sealed captures, through the running proxy.
//! What was captured of a tenant, and is all of it erased?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use form_urlencoded::Serializer;
use serde_json::{Value, json};

use super::ProxySelector;
use super::admin_client::{AdminError, AdminRequest, send};
use crate::cli::escape_control_characters;
use crate::cli::new_file::write_secret;
use crate::sysexits;

#[derive(Subcommand)]
pub(in crate::cli) enum Captures {
    /// List the sealed captures: of whom, when and of which request, and not what they contain
    #[command(after_help = "Example:
  outgate captures list --tenant acme --json | jq -r '.[].request_id'")]
    List(Selection),
    /// Copy the sealed captures of a tenant to a folder, to hand them over
    #[command(after_help = "Example:
  outgate captures export --tenant acme --out acme-captures

The tenant opens each file with its own key: `age --decrypt --identity key.txt FILE`. Existing files are not replaced.")]
    Export {
        /// An existing folder for the files
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        selection: Selection,
    },
    /// Erase captures of a tenant, and print the digest of each and the numbers of the audit records
    #[command(after_help = "Example:
  outgate captures erase --tenant acme > erased-acme.txt

The proxy goes on capturing: remove the tenant's file from recipients_dir first.")]
    Erase(Selection),
}

#[derive(Args)]
pub(in crate::cli) struct Selection {
    /// Only the captures of this tenant; `export` and `erase` need it
    #[arg(long)]
    tenant: Option<String>,
    /// Only the captures of [captures.NAME]
    #[arg(long, value_name = "NAME")]
    capture: Option<String>,
    /// Only the capture of the request with this id (Outgate-Request-Id)
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Captures {
    pub(in crate::cli) fn run(self) -> ExitCode {
        let result = match &self {
            Self::List(selection) => selection.list(),
            Self::Export { selection, .. } | Self::Erase(selection) if selection.tenant.is_none() => {
                eprintln!("outgate: name the tenant: --tenant TENANT");
                Err(ExitCode::from(sysexits::USAGE))
            }
            Self::Export { out, selection } => selection.export(out),
            Self::Erase(selection) => selection.erase(),
        };
        result.unwrap_or_else(|code| code)
    }
}

impl Selection {
    /// Asks the proxy about the selected captures. `after`: the name of a capture; those before it are left out.
    fn ask(&self, request: fn(&str) -> AdminRequest, path: &str, after: &str) -> Result<Value, ExitCode> {
        let mut query = Serializer::new(format!("{path}?"));
        query.append_pair("after", after);
        for (name, value) in [("tenant", &self.tenant), ("capture", &self.capture), ("request_id", &self.request_id)] {
            query.extend_pairs(value.iter().map(|value| (name, value)));
        }
        self.proxy.check()?;
        send(&self.proxy.sockets(), &request(&query.finish())).map_err(AdminError::report)
    }

    fn list(&self) -> Result<ExitCode, ExitCode> {
        let found = self.ask(AdminRequest::get, "/v1/captures", "")?;
        if self.json {
            println!("{found:#}");
            return Ok(ExitCode::SUCCESS);
        }
        for capture in members(&found) {
            let [time, id, name] = ["time", "request_id", "name"].map(|member| text(capture, member));
            println!("{time} {:>9} {id} {name}", capture["bytes"].to_string());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn export(&self, out: &Path) -> Result<ExitCode, ExitCode> {
        let mut last = String::new();
        loop {
            let exported = self.ask(post, "/v1/captures/export", &last)?;
            for object in members(&exported["objects"]) {
                let path = write(out, object)?;
                println!("{}", if self.json { json!(path).to_string() } else { path.display().to_string() });
                last = text(object, "name");
            }
            match members(&exported["objects"]) {
                [] if last.is_empty() => {
                    eprintln!("outgate: there is no such capture");
                    return Err(ExitCode::from(sysexits::NO_INPUT));
                }
                [] => return Ok(ExitCode::SUCCESS),
                _ => {}
            }
        }
    }

    fn erase(&self) -> Result<ExitCode, ExitCode> {
        let (mut count, mut records) = (0, Vec::new());
        let code = loop {
            let proof = self.ask(post, "/v1/captures/erase", "")?;
            let (objects, failed) = (members(&proof["objects"]), members(&proof["failed"]));
            if self.json {
                println!("{proof}");
            } else {
                objects.iter().for_each(|object| println!("{}  {}", text(object, "sha256"), text(object, "name")));
            }
            for failed in failed {
                eprintln!("outgate: not erased: {}", escape_control_characters(&failed.to_string()));
            }
            count += objects.len();
            records.extend(proof["seq"].as_u64().map(|seq| seq.to_string()));
            match (objects, failed) {
                (_, [_, ..]) => break ExitCode::from(sysexits::IO_ERROR),
                ([], _) => break ExitCode::SUCCESS,
                _ => {}
            }
        };
        if !self.json {
            println!(
                "erased: {count}; audit records: {}",
                if records.is_empty() { "none".into() } else { records.join(", ") }
            );
        }
        Ok(code)
    }
}

fn post(path: &str) -> AdminRequest {
    AdminRequest::post(path, Vec::new())
}

fn members(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn text(object: &Value, member: &str) -> String {
    escape_control_characters(object[member].as_str().unwrap_or_default())
}

/// Writes a sealed capture to a new file that only its owner may read.
fn write(folder: &Path, object: &Value) -> Result<PathBuf, ExitCode> {
    let path = folder.join(text(object, "name").replace('/', "-"));
    let sealed = data_encoding::BASE64.decode(text(object, "sealed").as_bytes()).map_err(std::io::Error::other);
    sealed.and_then(|sealed| write_secret(&path, sealed)).map(|()| path.clone()).map_err(|error| {
        eprintln!("outgate: cannot write {}: {error}", path.display());
        ExitCode::from(sysexits::CANNOT_CREATE)
    })
}
