//! The health of the configured name servers, as opposed to a name whose own servers are slow.
//! Is this an outage of DNS, or of one name?

use std::time::{Duration, Instant};

use crate::panics::Mutex;

/// The time without a response to a probe after which a query timeout counts as an outage.
const PROBE_GRACE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct ServerHealth(Mutex<NameServerState>);

#[derive(Default)]
struct NameServerState {
    /// The last response of any server to any query.
    last_response: Option<Instant>,
    /// The start of the probes in flight.
    probing: Option<Instant>,
    /// The start of the outage. `None`: no outage is known.
    silent_since: Option<Instant>,
}

impl ServerHealth {
    pub(super) fn responded(&self) {
        let mut state = self.0.lock();
        state.last_response = Some(Instant::now());
        state.silent_since = None;
    }

    pub(super) fn has_responded_since(&self, moment: Instant) -> bool {
        self.0.lock().last_response.is_some_and(|last| last >= moment)
    }

    /// Returns whether the caller must probe the servers. `false`: probes are in flight.
    pub(super) fn begin_probing(&self) -> bool {
        let mut state = self.0.lock();
        let begins = state.probing.is_none();
        state.probing.get_or_insert_with(Instant::now);
        begins
    }

    pub(super) fn end_probing(&self) {
        self.0.lock().probing = None;
    }

    /// Records that no server has responded since `moment`, not even to a probe.
    pub(super) fn observe_silence(&self, moment: Instant) {
        let mut state = self.0.lock();
        if state.last_response.is_none_or(|last| last < moment) {
            state.silent_since.get_or_insert(moment);
        }
    }

    pub(super) fn outage(&self) -> Option<Duration> {
        self.0.lock().silent_since.map(|since| since.elapsed())
    }

    /// Returns whether a query that was started at `started` fails because no server responds to any query.
    pub(super) fn is_outage_since(&self, started: Instant) -> bool {
        let state = self.0.lock();
        let is_probed = state.probing.is_some_and(|since| since.elapsed() >= PROBE_GRACE);
        state.silent_since.is_some() || is_probed && state.last_response.is_none_or(|last| last < started)
    }
}
