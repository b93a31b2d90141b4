//! A comparison of README, SECURITY.md and `docs` with the code.

mod book;
mod examples;
mod reference;
mod threats;
