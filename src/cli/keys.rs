//! `outgate keys`: generates and lists signing keys, and prints their public halves.
//! Which keys sign webhooks, and which keys verify them?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{load_or_report, new_file, table};
use crate::names::TenantName;
use crate::policy::Plan;
use crate::policy::sign::{self, ListedKey, NewKeyError};
use crate::sysexits;

#[derive(Subcommand)]
pub(super) enum Keys {
    /// Generate a signing key
    New(NewSigningKey),
    /// List the keys of all signers with their validity periods and states
    List(ListKeys),
    /// Print the public keys that receivers verify signatures with
    Public(PublicKeys),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate keys new --out /etc/outgate/keys/platform-2026-11
  outgate keys new --scheme rfc9421 --out /etc/outgate/keys/platform-2026-11.pem
  outgate keys new --scheme rfc9421 --algorithm ecdsa-p256-sha256 --out p256.pem
  outgate keys new --scheme standard-webhooks --algorithm ed25519 --out ed25519.pem

Refer to the key in `[signers.NAME] keys` as `secret = \"file:/etc/outgate/keys/platform-2026-11\"`, or pass it as a
systemd credential. Give a shared secret to the receiver as well; of a key pair, give it the public key:
`outgate keys public`.")]
pub(super) struct NewSigningKey {
    /// The signing scheme: standard-webhooks, rfc9421, twilio, sendgrid, stripe, github, slack, shopify, hmac
    #[arg(long, default_value = "standard-webhooks")]
    scheme: String,
    /// The algorithm, if the scheme supports several: ed25519, ecdsa-p256-sha256, rsa-pss-sha512, hmac-sha256, hmac-sha1, hmac-sha512
    #[arg(long)]
    algorithm: Option<String>,
    /// Write to a new file instead of stdout, readable only by its owner; below /etc/outgate also by the directory's group
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate keys list
  outgate keys list --tenant acme
  outgate keys list --json

The state of a key is announced (it begins later), active (it signs), replaced (it is valid, but the scheme carries one
signature and a newer key signs) or ended. For the keys of a single tenant, write --tenant NAME.")]
pub(super) struct ListKeys {
    /// The keys that sign for this tenant. Default: the keys that all tenants share
    #[arg(long)]
    tenant: Option<String>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PublicKeyFormat {
    /// JWK Set (RFC 7517); `kid` is the thumbprint of the key (RFC 7638)
    Jwks,
    /// PEM, with a line before each key that names it
    Pem,
    /// HTTP Message Signatures key directory: the keys of rfc9421 signers; `kid` is the thumbprint
    Directory,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate keys public
  outgate keys public --format pem --signer platform
  outgate keys public --tenant acme

The output includes keys that begin later, and no keys that have ended. The admin listener serves the same keys at /keys
and at /.well-known/http-message-signatures-directory, and with ?tenant=NAME the keys of a tenant.")]
pub(super) struct PublicKeys {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "jwks")]
    format: PublicKeyFormat,
    /// Only the keys of this signer
    #[arg(long)]
    signer: Option<String>,
    /// The keys that verify webhooks of this tenant. Default: the keys that all tenants share
    #[arg(long)]
    tenant: Option<String>,
}

impl Keys {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Keys::New(new) => new.run(),
            Keys::List(list) => list.run(),
            Keys::Public(public) => public.run(),
        }
    }
}

impl NewSigningKey {
    fn run(self) -> ExitCode {
        let key = match sign::new_key(&self.scheme, self.algorithm.as_deref()) {
            Ok(key) => key,
            Err(error) => {
                eprintln!("outgate: {error}");
                let is_usage = error != NewKeyError::NoRandomness;
                return ExitCode::from(if is_usage { sysexits::USAGE } else { sysexits::SOFTWARE });
            }
        };
        let Some(path) = self.out else {
            println!("{}", key.as_str());
            return ExitCode::SUCCESS;
        };
        match new_file::write_secret(&path, format!("{}\n", key.as_str())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("outgate: cannot write {}: {error}", path.display());
                ExitCode::from(sysexits::CANNOT_CREATE)
            }
        }
    }
}

