//! Source addresses and name resolution.

mod lists;
mod nat;
mod probe;
mod resolver;
mod source_health;
