//! The keys of the admin listener and of its users.
//! Which keys may `[admin]` have?

use super::Schema;
use super::listener::LISTEN_ALIASES;

pub(in crate::config) static ADMIN: Schema = Schema {
    path: "admin",
    title: "[admin]",
    keys: &["listen", "agent", "hosts", "users"],
    reserved: &[],
    aliases: &[("bind", "listen"), ("address", "listen"), ("port", "listen"), ("socket", "listen"), ("user", "users")],
};

/// One entry of `admin.listen`.
pub(in crate::config) static ADMIN_LISTEN: Schema = Schema {
    path: "admin.listen",
    title: "an entry of admin.listen",
    keys: &["address", "tls", "mode", "group"],
    reserved: &[],
    aliases: LISTEN_ALIASES,
};

pub(in crate::config) static ADMIN_USER: Schema = Schema {
    path: "admin.users.*",
    title: "[admin.users.NAME]",
    keys: &["role", "tokens", "certificates"],
    reserved: &[],
    aliases: &[
        ("roles", "role"),
        ("permission", "role"),
        ("password", "tokens"),
        ("token", "tokens"),
        ("san", "certificates"),
        ("sans", "certificates"),
        ("certificate", "certificates"),
    ],
};
