//! `outgate ca new`: generates the certificate authority of inspected tunnels.
//! Which CA issues the certificates that clients see inside tunnels?

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

/// The certificate begins this much earlier, because clocks of clients may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;
const YEAR_SECONDS: i64 = 365 * 86_400;

#[derive(Subcommand)]
pub(super) enum Ca {
    /// Generate a certificate authority: its certificate and its key
    New(NewCa),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate ca new /etc/outgate/ca.pem /etc/outgate/ca.key
  outgate ca new --permit acme.example --years 2 ca.pem ca.key

Write `ca = { certificate = \"ca.pem\", key = \"ca.key\" }` under [server], and `connect = \"inspect\"` into the routes whose
tunnels outgate inspects. Only the clients of these routes must trust the certificate. The holder of the key can
impersonate any host to them, or with --permit the hosts below these domains.")]
pub(super) struct NewCa {
    /// A new file for the certificate
    certificate: PathBuf,
    /// A new file for the key, readable only by its owner; below /etc/outgate also by the directory's group
    key: PathBuf,
    /// The common name of the certificate
    #[arg(long, default_value = "outgate inspection CA")]
    name: String,
    /// A domain that the CA may issue for, with its subdomains; may be repeated. Default: every host
    #[arg(long, value_name = "DOMAIN", value_parser = parse_domain)]
    permit: Vec<String>,
    /// Years until the certificate expires
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=30))]
    years: u8,
}

fn parse_domain(text: &str) -> Result<String, String> {
    match host::canonical(text) {
        Ok(Host::Name(name)) => Ok(name.to_string()),
        Ok(Host::Ip(_)) => Err("this is an address, not a domain".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Ca {
    pub(super) fn run(self) -> ExitCode {
        let Ca::New(new) = self;
        let generated = match new.generate(Timestamp::now().as_second()) {
            Ok(generated) => generated,
            Err(error) => {
                eprintln!("outgate: cannot generate the certificate authority: {error}");
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
            // RFC 5280 §4.2.1.10: a domain permits itself and its subdomains. It does not constrain other kinds of
            // names, so all addresses are excluded.
            let permitted_subtrees = self.permit.iter().cloned().map(GeneralSubtree::DnsName).collect();
            let excluded_subtrees = vec![all_ipv4(), all_ipv6()];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(GeneratedCa { certificate: certificate.pem(), key: key.serialize_pem() })
    }
    /// Writes both files or none: one file alone is useless and would block the next attempt.
    fn write(&self, generated: &GeneratedCa) -> Result<(), (&Path, io::Error)> {
        let result = new_file::write_secret(&self.key, &generated.key);
        result.map_err(|error| (self.key.as_path(), error))?;
        new_file::write_public(&self.certificate, &generated.certificate).map_err(|error| {
            // If the key file stays, the next attempt reports it.
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
