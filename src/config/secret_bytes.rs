//! The bytes of a secret.
//! Which code may see a secret?

use zeroize::Zeroize;

use super::locked_memory::LockedBytes;

/// A secret's bytes: in locked memory, wiped when dropped, never printed.
pub struct Secret(LockedBytes);

impl Secret {
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let locked = LockedBytes::new(&bytes);
        bytes.zeroize();
        Self(locked)
    }
    /// Returns the bytes. No other method exposes them.
    pub fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        Self(LockedBytes::new(self.expose()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
