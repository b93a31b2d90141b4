//! The keys of `[alerts]` and `[notices]`.
//! Which keys may the sections of outgate's own webhooks have?

use super::Schema;

pub(in crate::config) static ALERTS: Schema = Schema {
    path: "alerts",
    title: "[alerts]",
    keys: &["webhook", "sign", "egress", "trust", "syslog", "journald", "remind", "hold"],
    reserved: &[],
    aliases: &[
        ("url", "webhook"),
        ("signers", "sign"),
        ("pool", "egress"),
        ("siem", "syslog"),
        ("journal", "journald"),
        ("repeat", "remind"),
        ("repeat_interval", "remind"),
        ("for", "hold"),
    ],
};

pub(in crate::config) static NOTICES: Schema = Schema {
    path: "notices",
    title: "[notices]",
    keys: &["webhooks", "sign", "egress", "trust"],
    reserved: &[],
    aliases: &[
        ("webhook", "webhooks"),
        ("url", "webhooks"),
        ("urls", "webhooks"),
        ("subscribers", "webhooks"),
        ("signers", "sign"),
        ("pool", "egress"),
    ],
};
