//! Source addresses, and names to addresses.

mod probe;
mod resolver;
mod source_health;
