//! The webhooks that outgate itself sends, compiled: alerts, and changes of the ranges.
//! Can outgate deliver to this URL?

use std::sync::Arc;

use http::uri::PathAndQuery;
use jiff::Timestamp;

use super::guard::Guard;
use super::route::Route;
use crate::config::{Located, Problem, parse_url};
use crate::names::{ClientName, Scheme, Target};

/// The client of outgate's own webhooks, in records.
const OWN_CLIENT: &str = "outgate";

/// Size limit of the response to an own webhook, in bytes.
const RESPONSE_MAX: u64 = 64 << 10;

/// A receiver of outgate's own webhooks.
pub struct OwnWebhook {
    pub url: String,
    pub client: ClientName,
    /// Its ports are those of the URL.
    pub route: Arc<Route>,
}

/// Compiles a URL of `section`. `route`: the route of the section, without a port.
pub(super) fn compile(
    section: &str,
    url: &Located<String>,
    route: &Route,
    guard: &Guard,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Option<OwnWebhook> {
    let mut refuse = |message: String, help: &str| problems.push(Problem::at(url.span, message).help(help));
    let https = |(target, _): (Target, PathAndQuery)| match target.scheme {
        Scheme::Https => Ok(target),
        Scheme::Http => Err("the URL must be https"),
    };
    let target = match parse_url(url).and_then(https) {
        Ok(target) => target,
        Err(reason) => {
            let help = "write \"https://ops.platform.example/outgate\"";
            refuse(format!("this is not the URL of a webhook: {reason}"), help);
            return None;
        }
    };
    // The operator has configured the webhook, and thereby allowed its port.
    if guard.check_name(&target, &[target.port], false).is_err() || guard.denies(&target.host).is_some() {
        let help = "to permit it, add its address to guard.allow, or its name to resolver.hosts";
        refuse("the guard refuses this webhook".to_owned(), help);
        return None;
    }
    let families = route.pool.families(now);
    let addresses = guard.pinned_addresses(&target.host);
    if addresses.is_some_and(|all| all.iter().all(|to| !(if to.is_ipv6() { families.v6 } else { families.v4 }))) {
        let message = format!("the egress pool {} has no address that can reach this webhook", route.pool.name());
        let help = format!("write {section}.egress with a pool that has addresses of the webhook's IP version");
        refuse(message, &help);
        return None;
    }
    let route = Arc::new(Route { ports: vec![target.port], response_max: RESPONSE_MAX, ..route.clone() });
    Some(OwnWebhook { url: url.value.clone(), client: ClientName::new(OWN_CLIENT), route })
}
