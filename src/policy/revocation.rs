//! Revocation lists from files: readable, and the newest first.
//! Can this list say which certificates are revoked?

use webpki::{CertRevocationList, Error, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::config::{At, PemFile, Problem};

/// The lists of all files. webpki takes the first that speaks for a certificate, so the newest of an issuer comes first.
pub(super) fn lists(files: &[At<PemFile>], problems: &mut Vec<Problem>) -> Vec<CertRevocationList<'static>> {
    let mut found = Vec::new();
    for file in files {
        for (index, der) in file.parts.iter().enumerate() {
            match read(der) {
                Ok(list) => found.push(list),
                Err(why) => {
                    let (number, path) = (index + 1, file.path.display());
                    let message = format!("revocation list {number} of {path} is not usable: {why}");
                    problems.push(Problem::at(file.place, message).help("a complete CRL of version 2 (RFC 5280 §5)"));
                }
            }
        }
    }
    found.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
    found.into_iter().map(|(_, list)| list).collect()
}

/// With the time of its making.
fn read(der: &[u8]) -> Result<(i64, CertRevocationList<'static>), &'static str> {
    let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| "it cannot be read")?;
    let list = OwnedCertRevocationList::from_der(der).map_err(|error| match error {
        Error::UnsupportedDeltaCrl => "it lists changes to another list only",
        Error::UnsupportedIndirectCrl => "it speaks for other issuers than its own",
        Error::UnsupportedCrlVersion => "it is of version 1",
        Error::UnsupportedCriticalExtension => "it has a critical extension that is not known here",
        _ => "it is not as RFC 5280 has it",
    })?;
    Ok((parsed.last_update().timestamp(), list.into()))
}
