//! `outgate ca new`: the authority of inspected tunnels.
//! In whose name do we answer for targets, towards our own clients?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};
use time::OffsetDateTime;

use super::new_file;
use crate::host;
use crate::names::Host;
use crate::sysexits;

/// Clocks of clients may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;
const YEAR_SECONDS: i64 = 365 * 86_400;

#[derive(Subcommand)]
pub(super) enum Ca {
    /// Make an authority: its certificate and its key
    New(NewCa),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate ca new /etc/outgate/ca.pem /etc/outgate/ca.key
  outgate ca new --permit acme.example --years 2 ca.pem ca.key

Write `ca = { certificate = \"ca.pem\", key = \"ca.key\" }` under [server] and `connect = \"inspect\"` into the routes
whose tunnels are to be looked into. Their clients must trust the certificate, and nobody else needs to: whoever has the
key can pose as any host towards them, or as those below the domains of --permit.")]
pub(super) struct NewCa {
    /// Where the certificate goes; a new file
    certificate: PathBuf,
    /// Where the key goes; a new file, readable by its owner alone; below /etc/outgate also by the folder's group
    key: PathBuf,
    /// What it is called where certificates are listed
    #[arg(long, default_value = "outgate inspection CA")]
    name: String,
    /// A domain that it is good for, with all below; more than once for more; without it, for every host
    #[arg(long, value_name = "DOMAIN", value_parser = parse_domain)]
    permit: Vec<String>,
    /// Years until it ends
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=30))]
    years: u8,
}

fn parse_domain(text: &str) -> Result<String, String> {
    match host::canonical(text) {
        Ok(Host::Name(name)) => Ok(name.to_string()),
        Ok(Host::Ip(_)) => Err("an address is no domain".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Ca {
    pub(super) fn run(self) -> ExitCode {
        let Ca::New(new) = self;
        let generated = match new.generate(Timestamp::now().as_second()) {
            Ok(generated) => generated,
            Err(error) => {
                eprintln!("outgate: the authority cannot be made: {error}");
                return ExitCode::from(sysexits::SOFTWARE);
            }
        };
        match new.write(&generated) {
            Ok(()) => ExitCode::SUCCESS,
            Err((path, error)) => {
                eprintln!("outgate: cannot write {}: {error}", path.display());
                ExitCode::from(sysexits::CANNOT_CREATE)
            }
        }
    }
}

struct GeneratedCa {
    certificate: String,
    key: String,
}

impl NewCa {
    fn generate(&self, now: i64) -> Result<GeneratedCa, Box<dyn std::error::Error>> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.name.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from_unix_timestamp(now - CLOCK_SKEW_SECONDS)?;
        params.not_after = OffsetDateTime::from_unix_timestamp(now + i64::from(self.years) * YEAR_SECONDS)?;
        if !self.permit.is_empty() {
            // RFC 5280 §4.2.1.10: a domain stands for itself and all below. Other kinds of names are not constrained
            // by it, so addresses are excluded one and all.
            let permitted_subtrees = self.permit.iter().cloned().map(GeneralSubtree::DnsName).collect();
            let excluded_subtrees = vec![all_ipv4(), all_ipv6()];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(GeneratedCa { certificate: certificate.pem(), key: key.serialize_pem() })
    }
    /// Both files or none: half of an authority is of no use, and is in the way of the next one.
    fn write(&self, generated: &GeneratedCa) -> Result<(), (&Path, io::Error)> {
        let result = new_file::write_secret(&self.key, &generated.key);
        result.map_err(|error| (self.key.as_path(), error))?;
        new_file::write_public(&self.certificate, &generated.certificate).map_err(|error| {
            // If it stays, the next attempt says so.
            let _ = fs::remove_file(&self.key);
            (self.certificate.as_path(), error)
        })
    }
}

fn all_ipv4() -> GeneralSubtree {
    GeneralSubtree::IpAddress(rcgen::CidrSubnet::V4([0; 4], [0; 4]))
}

fn all_ipv6() -> GeneralSubtree {
    GeneralSubtree::IpAddress(rcgen::CidrSubnet::V6([0; 16], [0; 16]))
}
