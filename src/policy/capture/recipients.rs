//! The age recipients of a tenant, and the seal that only they open.
//! To whom is a capture encrypted?
//!
//! A file of recipients has one per line, as the command `age -R` reads it: X25519 (`age1…`), `ssh-ed25519` and
//! `ssh-rsa`. Empty lines and lines that begin with # are comments.

use std::io::{self, Write};

use age::stream::StreamWriter;
use age::{Encryptor, Recipient};

/// The most recipients of a tenant. Sealing takes a fraction of a millisecond for each.
const RECIPIENTS_MAX: usize = 20;

/// The recipients of one tenant; at least one.
pub struct Recipients(Vec<Box<dyn Recipient + Send + Sync>>);

impl Recipients {
    /// Parses a file of recipients. The error says what is wrong with the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(index, line)| {
            parse_line(line).map_err(|reason| format!("has no recipient in line {}: {reason}", index + 1))
        };
        let recipients: Vec<_> = lines.map(parse).collect::<Result<_, _>>()?;
        match recipients.len() {
            0 => Err("has no recipient".to_owned()),
            1..=RECIPIENTS_MAX => Ok(Self(recipients)),
            _ => Err(format!("has more than {RECIPIENTS_MAX} recipients")),
        }
    }

    /// Encrypts a text to all recipients, in the binary format of age (age-encryption.org/v1).
    pub fn seal(&self, plaintext: &[u8]) -> io::Result<Vec<u8>> {
        let mut writer = self.writer(Vec::with_capacity(plaintext.len() + 1024))?;
        writer.write_all(plaintext)?;
        writer.finish()
    }

    /// Returns a writer that encrypts to all recipients. The output is complete after its `finish`.
    pub fn writer<W: Write>(&self, output: W) -> io::Result<StreamWriter<W>> {
        let recipients = self.0.iter().map(|recipient| &**recipient as &dyn Recipient);
        Encryptor::with_recipients(recipients).map_err(io::Error::other)?.wrap_output(output)
    }
}

fn parse_line(line: &str) -> Result<Box<dyn Recipient + Send + Sync>, &'static str> {
    if line.starts_with("AGE-SECRET-KEY-") || line.contains("PRIVATE KEY") {
        return Err("this is a private key, which only the tenant may have");
    }
    if line.starts_with("age1") {
        let recipient: age::x25519::Recipient = line.parse().map_err(|_| "this is no X25519 recipient")?;
        return Ok(Box::new(recipient));
    }
    let recipient: Result<age::ssh::Recipient, _> = line.parse();
    let recipient = recipient.map_err(|_| "write age1…, ssh-ed25519 …, or ssh-rsa … with 2048 to 4096 bits")?;
    Ok(Box::new(recipient))
}
