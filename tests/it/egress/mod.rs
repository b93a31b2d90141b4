//! Source addresses and name resolution.

mod probe;
mod resolver;
mod source_health;
