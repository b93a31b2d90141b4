//! Credentials of outgate for targets.

mod tokens;
