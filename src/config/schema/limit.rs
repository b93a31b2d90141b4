//! The keys of `[limits.NAME]`.
//! What can an operator limit?

use super::Schema;

pub(in crate::config) static LIMIT: Schema = Schema {
    path: "limits.*",
    title: "[limits.NAME]",
    keys: &["rate", "burst", "concurrency", "per", "wait", "bandwidth", "scope", "report_only"],
    reserved: &[],
    aliases: &[
        ("requests", "rate"),
        ("rps", "rate"),
        ("max_concurrent", "concurrency"),
        ("maxconn", "concurrency"),
        ("by", "per"),
        ("key", "per"),
        ("delay", "wait"),
        ("queue_timeout", "wait"),
        ("throughput", "bandwidth"),
        ("reach", "scope"),
        ("dry_run", "report_only"),
        ("shadow", "report_only"),
    ],
};
