//! The keys of `[captures.NAME]`.
//! What can an operator capture, for how long, and where?

use super::Schema;

pub(in crate::config) static CAPTURE: Schema = Schema {
    path: "captures.*",
    title: "[captures.NAME]",
    keys: &[
        "routes",
        "tenants",
        "webhook_ids",
        "recipients_dir",
        "store",
        "keep",
        "until",
        "body_max",
        "total_max",
        "headers",
        "pointers",
    ],
    reserved: &[],
    aliases: &[("recipients", "recipients_dir"), ("folder", "store"), ("bucket", "store"), ("retention", "keep")],
};
