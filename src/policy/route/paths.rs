//! The paths of a route, normalised as requests have them.
//! Can a request have this path, and do servers agree on its meaning?

use std::collections::BTreeSet;
use std::sync::Arc;

use super::readings::readings;
use crate::config::{self, Problem};
use crate::names::encode_path;

/// Returns each path once, in the form that is forwarded. A route without paths matches all of them.
pub(super) fn compile(written: &config::Route, problems: &mut Vec<Problem>) -> Vec<Arc<str>> {
    if written.paths.is_empty() {
        return vec!["".into()];
    }
    for path in &written.paths {
        let never = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#');
        if !path.starts_with('/') {
            problems.push(
                Problem::at(path.span, "the path does not begin with \"/\"").help(format!("write \"/{}\"", path.value)),
            );
        } else if path.bytes().any(never) {
            let help = "paths are compared as they are sent: without query, percent-encoded";
            problems.push(Problem::at(path.span, "no request has a path of this form").help(help));
        } else if readings(path.as_bytes()).any(|reading| reading.is_err()) {
            let message =
                "servers can read this path in too many ways: each request to it would be refused as ambiguous";
            problems.push(Problem::at(path.span, message).help("write it with fewer escapes and dot segments"));
        }
    }
    let paths = written.paths.iter().map(|path| encode_path(path));
    BTreeSet::from_iter(paths).into_iter().map(Arc::from).collect()
}
