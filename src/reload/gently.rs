//! Work beside the traffic, not before it.
//! Who gives way to whom?

use tokio::sync::oneshot;
use tracing::warn;

/// Steps by which traffic goes before reloads, of 19 (nice(2)).
const NICENESS: i32 = 10;

/// Does what may take a second on a thread that gives way to those which carry traffic: to read a hundred thousand
/// routes, or to free them.
pub(super) fn gently<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (told, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
        // Of this thread alone (nice(2), C library/kernel differences).
        let _ = rustix::process::nice(NICENESS);
        let _ = told.send(work());
    });
    if let Err(fault) = thread {
        warn!("no thread to read the configuration on: {fault}");
    }
    outcome
}
