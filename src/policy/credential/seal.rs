//! Tokens that the instances of a fleet share, sealed with the key of the fleet.
//! Is this a token for this credential that an instance of the fleet has sealed, and how old is it?

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::oauth2::EXPIRY_MARGIN_MAX;
use super::{Grant, TOKEN_MAX, secret_value};
use crate::digest::Sha256;

/// The bytes of the times before a token.
const TIMES: usize = 16;
/// Limits a sealed token, in bytes: the nonce, the times, `Bearer` and the token, and the tag.
pub const SEALED_MAX: usize = NONCE_LEN + TIMES + 7 + TOKEN_MAX + 16;

/// Seals and opens tokens. Its two keys are derived from the key of the fleet.
pub struct TokenSeal {
    naming: hmac::Key,
    sealing: RandomizedNonceKey,
}

impl TokenSeal {
    pub fn new(fleet_key: &[u8]) -> Option<Self> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, fleet_key);
        let derive = |purpose: &[u8]| hmac::sign(&key, purpose);
        let naming = hmac::Key::new(hmac::HMAC_SHA256, derive(b"outgate fleet token name").as_ref());
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, derive(b"outgate fleet token seal").as_ref()).ok()?;
        Some(Self { naming, sealing })
    }

    /// Returns the name of a token in the store. It reveals nothing of the credential to those without the key.
    pub fn name(&self, token: &Sha256) -> String {
        HEXLOWER.encode(&hmac::sign(&self.naming, token).as_ref()[..16])
    }

    /// Seals a grant. `token` is the fingerprint of everything that determines the token.
    pub fn seal(&self, token: &Sha256, grant: &Grant, granted_at: Timestamp) -> Option<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(SEALED_MAX));
        text.extend(granted_at.as_millisecond().to_be_bytes());
        text.extend(u64::try_from(grant.lifetime.as_millis()).ok()?.to_be_bytes());
        text.extend(grant.value.as_bytes());
        let nonce = self.sealing.seal_in_place_append_tag(Aad::from(token), &mut *text).ok()?;
        Some([nonce.as_ref(), &text[..]].concat())
    }

    /// Opens a sealed grant, and returns its age, too. `None`: it is none of this fleet and this token, another should be
    /// fetched by now, or the clock of the instance that sealed it differs too much.
    pub fn open(&self, token: &Sha256, sealed: &[u8], now: Timestamp) -> Option<(Grant, Duration)> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = Zeroizing::new(sealed.to_vec());
        let text = self.sealing.open_in_place(Nonce::from(nonce), Aad::from(token), &mut text).ok()?;
        let (granted_at, text) = text.split_first_chunk()?;
        let (lifetime, value) = text.split_first_chunk()?;
        let lifetime = Duration::from_millis(u64::from_be_bytes(*lifetime));
        let age = now.as_millisecond().checked_sub(i64::from_be_bytes(*granted_at))?;
        if age < -(EXPIRY_MARGIN_MAX.as_millis() as i64) {
            return None;
        }
        let age = Duration::from_millis(u64::try_from(age).unwrap_or_default());
        let grant = Grant { value: secret_value(&[value])?, lifetime };
        (age < grant.refresh_after()).then_some((grant, age))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use jiff::ToSpan;

    use super::super::OAuth2;
    use super::*;

    fn grant(token: &str, seconds: u64) -> Grant {
        let body = format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":{seconds}}}"#);
        OAuth2::parse_response(StatusCode::OK, body.as_bytes()).unwrap()
    }

    #[test]
    fn sealed_token_opens_only_for_its_credential_and_with_the_key_of_the_fleet() {
        let (seal, now) = (TokenSeal::new(&[1; 32]).unwrap(), Timestamp::UNIX_EPOCH);
        let sealed = seal.seal(&[7; 32], &grant("hunter2", 3600), now).unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        let (opened, age) = seal.open(&[7; 32], &sealed, now + 10.seconds()).unwrap();
        assert_eq!((opened.value.as_bytes(), opened.value.is_sensitive()), (&b"Bearer hunter2"[..], true));
        assert_eq!((opened.usable_for().as_secs(), age.as_secs()), (3540, 10));
        let again = TokenSeal::new(&[1; 32]).unwrap();
        assert!(again.open(&[7; 32], &sealed, now).is_some() && again.name(&[7; 32]) == seal.name(&[7; 32]));
        let other = TokenSeal::new(&[2; 32]).unwrap();
        assert!(other.open(&[7; 32], &sealed, now).is_none() && other.name(&[7; 32]) != seal.name(&[7; 32]));
        assert!(seal.open(&[8; 32], &sealed, now).is_none(), "another credential");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open(&[7; 32], &changed, now).is_none(), "byte {at}");
            assert!(seal.open(&[7; 32], &sealed[..at], now).is_none(), "{at} bytes");
        }
        let second = seal.seal(&[7; 32], &grant("hunter2", 3600), now).unwrap();
        assert_ne!(sealed, second, "each seal has its own nonce");
        let longest = seal.seal(&[7; 32], &grant(&"t".repeat(TOKEN_MAX), 3600), now).unwrap();
        assert_eq!(longest.len(), SEALED_MAX);
    }

    #[test]
    fn sealed_token_is_not_used_when_a_refresh_is_due_or_the_clocks_disagree() {
        let (seal, now) = (TokenSeal::new(&[1; 32]).unwrap(), Timestamp::UNIX_EPOCH + 1.hour());
        let sealed = seal.seal(&[7; 32], &grant("t", 3600), now).unwrap();
        let age_at = |seconds: i64| seal.open(&[7; 32], &sealed, now + seconds.seconds()).map(|(_, age)| age.as_secs());
        assert_eq!([-60, -61, 0, 3479, 3480].map(age_at), [Some(0), None, Some(0), Some(3479), None]);
        let at_once = seal.seal(&[7; 32], &grant("t", 0), now).unwrap();
        assert!(seal.open(&[7; 32], &at_once, now).is_none());
    }
}
