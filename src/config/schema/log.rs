//! The keys of `[log]` and of the rotation of the delivery log.
//! Which keys may the section of logs have?

use super::Schema;

pub(in crate::config) static LOG: Schema = Schema {
    path: "log",
    title: "[log]",
    keys: &["deliveries", "rotate", "sample", "level", "format"],
    reserved: &[],
    aliases: &[
        ("access", "deliveries"),
        ("access_log", "deliveries"),
        ("requests", "deliveries"),
        ("rotation", "rotate"),
        ("logrotate", "rotate"),
        ("sampling", "sample"),
        ("sample_rate", "sample"),
        ("filter", "level"),
    ],
};

pub(in crate::config) static LOG_ROTATE: Schema = Schema {
    path: "log.rotate",
    title: "log.rotate",
    keys: &["size", "age", "keep", "total", "compress"],
    reserved: &[],
    aliases: &[
        ("max_size", "size"),
        ("maxsize", "size"),
        ("interval", "age"),
        ("every", "age"),
        ("retention", "keep"),
        ("max_age", "keep"),
        ("maxage", "keep"),
        ("max_total", "total"),
        ("compression", "compress"),
    ],
};
