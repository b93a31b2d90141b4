//! The keys for a gradual rollout: a route's `split`, and an entry of `guard.deny` with `report_only`.
//! Which keys limit the effect of a change?

use super::Schema;

pub(in crate::config) static SPLIT: Schema = Schema {
    path: "routes.split",
    title: "the split of [[routes]]",
    keys: &["percent", "egress", "trust", "sign", "credential", "timeouts"],
    reserved: &[],
    aliases: &[("weight", "percent"), ("share", "percent"), ("pool", "egress"), ("signers", "sign")],
};

pub(in crate::config) static DENIED: Schema = Schema {
    path: "guard.deny",
    title: "an entry of guard.deny",
    keys: &["cidr", "report_only"],
    reserved: &[],
    aliases: &[("range", "cidr"), ("network", "cidr"), ("dry_run", "report_only")],
};
