//! The folders below `examples`, used as their READMEs say.

mod senders;
