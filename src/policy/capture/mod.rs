//! Captures as configured: which webhooks outgate copies, for which tenant, and under which bounds.
//! Is this webhook captured, and can its tenant open the capture?

mod compile;
mod exchange;
mod recipients;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::config::{self, Located};
use crate::names::{CaptureName, RouteName, TenantName};
pub(super) use compile::compile;
pub use exchange::{CapturedBody, CapturedExchange, CapturedMessage};
pub use recipients::Recipients;

/// A compiled section `captures.NAME`.
pub struct Capture {
    pub name: CaptureName,
    /// The section as written, with its bounds, and without the texts of its recipients.
    pub section: config::Capture,
    /// A folder, or the URL of a bucket.
    pub store: PathBuf,
    /// The first moment at which nothing is captured any more.
    pub until: Timestamp,
    recipients: BTreeMap<TenantName, Arc<Recipients>>,
}

/// Returns the first capture that selects the delivery, and can be opened by its tenant. If none can, returns the first
/// that selects it, without recipients.
pub fn select<'a>(
    captures: &'a [Arc<Capture>],
    route: &RouteName,
    tenant: Option<&TenantName>,
    webhook_id: Option<&str>,
    now: Timestamp,
) -> Option<(&'a Arc<Capture>, Option<&'a Arc<Recipients>>)> {
    let is_in = |list: &[Located<String>], word: Option<&str>| {
        list.is_empty() || list.iter().any(|listed| Some(listed.value.as_str()) == word)
    };
    let selects = |capture: &&Arc<Capture>| {
        now < capture.until
            && is_in(&capture.section.routes, Some(route.as_str()))
            && is_in(&capture.section.tenants, tenant.map(TenantName::as_str))
            && is_in(&capture.section.webhook_ids, webhook_id)
    };
    let recipients = |capture: &'a Arc<Capture>| (capture, tenant.and_then(|tenant| capture.recipients.get(tenant)));
    let mut selecting = captures.iter().filter(selects).map(recipients);
    let first = selecting.next()?;
    std::iter::once(first).chain(selecting).find(|(_, recipients)| recipients.is_some()).or(Some(first))
}

impl Capture {
    /// Returns whether a capture of this time has expired.
    pub fn is_expired(&self, at: Timestamp, now: Timestamp) -> bool {
        now.duration_since(at) > SignedDuration::try_from(self.section.keep).unwrap_or(SignedDuration::MAX)
    }
}
