//! Rules of the source text.

mod rules;
