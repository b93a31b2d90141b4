//! The keys of `[signers.NAME]` and of its signing keys.
//! Which keys may a signer have?

use super::{PERIOD_ALIASES, Schema};

pub(in crate::config) static SIGNER: Schema = Schema {
    path: "signers.*",
    title: "[signers.NAME]",
    keys: &[
        "scheme",
        "keys",
        "key_dir",
        "algorithm",
        "key_encoding",
        "message",
        "encoding",
        "headers",
        "tag",
        "label",
        "components",
        "lifetime",
        "signature_agent",
    ],
    reserved: &[],
    aliases: &[
        ("kind", "scheme"),
        ("type", "scheme"),
        ("key", "keys"),
        ("secrets", "keys"),
        ("secret", "keys"),
        ("keys_dir", "key_dir"),
        ("key_directory", "key_dir"),
        ("directory", "key_dir"),
        ("tenants", "key_dir"),
        ("alg", "algorithm"),
        ("hash", "algorithm"),
        ("digest", "algorithm"),
        ("secret_encoding", "key_encoding"),
        ("payload", "message"),
        ("template", "message"),
        ("signed", "message"),
        ("header", "headers"),
        ("output", "encoding"),
        ("covered", "components"),
        ("covered_components", "components"),
        ("fields", "components"),
        ("expires", "lifetime"),
        ("ttl", "lifetime"),
        ("agent", "signature_agent"),
        ("name", "label"),
    ],
};

pub(in crate::config) static SIGNING_KEY: Schema = Schema {
    path: "signers.*.keys",
    title: "a key of [signers.NAME]",
    keys: &["id", "secret", "from", "until"],
    reserved: &[],
    aliases: PERIOD_ALIASES,
};
