//! The compilation of the section `redact`.
//! Is the key of the hashes long enough?

use aws_lc_rs::hmac;

use super::Redactor;
use crate::config::{self, Problem};

/// The shortest key, in bytes. A guessed key reveals the phone numbers behind the hashes, because all numbers can be tried.
const KEY_MIN: usize = 16;

impl Redactor {
    pub fn compile(written: &config::Redact, problems: &mut Vec<Problem>) -> Self {
        if let Some(key) = written.hmac_key.as_ref().filter(|key| key.expose().len() < KEY_MIN) {
            let message = format!("`redact.hmac_key` has {} bytes and can be guessed", key.expose().len());
            let help = format!("use a secret of at least {KEY_MIN} random bytes: `openssl rand -hex 32`");
            problems.push(Problem::at(key.span, message).help(help));
        }
        let key = written.hmac_key.as_ref().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.expose()));
        Self { path: written.path, masks_phone_numbers: written.phone_numbers, headers: written.headers.clone(), key }
    }
}
