//! The keys of `[audit]`.
//! Which keys may the audit section have?

use super::Schema;

pub(in crate::config) static AUDIT: Schema = Schema {
    path: "audit",
    title: "[audit]",
    keys: &["file", "origin", "checkpoint_key", "rotate", "syslog", "journald"],
    reserved: &[],
    aliases: &[
        ("path", "file"),
        ("log", "file"),
        ("name", "origin"),
        ("key", "checkpoint_key"),
        ("signing_key", "checkpoint_key"),
        ("rotation", "rotate"),
        ("siem", "syslog"),
        ("journal", "journald"),
    ],
};

pub(in crate::config) static AUDIT_ROTATE: Schema = Schema {
    path: "audit.rotate",
    title: "the rotation of [audit]",
    keys: &["size", "keep"],
    reserved: &[],
    aliases: &[("max_size", "size"), ("retention", "keep"), ("max_age", "keep")],
};

pub(in crate::config) static AUDIT_SYSLOG: Schema = Schema {
    path: "audit.syslog",
    title: "a syslog server of [audit]",
    keys: &["url", "trust"],
    reserved: &[],
    aliases: &[("address", "url"), ("server", "url"), ("ca", "trust"), ("tls", "trust")],
};
