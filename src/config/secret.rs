//! Resolves references to secrets: `file:PATH`, `credential:NAME` and `env:NAME`.
//! Which secret does this reference name?

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::WarningCode;
use super::files::{FileError, SECRET_MAX};
use super::problem::Problem;
use super::reader::{Reader, Value};
use super::{Located, Secret};

/// The credentials of the packaged unit. Root can read them while the service runs (systemd.exec(5)), so a command in a
/// root shell reads what the service reads.
const SERVICE_CREDENTIALS: &str = "/run/credentials/outgate.service";

/// A reference to a secret. Any other text may be the secret itself and is never shown.
enum SecretReference<'a> {
    File(&'a str),
    /// A systemd credential: `$CREDENTIALS_DIRECTORY/NAME` (systemd.exec(5)).
    Credential(&'a str),
    Env(&'a str),
}

impl<'a> SecretReference<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        match text.split_once(':')? {
            ("file", path) => Some(Self::File(path)),
            ("credential", name) => Some(Self::Credential(name)),
            ("env", name) => Some(Self::Env(name)),
            _ => None,
        }
    }
}

/// Returns whether a text is a reference and not the secret itself.
pub(super) fn is_reference(text: &str) -> bool {
    SecretReference::parse(text).is_some()
}

pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Secret>> {
    let text = reader.text(value)?;
    resolve(reader, value, SecretReference::parse(text))
}

/// Reads a private key. A bare path is accepted too, as other servers do.
pub(super) fn read_key(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Secret>> {
    let text = reader.text(value)?;
    // A pasted key must not appear in an error message.
    let path = Some(text).filter(|text| !text.is_empty() && !text.contains("-----"));
    resolve(reader, value, SecretReference::parse(text).or(path.map(SecretReference::File)))
}

fn resolve(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    reference: Option<SecretReference<'_>>,
) -> Option<Located<Secret>> {
    let bytes = match reference {
        Some(SecretReference::File("")) => Err(("the path is missing".into(), "write \"file:PATH\"".into())),
        Some(SecretReference::File(path)) => read_file(reader, value, &reader.resolve_path(value.span, path)),
        Some(SecretReference::Credential(name)) => read_credential(reader, name),
        Some(SecretReference::Env(name)) => read_environment(reader, name),
        None => Err((
            "this is not a reference; the configuration must not contain the secret itself".into(),
            "write \"file:PATH\", \"credential:NAME\" or \"env:NAME\"".into(),
        )),
    };
    match bytes {
        Ok(bytes) => {
            let secret = bytes.trim_ascii();
            if !secret.is_empty() {
                return Some(value.located(Secret::new(secret.to_vec())));
            }
            let problem = Problem::at(value.span, format!("`{}` is empty", value.key));
            reader.problems.push(problem.help("write the secret into the file or variable that this reference names"));
        }
        Err((reason, help)) => {
            let problem = Problem::at(value.span, format!("`{}` has no secret", value.key));
            reader.problems.push(problem.label(reason).help(help));
        }
    }
    None
}

/// The bytes, or the reason why there are none and the advice.
type SecretBytes = Result<Zeroizing<Vec<u8>>, (String, String)>;

fn read_file(reader: &mut Reader<'_>, value: &Value<'_>, path: &Path) -> SecretBytes {
    let content = reader.files.read(path, SECRET_MAX).map_err(|error| describe_error(path, &error))?;
    let bytes = Zeroizing::new(content.bytes);
    if content.stat.is_world_accessible() {
        let message = format!("every user of this host can open {}", path.display());
        reader.problems.push(
            Problem::warning(WarningCode::ReadableSecret, Some(value.span), message)
                .help(format!("run `chmod o-rwx {}`", path.display())),
        );
    }
    Ok(bytes)
}

fn read_credential(reader: &mut Reader<'_>, name: &str) -> SecretBytes {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(("not the name of a credential".into(), "write the name that LoadCredential= gives it".into()));
    }
    let passed = (reader.environment)("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty());
    let is_passed = passed.is_some();
    let path = passed.map_or_else(|| PathBuf::from(SERVICE_CREDENTIALS), PathBuf::from).join(name);
    let content = reader.files.read(&path, SECRET_MAX).map_err(|error| match error {
        FileError::Missing | FileError::PermissionDenied if !is_passed => {
            let reason = format!("no credential {name} was passed: $CREDENTIALS_DIRECTORY is not set");
            let help = format!(
                "add LoadCredential={name}:PATH to the service, or write \"file:PATH\"; a command in a shell finds the \
                 credentials if root runs it while outgate.service runs"
            );
            (reason, help)
        }
        FileError::Missing => {
            (format!("no credential {name} was passed"), format!("add LoadCredential={name}:PATH to the service"))
        }
        error => describe_error(&path, &error),
    })?;
    Ok(Zeroizing::new(content.bytes))
}

fn read_environment(reader: &mut Reader<'_>, name: &str) -> SecretBytes {
    let Some(secret) = (reader.environment)(name) else {
        let reason = "this environment variable is not set".to_owned();
        return Err((reason, format!("set {name}, or write \"file:PATH\"")));
    };
    let bytes = Zeroizing::new(secret.into_encoded_bytes());
    if bytes.len() as u64 > SECRET_MAX {
        let reason = format!("this environment variable is longer than {} KiB", SECRET_MAX >> 10);
        return Err((reason, format!("use a secret of at most {} KiB", SECRET_MAX >> 10)));
    }
    Ok(bytes)
}

fn describe_error(path: &Path, error: &FileError) -> (String, String) {
    let help = match error {
        FileError::Missing => "write the path of a file that exists; `outgate keys new` makes a signing key".into(),
        FileError::PermissionDenied => {
            let path = path.display();
            format!("let the group outgate read it, and enter its folders: `chgrp outgate {path} && chmod 0640 {path}`")
        }
        _ => "write the path of a file that holds one secret".into(),
    };
    (format!("{} {error}", path.display()), help)
}
