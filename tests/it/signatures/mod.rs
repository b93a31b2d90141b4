//! Signers, their keys, and receivers that verify signatures.

mod key_dir;
mod keys;
mod receivers;
