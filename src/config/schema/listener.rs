//! The keys of listeners: addresses, TLS, the PROXY protocol, and the CA of inspected tunnels.
//! Which keys may a listener have?

use super::Schema;

pub(in crate::config) static SERVER_CA: Schema = Schema {
    path: "server.ca",
    title: "server.ca",
    keys: &["certificate", "key"],
    reserved: &[],
    aliases: &[("cert", "certificate"), ("file", "certificate"), ("private_key", "key")],
};

pub(in crate::config) static SERVER_TLS: Schema = Schema {
    path: "server.tls",
    title: "server.tls",
    keys: &["certificate", "key", "client_ca", "client_crls"],
    reserved: &[],
    aliases: &[("cert", "certificate"), ("chain", "certificate"), ("ca", "client_ca"), ("crls", "client_crls")],
};

pub(super) const LISTEN_ALIASES: &[(&str, &str)] = &[
    ("bind", "address"),
    ("listen", "address"),
    ("socket", "address"),
    ("path", "address"),
    ("ssl", "tls"),
    ("protocols", "alpn"),
    ("permissions", "mode"),
    ("gid", "group"),
];

/// One entry of `server.listen`.
pub(in crate::config) static SERVER_LISTEN: Schema = Schema {
    path: "server.listen",
    title: "an entry of server.listen",
    keys: &["address", "tls", "alpn", "mode", "group"],
    reserved: &[],
    aliases: LISTEN_ALIASES,
};

pub(in crate::config) static PROXY_PROTOCOL: Schema = Schema {
    path: "server.proxy_protocol",
    title: "server.proxy_protocol",
    keys: &["from"],
    reserved: &[],
    aliases: &[("networks", "from"), ("trusted", "from"), ("allow", "from")],
};
