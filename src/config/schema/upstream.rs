//! The keys of `response_head_max`.
//! Which limits can an operator set for a response head?

use super::Schema;

pub(in crate::config) static RESPONSE_HEAD_MAX: Schema = Schema {
    path: "routes.response_head_max",
    title: "the response_head_max of [[routes]]",
    keys: &["count", "bytes"],
    reserved: &[],
    aliases: &[("fields", "count"), ("headers", "count"), ("size", "bytes")],
};
