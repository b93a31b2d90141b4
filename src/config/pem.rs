//! Reads certificates and revocation lists from PEM files.
//! Does this file hold what its configuration key requires?

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::files::FILE_MAX;
use super::problem::Problem;
use super::reader::{Reader, Value};
use super::{Located, PemFile};

/// The content that a file must have.
struct PemKind {
    /// "a certificate"
    name: &'static str,
    help: &'static str,
}

pub(super) fn read_certificates(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PemFile>> {
    let kind = PemKind { name: "a certificate", help: "write the path of a PEM file of certificates" };
    read_file(reader, value, &kind, |pem| collect_der(CertificateDer::pem_slice_iter(pem)))
}

pub(super) fn read_revocation_lists(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PemFile>> {
    let help = "write the path of a PEM file; `openssl crl -inform der -in FILE -out FILE.pem` makes one";
    let kind = PemKind { name: "a certificate revocation list", help };
    read_file(reader, value, &kind, |pem| collect_der(CertificateRevocationListDer::pem_slice_iter(pem)))
}

type DerParts = Result<Vec<Vec<u8>>, rustls_pki_types::pem::Error>;

fn collect_der<T: AsRef<[u8]>>(found: impl Iterator<Item = Result<T, rustls_pki_types::pem::Error>>) -> DerParts {
    found.map(|part| part.map(|der| der.as_ref().to_vec())).collect()
}

fn read_file(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    kind: &PemKind,
    parts: impl FnOnce(&[u8]) -> DerParts,
) -> Option<Located<PemFile>> {
    let text = reader.text(value)?;
    let path = reader.resolve_path(value.span, text);
    let found = match reader.files.read(&path, FILE_MAX) {
        Err(error) => Err(error.to_string()),
        Ok(content) => match parts(&content.bytes) {
            Ok(parts) if parts.is_empty() => Err(format!("does not hold {}", kind.name)),
            Ok(parts) => Ok(parts),
            Err(_) => Err("is not PEM".to_owned()),
        },
    };
    match found {
        Ok(parts) => Some(value.located(PemFile { path, parts })),
        Err(error) => {
            let problem = Problem::at(value.span, format!("`{}` is not {}", value.key, kind.name));
            reader.problems.push(problem.label(format!("{} {error}", path.display())).help(kind.help));
            None
        }
    }
}
