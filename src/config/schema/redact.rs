//! The keys of the section `redact` and of the `redact` of a route.
//! Which private data can an operator remove or keep?

use super::Schema;

pub(in crate::config) static REDACT: Schema = Schema {
    path: "redact",
    title: "[redact]",
    keys: &["path", "phone_numbers", "headers", "hmac_key"],
    reserved: &[],
    aliases: &[
        ("paths", "path"),
        ("phones", "phone_numbers"),
        ("numbers", "phone_numbers"),
        ("header", "headers"),
        ("key", "hmac_key"),
        ("salt", "hmac_key"),
    ],
};

pub(in crate::config) static ROUTE_REDACT: Schema = Schema {
    path: "routes.redact",
    title: "the redact of [[routes]]",
    keys: &["path"],
    reserved: &[],
    aliases: &[("paths", "path")],
};
