//! The keys of `[trust.NAME]`.
//! Which keys may a trust section have?

use super::Schema;

pub(in crate::config) static TRUST: Schema = Schema {
    path: "trust.*",
    title: "[trust.NAME]",
    keys: &["roots", "min_version", "verify", "strict", "pins", "intermediates", "crls", "crl_policy", "identity"],
    reserved: &[],
    aliases: &[
        ("ca", "roots"),
        ("ca_file", "roots"),
        ("cafile", "roots"),
        ("trusted_ca", "roots"),
        ("ssl_min_ver", "min_version"),
        ("tls_minimum_protocol_version", "min_version"),
        ("version", "min_version"),
        ("insecure", "verify"),
        ("insecure_skip_verify", "verify"),
        ("webpki", "strict"),
        ("pin_sha256", "pins"),
        ("pinned_public_keys", "pins"),
        ("verify_certificate_spki", "pins"),
        ("chain", "intermediates"),
        ("ca_chain", "intermediates"),
        ("untrusted", "intermediates"),
        ("crl", "crls"),
        ("crl_file", "crls"),
        ("crl_check", "crl_policy"),
        ("client", "identity"),
        ("client_certificate", "identity"),
        ("client_cert", "identity"),
        ("tls_certificates", "identity"),
    ],
};

pub(in crate::config) static TRUST_IDENTITY: Schema = Schema {
    path: "trust.*.identity",
    title: "the identity of [trust.NAME]",
    keys: &["certificate", "key"],
    reserved: &[],
    aliases: &[("cert", "certificate"), ("crt", "certificate"), ("chain", "certificate"), ("private_key", "key")],
};
