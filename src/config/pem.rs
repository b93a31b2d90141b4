//! Certificates and revocation lists: what stands in PEM files.
//! Does this file hold what its key promises?

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::files::FILE_MAX;
use super::problem::Problem;
use super::read::{Reader, Value};
use super::{Located, PemFile};

/// What a file may hold.
struct PemKind {
    /// "a certificate"
    what: &'static str,
    help: &'static str,
}

pub(super) fn certificates(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PemFile>> {
    let kind = PemKind { what: "a certificate", help: "write the path of a PEM file of certificates" };
    file(reader, value, &kind, |pem| parts(CertificateDer::pem_slice_iter(pem)))
}

pub(super) fn revocation_lists(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PemFile>> {
    let help = "write the path of a PEM file; `openssl crl -inform der -in FILE -out FILE.pem` makes one";
    let kind = PemKind { what: "a certificate revocation list", help };
    file(reader, value, &kind, |pem| parts(CertificateRevocationListDer::pem_slice_iter(pem)))
}

type DerParts = Result<Vec<Vec<u8>>, rustls_pki_types::pem::Error>;

fn parts<T: AsRef<[u8]>>(found: impl Iterator<Item = Result<T, rustls_pki_types::pem::Error>>) -> DerParts {
    found.map(|part| part.map(|der| der.as_ref().to_vec())).collect()
}

fn file(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    kind: &PemKind,
    parts: impl FnOnce(&[u8]) -> DerParts,
) -> Option<Located<PemFile>> {
    let text = reader.text(value)?;
    let path = reader.resolve(value.span, text);
    let found = match reader.files.read(&path, FILE_MAX) {
        Err(fault) => Err(fault.to_string()),
        Ok(content) => match parts(&content.bytes) {
            Ok(parts) if parts.is_empty() => Err(format!("does not hold {}", kind.what)),
            Ok(parts) => Ok(parts),
            Err(_) => Err("is not PEM".to_owned()),
        },
    };
    match found {
        Ok(parts) => Some(value.at(PemFile { path, parts })),
        Err(fault) => {
            let problem = Problem::at(value.span, format!("`{}` is not {}", value.key, kind.what));
            reader.problems.push(problem.label(format!("{} {fault}", path.display())).help(kind.help));
            None
        }
    }
}
