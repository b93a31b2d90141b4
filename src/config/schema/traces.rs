//! The keys of `[traces]`.
//! Which keys may the section of traces have?

use super::Schema;

pub(in crate::config) static TRACES: Schema = Schema {
    path: "traces",
    title: "[traces]",
    keys: &["endpoint", "protocol", "sample", "callers_max", "headers", "trust", "timeout"],
    reserved: &[],
    aliases: &[("url", "endpoint"), ("collector", "endpoint"), ("sampling", "sample"), ("sample_rate", "sample")],
};
