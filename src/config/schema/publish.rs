//! The keys of `[publish]`.
//! Which keys may the section of the publication have?

use super::Schema;
use super::listener::LISTEN_ALIASES;

pub(in crate::config) static PUBLISH: Schema = Schema {
    path: "publish",
    title: "[publish]",
    keys: &["listen", "sign", "origin"],
    reserved: &[],
    aliases: &[
        ("bind", "listen"),
        ("address", "listen"),
        ("port", "listen"),
        ("key", "sign"),
        ("signing_key", "sign"),
        ("name", "origin"),
    ],
};

/// One entry of `publish.listen`.
pub(in crate::config) static PUBLISH_LISTEN: Schema = Schema {
    path: "publish.listen",
    title: "an entry of publish.listen",
    keys: &["address", "tls", "mode", "group"],
    reserved: &[],
    aliases: LISTEN_ALIASES,
};
