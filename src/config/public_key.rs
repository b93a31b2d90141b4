//! Reads public keys of clients from PEM files, and rejects private keys.
//! Which public keys does this file hold?

use rustls_pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

use super::files::FILE_MAX;
use super::problem::Problem;
use super::reader::{Reader, Value};
use super::{Located, PublicKey};

const HELP: &str = "write the path of a PEM file with the public key: `openssl pkey -in PRIVATE -pubout`";

/// Reads every public key of a file: during a rotation it may have two.
pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<Located<PublicKey>>> {
    let text = reader.text(value)?;
    match from_file(reader, value, text) {
        Ok(keys) => Some(keys),
        Err((reason, help)) => {
            let problem = Problem::at(value.span, format!("`{}` has no public key", value.key));
            reader.problems.push(problem.label(reason).help(help));
            None
        }
    }
}

/// The keys, or the reason why there are none and the advice.
type KeysResult = Result<Vec<Located<PublicKey>>, (String, &'static str)>;

fn from_file(reader: &mut Reader<'_>, value: &Value<'_>, text: &str) -> KeysResult {
    if text.contains("-----") {
        // A pasted key may be private, so the problem does not repeat it.
        return Err(("this is a key; outgate needs the path of its file".into(), HELP));
    }
    let path = reader.resolve_path(value.span, text);
    let display_path = path.display();
    let content = reader.files.read(&path, FILE_MAX).map_err(|error| (format!("{display_path} {error}"), HELP))?;
    let bytes = Zeroizing::new(content.bytes);
    // This also finds encrypted keys, and kinds of keys that the PEM reader skips.
    if memchr::memmem::find(&bytes, b"PRIVATE KEY-----").is_some() {
        return Err((
            format!("{display_path} holds a private key"),
            "keep the private key at the client, and write the path of its public key here",
        ));
    }
    let sections: Result<Vec<_>, _> = <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes).collect();
    let sections = sections.map_err(|_| (format!("{display_path} is not PEM"), HELP))?;
    let keys = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::PublicKey);
    let keys: Vec<_> = keys.map(|(_, der)| value.located(PublicKey { path: path.clone(), der })).collect();
    if keys.is_empty() { Err((format!("{display_path} has no PUBLIC KEY block"), HELP)) } else { Ok(keys) }
}
