//! Reads `[trust.NAME]`: how outgate verifies a target, and its client certificate.
//! Which evidence must a target present?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::WarningCode;
use super::files::FILE_MAX;
use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::{Located, PemFile, Secret, pem, schema, secret, units};
use crate::names::TrustName;

#[derive(Clone, Debug)]
pub struct Trust {
    pub roots: Vec<Located<Roots>>,
    pub min_version: TlsVersion,
    pub verify: Located<VerifyMode>,
    /// Whether the rules of the Web PKI apply; `None`: only if all roots are Mozilla's.
    pub strict: Option<Located<bool>>,
    /// SHA-256 of each allowed SubjectPublicKeyInfo; empty: any key.
    pub pins: Vec<Located<[u8; 32]>>,
    /// Intermediates for targets that send incomplete chains.
    pub intermediates: Vec<Located<PemFile>>,
    pub crls: Vec<Located<PemFile>>,
    pub crl_policy: Option<Located<CrlPolicy>>,
    pub identity: Option<Located<ClientIdentity>>,
}

impl Trust {
    /// Returns the policy. The default requires a list, because an operator who configures lists relies on them.
    pub fn crl_policy(&self) -> CrlPolicy {
        self.crl_policy.as_ref().map_or(CrlPolicy::Require, |policy| policy.value)
    }
}

/// Trust anchors that were read from their source.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The Mozilla set, compiled in.
    Mozilla,
    /// The system's store: DER certificates.
    System(Vec<Vec<u8>>),
    /// DER certificates of a PEM file.
    File(PathBuf, Vec<Vec<u8>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    Full,
    None,
}

/// The treatment of a chain whose revocation list is missing or out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrlPolicy {
    /// The chain is rejected.
    Require,
    /// Present lists apply, whatever their age; certificates without a list pass.
    Lenient,
}

/// The client certificate for targets that request one.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The chain, the leaf first.
    pub certificate: Located<PemFile>,
    /// The private key in PEM.
    pub key: Located<Secret>,
}

pub(super) fn read_all(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<TrustName, Located<Trust>> {
    let tables = reader.named_tables(files, "trust", &schema::TRUST);
    let at = |table: &Table<'_>, value| Located { value, span: table.span };
    tables.into_iter().map(|(name, table)| (TrustName::new(name), at(&table, read_trust(reader, &table)))).collect()
}

fn read_trust(reader: &mut Reader<'_>, table: &Table<'_>) -> Trust {
    let if_empty = Some(
        "without roots outgate can verify no target: write [\"mozilla\"], or remove the key, which has the same effect",
    );
    let roots = table.read_list(reader, "roots", if_empty, read_roots);
    let min_version = table.read(reader, "min_version", |reader, value| {
        reader.parse_choice(value, &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)])
    });
    let verify = table.read(reader, "verify", |reader, value| {
        reader.parse_choice(value, &[("full", VerifyMode::Full), ("none", VerifyMode::None)])
    });
    let strict = table.read(reader, "strict", |reader, value| reader.boolean(value));
    let pins = table.read_list(reader, "pins", None, |reader, value| reader.parse(value, units::pin));
    let intermediates = table.read_list(reader, "intermediates", None, pem::read_certificates);
    let crls = table.read_list(reader, "crls", None, pem::read_revocation_lists);
    let crl_policy = table.read(reader, "crl_policy", |reader, value| {
        reader.parse_choice(value, &[("require", CrlPolicy::Require), ("lenient", CrlPolicy::Lenient)])
    });
    let identity = table.read(reader, "identity", read_identity);
    Trust {
        roots: roots.unwrap_or_else(|| vec![Located { value: Roots::Mozilla, span: table.span }]),
        min_version: min_version.map_or(TlsVersion::V1_2, |version| version.value),
        verify: verify.unwrap_or(Located { value: VerifyMode::Full, span: table.span }),
        strict,
        pins: pins.unwrap_or_default(),
        intermediates: intermediates.unwrap_or_default(),
        crls: crls.unwrap_or_default(),
        crl_policy,
        identity,
    }
}

pub(super) fn read_identity(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<ClientIdentity>> {
    let table = Table::open(reader, value, &schema::TRUST_IDENTITY)?;
    table.require(reader, "certificate", "write certificate = \"client.pem\": the chain that outgate sends to targets");
    table.require(reader, "key", "write key = \"client.key\", or \"credential:NAME\" (systemd)");
    let certificate = table.read(reader, "certificate", pem::read_certificates);
    let key = table.read(reader, "key", secret::read_key);
    Some(value.located(ClientIdentity { certificate: certificate?, key: key? }))
}

fn read_roots(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Roots>> {
    let roots = match reader.text(value)? {
        "mozilla" => Some(Roots::Mozilla),
        "system" => read_system_roots(reader, value),
        path => read_root_file(reader, value, &reader.resolve_path(value.span, path)),
    };
    Some(value.located(roots?))
}

fn read_system_roots(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Roots> {
    let found = rustls_native_certs::load_native_certs();
    let certificates: Vec<Vec<u8>> = found.certs.iter().map(|certificate| certificate.to_vec()).collect();
    if certificates.is_empty() {
        let problem = Problem::at(value.span, "the system's certificate store is empty")
            .label(found.errors.first().map(ToString::to_string).unwrap_or_default());
        reader.problems.push(problem.help("install the package ca-certificates, or write \"mozilla\""));
        return None;
    }
    for error in found.errors {
        let message = format!("cannot read a part of the system's certificate store: {error}");
        reader.problems.push(Problem::warning(WarningCode::SystemStore, Some(value.span), message));
    }
    certificates.iter().for_each(|certificate| reader.files.update_digest(certificate));
    Some(Roots::System(certificates))
}

fn read_root_file(reader: &mut Reader<'_>, value: &Value<'_>, path: &Path) -> Option<Roots> {
    let help = "write \"mozilla\", \"system\" or the path of a PEM file of CA certificates";
    let mut reject = |label: String| {
        let problem = Problem::at(value.span, format!("`{}` has no certificates", value.key));
        reader.problems.push(problem.label(label).help(help));
        None
    };
    let bytes = match reader.files.read(path, FILE_MAX) {
        Ok(content) => content.bytes,
        Err(error) => return reject(format!("{} {error}", path.display())),
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(found) if found.is_empty() => reject(format!("{} has no certificate", path.display())),
        Ok(found) => Some(Roots::File(path.to_owned(), found.iter().map(|der| der.to_vec()).collect())),
        Err(_) => reject(format!("{} is not PEM", path.display())),
    }
}