impl ListKeys {
    fn run(self) -> ExitCode {
        let plan = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid.plan,
            Err(code) => return code,
        };
        let tenant = self.tenant.map(TenantName::new);
        report_tenant_keys(&plan, tenant.as_ref());
        let keys = list_keys(&plan, tenant.as_ref(), Timestamp::now());
        if self.json {
            println!("{:#}", Value::from(keys.iter().map(key_json).collect::<Vec<_>>()));
        } else {
            print!("{}", format_table(&keys));
        }
        ExitCode::SUCCESS
    }
}

fn list_keys<'a>(plan: &'a Plan, tenant: Option<&'a TenantName>, now: Timestamp) -> Vec<ListedKey<'a>> {
    plan.signers.values().flat_map(|signer| signer.list(tenant, now)).collect()
}

/// Reports on stderr which tenant keys the output does not have, and why.
fn report_tenant_keys(plan: &Plan, tenant: Option<&TenantName>) {
    for signer in plan.signers.values() {
        match (tenant, signer.tenants()) {
            (_, None) => {}
            (None, Some(count)) => {
                eprintln!(
                    "signer {}: {count} tenants have their own keys; add --tenant NAME to list the keys of one tenant",
                    signer.name()
                );
            }
            (Some(tenant), Some(_)) if signer.keys_of(Some(tenant)).is_err() => {
                eprintln!("signer {}: no key for tenant {tenant}: outgate refuses its webhooks", signer.name());
            }
            (Some(tenant), Some(_)) if signer.broken_tenants().any(|broken| broken == tenant) => {
                eprintln!(
                    "signer {}: the key folder of tenant {tenant} has problems: run `outgate check`",
                    signer.name()
                );
            }
            (Some(tenant), Some(_)) if !signer.has_own_keys(tenant) => {
                eprintln!(
                    "signer {}: tenant {tenant} has no key folder, so the shared keys of the signer sign its webhooks",
                    signer.name()
                );
            }
            (Some(_), Some(_)) => {}
        }
    }
}

fn key_json(key: &ListedKey<'_>) -> Value {
    json!({
        "signer": key.signer.as_str(), "scheme": key.scheme, "tenant": key.tenant.map(TenantName::as_str),
        "id": key.id.as_str(), "algorithm": key.algorithm.name(), "from": key.from, "until": key.until, "state": key.state.as_str(),
        "thumbprint": key.public.map(|public| public.thumbprint()),
    })
}

/// Formats a table with aligned columns.
fn format_table(keys: &[ListedKey<'_>]) -> String {
    let time = |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.to_string());
    let head = ["SIGNER", "SCHEME", "TENANT", "KEY", "ALGORITHM", "FROM", "UNTIL", "STATE"].map(str::to_owned);
    let row = |key: &ListedKey<'_>| {
        let (signer, scheme, id) = (key.signer.to_string(), key.scheme.to_owned(), key.id.to_string());
        let tenant = key.tenant.map_or("-".to_owned(), TenantName::to_string);
        let (from, until) = (time(key.from), time(key.until));
        [signer, scheme, tenant, id, key.algorithm.name().to_owned(), from, until, key.state.as_str().to_owned()]
    };
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(keys.iter().map(row)).collect();
    table::format_table(&rows)
}

impl PublicKeys {
    fn run(self) -> ExitCode {
        let mut plan = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid.plan,
            Err(code) => return code,
        };
        if let Some(signer) = self.signer {
            plan.signers.retain(|name, _| name.as_str() == signer);
            if plan.signers.is_empty() {
                eprintln!("outgate: there is no signer {signer:?}");
                return ExitCode::from(sysexits::USAGE);
            }
        }
        let (now, tenant) = (Timestamp::now(), self.tenant.map(TenantName::new));
        let tenant = tenant.as_ref();
        report_tenant_keys(&plan, tenant);
        match self.format {
            PublicKeyFormat::Jwks => println!("{:#}", sign::jwks(&plan.signers, tenant, now)),
            PublicKeyFormat::Directory => println!("{:#}", sign::directory(&plan.signers, tenant, now)),
            PublicKeyFormat::Pem => sign::published(&plan.signers, tenant, now).for_each(|(key, public)| {
                // PEM parsers ignore text outside the boundaries (RFC 7468 §2).
                let written = key.written.map_or(String::new(), |written| format!(" {written}"));
                println!("{} {} {}{written}\n{}", key.signer, key.id, key.algorithm.name(), public.pem());
            }),
        }
        ExitCode::SUCCESS
    }
}
