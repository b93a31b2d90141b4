//! The keys of `[alerts]`.
//! Which keys may the section of alerts have?

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
