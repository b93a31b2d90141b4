//! The keys of `[guard]`.
//! Which keys may the guard section have?

use super::Schema;

pub(in crate::config) static GUARD: Schema = Schema {
    path: "guard",
    title: "[guard]",
    keys: &["allow", "deny", "ports"],
    reserved: &[],
    aliases: &[
        ("allow_ranges", "allow"),
        ("allow_addresses", "allow"),
        ("deny_ranges", "deny"),
        ("deny_addresses", "deny"),
        ("block", "deny"),
        ("allowed_ports", "ports"),
    ],
};
