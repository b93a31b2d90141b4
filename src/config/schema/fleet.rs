//! The keys of `[fleet]`.
//! Which keys may the section of the shared store have?

use super::Schema;

pub(in crate::config) static FLEET_OPERATOR: Schema = Schema {
    path: "fleet.operators.*",
    title: "[fleet.operators]",
    keys: &["key"],
    reserved: &[],
    aliases: &[("public_key", "key"), ("file", "key")],
};

pub(in crate::config) static FLEET: Schema = Schema {
    path: "fleet",
    title: "[fleet]",
    keys: &[
        "store",
        "user",
        "password",
        "sentinel_password",
        "ca",
        "identity",
        "prefix",
        "instance",
        "wait",
        "timeout",
        "replay",
        "key",
        "operators",
        "approve_above",
        "bundles",
    ],
    reserved: &[],
    aliases: &[
        ("url", "store"),
        ("urls", "store"),
        ("address", "store"),
        ("addresses", "store"),
        ("servers", "store"),
        ("nodes", "store"),
        ("username", "user"),
        ("secret", "password"),
        ("auth", "password"),
        ("roots", "ca"),
        ("certificate", "identity"),
        ("namespace", "prefix"),
        ("key_prefix", "prefix"),
        ("name", "instance"),
        ("id", "instance"),
        ("budget", "wait"),
        ("response_timeout", "timeout"),
        ("connect_timeout", "timeout"),
    ],
};
