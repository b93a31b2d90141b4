//! Events that are too frequent for a record each: they are counted for a minute.
//! How often did a client fail to authenticate, or ask for a prohibited target?

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::audit::{ADMIN_CALLED, Actor, Event, EventType};
use crate::names::pluralize;
use crate::panics::Mutex;

/// The time that one record covers.
const WINDOW: Duration = Duration::from_secs(60);
/// The events that are counted apart in one window. Clients choose names, so their number must be bounded.
const EVENTS_MAX: usize = 50;
/// The addresses that one record lists.
const ADDRESSES_MAX: usize = 8;

/// The events that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CountedEvent {
    pub event_type: EventType,
    /// The code of a refusal, or the path of a call.
    pub resource: String,
    pub actor: Actor,
    /// The client that a request names without proof.
    pub claimed_client: Option<String>,
    pub tenant: Option<String>,
}

#[derive(Debug)]
struct Count {
    times: u64,
    first: Timestamp,
    last: Timestamp,
    addresses: BTreeSet<IpAddr>,
}

/// The counts of the present window.
#[derive(Default)]
pub(super) struct EventCounts(Mutex<HashMap<CountedEvent, Count>>);

impl EventCounts {
    /// Counts one event. `address`: where it came from.
    pub(super) fn add(&self, mut counted: CountedEvent, address: Option<IpAddr>, now: Timestamp) {
        let mut counts = self.0.lock();
        if counts.len() >= EVENTS_MAX && !counts.contains_key(&counted) {
            (counted.actor.name, counted.claimed_client, counted.tenant) = (None, None, None);
        }
        let new = || Count { times: 0, first: now, last: now, addresses: BTreeSet::new() };
        let count = counts.entry(counted).or_insert_with(new);
        (count.times, count.last) = (count.times + 1, now);
        if count.addresses.len() < ADDRESSES_MAX {
            count.addresses.extend(address);
        }
    }

    /// Returns one event for each if the window is over, or in any case with `all`.
    pub(super) fn take_due(&self, now: Timestamp, all: bool) -> Vec<Event> {
        let mut counts = self.0.lock();
        let is_over = |count: &Count| now.duration_since(count.first).unsigned_abs() >= WINDOW;
        if !all && !counts.values().any(is_over) {
            return Vec::new();
        }
        counts.drain().map(|(counted, count)| event(counted, count, now)).collect()
    }
}

fn event(counted: CountedEvent, count: Count, now: Timestamp) -> Event {
    let CountedEvent { event_type, resource, mut actor, claimed_client, tenant } = counted;
    let Count { times, first, last, addresses } = count;
    let description = match event_type {
        ADMIN_CALLED => format!("{} of {resource}", pluralize(times, "call")),
        _ => format!("{} refused: {resource}", pluralize(times, "request")),
    };
    if let (1, Some(only)) = (addresses.len(), addresses.first()) {
        actor.address = Some(*only);
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let event = Event::new(event_type, resource, now, description)
        .by(actor)
        .with("count", times)
        .with("first", first.to_string())
        .with("last", last.to_string())
        .with("tenant", tenant)
        .with("addresses", addresses);
    claimed_client.into_iter().fold(event, |event, claimed| event.with("claimed_client", claimed))
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::audit::{AUTHENTICATION_FAILED, Source};

    fn counted(client: usize) -> CountedEvent {
        let actor = Actor { source: Source::Client, name: Some(format!("c{client}")), address: None };
        let resource = "client_unauthenticated".to_owned();
        CountedEvent { event_type: AUTHENTICATION_FAILED, resource, actor, claimed_client: None, tenant: None }
    }

    #[test]
    fn failures_are_recorded_once_a_minute_with_their_count() {
        let (counts, start) = (EventCounts::default(), Timestamp::UNIX_EPOCH);
        let at = |second: i64| start + second.seconds();
        for second in 0..30 {
            counts.add(counted(1), Some([192, 0, 2, 1].into()), at(second));
        }
        assert!(counts.take_due(at(59), false).is_empty());
        let events = counts.take_due(at(60), false);
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&event.data["count"], &event.data["last"]), (&30.into(), &"1970-01-01T00:00:29Z".into()));
        assert_eq!(event.actor.address, Some([192, 0, 2, 1].into()));
        assert!(counts.take_due(at(200), true).is_empty());
    }

    #[test]
    fn events_beyond_the_bound_are_counted_together() {
        let counts = EventCounts::default();
        for client in 0..200 {
            counts.add(counted(client), None, Timestamp::UNIX_EPOCH);
        }
        let events = counts.take_due(Timestamp::UNIX_EPOCH, true);
        assert_eq!(events.len(), EVENTS_MAX + 1);
        let together = events.iter().find(|event| event.actor.name.is_none()).unwrap();
        assert_eq!(together.data["count"], 150);
    }
}
