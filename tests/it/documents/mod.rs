//! README and `docs` against the code.

mod book;
mod examples;
mod reference;
