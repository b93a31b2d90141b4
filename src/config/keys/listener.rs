//! The keys of what a listener does before HTTP.
//! What may be said of TLS and of load balancers?

use super::Shape;

pub(in crate::config) static SERVER_CA: Shape = Shape {
    path: "server.ca",
    title: "server.ca",
    keys: &["certificate", "key"],
    later: &[],
    renamed: &[("cert", "certificate"), ("file", "certificate"), ("private_key", "key")],
};

pub(in crate::config) static SERVER_TLS: Shape = Shape {
    path: "server.tls",
    title: "server.tls",
    keys: &["certificate", "key", "client_ca", "client_crls"],
    later: &[],
    renamed: &[("cert", "certificate"), ("chain", "certificate"), ("ca", "client_ca"), ("crls", "client_crls")],
};

const LISTEN_RENAMED: &[(&str, &str)] = &[
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
pub(in crate::config) static SERVER_LISTEN: Shape = Shape {
    path: "server.listen",
    title: "an entry of server.listen",
    keys: &["address", "tls", "alpn", "mode", "group"],
    later: &[],
    renamed: LISTEN_RENAMED,
};

/// One entry of `admin.listen`.
pub(in crate::config) static ADMIN_LISTEN: Shape = Shape {
    path: "admin.listen",
    title: "an entry of admin.listen",
    keys: &["address", "mode", "group"],
    later: &[],
    renamed: LISTEN_RENAMED,
};

pub(in crate::config) static PROXY_PROTOCOL: Shape = Shape {
    path: "server.proxy_protocol",
    title: "server.proxy_protocol",
    keys: &["from"],
    later: &[],
    renamed: &[("networks", "from"), ("trusted", "from"), ("allow", "from")],
};
