//! Signers, their keys, and receivers that verify.

mod key_dir;
mod keys;
mod receivers;
