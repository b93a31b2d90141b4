//! Whether the name servers respond at all, told apart from a name whose own servers are slow.
//! Is this an outage of DNS, or of one name?

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A probe that was sent this long ago and has no response makes silence an outage for those who give up now.
const PROBE_GRACE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct ServerHealth(Mutex<NameServerState>);

#[derive(Default)]
struct NameServerState {
    /// The last response of any server to any question.
    last_response: Option<Instant>,
    /// When the probes that are under way began.
    probing: Option<Instant>,
    /// Since when no server responds. `None`: one does, as far as is known.
    silent: Option<Instant>,
}

impl ServerHealth {
    pub(super) fn responded(&self) {
        let mut state = self.0.lock();
        state.last_response = Some(Instant::now());
        state.silent = None;
    }

    pub(super) fn has_responded_since(&self, moment: Instant) -> bool {
        self.0.lock().last_response.is_some_and(|last| last >= moment)
    }

    /// True if the caller is to probe the servers: nobody does yet.
    pub(super) fn begin_probing(&self) -> bool {
        let mut state = self.0.lock();
        let begins = state.probing.is_none();
        state.probing.get_or_insert_with(Instant::now);
        begins
    }

    pub(super) fn end_probing(&self) {
        self.0.lock().probing = None;
    }

    /// No server has responded since `moment`, not even to a probe.
    pub(super) fn silent_since(&self, moment: Instant) {
        let mut state = self.0.lock();
        if state.last_response.is_none_or(|last| last < moment) {
            state.silent.get_or_insert(moment);
        }
    }

    pub(super) fn outage(&self) -> Option<Duration> {
        self.0.lock().silent.map(|since| since.elapsed())
    }

    /// Whether a question that was first asked at `asked` fails because no server responds to anything.
    pub(super) fn explains(&self, asked: Instant) -> bool {
        let state = self.0.lock();
        let is_probed = state.probing.is_some_and(|since| since.elapsed() >= PROBE_GRACE);
        state.silent.is_some() || is_probed && state.last_response.is_none_or(|last| last < asked)
    }
}
