//! The keys of a section `[egress.NAME]` and of its ranges.
//! Which keys may a pool of source addresses have?

use super::{PERIOD_ALIASES, Schema};

pub(in crate::config) static POOL: Schema = Schema {
    path: "egress.*",
    title: "[egress.NAME]",
    keys: &["ranges", "exclude", "select", "failover", "notice", "force"],
    reserved: &[],
    aliases: &[
        ("cidrs", "ranges"),
        ("cidr", "ranges"),
        ("addresses", "ranges"),
        ("ips", "ranges"),
        ("source", "ranges"),
        ("sources", "ranges"),
        ("except", "exclude"),
        ("balance", "select"),
        ("lb_policy", "select"),
        ("strategy", "select"),
        ("retry", "failover"),
    ],
};

pub(in crate::config) static RANGE: Schema = Schema {
    path: "egress.*.ranges",
    title: "a range of [egress.NAME]",
    keys: &["cidr", "from", "until", "seen_as"],
    reserved: &[],
    aliases: PERIOD_ALIASES,
};
