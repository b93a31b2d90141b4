//! What a target is shown.

mod tokens;
