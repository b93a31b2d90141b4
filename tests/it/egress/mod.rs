//! Source addresses and name resolution.

mod bulk_probe;
mod bulk_probe_evidence;
mod lists;
mod nat;
mod notice;
mod probe;
mod publish;
mod resolver;
mod source_health;
