//! A comparison of README and `docs` with the code.

mod book;
mod examples;
mod reference;
