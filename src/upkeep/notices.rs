//! Notices: webhooks to the receivers of `[notices]` when a range is announced, starts or ends.
//! Which changes of the ranges does no receiver know yet?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use data_encoding::HEXLOWER;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tracing::info;

use super::own_webhooks::{FindReceiver, WebhookMessage, WebhookQueue};
use crate::digest::sha256;
use crate::names::{join_first, pluralize};
use crate::policy::Plan;
use crate::policy::egress::notice::{Announcement, RangeChange};
use crate::state::Runtime;

const MESSAGES: &str = "notices";
/// The ranges in one webhook. More take several.
const RANGES_MAX: usize = 1000;
/// The ranges that one log line names. It counts the others.
const LOGGED_MAX: usize = 20;
/// A reload dates its announcements a little before this task can read them.
const SETTLING_TIME: SignedDuration = SignedDuration::from_secs(1);

/// Sends notices until the process ends. The first ones are about changes while outgate did not run.
pub async fn run(runtime: Arc<Runtime>) {
    let mut ticks = super::ticks();
    let mut receivers = BTreeMap::new();
    // The changes up to this time are in the queues.
    let mut queued = None;
    loop {
        ticks.tick().await;
        if runtime.is_draining() {
            continue;
        }
        let now = Timestamp::now() - SETTLING_TIME;
        let announcements = runtime.config_status.announcements();
        if now < announcements.notified_until() {
            runtime.config_status.update_announcements(|before| before.with_notified(now)); // the clock was set back
            continue;
        }
        let active = runtime.active_config();
        follow(&mut receivers, &runtime, &active.plan);
        let since = queued.unwrap_or(announcements.notified_until());
        for ((at, change), ranges) in announcements.changes(since, now) {
            let cidrs: Vec<_> = ranges.iter().map(|(cidr, _)| cidr).collect();
            info!(
                "{} {}: {}",
                pluralize(cidrs.len() as u64, "range"),
                in_words(change),
                join_first(&cidrs, LOGGED_MAX)
            );
            for ranges in ranges.chunks(RANGES_MAX) {
                let message = message(at, change, ranges);
                receivers.values().for_each(|queue| queue.send(message.clone()));
            }
            queued = Some(now);
        }
        // If the process ends before all receivers have them, the next process sends them again, with the same ids.
        if let Some(notified) = queued.filter(|_| receivers.values().all(WebhookQueue::is_idle)) {
            runtime.config_status.update_announcements(|before| before.with_notified(notified));
            queued = None;
        }
    }
}

/// Opens a queue for each receiver of the configuration, and closes the others.
fn follow(receivers: &mut BTreeMap<String, WebhookQueue>, runtime: &Arc<Runtime>, plan: &Plan) {
    let urls = || plan.notice_receivers.iter().map(|webhook| &webhook.url);
    receivers.retain(|url, _| urls().any(|kept| kept == url));
    for (index, url) in urls().enumerate() {
        receivers.entry(url.clone()).or_insert_with(|| {
            let (name, url) = (format!("notices.webhooks[{index}]"), url.clone());
            let find: FindReceiver =
                Box::new(move |plan| plan.notice_receivers.iter().find(|webhook| webhook.url == url));
            WebhookQueue::open(runtime, MESSAGES, &name, find)
        });
    }
}

/// Returns the webhook about some ranges. A copy has the same id.
fn message(at: Timestamp, change: RangeChange, ranges: &[(IpNet, Announcement)]) -> WebhookMessage {
    let dates = |(cidr, dates): &(IpNet, Announcement)| -> Value {
        json!({ "cidr": cidr, "announced": dates.announced, "starts": dates.starts, "ends": dates.end() })
    };
    let data = json!({ "change": change, "ranges": ranges.iter().map(dates).collect::<Vec<_>>() });
    let body = json!({ "type": "egress.changed", "timestamp": at, "data": data }).to_string();
    let subject: Vec<_> = ranges.iter().map(|(cidr, _)| cidr.to_string()).collect();
    let subject = format!("{at} {} {}", in_words(change), subject.join(" "));
    let id = format!("egress_{}", &HEXLOWER.encode(&sha256(subject.as_bytes()))[..32]);
    WebhookMessage { id, body: body.into(), queued: Instant::now() }
}

fn in_words(change: RangeChange) -> &'static str {
    match change {
        RangeChange::Announced => "announced to customers",
        RangeChange::Started => "that webhooks now leave from",
        RangeChange::Ended => "that webhooks no longer leave from",
    }
}
